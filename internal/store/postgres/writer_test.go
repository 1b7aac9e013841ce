package postgres

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store/pgtest"
	"github.com/sporevm/spore/internal/store/rows"
)

func openInside(t *testing.T) *Store {
	t.Helper()
	s, err := open(t.Context(), Options{URL: pgtest.Start(t), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func insertKey(t *testing.T, c *conn, key string) error {
	_, err := c.Exec(t.Context(), "INSERT INTO replays VALUES ('', ?, '', '', 0)", key)
	return err
}

func keys(t *testing.T, s *Store) (keys string) {
	t.Helper()
	err := s.reads.QueryRow(t.Context(), "SELECT COALESCE(string_agg(key, ' ' ORDER BY key), '') FROM replays").Scan(&keys)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// Functions that wait while another runs share its commit, and one that fails among them fails alone.
func TestSharedCommit(t *testing.T) {
	s := openInside(t)
	s.writer.maxAge = time.Hour
	begun, others := make(chan struct{}), make(chan struct{})
	results := make([]error, 6)
	var wg sync.WaitGroup
	transaction := func(c *conn) (id int64) {
		if err := c.tx.QueryRow(t.Context(), "SELECT pg_current_xact_id()::text::bigint").Scan(&id); err != nil {
			t.Error(err)
		}
		return id
	}
	var first int64
	wg.Go(func() {
		results[0] = s.writer.do(t.Context(), func(c *conn) error {
			first = transaction(c)
			close(begun)
			<-others
			return nil
		})
	})
	<-begun
	onPurpose := errors.New("on purpose")
	for n := 1; n < len(results); n++ {
		wg.Go(func() {
			results[n] = s.writer.do(t.Context(), func(c *conn) error {
				if transaction(c) != first {
					t.Errorf("function %d has a transaction of its own", n)
				}
				if err := insertKey(t, c, fmt.Sprint(n)); err != nil {
					return err
				}
				switch n {
				case 2:
					return onPurpose
				case 3:
					runtime.Goexit()
				case 5: // it hides that the database has given it up
					_, _ = c.tx.Exec(t.Context(), "SELECT 1/0")
				}
				return nil
			})
		})
	}
	for s.writer.waiting.Load() < int64(len(results)-1) {
		runtime.Gosched()
	}
	close(others)
	wg.Wait()
	for n, err := range results {
		if want := n == 2 || n == 5; (err != nil) != want {
			t.Errorf("function %d: %v", n, err)
		}
	}
	if got := keys(t, s); got != "1 4" {
		t.Errorf("committed %q", got)
	}
}

// A refused statement costs a transaction nothing but itself.
func TestRefusedStatement(t *testing.T) {
	s := openInside(t)
	err := s.writer.do(t.Context(), func(c *conn) error {
		if err := insertKey(t, c, "a"); err != nil {
			return err
		}
		if err := insertKey(t, c, "a"); !errors.Is(err, rows.ErrUnique) {
			t.Errorf("the same key twice: %v", err)
		}
		_, err := c.Exec(t.Context(), "INSERT INTO job_log VALUES ('none', 1, 0, 'info', '')")
		if !errors.Is(err, rows.ErrReference) {
			t.Errorf("a log of nothing: %v", err)
		}
		cursor, err := c.Query(t.Context(), "INSERT INTO replays VALUES ('', ?, '', '', 0) RETURNING created_at", "a")
		if err == nil {
			for cursor.Next() {
				t.Error("it answered a row")
			}
			err = cursor.Close()
		}
		if !errors.Is(err, rows.ErrUnique) {
			t.Errorf("the same key a third time: %v", err)
		}
		return insertKey(t, c, "b")
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := keys(t, s); got != "a b" {
		t.Errorf("committed %q", got)
	}
}

// What the database undoes because of others is tried again, once.
func TestTriedAgain(t *testing.T) {
	s := openInside(t)
	for most, want := range map[int]spore.Code{1: "", 2: spore.CodeUnreachable} {
		runs := 0
		err := s.writer.do(t.Context(), func(c *conn) error {
			if err := insertKey(t, c, fmt.Sprint(most)); err != nil {
				return err
			}
			if runs++; runs <= most {
				_, err := c.Exec(t.Context(), "DO $$ BEGIN RAISE EXCEPTION 'on purpose' USING ERRCODE = 'deadlock_detected'; END $$")
				return err
			}
			return nil
		})
		if spore.CodeOf(err) != want || runs != 2 {
			t.Errorf("undone %d times: %d runs, error %v", most, runs, err)
		}
	}
	if got := keys(t, s); got != "1" {
		t.Errorf("committed %q", got)
	}
}
