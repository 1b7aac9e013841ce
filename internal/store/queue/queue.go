// Package queue runs jobs on River: durable, transactional with the rows, tried again with back-off, and the same on
// every database that River has a driver for.
//
// A place in the queue is a River job that carries the id of a Spore job and nothing else; what is to be done is in the
// job's row.
package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/rivertype"
)

// Config says how a queue works.
type Config struct {
	// ID is how the database tells the processes that share it apart. Where there is one only, it may be empty.
	ID     string
	Logger *slog.Logger
	// Backoff is how long to wait after a failed attempt, counted from 1. Backoff, the function, when nil.
	Backoff func(attempt int) time.Duration
	// Revive puts the places of runs that died with their process back in line. It is called before work begins, when
	// no run of this process can be under way. How to tell the dead from the living depends on who shares the database.
	Revive func(ctx context.Context) error
	// Away says that the database does not answer, and that this is known: River's complaints of it are not logged then. It
	// may be nil.
	Away func() bool
}

// Queue is the work of one database. T is the type of its transactions.
type Queue[T any] struct {
	driver  riverdriver.Driver[T]
	config  Config
	inserts *river.Client[T] // never started
	runs    *runs

	mu      sync.Mutex
	working *river.Client[T] // nil: not working
}

// New makes a queue on a database whose River tables are up to date.
func New[T any](driver riverdriver.Driver[T], config Config) (*Queue[T], error) {
	if config.Backoff == nil {
		config.Backoff = Backoff
	}
	if config.Away == nil {
		config.Away = func() bool { return false }
	}
	inserts, err := river.NewClient(driver, &river.Config{Logger: quiet(config.Logger, config.Away), FetchCooldown: fetchCooldown})
	if err != nil {
		return nil, fmt.Errorf("make the queue: %w", err)
	}
	return &Queue[T]{driver: driver, config: config, inserts: inserts, runs: newRuns()}, nil
}

// Enqueue gives a job a place in the queue as part of tx, and answers the id of that place.
func (q *Queue[T]) Enqueue(ctx context.Context, tx T, jobID string, attempts int) (int64, error) {
	result, err := q.inserts.InsertTx(ctx, tx, place{Job: jobID}, &river.InsertOpts{MaxAttempts: attempts})
	if err != nil {
		return 0, fmt.Errorf("enqueue %s: %w", jobID, err)
	}
	return result.Job.ID, nil
}

// Waiting says whether the place is still the job's, and its run not yet over.
func (q *Queue[T]) Waiting(ctx context.Context, tx T, placeID int64, jobID string) (bool, error) {
	row, err := q.inserts.JobGetTx(ctx, tx, placeID)
	if errors.Is(err, river.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up the place of %s in the queue: %w", jobID, err)
	}
	// River forgets finished places after a while, and the database may then use their ids again.
	var args place
	if row.Kind != args.Kind() || json.Unmarshal(row.EncodedArgs, &args) != nil || args.Job != jobID {
		return false, nil
	}
	return row.FinalizedAt == nil, nil
}

// Cancel takes a job's place out of the queue as part of tx. When the place is running already it is marked, so that it is
// not started again; once tx is committed, Interrupt ends the run.
func (q *Queue[T]) Cancel(ctx context.Context, tx T, placeID int64, jobID string) error {
	waiting, err := q.Waiting(ctx, tx, placeID, jobID)
	if err != nil || !waiting {
		return err
	}
	if _, err := q.inserts.JobCancelTx(ctx, tx, placeID); err != nil && !errors.Is(err, river.ErrNotFound) {
		return fmt.Errorf("cancel %s: %w", jobID, err)
	}
	return nil
}

// Interrupt cancels the context of a job's run, if it runs in this process. River does that by itself only where the
// database passes its notifications on.
func (q *Queue[T]) Interrupt(jobID string) { q.runs.cancel(jobID) }

// Run does the work of a job. See store.Store.Work.
type Run func(ctx context.Context, jobID string, attempt int, last bool) error

const (
	// Databases notify of what is enqueued. What becomes due by time, such as another attempt, is found by asking.
	pollInterval  = 250 * time.Millisecond
	fetchCooldown = 10 * time.Millisecond
	// Rescuing "stuck" jobs by age would start a second run beside a long one that is well. Whether a run has died is
	// known from the database's owner instead, so age never tells.
	neverStuck = 100 * 365 * 24 * time.Hour
	// How long cancelled runs have to return.
	lastWords = 10 * time.Second
)

// Start begins to take jobs and returns. It goes on until ctx ends, which cancels the runs under way, or Stop.
func (q *Queue[T]) Start(ctx context.Context, workers int, run Run) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.working != nil {
		select {
		case <-q.working.Stopped():
		default:
			return errors.New("the queue is being worked already")
		}
	}
	if err := q.config.Revive(ctx); err != nil {
		return fmt.Errorf("put the jobs of dead processes back in line: %w", err)
	}
	registry := river.NewWorkers()
	worker := &worker[T]{queue: q, run: run}
	if err := river.AddWorkerSafely(registry, worker); err != nil {
		return fmt.Errorf("start the queue: %w", err)
	}
	client, err := river.NewClient(q.driver, &river.Config{
		ID:                   q.config.ID,
		Logger:               quiet(q.config.Logger, q.config.Away),
		Workers:              registry,
		Queues:               map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: workers}},
		FetchPollInterval:    pollInterval,
		FetchCooldown:        fetchCooldown,
		JobTimeout:           -1, // how long an operation may take is its own business
		RescueStuckJobsAfter: neverStuck,
		RetryPolicy:          retryPolicy(q.config.Backoff),
	})
	if err != nil {
		return fmt.Errorf("start the queue: %w", err)
	}
	worker.client = client
	if err := client.Start(ctx); err != nil {
		return fmt.Errorf("start the queue: %w", err)
	}
	q.working = client
	return nil
}

// Stop takes no more work and waits for the runs under way; when ctx ends first, they are cancelled. A cancelled run that
// does not return within ten seconds is left behind with an error.
func (q *Queue[T]) Stop(ctx context.Context) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.working == nil {
		return nil
	}
	if q.working.Stop(ctx) != nil { // ctx ended: the only error there is
		patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
		defer cancel()
		if err := q.working.StopAndCancel(patience); err != nil {
			return fmt.Errorf("jobs still run although they were cancelled: %w", err)
		}
	}
	q.working = nil
	return nil
}

// Backoff is 1, 2, 4, ... seconds, at most a minute.
func Backoff(attempt int) time.Duration {
	const longest = time.Minute
	if attempt < 1 {
		attempt = 1
	}
	if attempt > 6 {
		return longest
	}
	return time.Second << (attempt - 1)
}

type retryPolicy func(attempt int) time.Duration

func (p retryPolicy) NextRetry(job *rivertype.JobRow) time.Time {
	return time.Now().Add(p(job.Attempt))
}
