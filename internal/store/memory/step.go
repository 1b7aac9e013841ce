package memory

import (
	"context"
	"errors"
	"time"

	"github.com/sporevm/spore"
)

// A stepped store runs a job when it is told to, so that a simulation decides what happens in which order.

// Due answers the jobs that may start at a time, in the order in which they would.
func (s *Store) Due(now time.Time) []string {
	var due []string
	for p := range s.db.now.Load().waiting() {
		if p.due.After(now) {
			break
		}
		due = append(due, p.job)
	}
	return due
}

// NextDue is when the first of the waiting jobs may start; false when none waits.
func (s *Store) NextDue() (time.Time, bool) {
	p, ok := s.first()
	return p.due, ok
}

// RunOne runs a job that is due now, with the function that Work was given, on the caller's goroutine, and answers what the
// function did. When ctx ends, so does the run, as by a stop of the store. It is spore.CodeNotFound when the job is not due, and
// spore.CodeConflict when the store does not work.
func (s *Store) RunOne(ctx context.Context, jobID string) error {
	w := s.working.Load()
	if w == nil || w.ctx.Err() != nil {
		return spore.Errorf(spore.CodeConflict, "the store does not work")
	}
	r, err := w.begin(jobID)
	switch {
	case errors.Is(err, errNotDue):
		return spore.Errorf(spore.CodeNotFound, "job %s is not due", jobID)
	case err != nil:
		return err
	}
	defer w.done()
	defer context.AfterFunc(ctx, func() { r.cancel(ctx.Err()) })()
	return s.perform(w, r)
}
