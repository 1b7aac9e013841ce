package sqlite

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

func openInside(t *testing.T) *Store {
	t.Helper()
	s, err := open(t.Context(), filepath.Join(t.TempDir(), "spore.db"), Options{Logger: slog.New(slog.DiscardHandler)})
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

func numbered(n int) *spore.Template {
	return &spore.Template{
		ID: fmt.Sprintf("tpl-%d", n), Kind: spore.KindTemplate, Status: spore.TemplateReady, LastError: strings.Repeat("x", 2000),
	}
}

// A full disk makes SQLite give transactions up in the middle, with the work of others in them. What was told to be stored is
// stored, what was refused is not, and when there is room again all goes on.
func TestFullDisk(t *testing.T) {
	s := openInside(t)
	var pages int
	if err := s.writes.QueryRow("PRAGMA page_count").Scan(&pages); err != nil {
		t.Fatal(err)
	}
	limit := func(pages int) {
		t.Helper()
		if _, err := s.writes.Exec(fmt.Sprintf("PRAGMA max_page_count = %d", pages)); err != nil {
			t.Fatal(err)
		}
	}
	limit(pages + 40)
	const writers, rows = 6, 40
	results := make([]error, writers*rows)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for r := range rows {
				n := w*rows + r
				results[n] = s.Update(t.Context(), func(tx store.Tx) error { return tx.InsertTemplate(numbered(n)) })
			}
		})
	}
	wg.Wait()
	stored, refused := 0, 0
	for n, result := range results {
		err := s.View(t.Context(), func(tx store.Tx) error {
			_, err := tx.Template(numbered(n).ID)
			return err
		})
		switch {
		case result == nil:
			stored++
			if err != nil {
				t.Errorf("row %d was stored, but: %v", n, err)
			}
		default:
			refused++
			if spore.CodeOf(result) != spore.CodeNoSpace {
				t.Errorf("row %d was refused with %v", n, result)
			}
			if spore.CodeOf(err) != spore.CodeNotFound {
				t.Errorf("row %d was refused, but is there: %v", n, err)
			}
		}
	}
	if stored == 0 || refused == 0 {
		t.Fatalf("%d rows stored, %d refused", stored, refused)
	}
	limit(1 << 20)
	if err := s.Update(t.Context(), func(tx store.Tx) error { return tx.InsertTemplate(numbered(1 << 20)) }); err != nil {
		t.Fatal(err)
	}
}

// Functions that wait while another runs share its commit, and one that fails among them fails alone.
func TestSharedCommit(t *testing.T) {
	s := openInside(t)
	s.writer.maxAge = time.Hour
	begun, others := make(chan struct{}), make(chan struct{})
	results := make([]error, 5)
	var wg sync.WaitGroup
	var first *batch
	wg.Go(func() {
		results[0] = s.writer.do(t.Context(), func(*conn) error {
			first = s.writer.batch
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
				if s.writer.batch != first {
					t.Errorf("function %d has a transaction of its own", n)
				}
				if _, err := c.Exec(t.Context(), "INSERT INTO replays VALUES ('', ?, '', '', 0)", n); err != nil {
					return err
				}
				switch n {
				case 2:
					return onPurpose
				case 3:
					runtime.Goexit()
				}
				return nil
			})
		})
	}
	for {
		s.writer.mu.Lock()
		waiting := len(s.writer.waiting)
		s.writer.mu.Unlock()
		if waiting == len(results)-1 {
			break
		}
		runtime.Gosched()
	}
	close(others)
	wg.Wait()
	for n, err := range results {
		if want := n == 2; (err != nil) != want {
			t.Errorf("function %d: %v", n, err)
		}
	}
	var keys string
	if err := s.reads.QueryRow("SELECT group_concat(key, ' ') FROM (SELECT key FROM replays ORDER BY key)").Scan(&keys); err != nil {
		t.Fatal(err)
	}
	if keys != "1 4" {
		t.Errorf("committed %q", keys)
	}
}

func TestCheck(t *testing.T) {
	s := openInside(t)
	if err := s.Update(t.Context(), func(tx store.Tx) error { return tx.InsertTemplate(numbered(1)) }); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{
		"PRAGMA foreign_keys = 0",
		"INSERT INTO job_log VALUES ('job-none', 1, 0, 'info', '')",
		"PRAGMA foreign_keys = 1",
	} {
		if _, err := s.writes.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Check(t.Context()); spore.CodeOf(err) != spore.CodeDamaged || !strings.Contains(err.Error(), "job_log") {
		t.Fatalf("a row that refers to nothing: %v", err)
	}
}

// What became of a run while the disk was full is written down when there is room again, so that it is tried again.
func TestOutcomeOnFullDisk(t *testing.T) {
	s := openInside(t)
	j := &spore.Job{ID: spore.NewJobID(), Operation: spore.OpCreate, Status: spore.JobPending}
	err := s.Update(t.Context(), func(tx store.Tx) error { return errors.Join(tx.InsertJob(j), tx.Enqueue(j.ID, 2)) })
	if err != nil {
		t.Fatal(err)
	}
	var pages int
	if err := s.writes.QueryRow("PRAGMA page_count").Scan(&pages); err != nil {
		t.Fatal(err)
	}
	attempts := make(chan int, 2)
	err = s.Work(t.Context(), 1, func(_ context.Context, _ string, attempt int, _ bool) error {
		attempts <- attempt
		if attempt > 1 {
			return nil
		}
		if _, err := s.writes.Exec(fmt.Sprintf("PRAGMA max_page_count = %d", pages)); err != nil {
			t.Error(err)
		}
		return errors.New(strings.Repeat("it takes a lot of room to say what happened. ", 10_000))
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := <-attempts; n != 1 {
		t.Fatalf("attempt %d", n)
	}
	// River itself tries for some three seconds.
	for end := time.Now().Add(6 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if len(attempts) > 0 {
			t.Fatal("the outcome was written without room for it")
		}
	}
	if _, err := s.writes.Exec("PRAGMA max_page_count = 1073741823"); err != nil {
		t.Fatal(err)
	}
	select {
	case n := <-attempts:
		if n != 2 {
			t.Errorf("attempt %d", n)
		}
	case <-time.After(time.Minute):
		t.Error("the run seems to go on for ever")
	}
}
