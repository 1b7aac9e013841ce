package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
)

// shift is this server's part in a queue that several servers work at: which runs are its own, and which are nobody's any more.
//
// The database says of each run which controller began it, at which attempt. A run is a controller's own while the database
// says so and the controller is not fenced; what comes of it after that is of no account.
type shift struct {
	controller string
	river      *riverpgxv5.Driver
	writer     *writer
	interrupt  func(jobID string)
	logger     *slog.Logger
	looks      chan struct{} // asks for a look at the queue

	held    sync.Mutex    // keeps fetches and looks apart
	places  map[int64]int // those that this process has fetched and not settled, with their attempts
	known   bool          // whether the controller has been seen to have a row
	telling context.Context
	giveUp  context.CancelFunc // what is not settled need not be any more

	tending sync.Mutex
	quit    context.CancelFunc
	ended   chan struct{} // nil: nobody tends the queue
}

// interval is how often a server looks for runs that are nobody's. What it is told of, it looks for at once.
const interval = 5 * time.Second

func newShift(controller string, river *riverpgxv5.Driver, logger *slog.Logger) *shift {
	s := &shift{
		controller: controller, river: river, logger: logger, looks: make(chan struct{}, 1), places: make(map[int64]int),
	}
	s.telling, s.giveUp = context.WithCancel(context.Background())
	return s
}

// look asks for a look at the queue soon.
func (s *shift) look() {
	select {
	case s.looks <- struct{}{}:
	default:
	}
}

// begin is called when no run of this process is under way, before new ones are.
func (s *shift) begin(ctx context.Context) error {
	s.held.Lock()
	clear(s.places)
	s.giveUp()
	s.telling, s.giveUp = context.WithCancel(context.Background())
	s.held.Unlock()
	return s.tidy(ctx, true)
}

// cease gives up what cannot be told to the database.
func (s *shift) cease() {
	s.held.Lock()
	defer s.held.Unlock()
	s.giveUp()
}

// tend looks after the queue until ctx ends, or leave.
func (s *shift) tend(ctx context.Context) {
	s.leave()
	s.tending.Lock()
	defer s.tending.Unlock()
	ctx, s.quit = context.WithCancel(ctx)
	ended := make(chan struct{})
	s.ended = ended
	go func() {
		defer close(ended)
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
			case <-s.looks:
			case <-ctx.Done():
				return
			}
			if err := s.tidy(ctx, false); err != nil && ctx.Err() == nil && !isUnavailable(err) {
				s.logger.Warn("looking after the queue failed", "err", err)
			}
		}
	}()
}

func (s *shift) leave() {
	s.tending.Lock()
	defer s.tending.Unlock()
	if s.ended != nil {
		s.quit()
		<-s.ended
		s.ended = nil
	}
}

// Who began the present run of a place, and whether that controller is alive.
const (
	runner      = "attempted_by[array_upper(attempted_by, 1)]"
	runnerLives = "EXISTS (SELECT 1 FROM controllers WHERE id = " + runner + " AND fenced = 0)"
)

// backInLine puts running places back in line, or ends them when they were cancelled.
const backInLine = `UPDATE river_job SET
	state = (CASE WHEN metadata ? 'cancel_attempted_at' THEN 'cancelled' ELSE 'available' END)::river_job_state,
	finalized_at = CASE WHEN metadata ? 'cancel_attempted_at' THEN now() END,
	scheduled_at = CASE WHEN metadata ? 'cancel_attempted_at' THEN scheduled_at ELSE now() END,
	attempt = attempt - $2
	WHERE state = 'running' AND `

// tidy puts runs that are nobody's back in line, and interrupts those here whose cancellation did not get through.
func (s *shift) tidy(ctx context.Context, starting bool) error {
	s.held.Lock()
	defer s.held.Unlock()
	var cancelled []string
	err := s.writer.doSilently(ctx, func(c *conn) error {
		ctx, cancel := bounded(ctx)
		defer cancel()
		var err error
		cancelled, err = s.tidyIn(ctx, c.tx, starting)
		return c.failed(err)
	})
	if err != nil {
		return err
	}
	for _, job := range cancelled {
		s.interrupt(job)
	}
	return nil
}

func (s *shift) tidyIn(ctx context.Context, tx pgx.Tx, starting bool) (cancelled []string, err error) {
	// Nothing runs here yet when work starts, so what seems to is what an earlier process of the same name left.
	dead := runner + " <> $1 AND NOT " + runnerLives
	leader := "leader_id <> $1 AND NOT EXISTS (SELECT 1 FROM controllers WHERE id = leader_id AND fenced = 0)"
	if starting {
		dead = "(" + runner + " = $1 OR NOT " + runnerLives + ")"
		leader = "(leader_id = $1 OR NOT EXISTS (SELECT 1 FROM controllers WHERE id = leader_id AND fenced = 0))"
	}
	if _, err := tx.Exec(ctx, backInLine+dead, s.controller, 0); err != nil {
		return nil, fmt.Errorf("put the runs of dead controllers back in line: %w", err)
	}
	if _, err := tx.Exec(ctx, "DELETE FROM river_leader WHERE "+leader, s.controller); err != nil {
		return nil, fmt.Errorf("depose a dead leader of the queue: %w", err)
	}

	found, err := tx.Query(ctx, `SELECT id, attempt, args ->> 'job', metadata ? 'cancel_attempted_at' FROM river_job
		WHERE state = 'running' AND `+runner+" = $1", s.controller)
	if err != nil {
		return nil, fmt.Errorf("look for runs: %w", err)
	}
	var lost []int64
	var id int64
	var attempt int
	var job string
	var marked bool
	_, err = pgx.ForEachRow(found, []any{&id, &attempt, &job, &marked}, func() error {
		switch mine, ok := s.places[id]; {
		case !ok || mine != attempt: // fetched, but the answer never arrived
			lost = append(lost, id)
		case marked:
			cancelled = append(cancelled, job)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for runs: %w", err)
	}
	if len(lost) > 0 { // they never began
		if _, err := tx.Exec(ctx, backInLine+runner+" = $1 AND id = ANY($3)", s.controller, 1, lost); err != nil {
			return nil, fmt.Errorf("put runs that never began back in line: %w", err)
		}
	}
	return cancelled, nil
}
