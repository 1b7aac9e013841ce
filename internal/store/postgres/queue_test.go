package postgres_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/store"
)

// run is one call of a store's run function.
type run struct {
	at      string // the controller
	job     string
	attempt int
}

var farFuture = time.Unix(1<<40, 0)

// worker is a controller whose runs last until they are let go or cancelled.
type worker struct {
	store.Store
	begun chan run
	ended chan error // nil: the run was let go
	let   chan error // what the next run that is let go returns
}

func newWorker(t *testing.T, url, id string, workers int) *worker {
	t.Helper()
	w := &worker{Store: openAs(t, url, id), begun: make(chan run, 20), ended: make(chan error, 20), let: make(chan error)}
	t.Cleanup(func() { closed(t, w.Store) })
	update(t, w.Store, func(tx store.Tx) error { return beat(tx, id) })
	err := w.Work(context.Background(), workers, func(ctx context.Context, job string, attempt int, last bool) error {
		w.begun <- run{id, job, attempt}
		select {
		case result := <-w.let:
			w.ended <- nil
			return result
		case <-ctx.Done():
			w.ended <- ctx.Err()
			return ctx.Err()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// look makes a controller look after the queue, as it does from time to time.
func (w *worker) look(t *testing.T) {
	t.Helper()
	update(t, w.Store, func(tx store.Tx) error { return errors.Join(beat(tx, "bystander"), tx.Fence("bystander")) })
	update(t, w.Store, func(tx store.Tx) error { _, err := tx.PurgeControllers(farFuture); return err })
}

func state(want string, url, job string, t *testing.T) func() error {
	return func() error {
		if got, runner := placeState(t, url, job); got != want {
			return errors.New("it is " + got + " at " + runner)
		}
		return nil
	}
}

func TestCancelElsewhere(t *testing.T) {
	t.Parallel()
	url := database(t)
	a := newWorker(t, url, "a", 1)
	b := openAs(t, url, "b")
	defer closed(t, b)
	job := enqueue(t, b, 5)
	receive(t, a.begun, "the job")
	if err := b.CancelWork(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	if receive(t, a.ended, "its end") == nil {
		t.Error("it was not cancelled")
	}
	eventually(t, "the job's place", state("cancelled", url, job, t))
	next := enqueue(t, b, 1) // with one worker, another attempt would come before
	if got := receive(t, a.begun, "the next job"); got.job != next {
		t.Errorf("ran %v", got)
	}
	a.let <- nil
}

// A cancellation that the database could not pass on is found.
func TestCancelUnheard(t *testing.T) {
	t.Parallel()
	url := database(t)
	a := newWorker(t, url, "a", 1)
	job := enqueue(t, a, 5)
	receive(t, a.begun, "the job")
	conn := connect(t, url)
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), `UPDATE spore.river_job SET metadata = '{"cancel_attempted_at": "2026-01-01T00:00:00Z"}'`); err != nil {
		t.Fatal(err)
	}
	a.look(t)
	if receive(t, a.ended, "its end") == nil {
		t.Error("it was not cancelled")
	}
	eventually(t, "the job's place", state("cancelled", url, job, t))
}

// A run belongs to the controller that began it until that is declared dead. What comes of it after that is of no account.
func TestTakeOver(t *testing.T) {
	t.Parallel()
	url := database(t)
	a := newWorker(t, url, "a", 2)
	job := enqueue(t, a, 1)
	if got := receive(t, a.begun, "the job"); got != (run{"a", job, 1}) {
		t.Fatalf("ran %v", got)
	}
	b := newWorker(t, url, "b", 1)
	b.look(t)
	if state, runner := placeState(t, url, job); state != "running" || runner != "a" {
		t.Fatalf("the job of a living controller is %s at %s", state, runner)
	}
	update(t, b, func(tx store.Tx) error { return tx.Fence("a") })
	if got := receive(t, b.begun, "the job of the dead"); got != (run{"b", job, 2}) {
		t.Fatalf("ran %v", got)
	}
	// The dead one has a worker to spare and takes nothing; the living one has none.
	next := enqueue(t, a, 1)
	a.let <- errors.New("a failure that must not be counted")
	receive(t, a.ended, "the end of the first run")
	if err := a.Stop(t.Context()); err != nil { // by which its outcome is told
		t.Fatal(err)
	}
	if state, runner := placeState(t, url, job); state != "running" || runner != "b" {
		t.Errorf("the dead one has changed the job to %s at %s", state, runner)
	}
	b.let <- nil
	if got := receive(t, b.begun, "the next job"); got != (run{"b", next, 1}) {
		t.Errorf("ran %v", got)
	}
	b.let <- nil
	eventually(t, "the job's place", state("completed", url, job, t))
	if len(a.begun)+len(b.begun) != 0 {
		t.Error("something ran twice")
	}
}

// A controller whose row is gone was fenced long ago, and takes nothing.
func TestPurged(t *testing.T) {
	t.Parallel()
	url := database(t)
	a := newWorker(t, url, "a", 1)
	first := enqueue(t, a, 1)
	receive(t, a.begun, "the first job") // by then it has seen its row
	update(t, a, func(tx store.Tx) error { return tx.Fence("a") })
	update(t, a, func(tx store.Tx) error { _, err := tx.PurgeControllers(farFuture); return err })
	a.let <- nil
	b := newWorker(t, url, "b", 2)
	second := enqueue(t, b, 1)
	got := map[string]string{}
	for range 2 {
		r := receive(t, b.begun, "both jobs")
		got[r.job] = r.at
		b.let <- nil
	}
	if got[first] != "b" || got[second] != "b" || len(a.begun) != 0 {
		t.Errorf("ran %v", got)
	}
}

// The database gave a job to a controller, but the answer was lost on the way.
func TestLostFetch(t *testing.T) {
	t.Parallel()
	url := database(t)
	a := newWorker(t, url, "a", 1)
	first := enqueue(t, a, 1)
	receive(t, a.begun, "the first job")
	second := enqueue(t, a, 3)
	conn := connect(t, url)
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), `UPDATE spore.river_job SET state = 'running', attempt = 1, attempted_by = '{a}', attempted_at = now()
		WHERE args ->> 'job' = $1`, second); err != nil {
		t.Fatal(err)
	}
	a.look(t)
	eventually(t, "the second job's place", state("available", url, second, t))
	if state, _ := placeState(t, url, first); state != "running" {
		t.Errorf("the first job is %s", state)
	}
	a.let <- nil
	if got := receive(t, a.begun, "the second job"); got != (run{"a", second, 1}) {
		t.Errorf("ran %v", got)
	}
	a.let <- nil
}

// What a run says of its failure may be anything.
func TestHostileFailure(t *testing.T) {
	t.Parallel()
	url := database(t)
	a := newWorker(t, url, "a", 1)
	job := enqueue(t, a, 1)
	receive(t, a.begun, "the job")
	a.let <- errors.New("a\x00b\xff\\u0000\"")
	eventually(t, "the job's place", state("discarded", url, job, t))
}

// A place that a server left behind under the same name is its own.
func TestSameName(t *testing.T) {
	t.Parallel()
	url := database(t)
	a := newWorker(t, url, "a", 1)
	job := enqueue(t, a, 1)
	receive(t, a.begun, "the job")
	again := newWorker(t, url, "a", 1)
	if got := receive(t, again.begun, "the job"); got != (run{"a", job, 2}) {
		t.Errorf("ran %v", got)
	}
	again.let <- nil
	eventually(t, "the job's place", state("completed", url, job, t))
}

func TestWorkNeedsName(t *testing.T) {
	t.Parallel()
	s := openAs(t, database(t), "")
	defer closed(t, s)
	if err := s.Work(t.Context(), 1, func(context.Context, string, int, bool) error { return nil }); err == nil {
		t.Error("it works although nobody would know whose runs are whose")
	}
}

// Others hear of a commit, and who did not commit hears of none.
func TestChangesElsewhere(t *testing.T) {
	t.Parallel()
	url := database(t)
	a, b := openAs(t, url, "a"), openAs(t, url, "b")
	defer closed(t, a)
	defer closed(t, b)
	theirs := b.Changes()
	update(t, a, func(tx store.Tx) error { return tx.InsertTemplate(row(1)) })
	receive(t, theirs, "word of the change")
	if !has(t, b, row(1).ID) {
		t.Error("it is told of what it cannot see")
	}
	// Its own commit is told once, not again when it comes back from the database.
	own := a.Changes()
	theirs = b.Changes()
	update(t, b, func(tx store.Tx) error { return tx.InsertTemplate(row(2)) })
	receive(t, own, "word of the change")
	receive(t, theirs, "word of the own change")
	after := b.Changes()
	third := a.Changes()
	if err := a.Update(t.Context(), func(store.Tx) error { return errors.New("on purpose") }); err == nil {
		t.Fatal("no error")
	}
	select {
	case <-after:
		t.Error("an own change was told twice")
	case <-third:
		t.Error("a rollback was told")
	default:
	}
}
