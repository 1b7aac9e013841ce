package pager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sort"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// errGone says that the address space of the VMM is no more.
var errGone = errors.New("the VMM has ended")

// space is guest RAM in the address space of a VMM, whose missing pages are filled in.
type space struct {
	u       uffd
	f       *os.File // u, for waiting
	regions []region // ascending by address
	count   *counters

	// order is held for writing while events are taken from the kernel, and for reading while pages are filled. A removal
	// goes on in the VMM as soon as it was taken, so no page may be filled between that and its mark in removed.
	order   sync.RWMutex
	removed []uint64 // a bit for each page of RAM that the VMM has given back, and that is zeros since

	faults *queue
	huge   []byte // zeros, for pages that the kernel cannot fill with zeros by itself
}

// newSpace fills in what the descriptor sees missing. It is never closed here, not even on error.
func newSpace(fd int, regions []region, size int64, count *counters) (*space, error) {
	s := &space{u: uffd(fd), regions: regions, count: count, faults: newQueue(), removed: make([]uint64, (size/vmm.PageSize+63)/64)}
	// A descriptor of another kind knows no such call.
	if err := s.u.wake(regions[0].addr, regions[0].page); err != nil {
		return nil, badHandshake("its descriptor is no userfaultfd in use: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("pager: %w", err)
	}
	for _, r := range regions {
		if r.page > int64(len(s.huge)) && r.page > vmm.PageSize {
			s.huge = make([]byte, r.page)
		}
	}
	s.f = os.NewFile(uintptr(fd), "userfaultfd")
	return s, nil
}

// find tells in which region an address is.
func (s *space) find(addr uint64) (region, bool) {
	i := sort.Search(len(s.regions), func(i int) bool { return s.regions[i].end() > addr })
	if i == len(s.regions) || addr < s.regions[i].addr {
		return region{}, false
	}
	return s.regions[i], true
}

// at tells in which region an offset of RAM is.
func (s *space) at(off int64) (region, bool) {
	for _, r := range s.regions {
		if off >= r.off && off-r.off < int64(r.size) {
			return r, true
		}
	}
	return region{}, false
}

// watch takes events until stop: faults go to the queue, removals are marked.
func (s *space) watch() error {
	raw, err := s.f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Read(func(uintptr) bool {
		failed = s.take()
		return failed != nil
	})
	if failed != nil {
		return failed
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// stop makes watch return.
func (s *space) stop() error { return s.f.SetReadDeadline(time.Unix(1, 0)) }

// take takes all events that are there.
func (s *space) take() error {
	buf := make([]byte, 64*messageSize)
	s.order.Lock()
	defer s.order.Unlock()
	for {
		n, err := unix.Read(int(s.u), buf)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("pager: read events: %w", err)
		case n == 0 || n%messageSize != 0:
			return fmt.Errorf("pager: read events: %d bytes", n)
		}
		now := time.Now()
		for b := buf[:n]; len(b) > 0; b = b[messageSize:] {
			e, err := parseEvent(b[:messageSize])
			if err != nil {
				return fmt.Errorf("pager: the kernel sent %w", err)
			}
			if e.remove {
				s.mark(e.start, e.end)
			} else {
				s.faults.put(fault{addr: e.start, at: now})
			}
		}
	}
}

// mark remembers that the VMM gave the pages of a range back. Callers hold order.
func (s *space) mark(start, end uint64) {
	s.count.removals.Add(1)
	for _, r := range s.regions {
		from, to := max(start, r.addr), min(end, r.end())
		if from >= to {
			continue
		}
		from -= from % uint64(r.page)
		to += (uint64(r.page) - to%uint64(r.page)) % uint64(r.page)
		first, last := r.off+int64(from-r.addr), r.off+int64(to-r.addr)
		for p := first / vmm.PageSize; p < last/vmm.PageSize; p++ {
			s.removed[p/64] |= 1 << (p % 64)
		}
	}
}

func (s *space) isRemoved(off int64) bool {
	p := off / vmm.PageSize
	return s.removed[p/64]&(1<<(p%64)) != 0
}

// stretch tells whether the page at off was removed, and how far within n bytes the pages after it are alike.
func (s *space) stretch(off, n int64) (same int64, removed bool) {
	removed = s.isRemoved(off)
	for same = vmm.PageSize; same < n && s.isRemoved(off+same) == removed; {
		same += vmm.PageSize
	}
	return min(same, n), removed
}

// gone tells how many bytes from off on, of at most n, the VMM has given back.
func (s *space) gone(off, n int64) int64 {
	s.order.RLock()
	defer s.order.RUnlock()
	if n, removed := s.stretch(off, n); removed {
		return n
	}
	return 0
}

// fill gives the guest n bytes of RAM from off on, which are in r: data, or zeros if that is nil. Pages that are there stay
// as they are. Pages that the VMM has given back are not given what they once held: they become zeros if wanted is among
// them and stay missing else. It answers errGone when the VMM has ended.
func (s *space) fill(ctx context.Context, r region, off, n int64, data []byte, wanted int64) (filled int64, err error) {
	pause := 20 * time.Microsecond
	for n > 0 {
		done, skip, err := s.step(r, off, n, data, wanted)
		switch {
		case err == nil:
			pause = 20 * time.Microsecond
			filled += done
		case errors.Is(err, unix.EEXIST):
			skip = r.page
			s.count.exists.Add(r.page / vmm.PageSize)
			// It came between the fault of a thread and now, and maybe when nobody knew yet that the thread waits.
			if off == wanted {
				if err := s.u.wake(r.addr+uint64(off-r.off), r.page); err != nil && !errors.Is(err, unix.ESRCH) {
					return filled, fmt.Errorf("pager: wake: %w", err)
				}
			}
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM) && pause < time.Second:
			// The VMM is removing pages, or its control group is at its limit and reclaims.
			s.count.again.Add(1)
			if err := s.take(); err != nil {
				return filled, err
			}
			if err := sleep(ctx, pause); err != nil {
				return filled, err
			}
			if pause *= 2; errors.Is(err, unix.EAGAIN) {
				pause = min(pause, time.Millisecond)
			}
		case errors.Is(err, unix.ESRCH):
			return filled, errGone
		case errors.Is(err, unix.ENOMEM):
			return filled, spore.Errorf(spore.CodeNoSpace, "there is no memory left for the VM").WithCause(err).
				WithHint("raise the memory limit of its control group, or end other sandboxes")
		default:
			return filled, fmt.Errorf("pager: fill %d bytes at %d: %w", n, off, err)
		}
		off, n = off+done+skip, n-done-skip
		if data != nil {
			data = data[done+skip:]
		}
	}
	return filled, nil
}

// step is one call to the kernel for fill: it answers how much was filled, and how much is to be left out.
func (s *space) step(r region, off, n int64, data []byte, wanted int64) (done, skip int64, err error) {
	s.order.RLock()
	defer s.order.RUnlock()
	n, removed := s.stretch(off, n)
	addr := r.addr + uint64(off-r.off)
	if removed {
		if wanted < off || wanted >= off+n {
			return 0, n, nil
		}
		data = nil
	}
	count := &s.count.zeroed
	switch {
	case data != nil:
		count = &s.count.copied
		done, err = s.u.copyTo(addr, data[:n])
	case r.page > vmm.PageSize:
		done, err = s.u.copyTo(addr, s.huge[:r.page])
	default:
		done, err = s.u.zero(addr, n)
	}
	count.Add(done / vmm.PageSize)
	return done, 0, err
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
