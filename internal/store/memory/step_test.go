package memory_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/memory"
)

// clock is a time that passes when it is told to.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func stepped(c *clock, controller string) memory.Options {
	return memory.Options{
		Logger: slog.New(slog.DiscardHandler), Now: c.Now, Controller: controller, Stepped: true,
		Backoff: func(attempt int) time.Duration { return time.Duration(attempt) * time.Second },
	}
}

func update(t *testing.T, s store.Store, fn func(tx store.Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

func enqueue(t *testing.T, s store.Store, id string, attempts int) {
	t.Helper()
	update(t, s, func(tx store.Tx) error {
		return errors.Join(tx.InsertJob(&spore.Job{ID: id, Operation: spore.OpCreate, Status: spore.JobPending}), tx.Enqueue(id, attempts))
	})
}

// ran is what a run function was called with.
type ran struct {
	job     string
	attempt int
	last    bool
}

func workWith(t *testing.T, s store.Store, fn func(ctx context.Context, r ran) error) {
	t.Helper()
	err := s.Work(context.Background(), 1, func(ctx context.Context, job string, attempt int, last bool) error {
		return fn(ctx, ran{job, attempt, last})
	})
	if err != nil {
		t.Fatal(err)
	}
}

func wantDue(t *testing.T, s *memory.Store, now time.Time, want ...string) {
	t.Helper()
	if got := s.Due(now); !slices.Equal(got, want) {
		t.Fatalf("due %q, want %q", got, want)
	}
}

func wantCode(t *testing.T, err error, code spore.Code) {
	t.Helper()
	if spore.CodeOf(err) != code {
		t.Fatalf("error %v, want %q", err, code)
	}
}

func TestStepped(t *testing.T) {
	c := &clock{moment}
	s := memory.New().Open(stepped(c, ""))
	defer closing(t, s)
	for n := range 12 { // all at the same time: in the order of their enqueueing
		enqueue(t, s, fmt.Sprint("job-", 12-n), 2)
	}
	due := s.Due(c.now)
	if len(due) != 12 || due[0] != "job-12" || due[11] != "job-1" {
		t.Fatalf("due %q", due)
	}
	wantCode(t, s.RunOne(t.Context(), "job-12"), spore.CodeConflict) // it does not work yet

	var log []ran
	failure := errors.New("on purpose")
	workWith(t, s, func(_ context.Context, r ran) error {
		log = append(log, r)
		switch r.job {
		case "job-12":
			return failure
		case "job-11":
			panic("on purpose")
		case "job-10":
			wantCode(t, s.RunOne(t.Context(), "job-10"), spore.CodeNotFound) // it runs already
			return s.RunOne(t.Context(), "job-9")                            // others may run beside it
		}
		return nil
	})
	wantCode(t, s.RunOne(t.Context(), "job-none"), spore.CodeNotFound)
	if err := s.RunOne(t.Context(), "job-12"); !errors.Is(err, failure) {
		t.Fatal(err)
	}
	if err := s.RunOne(t.Context(), "job-11"); err == nil {
		t.Fatal("the panic is not told")
	}
	if err := s.RunOne(t.Context(), "job-10"); err != nil {
		t.Fatal(err)
	}
	for n := range 8 {
		wantCode(t, s.CancelWork(t.Context(), fmt.Sprint("job-", n+1)), "")
	}
	wantDue(t, s, c.now)
	wantDue(t, s, c.now.Add(time.Second), "job-12", "job-11")
	if next, ok := s.NextDue(); !ok || !next.Equal(c.now.Add(time.Second)) {
		t.Fatalf("next at %s, %v", next, ok)
	}
	wantCode(t, s.RunOne(t.Context(), "job-12"), spore.CodeNotFound) // it is not due
	c.now = c.now.Add(time.Second)
	_ = s.RunOne(t.Context(), "job-12")
	_ = s.RunOne(t.Context(), "job-11")
	if next, ok := s.NextDue(); ok {
		t.Fatalf("something waits still, until %s", next)
	}
	want := []ran{
		{"job-12", 1, false}, {"job-11", 1, false}, {"job-10", 1, false}, {"job-9", 1, false}, {"job-12", 2, true}, {"job-11", 2, true},
	}
	if !slices.Equal(log, want) {
		t.Fatalf("ran %v", log)
	}
}

// The context of RunOne ends a run as a stop of the store does; so does the stop itself, which waits for it.
func TestSteppedStop(t *testing.T) {
	c := &clock{moment}
	s := memory.New().Open(stepped(c, ""))
	defer closing(t, s)
	enqueue(t, s, "job-a", 1)
	begun := make(chan ran, 1)
	wait := func(ctx context.Context, r ran) error {
		begun <- r
		<-ctx.Done()
		return ctx.Err()
	}
	workWith(t, s, wait)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	for _, end := range []func(){cancel, func() {
		if err := s.Stop(ctx); err != nil { // ctx has ended: it does not wait for the run to end by itself
			t.Error(err)
		}
		if s.RunOne(t.Context(), "job-a") == nil {
			t.Error("it runs on")
		}
	}} {
		runs := ctx
		if runs.Err() != nil {
			runs = t.Context()
		}
		go func() { ended <- s.RunOne(runs, "job-a") }()
		if r := <-begun; r != (ran{"job-a", 1, true}) {
			t.Fatalf("ran %v", r)
		}
		end()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		wantDue(t, s, c.now, "job-a")
	}
}

// A store that is killed in the middle of what it does: nothing of that is kept, and another makes the run again.
func TestKill(t *testing.T) {
	c := &clock{moment}
	db := memory.New()
	first := db.Open(stepped(c, ""))
	enqueue(t, first, "job-a", 1)
	workWith(t, first, func(ctx context.Context, r ran) error {
		update(t, first, func(tx store.Tx) error { return tx.AppendJobLog(r.job, spore.LogLine{Level: "info", Message: "begun"}) })
		err := first.Update(ctx, func(tx store.Tx) error {
			first.Kill()
			return nil
		})
		if !errors.Is(err, memory.ErrClosed) || ctx.Err() == nil {
			t.Errorf("the transaction at the time of death: %v; context: %v", err, ctx.Err())
		}
		err = first.View(context.Background(), func(store.Tx) error { return nil })
		if !errors.Is(err, memory.ErrClosed) {
			t.Errorf("a dead store reads: %v", err)
		}
		return nil
	})
	if err := first.RunOne(t.Context(), "job-a"); err != nil {
		t.Fatal(err)
	}
	second := db.Open(stepped(c, ""))
	defer closing(t, second)
	wantDue(t, second, c.now)
	var log []ran
	workWith(t, second, func(_ context.Context, r ran) error { log = append(log, r); return nil })
	wantDue(t, second, c.now, "job-a")
	if err := second.RunOne(t.Context(), "job-a"); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(log, []ran{{"job-a", 2, true}}) { // death does not count
		t.Fatalf("ran %v", log)
	}
	closing(t, first)
}

// The runs of a controller are its own until it is fenced, whether it is dead or only silent. What it does then is of no account.
func TestFencedRuns(t *testing.T) {
	c := &clock{moment}
	db := memory.New()
	first, second := db.Open(stepped(c, "c1")), db.Open(stepped(c, "c2"))
	defer closing(t, second)
	defer closing(t, first)
	update(t, first, func(tx store.Tx) error { return errors.Join(tx.Beat("c1", c.now), tx.Beat("c2", c.now)) })
	enqueue(t, first, "job-a", 3)
	enqueue(t, first, "job-b", 3)
	var log []ran
	workWith(t, first, func(ctx context.Context, r ran) error {
		workWith(t, second, func(_ context.Context, r ran) error { log = append(log, r); return nil })
		wantDue(t, second, c.now, "job-b")
		update(t, second, func(tx store.Tx) error { return tx.Fence("c1") })
		wantDue(t, second, c.now, "job-a", "job-b")
		if err := second.RunOne(ctx, "job-a"); err != nil {
			t.Error(err)
		}
		return errors.New("a failure that comes too late")
	})
	if first.RunOne(t.Context(), "job-a") == nil {
		t.Error("the failure is not told")
	}
	wantDue(t, second, c.now.Add(time.Hour), "job-b")
	if err := first.RunOne(t.Context(), "job-b"); spore.AsError(err).Reason != spore.ReasonFenced {
		t.Errorf("a fenced controller runs: %v", err)
	}
	if !slices.Equal(log, []ran{{"job-a", 2, false}}) {
		t.Fatalf("ran %v", log)
	}
}

// Goroutines that work, and time that passes, in a bubble.
func TestBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		s := memory.New().Open(memory.Options{Logger: slog.New(slog.DiscardHandler)})
		var at []time.Duration
		err := s.Work(context.Background(), 2, func(_ context.Context, _ string, attempt int, last bool) error {
			at = append(at, time.Since(began))
			if last {
				return nil
			}
			return errors.New("on purpose")
		})
		if err != nil {
			t.Fatal(err)
		}
		enqueue(t, s, "job-a", 9)
		time.Sleep(time.Hour)
		synctest.Wait()
		want := []time.Duration{0, 1, 3, 7, 15, 31, 63, 123, 183}
		for i := range want {
			want[i] *= time.Second
		}
		if !slices.Equal(at, want) {
			t.Errorf("attempts at %v", at)
		}
		closing(t, s)
	})
}
