package memory

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/sporevm/spore"
)

// lastWords is how long cancelled runs have to return.
const lastWords = 10 * time.Second

// work is what a store does from Work to Stop.
type work struct {
	store   *Store
	run     func(ctx context.Context, jobID string, attempt int, last bool) error
	ctx     context.Context // of the runs
	cancel  context.CancelFunc
	workers int

	bell   chan struct{} // there may be something to do
	halted chan struct{} // take no more
	once   sync.Once     // to close halted
	idle   chan struct{} // closed when it is over and the last run has returned

	mu    sync.Mutex
	busy  int  // workers that run something
	ended bool // nothing begins any more
	runs  sync.WaitGroup
}

func (s *Store) Work(ctx context.Context, workers int, fn func(ctx context.Context, jobID string, attempt int, last bool) error) error {
	s.workMu.Lock()
	defer s.workMu.Unlock()
	if w := s.working.Load(); w != nil && !w.over() {
		return spore.Errorf(spore.CodeConflict, "the store works already")
	}
	if workers < 1 {
		return spore.Invalidf("workers", "%d is out of range", workers).WithHint("at least 1")
	}
	if err := s.usable(ctx); err != nil {
		return err
	}
	w := &work{
		store: s, run: fn, workers: workers, bell: make(chan struct{}, 1), halted: make(chan struct{}), idle: make(chan struct{}),
	}
	w.ctx, w.cancel = context.WithCancel(ctx)
	if err := s.quietly(func(tx *tx) { tx.revive(true) }); err != nil {
		return err
	}
	s.working.Store(w)
	go w.take()
	return nil
}

// over says whether nothing is left of it.
func (w *work) over() bool {
	select {
	case <-w.idle:
		return true
	default:
		return false
	}
}

// look makes w look at the queue.
func (w *work) look() {
	select {
	case w.bell <- struct{}{}:
	default:
	}
}

func (w *work) halt() { w.once.Do(func() { close(w.halted) }) }

// take starts what is due, whenever something is, until it is halted.
func (w *work) take() {
	defer close(w.idle)
	defer w.runs.Wait()
	defer w.end()
	for {
		var alarm <-chan time.Time
		if !w.store.opt.Stepped {
			if next, waits := w.start(); waits {
				alarm = time.After(next.Sub(w.store.opt.Now()) + w.store.late)
			}
		}
		select {
		case <-w.bell:
		case <-alarm:
		case <-w.halted:
			return
		case <-w.ctx.Done():
			return
		}
	}
}

func (w *work) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
}

// start starts as many due jobs as there are workers free. When one is free still, it says when the next job is due.
func (w *work) start() (next time.Time, waits bool) {
	for w.free() {
		p, ok := w.store.first()
		if !ok || p.due.After(w.store.opt.Now()) {
			return p.due, ok
		}
		r, err := w.begin(p.job)
		switch {
		case errors.Is(err, errNotDue): // another store was faster
			continue
		case err != nil: // the store was closed, or its controller fenced
			return time.Time{}, false
		}
		go func() {
			defer w.done()
			_ = w.store.perform(w, r) // it logs what failed
		}()
	}
	return time.Time{}, false
}

func (w *work) free() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.busy < w.workers && w.ctx.Err() == nil
}

// begin begins the run of a job that is due. What it answers must be performed, and then done.
func (w *work) begin(jobID string) (*run, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return nil, ErrClosed
	}
	var r *run
	_, err := w.store.update(context.Background(), func(tx *tx) (err error) {
		r, err = tx.begin(jobID, w)
		return err
	})
	if err != nil {
		return nil, err
	}
	w.busy++
	w.runs.Add(1)
	return r, nil
}

func (w *work) done() {
	w.mu.Lock()
	w.busy--
	w.mu.Unlock()
	w.look()
	w.runs.Done()
}

func (s *Store) Stop(ctx context.Context) error {
	s.workMu.Lock()
	defer s.workMu.Unlock()
	w := s.working.Load()
	if w == nil {
		return nil
	}
	w.halt()
	select {
	case <-w.idle:
	case <-ctx.Done():
		w.cancel()
		select {
		case <-w.idle:
		case <-time.After(lastWords):
			return errors.New("jobs still run although they were cancelled")
		}
	}
	w.cancel()
	s.working.Store(nil)
	return nil
}
