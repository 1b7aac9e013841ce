package memory

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"runtime/debug"
	"time"

	"github.com/sporevm/spore"
)

// place is a job's place in the queue, from its enqueueing until its last run is over.
type place struct {
	job       string
	line      int64 // places of the same time come in this order
	attempts  int   // at most
	attempt   int   // the run under way or, between two, the last one; 0 before the first
	due       time.Time
	run       *run // nil: it waits
	cancelled bool // it is not to be run again
}

// run is one attempt that began.
type run struct {
	store   *Store
	job     string
	attempt int
	last    bool
	ctx     context.Context
	cancel  context.CancelCauseFunc
}

var errCancelled = errors.New("the job was cancelled")

// dead says whether a run is nobody's any more. The run of a controller is its own until it is fenced, however long it may have
// been silent; that of a nameless store, until the store is closed.
func (r *run) dead(tx *tx) bool {
	if id := r.store.opt.Controller; id != "" {
		c := tx.controller(id)
		return c == nil || c.Fenced
	}
	return r.store.closed.Load()
}

var places = layout[place]{
	key: func(p *place) key { return key{a: p.job} },
	indexes: []index[place]{
		placeWaiting: func(p *place) (key, bool) {
			return key{n: nanos(p.due), b: string(binary.BigEndian.AppendUint64(nil, uint64(p.line)))}, p.run == nil
		},
		placeRunning: func(p *place) (key, bool) { return key{n: p.line}, p.run != nil },
	},
}

const (
	placeWaiting = iota
	placeRunning
)

func (tx *tx) place(jobID string) *place { return tx.state.places.rows.get(key{a: jobID}) }

func (tx *tx) putPlace(p place) { places.put(&tx.state.places, tx.edit, &p) }

func (tx *tx) Enqueue(jobID string, attempts int) error {
	if attempts < 1 {
		return spore.Invalidf("attempts", "%d is out of range", attempts).WithHint("at least 1")
	}
	if err := tx.readable(); err != nil {
		return err
	}
	if tx.job(jobID) == nil {
		return unknown("job", jobID)
	}
	if err := tx.writable(); err != nil {
		return err
	}
	if tx.place(jobID) != nil {
		return nil
	}
	tx.state.lastLine++
	tx.putPlace(place{job: jobID, line: tx.state.lastLine, attempts: attempts, due: keepTime(tx.store.opt.Now())})
	tx.woken = true
	return nil
}

// waiting walks through the places that wait, in the order in which their turns come.
func (s *state) waiting() iter.Seq[*place] { return s.places.indexes[placeWaiting].up(everything) }

// first is the place whose turn comes next.
func (s *Store) first() (p place, ok bool) {
	for p := range s.db.now.Load().waiting() {
		return *p, true
	}
	return place{}, false
}

var errNotDue = errors.New("the job is not due")

// begin starts the run of a job that is due. A fenced controller begins nothing: it could do nothing any more.
func (tx *tx) begin(jobID string, w *work) (*run, error) {
	if c := tx.controller(tx.store.opt.Controller); c != nil && c.Fenced {
		return nil, fenced(c.ID)
	}
	p := tx.place(jobID)
	if p == nil || p.run != nil || p.due.After(tx.store.opt.Now()) {
		return nil, errNotDue
	}
	next := *p
	next.attempt++
	next.run = &run{store: tx.store, job: p.job, attempt: next.attempt, last: next.attempt >= p.attempts}
	next.run.ctx, next.run.cancel = context.WithCancelCause(w.ctx)
	tx.putPlace(next)
	return next.run, nil
}

// revive puts the places of runs that are nobody's back in line. When work starts, so are those that the same controller
// seems to have under way.
func (tx *tx) revive(starting bool) {
	own := tx.store.opt.Controller
	var dead []*place
	for p := range tx.state.places.indexes[placeRunning].up(everything) {
		left := starting && (tx.store.opt.Alone || own != "" && p.run.store.opt.Controller == own)
		if left || p.run.dead(tx) {
			dead = append(dead, p)
		}
	}
	for _, p := range dead {
		if p.cancelled {
			places.drop(&tx.state.places, tx.edit, p)
			continue
		}
		next := *p
		next.run, next.due = nil, keepTime(tx.store.opt.Now())
		tx.putPlace(next)
		tx.woken = true
	}
}

// settle writes down what became of a run.
func (tx *tx) settle(r *run, failure error) {
	p := tx.place(r.job)
	if p == nil || p.run != r { // it was taken for dead
		return
	}
	next := *p
	next.run = nil
	switch {
	case failure == nil || p.cancelled:
		places.drop(&tx.state.places, tx.edit, p)
		return
	case r.ctx.Err() != nil: // the store stops; that is not the job's failure
		next.attempt--
		next.due = keepTime(tx.store.opt.Now())
	case p.attempt >= p.attempts:
		places.drop(&tx.state.places, tx.edit, p)
		return
	default:
		next.due = keepTime(tx.store.opt.Now().Add(tx.store.opt.Backoff(p.attempt)))
	}
	tx.putPlace(next)
	tx.woken = true
}

// quietly is update for the queue's own bookkeeping, which nobody can call off and which is no change of rows.
func (s *Store) quietly(fn func(tx *tx)) error {
	woken, err := s.update(context.Background(), func(tx *tx) error { fn(tx); return nil })
	if woken {
		s.db.wake()
	}
	return err
}

func (s *Store) CancelWork(ctx context.Context, jobID string) error {
	_, err := s.update(ctx, func(tx *tx) error {
		p := tx.place(jobID)
		switch {
		case p == nil && tx.job(jobID) == nil:
			return unknown("job", jobID)
		case p == nil:
		case p.run == nil:
			places.drop(&tx.state.places, tx.edit, p)
		default:
			next := *p
			next.cancelled = true
			tx.putPlace(next)
			p.run.cancel(errCancelled)
		}
		return nil
	})
	return err
}

// perform calls the function of a run and settles it. The error is the function's.
func (s *Store) perform(w *work, r *run) error {
	failure := s.guard(r.job, func() error { return w.run(r.ctx, r.job, r.attempt, r.last) })
	if failure != nil && r.ctx.Err() == nil {
		s.opt.Logger.Warn("an attempt at a job failed", "job", r.job, "attempt", r.attempt, "err", failure)
	}
	err := s.quietly(func(tx *tx) { tx.settle(r, failure) })
	r.cancel(nil)
	if err != nil && !errors.Is(err, ErrClosed) { // the run of a store that was killed is for others to settle
		s.opt.Logger.Error("the end of an attempt could not be written down", "job", r.job, "err", err)
	}
	return failure
}

// guard turns a panic of fn into an error and logs where it came from.
func (s *Store) guard(jobID string, fn func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			s.opt.Logger.Error("a job panicked", "job", jobID, "panic", v, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", v)
		}
	}()
	return fn()
}

// backoff is 1, 2, 4, ... seconds, at most a minute.
func backoff(attempt int) time.Duration {
	return min(time.Second<<min(max(attempt-1, 0), 6), time.Minute)
}
