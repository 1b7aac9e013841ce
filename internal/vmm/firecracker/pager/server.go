package pager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/vmm"
)

const (
	maxZeros   = 1 << 20   // that a fault brings at once; they take up no memory
	maxBatch   = 256 << 10 // of the hot set that is brought at once
	maxWorkers = 8
)

// server brings one VM its memory.
type server struct {
	src   Source
	space *space
	count *counters

	hot       *HotSet // nil: none to prefetch
	hotErr    error   // why hot is not used, if one was given
	firstOnce sync.Once
	first     chan struct{} // closed when the first fault was served

	mu       sync.Mutex
	recorder *recorder // nil: nothing is recorded, or no longer
	recorded *HotSet
	onRecord func() // called once, when recorded is there
}

// serve serves faults until ctx ends, and then answers nil; or until it cannot go on, and says why. It answers errGone when
// the VMM has no address space any more.
func (s *server) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	run := func(fn func(context.Context) error) {
		wg.Go(func() {
			if err := fn(ctx); err != nil {
				cancel(err)
			}
		})
	}
	run(func(context.Context) error { return s.space.watch() })
	for range min(maxWorkers, max(2, runtime.NumCPU())) {
		run(s.work)
	}
	if s.hot != nil {
		run(s.prefetch)
	}
	<-ctx.Done()
	s.space.faults.close()
	err := s.space.stop()
	wg.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// work serves faults, one at a time.
func (s *server) work(ctx context.Context) error {
	buf := make([]byte, max(window, len(s.space.huge)))
	for {
		f, ok := s.space.faults.take()
		if !ok {
			return nil
		}
		if err := s.resolve(ctx, f, buf); err != nil {
			return err
		}
		s.count.served(time.Since(f.at))
		s.firstOnce.Do(func() { close(s.first) })
	}
}

// resolve brings the page of a fault, and the window around it.
func (s *server) resolve(ctx context.Context, f fault, buf []byte) error {
	r, ok := s.space.find(f.addr)
	if !ok {
		return fmt.Errorf("pager: a fault at %#x, which is outside of the guest's memory", f.addr)
	}
	within := int64(f.addr - r.addr)
	off, end := r.off+within-within%r.page, r.off+int64(r.size)
	s.note(off)
	if n := s.space.gone(off, min(end-off, maxZeros)); n > 0 {
		_, err := s.space.fill(ctx, r, off, n, nil, off)
		return err
	}
	if r.page > vmm.PageSize {
		return s.resolveHuge(ctx, r, off, buf)
	}
	from, to := max(off-off%window, r.off), min(off-off%window+window, end)
	for from < to {
		n, zero, err := s.src.Run(from, buf[:to-from])
		if err != nil {
			return err
		}
		var data []byte
		if zero {
			n = min(n, end-from, maxZeros)
		} else {
			data = buf[:n]
		}
		if _, err := s.space.fill(ctx, r, from, n, data, off); err != nil {
			return err
		}
		from += n
	}
	return nil
}

// resolveHuge brings one huge page, which comes as a whole.
func (s *server) resolveHuge(ctx context.Context, r region, off int64, buf []byte) error {
	buf = buf[:r.page]
	zeros := true
	for at := int64(0); at < r.page; {
		n, zero, err := s.src.Run(off+at, buf[at:])
		if err != nil {
			return err
		}
		if n = min(n, r.page-at); zero {
			clear(buf[at : at+n])
		}
		zeros = zeros && zero
		at += n
	}
	if zeros {
		buf = nil
	}
	_, err := s.space.fill(ctx, r, off, r.page, buf, off)
	return err
}

// prefetch brings the hot set, once the first fault was served, and gives way to faults.
func (s *server) prefetch(ctx context.Context) error {
	select {
	case <-s.first:
	case <-ctx.Done():
		return nil
	}
	buf := make([]byte, max(maxBatch, len(s.space.huge)))
	for rest := s.hot.Windows; len(rest) > 0; {
		for !s.space.faults.empty() {
			if err := sleep(ctx, 100*time.Microsecond); err != nil {
				return nil
			}
		}
		// What was touched in a row is brought in a row.
		n := 1
		for n < len(rest) && n < maxBatch/window && rest[n] == rest[n-1]+window {
			n++
		}
		if err := s.bring(ctx, rest[0], int64(n)*window, buf); err != nil {
			if ctx.Err() != nil || errors.Is(err, unix.ENOENT) { // ENOENT: the VMM has unmapped memory, as it does when it ends
				return nil
			}
			return err
		}
		rest = rest[n:]
	}
	return nil
}

// bring fills a stretch of RAM that nobody waits for.
func (s *server) bring(ctx context.Context, off, n int64, buf []byte) error {
	for end := min(off+n, s.src.Size()); off < end; {
		r, ok := s.space.at(off)
		if !ok {
			return fmt.Errorf("pager: no region holds %d", off)
		}
		if r.page > vmm.PageSize {
			// A huge page is touched as a whole, and so is its neighbour window that may come next.
			start := off - off%r.page
			if err := s.resolveHuge(ctx, r, start, buf); err != nil {
				return err
			}
			off = start + r.page
			continue
		}
		step := min(end, r.off+int64(r.size)) - off
		got, zero, err := s.src.Run(off, buf[:step])
		if err != nil {
			return err
		}
		got = min(got, step)
		var data []byte
		if !zero {
			data = buf[:got]
		}
		filled, err := s.space.fill(ctx, r, off, got, data, -1)
		s.count.prefetched.Add(filled / vmm.PageSize)
		if err != nil {
			return err
		}
		off += got
	}
	return nil
}

// note records a touched page.
func (s *server) note(off int64) {
	s.mu.Lock()
	full := s.recorder != nil && !s.recorder.note(off)
	s.mu.Unlock()
	if full {
		s.endRecording()
	}
}

// endRecording makes what was recorded the hot set. Only the first call does anything.
func (s *server) endRecording() {
	s.mu.Lock()
	r := s.recorder
	s.recorder = nil
	if r != nil {
		s.recorded = &HotSet{Size: s.src.Size(), Windows: r.windows}
	}
	s.mu.Unlock()
	if r != nil {
		s.onRecord()
	}
}

// hotSet is what was recorded, so far if need be; nil when nothing is.
func (s *server) hotSet() *HotSet {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.recorded != nil:
		return s.recorded
	case s.recorder != nil:
		return &HotSet{Size: s.src.Size(), Windows: append([]int64(nil), s.recorder.windows...)}
	}
	return nil
}

func (s *server) isRecorded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.recorded != nil
}

// stats is what was done so far.
func (s *server) stats() Stats {
	st := s.count.stats()
	if s.hot != nil {
		st.HotSet = len(s.hot.Windows)
	}
	if s.hotErr != nil {
		st.HotSetError = s.hotErr.Error()
	}
	return st
}

// newLogger writes to the pager's log file, which is its standard error.
func newLogger() *slog.Logger { return slog.New(slog.NewTextHandler(os.Stderr, nil)) }
