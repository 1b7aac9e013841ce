package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// guestDisk is a drive as the guest uses it.
type guestDisk struct {
	g *guest
	d *drive
}

func (g *guest) disk(id string) (guestDisk, error) {
	for _, d := range g.m.drives {
		if d.Config.ID == id {
			return guestDisk{g, d}, nil
		}
	}
	return guestDisk{}, fmt.Errorf("there is no drive %s", id)
}

// request is how much a guest asks of a drive at once, at most.
const request = 128 << 10

// each cuts a transfer in requests. What waits for the limiter does not hold up a pause.
func (k guestDisk) each(p []byte, move func(done, n int) (int, error)) (int, error) {
	for done := 0; done < len(p); {
		n := min(request, len(p)-done)
		k.d.pace.take(n)
		moved, err := k.g.step(func() (int, error) { return move(done, n) })
		if done += moved; err != nil {
			return done, err
		}
	}
	return len(p), nil
}

// ReadAt reads no faster than the limiter lets it.
func (k guestDisk) ReadAt(p []byte, off int64) (int, error) {
	return k.each(p, func(done, n int) (int, error) { return k.d.file.ReadAt(p[done:done+n], off+int64(done)) })
}

// WriteAt writes no faster than the limiter lets it.
func (k guestDisk) WriteAt(p []byte, off int64) (int, error) {
	return k.each(p, func(done, n int) (int, error) { return k.d.file.WriteAt(p[done:done+n], off+int64(done)) })
}

// rate reads and writes for a while, in four places at once, and tells bytes, operations and microseconds.
func (k guestDisk) rate(span time.Duration, size int) (string, error) {
	quarter := k.d.Sectors << 9 / 4
	if int64(size) >= quarter {
		return "", errors.New("the disk is too small")
	}
	var bytes, ops atomic.Int64
	var errs [4]error
	var all sync.WaitGroup
	began := time.Now()
	for i := range errs {
		all.Go(func() {
			buf := make([]byte, size)
			for n := int64(0); errs[i] == nil && time.Since(began) < span; n++ {
				off := int64(i)*quarter + n*2*int64(size)%(quarter-int64(size))
				if n%2 == 0 {
					_, errs[i] = k.WriteAt(buf, off)
				} else {
					_, errs[i] = k.ReadAt(buf, off)
				}
				bytes.Add(int64(size))
				ops.Add(1)
			}
		})
	}
	all.Wait()
	return fmt.Sprint(bytes.Load(), ops.Load(), time.Since(began).Microseconds()), errors.Join(errs[:]...)
}

// A flood is writes that the guest has handed to the drive and that are not done. Like a queue of requests it stands in guest
// memory, so that it goes on in a VM that is loaded: the size of each write, and a bit for each one that is missing.
const (
	floodSizeAt = 8
	floodBitsAt = 16
	floodMost   = 64
)

// flood is the running one.
type flood struct {
	mu   sync.Mutex
	done chan error // gets what became of it
}

func (k guestDisk) flood(f *flood, size, count int) error {
	if count < 1 || count > floodMost {
		return fmt.Errorf("%d writes are not from 1 to %d", count, floodMost)
	}
	var head [16]byte
	binary.LittleEndian.PutUint64(head[:], uint64(size))
	binary.LittleEndian.PutUint64(head[8:], 1<<count-1)
	if _, err := k.g.WriteAt(head[:], floodSizeAt); err != nil {
		return err
	}
	go k.goOn(f)
	return nil
}

// goOn does the writes of a flood that are missing, if there is one.
func (k guestDisk) goOn(f *flood) {
	var head [16]byte
	if _, err := k.g.ReadAt(head[:], floodSizeAt); err != nil {
		f.done <- err
		return
	}
	size, missing := binary.LittleEndian.Uint64(head[:]), binary.LittleEndian.Uint64(head[8:])
	if missing == 0 {
		return
	}
	var all sync.WaitGroup
	errs := make([]error, floodMost)
	for i := range floodMost {
		if missing>>i&1 == 0 {
			continue
		}
		all.Go(func() {
			_, errs[i] = k.WriteAt(make([]byte, size), int64(i)*int64(size))
			f.mu.Lock()
			defer f.mu.Unlock()
			missing &^= 1 << i
			var bits [8]byte
			binary.LittleEndian.PutUint64(bits[:], missing)
			if _, err := k.g.WriteAt(bits[:], floodBitsAt); err != nil {
				errs[i] = errors.Join(errs[i], err)
			}
		})
	}
	all.Wait()
	f.done <- errors.Join(errs...)
}
