package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/riverqueue/river"
)

// place is what River keeps of a job.
type place struct {
	Job string `json:"job"`
}

func (place) Kind() string { return "spore" }

type worker[T any] struct {
	river.WorkerDefaults[place]
	queue  *Queue[T]
	client *river.Client[T]
	run    Run
}

// notYet is how long a run waits that the database kept from beginning. It has not been an attempt.
const notYet = time.Second

var errCancelled = errors.New("the job was cancelled")

// Work is called by River for each place whose turn has come.
func (w *worker[T]) Work(ctx context.Context, row *river.Job[place]) error {
	jobID := row.Args.Job
	logger := w.queue.config.Logger.With("job", jobID, "attempt", row.Attempt)
	ctx, done := w.queue.runs.begin(ctx, jobID)
	defer done()

	// A cancellation that was committed before the run was registered could not reach it through the registry. It has
	// left its mark on the row.
	cancelled, err := w.markedCancelled(ctx, row.ID)
	if err != nil {
		logger.Warn("a job could not begin", "err", err)
		return river.JobSnooze(notYet)
	}
	if cancelled {
		return river.JobCancel(errCancelled)
	}

	err = guard(logger, func() error {
		return w.run(ctx, jobID, row.Attempt, row.Attempt >= row.MaxAttempts)
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(context.Cause(ctx), errCancelled):
		return river.JobCancel(err)
	case ctx.Err() != nil:
		// The server is going down. That is not the job's failure: it keeps its attempt and goes on at the next start.
		return river.JobSnooze(0)
	}
	logger.Warn("an attempt at a job failed", "err", err)
	return err
}

func (w *worker[T]) markedCancelled(ctx context.Context, placeID int64) (bool, error) {
	row, err := w.client.JobGet(context.WithoutCancel(ctx), placeID)
	if err != nil {
		return false, fmt.Errorf("look for a cancellation: %w", err)
	}
	var metadata struct {
		CancelAttemptedAt *string `json:"cancel_attempted_at"`
	}
	if err := json.Unmarshal(row.Metadata, &metadata); err != nil {
		return false, fmt.Errorf("look for a cancellation: %w", err)
	}
	return metadata.CancelAttemptedAt != nil, nil
}

// guard turns a panic of run into an error and logs where it came from.
func guard(logger *slog.Logger, run func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			logger.Error("a job panicked", "panic", v, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", v)
		}
	}()
	return run()
}

// runs are the runs under way in this process, by job.
type runs struct {
	mu      sync.Mutex
	cancels map[string]context.CancelCauseFunc
}

func newRuns() *runs { return &runs{cancels: make(map[string]context.CancelCauseFunc)} }

func (r *runs) begin(ctx context.Context, jobID string) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cancels[jobID] = cancel
	return ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.cancels, jobID)
		cancel(nil)
	}
}

func (r *runs) cancel(jobID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if cancel, running := r.cancels[jobID]; running {
		cancel(errCancelled)
	}
}

// quiet passes on only what River holds to be errors, and those only while the database is there: its other messages tell of
// single jobs by numbers of its own, and what they say is logged by this package with the ids that people know.
func quiet(logger *slog.Logger, away func() bool) *slog.Logger {
	return slog.New(errorsOnly{logger.Handler(), away})
}

type errorsOnly struct {
	slog.Handler
	away func() bool
}

func (h errorsOnly) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelError && !h.away() && h.Handler.Enabled(ctx, level)
}

func (h errorsOnly) WithAttrs(attrs []slog.Attr) slog.Handler {
	return errorsOnly{h.Handler.WithAttrs(attrs), h.away}
}

func (h errorsOnly) WithGroup(name string) slog.Handler {
	return errorsOnly{h.Handler.WithGroup(name), h.away}
}
