package storetest

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// attempt is one call of a store's run function.
type attempt struct {
	job  string
	no   int
	last bool
	at   time.Time
}

// enqueue inserts job n and puts it in the queue.
func enqueue(t *testing.T, s store.Store, n, attempts int) string {
	t.Helper()
	j := sampleJob(n)
	update(t, s, func(tx store.Tx) error { return errors.Join(tx.InsertJob(j), tx.Enqueue(j.ID, attempts)) })
	return j.ID
}

func work(t *testing.T, s store.Store, workers int, run func(ctx context.Context, a attempt) error) {
	t.Helper()
	err := s.Work(context.WithoutCancel(t.Context()), workers, func(ctx context.Context, job string, no int, last bool) error {
		return run(ctx, attempt{job, no, last, time.Now()})
	})
	if err != nil {
		t.Fatal(err)
	}
}

func testQueue(t *testing.T, open Open) {
	t.Run("RunsOnce", func(t *testing.T) {
		s := fresh(t, open)
		early := enqueue(t, s, 1, 3) // before anyone works
		ran := make(chan attempt, 10)
		work(t, s, 2, func(_ context.Context, a attempt) error { ran <- a; return nil })
		wantRun(t, receive(t, ran, "the first job"), early, 1, false)
		late := enqueue(t, s, 2, 1)
		wantRun(t, receive(t, ran, "the second job"), late, 1, true)
		for n := range 5 {
			enqueue(t, s, 10+n, 1)
		}
		for range 5 {
			receive(t, ran, "the others")
		}
		if err := s.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantEqual(t, len(ran), 0)
	})

	t.Run("Atomic", func(t *testing.T) {
		s := fresh(t, open)
		ran := make(chan attempt, 10)
		work(t, s, 2, func(_ context.Context, a attempt) error { ran <- a; return nil })
		j := sampleJob(1)
		err := s.Update(t.Context(), func(tx store.Tx) error {
			return errors.Join(tx.InsertJob(j), tx.Enqueue(j.ID, 1), errOnPurpose)
		})
		if !errors.Is(err, errOnPurpose) {
			t.Fatal(err)
		}
		// Jobs start in the order of their enqueueing, so if the first one were there, it would run before the second.
		second := enqueue(t, s, 2, 1)
		wantRun(t, receive(t, ran, "the second job"), second, 1, true)
		view(t, s, func(tx store.Tx) error {
			_, err := tx.Job(j.ID)
			wantCode(t, err, spore.CodeNotFound)
			return nil
		})
	})

	t.Run("Twice", func(t *testing.T) {
		s := fresh(t, open)
		job := enqueue(t, s, 1, 1)
		again := func(tx store.Tx) error { return tx.Enqueue(job, 1) }
		update(t, s, again) // it waits already
		ran := make(chan attempt, 10)
		work(t, s, 2, func(_ context.Context, a attempt) error { ran <- a; return nil })
		wantRun(t, receive(t, ran, "the job"), job, 1, true)
		other := enqueue(t, s, 2, 1)
		wantRun(t, receive(t, ran, "the other job"), other, 1, true)
		wantField(t, s.Update(t.Context(), func(tx store.Tx) error { return tx.Enqueue(job, 0) }), "attempts")
	})

	t.Run("Workers", func(t *testing.T) {
		s := fresh(t, open)
		const workers, jobs = 3, 9
		var now, most, begun atomic.Int64
		var together, all sync.WaitGroup
		together.Add(workers)
		all.Add(jobs)
		work(t, s, workers, func(context.Context, attempt) error {
			defer all.Done()
			n := now.Add(1)
			defer now.Add(-1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			if begun.Add(1) <= workers { // the first ones wait for each other, or there are too few workers
				together.Done()
				together.Wait()
			}
			return nil
		})
		for n := range jobs {
			enqueue(t, s, n, 1)
		}
		done := make(chan struct{})
		go func() { all.Wait(); close(done) }()
		receive(t, done, "all jobs")
		wantEqual(t, most.Load(), int64(workers))
	})

	t.Run("Stop", func(t *testing.T) {
		s := fresh(t, open)
		begun, release, ended := make(chan attempt, 4), make(chan struct{}), make(chan error, 4)
		work(t, s, 1, func(ctx context.Context, a attempt) error {
			begun <- a
			select {
			case <-release:
			case <-ctx.Done():
			}
			ended <- ctx.Err()
			return ctx.Err()
		})
		first := enqueue(t, s, 1, 1)
		receive(t, begun, "the first job")
		waiting := enqueue(t, s, 2, 1)

		// A stop without patience cancels what runs. That is no failed attempt: the job goes on at the next Work.
		impatient, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Stop(impatient); err != nil {
			t.Fatal(err)
		}
		if receive(t, ended, "the end of the first job") == nil {
			t.Error("it was not cancelled")
		}
		if err := s.Stop(t.Context()); err != nil { // stopping what is stopped is fine
			t.Fatal(err)
		}
		wantEqual(t, len(begun), 0)

		close(release)
		ran := make(chan attempt, 4)
		work(t, s, 1, func(_ context.Context, a attempt) error { ran <- a; return nil })
		got := map[string]attempt{}
		for range 2 {
			a := receive(t, ran, "both jobs")
			got[a.job] = a
		}
		wantRun(t, got[first], first, 1, true)
		wantRun(t, got[waiting], waiting, 1, true)
	})

	t.Run("WorkTwice", func(t *testing.T) {
		s := fresh(t, open)
		begun, release := make(chan attempt, 4), make(chan struct{})
		defer close(release)
		work(t, s, 2, func(_ context.Context, a attempt) error { begun <- a; <-release; return nil })
		first := enqueue(t, s, 1, 1)
		wantRun(t, receive(t, begun, "the first job"), first, 1, true)
		if err := s.Work(t.Context(), 1, func(context.Context, string, int, bool) error { return nil }); err == nil {
			t.Error("two may work at once")
		}
		second := enqueue(t, s, 2, 1) // the refused Work must not have taken the first one's run for dead
		wantRun(t, receive(t, begun, "the second job"), second, 1, true)
	})

	t.Run("Patience", func(t *testing.T) {
		s := fresh(t, open)
		begun, release := make(chan attempt, 1), make(chan struct{})
		var finished atomic.Bool
		work(t, s, 1, func(ctx context.Context, a attempt) error {
			begun <- a
			<-release
			finished.Store(ctx.Err() == nil)
			return nil
		})
		enqueue(t, s, 1, 1)
		receive(t, begun, "the job")
		stopped := make(chan error, 1)
		go func() { stopped <- s.Stop(t.Context()) }()
		close(release)
		if err := receive(t, stopped, "the stop"); err != nil {
			t.Fatal(err)
		}
		if !finished.Load() {
			t.Error("the run was not waited for")
		}
	})
}

func wantRun(t *testing.T, got attempt, job string, no int, last bool) {
	t.Helper()
	if got.job != job || got.no != no || got.last != last {
		t.Fatalf("ran %+v, want attempt %d of %s, last: %v", got, no, job, last)
	}
}

func testQueueCancel(t *testing.T, open Open) {
	t.Run("BeforeStart", func(t *testing.T) {
		s := fresh(t, open)
		job := enqueue(t, s, 1, 3)
		for range 2 {
			wantCode(t, s.CancelWork(t.Context(), job), "")
		}
		ran := make(chan attempt, 4)
		work(t, s, 1, func(_ context.Context, a attempt) error { ran <- a; return nil })
		other := enqueue(t, s, 2, 1)
		wantRun(t, receive(t, ran, "the other job"), other, 1, true)
		wantCode(t, s.CancelWork(t.Context(), other), "") // what is over cannot be cancelled, and that is fine
	})

	t.Run("Unqueued", func(t *testing.T) {
		s := fresh(t, open)
		j := sampleJob(1)
		update(t, s, func(tx store.Tx) error { return tx.InsertJob(j) })
		wantCode(t, s.CancelWork(t.Context(), j.ID), "")
		wantCode(t, s.CancelWork(t.Context(), "job-none"), spore.CodeNotFound)
	})

	t.Run("Running", func(t *testing.T) {
		s := fresh(t, open)
		begun, ended := make(chan attempt, 4), make(chan struct{}, 4)
		work(t, s, 1, func(ctx context.Context, a attempt) error {
			begun <- a
			if a.job != sampleJob(1).ID {
				return nil
			}
			<-ctx.Done()
			ended <- struct{}{}
			return ctx.Err()
		})
		job := enqueue(t, s, 1, 5)
		receive(t, begun, "the job")
		for range 2 {
			wantCode(t, s.CancelWork(t.Context(), job), "")
		}
		receive(t, ended, "its end")
		other := enqueue(t, s, 2, 1) // with one worker, a second attempt at the first job would have its turn before
		wantRun(t, receive(t, begun, "the other job"), other, 1, true)
		wantEqual(t, len(begun), 0)
	})

	t.Run("BetweenAttempts", func(t *testing.T) {
		s := fresh(t, open)
		failed := make(chan attempt, 4)
		job := enqueue(t, s, 1, 5)
		work(t, s, 1, func(ctx context.Context, a attempt) error {
			failed <- a
			if a.job == job {
				// It cancels itself and fails before it could notice: the retry must not come.
				if err := s.CancelWork(context.WithoutCancel(ctx), job); err != nil {
					return err
				}
			}
			return errOnPurpose
		})
		receive(t, failed, "the attempt")
		other := enqueue(t, s, 2, 2)
		wantRun(t, receive(t, failed, "the other job"), other, 1, false)
		wantRun(t, receive(t, failed, "its second attempt"), other, 2, true)
		wantEqual(t, len(failed), 0)
	})

	// Cancelling at any moment around the start: either the run never begins, or its context ends.
	t.Run("Race", func(t *testing.T) {
		s := fresh(t, open)
		begun := make(chan attempt, 100)
		var live atomic.Int64
		work(t, s, 4, func(ctx context.Context, a attempt) error {
			live.Add(1)
			defer live.Add(-1)
			begun <- a
			<-ctx.Done()
			return ctx.Err()
		})
		for n := range 30 {
			job := enqueue(t, s, n, 3)
			if n%2 == 0 {
				time.Sleep(time.Duration(n) * 2 * time.Millisecond) // somewhere between the poll and the run
			}
			wantCode(t, s.CancelWork(t.Context(), job), "")
		}
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		if ctx.Err() != nil || live.Load() != 0 {
			t.Fatal("a cancelled job ran on")
		}
	})
}

func testQueueRetry(t *testing.T, open Open) {
	t.Run("Backoff", func(t *testing.T) {
		s := fresh(t, open)
		ran := make(chan attempt, 10)
		work(t, s, 1, func(_ context.Context, a attempt) error {
			ran <- a
			if a.no == 2 {
				panic("on purpose")
			}
			return errOnPurpose
		})
		job := enqueue(t, s, 1, 3)
		var before attempt
		for no := 1; no <= 3; no++ {
			a := receive(t, ran, "an attempt")
			wantRun(t, a, job, no, no == 3)
			if no > 1 {
				// Databases keep the time of a retry to the millisecond only.
				if waited := a.at.Sub(before.at); waited < Backoff(no-1)-2*time.Millisecond {
					t.Errorf("attempt %d came after %s", no, waited)
				}
			}
			before = a
		}
		other := enqueue(t, s, 2, 1)
		wantRun(t, receive(t, ran, "the other job"), other, 1, true) // and not a fourth attempt at the first
	})

	t.Run("Success", func(t *testing.T) {
		s := fresh(t, open)
		ran := make(chan attempt, 10)
		work(t, s, 1, func(_ context.Context, a attempt) error {
			ran <- a
			if a.no == 1 && a.job == sampleJob(1).ID {
				return errOnPurpose
			}
			return nil
		})
		job := enqueue(t, s, 1, 5)
		wantRun(t, receive(t, ran, "the first attempt"), job, 1, false)
		wantRun(t, receive(t, ran, "the second attempt"), job, 2, false)
		other := enqueue(t, s, 2, 1)
		wantRun(t, receive(t, ran, "the other job"), other, 1, true)
	})
}

func testQueueRecovery(t *testing.T, open Open) {
	// A store that is left without Stop, as a killed server leaves it: what it ran is run again.
	t.Run("Abandoned", func(t *testing.T) {
		dir := t.TempDir()
		first := reopen(t, open, dir)
		begun, release := make(chan attempt, 4), make(chan struct{})
		work(t, first, 2, func(_ context.Context, a attempt) error { begun <- a; <-release; return nil })
		defer close(release)
		blocked := make([]string, 2)
		for n := range blocked {
			blocked[n] = enqueue(t, first, n, 1) // death does not count: even the last attempt is made again
			receive(t, begun, "a job to block")
		}
		// Both workers are held, so the rest stays in the queue.
		waiting := enqueue(t, first, 7, 2)
		wantCode(t, first.CancelWork(t.Context(), blocked[1]), "")

		second := reopen(t, open, dir)
		work(t, second, 2, func(_ context.Context, a attempt) error { begun <- a; return nil })
		got := map[string]attempt{}
		for range 2 {
			a := receive(t, begun, "the jobs of the dead")
			got[a.job] = a
		}
		wantRun(t, got[blocked[0]], blocked[0], 2, true)
		wantRun(t, got[waiting], waiting, 1, false)
		last := enqueue(t, second, 9, 1)
		wantRun(t, receive(t, begun, "a new job"), last, 1, true) // and the cancelled one is not run again
	})

	t.Run("Reopened", func(t *testing.T) {
		dir := t.TempDir()
		first := open(t, dir)
		job := enqueue(t, first, 1, 2)
		row := sampleTemplate(1)
		update(t, first, func(tx store.Tx) error { return tx.InsertTemplate(row) })
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		second := reopen(t, open, dir)
		wantTemplate(t, second, row)
		ran := make(chan attempt, 1)
		work(t, second, 1, func(_ context.Context, a attempt) error { ran <- a; return nil })
		wantRun(t, receive(t, ran, "the job"), job, 1, false)
	})
}
