package postgres_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/pgtest"
)

// within is how long anything may take before a test gives it up.
const within = 30 * time.Second

// eventually fails the test unless try succeeds in the end.
func eventually(t testing.TB, what string, try func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = try(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

func receive[T any](t testing.TB, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(within):
		t.Fatalf("%s: nothing came within %s", what, within)
		panic("unreachable")
	}
}

func enqueue(t testing.TB, s store.Store, attempts int) (jobID string) {
	t.Helper()
	j := &spore.Job{ID: spore.NewJobID(), Operation: spore.OpCreate, Status: spore.JobPending}
	update(t, s, func(tx store.Tx) error { return errors.Join(tx.InsertJob(j), tx.Enqueue(j.ID, attempts)) })
	return j.ID
}

// placeState is what the queue says of a job.
func placeState(t testing.TB, url, job string) (state, runner string) {
	t.Helper()
	conn := connect(t, url)
	defer conn.Close(context.Background())
	err := conn.QueryRow(t.Context(), `SELECT state, COALESCE(attempted_by[array_upper(attempted_by, 1)], '')
		FROM spore.river_job WHERE args ->> 'job' = $1 ORDER BY id DESC LIMIT 1`, job).Scan(&state, &runner)
	if err != nil {
		t.Fatal(err)
	}
	return state, runner
}

func TestOutage(t *testing.T) {
	t.Parallel()
	cluster := pgtest.New(t, pgtest.Options{})
	for name, end := range map[string]func(testing.TB){"Stop": cluster.Stop, "Crash": cluster.Crash} {
		t.Run(name, func(t *testing.T) {
			url := cluster.Database(t)
			s := openAs(t, url, "c")
			defer closed(t, s)
			update(t, s, func(tx store.Tx) error { return errors.Join(beat(tx, "c"), tx.InsertTemplate(row(1))) })
			type run struct {
				job     string
				attempt int
			}
			begun, release := make(chan run, 10), make(chan struct{})
			err := s.Work(context.Background(), 2, func(ctx context.Context, job string, attempt int, last bool) error {
				begun <- run{job, attempt}
				<-release
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			job := enqueue(t, s, 1)
			if got := receive(t, begun, "the job"); got != (run{job, 1}) {
				t.Fatalf("ran %v", got)
			}

			changes := s.Changes()
			end(t)
			for range 3 { // at first, connections that were kept are found dead
				wantUnavailable(t, s.Update(t.Context(), func(tx store.Tx) error { return tx.InsertTemplate(row(2)) }))
				wantUnavailable(t, s.View(t.Context(), func(tx store.Tx) error { _, err := tx.Template(row(1).ID); return err }))
				wantUnavailable(t, s.CancelWork(t.Context(), job))
			}
			close(release) // what has become of it cannot be told yet

			cluster.Start(t)
			receive(t, changes, "a sign that the database is back")
			eventually(t, "to view", func() error {
				return s.View(t.Context(), func(tx store.Tx) error { _, err := tx.Template(row(1).ID); return err })
			})
			eventually(t, "to update", func() error {
				return s.Update(t.Context(), func(tx store.Tx) error { return tx.InsertTemplate(row(3)) })
			})
			if has(t, s, row(2).ID) {
				t.Error("what was refused is there")
			}
			eventually(t, "the outcome of the job", func() error {
				if state, _ := placeState(t, url, job); state != "completed" {
					return errors.New("it is " + state)
				}
				return nil
			})
			next := enqueue(t, s, 1)
			if got := receive(t, begun, "the next job"); got != (run{next, 1}) {
				t.Errorf("ran %v", got)
			}
		})
	}

	// The server of a store that cannot reach its database must be able to end.
	t.Run("End", func(t *testing.T) {
		s := openAs(t, cluster.Database(t), "c")
		update(t, s, func(tx store.Tx) error { return beat(tx, "c") })
		begun := make(chan struct{})
		err := s.Work(context.Background(), 1, func(ctx context.Context, job string, attempt int, last bool) error {
			close(begun)
			<-ctx.Done()
			return ctx.Err()
		})
		if err != nil {
			t.Fatal(err)
		}
		enqueue(t, s, 1)
		receive(t, begun, "the job")
		cluster.Stop(t)
		done := make(chan error, 1)
		go func() { done <- s.Close() }()
		if err := receive(t, done, "the end of the store"); err != nil {
			t.Error(err)
		}
		wantCode(t, s.Update(t.Context(), func(store.Tx) error { return nil }), spore.CodeInternal)
		wantCode(t, s.View(t.Context(), func(store.Tx) error { return nil }), spore.CodeInternal)
		cluster.Start(t)
	})
}

// A database that neither answers nor refuses.
func TestSilence(t *testing.T) {
	t.Parallel()
	p, url := newProxy(t, database(t))
	s := open(t, url)
	defer closed(t, s)
	update(t, s, func(tx store.Tx) error { return tx.InsertTemplate(row(1)) })
	p.freeze(true)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second) // long enough for all to be under way when it is over
	defer cancel()
	results := make(chan error)
	go func() {
		results <- s.View(ctx, func(tx store.Tx) error { _, err := tx.Template(row(1).ID); return err })
	}()
	for n := range 3 {
		go func() {
			results <- s.Update(ctx, func(tx store.Tx) error { return tx.InsertTemplate(row(10 + n)) })
		}()
	}
	for range 4 {
		wantUnavailable(t, receive(t, results, "an answer"))
	}
	p.freeze(false)
	eventually(t, "to update", func() error {
		return s.Update(t.Context(), func(tx store.Tx) error { return tx.InsertTemplate(row(2)) })
	})
}

// The connection ends between the order to commit and the answer to it: the database knows what became of it.
func TestUnansweredCommit(t *testing.T) {
	t.Parallel()
	p, url := newProxy(t, database(t))
	s := open(t, url)
	defer closed(t, s)
	for n, at := range []cut{before, after} {
		runs := 0
		p.cutCommit(at)
		update(t, s, func(tx store.Tx) error { runs++; return tx.InsertTemplate(row(n)) })
		if want := 2 - n; runs != want {
			t.Errorf("cut off %v: it ran %d times, not %d", at, runs, want)
		}
		if !has(t, s, row(n).ID) {
			t.Errorf("cut off %v: the row is not there", at)
		}
		p.cutCommit(at)
		update(t, s, func(store.Tx) error { return nil }) // there was nothing to decide
		p.cutCommit(nowhere)
	}
}

// The database does not come back soon. Others are refused meanwhile; whoever is in doubt waits, or is told of the doubt.
func TestUndecided(t *testing.T) {
	t.Parallel()
	cluster := pgtest.New(t, pgtest.Options{})
	p, url := newProxy(t, cluster.Database(t))
	s := open(t, url)
	defer closed(t, s)
	inDoubt := func(s store.Store, at cut, n int) chan error {
		p.cutCommit(at)
		p.refuse(true)
		done := make(chan error, 1)
		go func() {
			done <- s.Update(context.Background(), func(tx store.Tx) error { return tx.InsertTemplate(row(n)) })
		}()
		eventually(t, "the commit", func() error {
			if p.cuts() {
				return errors.New("it has not come")
			}
			return nil
		})
		wantUnavailable(t, s.Update(t.Context(), func(tx store.Tx) error { return tx.InsertTemplate(row(100)) }))
		select {
		case err := <-done:
			t.Fatalf("while the database was away: %v", err)
		default:
		}
		return done
	}
	for n, at := range []cut{before, after} {
		done := inDoubt(s, at, n)
		p.refuse(false)
		if err := receive(t, done, "the outcome"); err != nil || !has(t, s, row(n).ID) {
			t.Errorf("cut off %v: error %v", at, err)
		}
	}

	short := open(t, url)
	done := inDoubt(short, after, 2)
	closed(t, short)
	err := receive(t, done, "the outcome")
	wantUnavailable(t, err)
	if !errors.Is(err, store.ErrUndecided) || !strings.Contains(spore.AsError(err).Hint, "idempotency key") {
		t.Errorf("a doubt in a store that is closed: %v", err)
	}
	p.refuse(false)
	eventually(t, "the row", func() error {
		if !has(t, s, row(2).ID) {
			return errors.New("it is not there")
		}
		return nil
	})
}

// A connection that is lost before the commit is nobody's trouble.
func TestLostConnection(t *testing.T) {
	t.Parallel()
	p, url := newProxy(t, database(t))
	s := open(t, url)
	defer closed(t, s)
	const writers = 8
	var runs atomic.Int64
	var once sync.Once
	var all sync.WaitGroup
	for n := range writers {
		all.Go(func() {
			err := s.Update(t.Context(), func(tx store.Tx) error {
				runs.Add(1)
				if err := tx.InsertTemplate(row(n)); err != nil {
					return err
				}
				if n == 3 {
					once.Do(p.cutAll)
				}
				_, err := tx.Template(row(n).ID)
				return err
			})
			if err != nil {
				t.Errorf("writer %d: %v", n, err)
			}
		})
	}
	all.Wait()
	if runs.Load() == writers {
		t.Error("nothing was tried again")
	}
	for n := range writers {
		if !has(t, s, row(n).ID) {
			t.Errorf("row %d is missing", n)
		}
	}
}

// A server that hangs in the middle of a transaction holds the others up for a while only.
func TestHungServer(t *testing.T) {
	t.Parallel()
	url := database(t)
	hung := open(t, url+"&idle_in_transaction_session_timeout=3s") // longer than any other transaction of its waits
	defer closed(t, hung)
	other := open(t, url)
	defer closed(t, other)
	inside, release := make(chan struct{}), make(chan struct{})
	runs, result := 0, make(chan error, 1)
	go func() {
		result <- hung.Update(context.Background(), func(tx store.Tx) error {
			if runs++; runs == 1 {
				close(inside)
				<-release
			}
			there := true
			if _, err := tx.Template(row(1).ID); spore.CodeOf(err) == spore.CodeNotFound {
				there = false
			} else if err != nil {
				return err
			}
			if !there {
				return errors.New("it does not see what the other did meanwhile")
			}
			return tx.InsertTemplate(row(2))
		})
	}()
	receive(t, inside, "the first server")
	update(t, other, func(tx store.Tx) error { return tx.InsertTemplate(row(1)) })
	close(release)
	if err := receive(t, result, "the hung server"); err != nil || runs != 2 {
		t.Fatalf("%d runs, error %v", runs, err)
	}
}

// What was told to be stored survives a crash of the database in the middle of it.
func TestDatabaseCrash(t *testing.T) {
	t.Parallel()
	cluster := pgtest.New(t, pgtest.Options{Durable: true})
	s := open(t, cluster.Database(t))
	defer closed(t, s)
	const writers = 4
	var stored [writers]int // how many each was told of
	var all sync.WaitGroup
	var crashed atomic.Bool
	enough := make(chan struct{}, writers)
	for w := range writers {
		all.Go(func() {
			for n := 0; !crashed.Load(); n++ {
				err := s.Update(t.Context(), func(tx store.Tx) error { return tx.InsertTemplate(row(w*1_000_000 + n)) })
				if err != nil {
					wantUnavailable(t, err)
					return
				}
				stored[w] = n + 1
				if n == 20 {
					enough <- struct{}{}
				}
			}
		})
	}
	for range writers {
		receive(t, enough, "some rows")
	}
	cluster.Crash(t)
	crashed.Store(true)
	cluster.Start(t) // before it, nobody can say what became of the last commit
	all.Wait()
	eventually(t, "to view", func() error {
		return s.View(t.Context(), func(tx store.Tx) error { _, err := tx.Controllers(); return err })
	})
	for w := range writers {
		for n := range stored[w] {
			if !has(t, s, row(w*1_000_000+n).ID) {
				t.Fatalf("row %d of writer %d is gone", n, w)
			}
		}
	}
}
