package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

func TestAssign(t *testing.T) {
	var (
		text  string
		state spore.SandboxState
		small int8
		n     int
		bytes = []byte("before")
	)
	for _, c := range []struct {
		dest, value any
		ok          bool
	}{
		{&text, "a", true}, {&state, "RUNNING", true}, {&n, int64(1) << 40, true}, {&small, int64(-7), true}, {&bytes, []byte{1}, true},
		{&text, int64(1), false}, {&n, "1", false}, {&small, int64(128), false}, {&text, nil, false}, {&n, nil, false}, {&n, 1.5, false},
		{&bytes, "text", false},
	} {
		if err := assign(c.dest, c.value); (err == nil) != c.ok {
			t.Errorf("%T into %T: %v", c.value, c.dest, err)
		}
	}
	if diff := cmp.Diff([]any{"a", spore.SandboxRunning, 1 << 40, int8(-7), []byte{1}}, []any{text, state, n, small, bytes}); diff != "" {
		t.Error(diff)
	}
	if err := assign(&bytes, nil); err != nil || bytes != nil {
		t.Errorf("nothing became %v, error %v", bytes, err)
	}
	if err := (&gathered{rows: [][]driver.Value{{"a"}}}).Scan(&text, &n); err == nil {
		t.Error("one column was two")
	}
}

// More statements than are kept compiled work as well, also when the pool has opened another connection.
func TestStatements(t *testing.T) {
	s := openInside(t)
	for round := range 2 {
		kept := 0
		err := s.writer.do(t.Context(), func(c *conn) error {
			for n := range maxStatements + 10 {
				n += round * 1000 // the answers of the first round are known
				cursor, err := c.Query(t.Context(), fmt.Sprintf("SELECT ? + %d", n), 1)
				if err != nil {
					return err
				}
				var got int
				if !cursor.Next() {
					t.Fatal("no row")
				}
				if err := cursor.Scan(&got); err != nil || got != n+1 {
					t.Fatalf("1 + %d is %d, error %v", n, got, err)
				}
			}
			return c.direct.conn.Raw(func(conn any) error {
				kept = len(conn.(*keepingConn).known.compiled)
				return nil
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		if kept != maxStatements {
			t.Errorf("%d statements are kept", kept)
		}
		if round == 0 { // the pool lets its idle connection go
			s.writes.SetMaxIdleConns(0)
			s.writes.SetMaxIdleConns(1)
		}
	}
	if err := s.Update(t.Context(), func(tx store.Tx) error { return tx.InsertTemplate(numbered(1)) }); err != nil {
		t.Fatal(err)
	}
}

// A row that a stranger has spoilt is told as such, whether the writer reads it or somebody else.
func TestSpoiltRow(t *testing.T) {
	s := openInside(t)
	if err := s.Update(t.Context(), func(tx store.Tx) error { return tx.InsertTemplate(numbered(1)) }); err != nil {
		t.Fatal(err)
	}
	if _, err := s.writes.Exec(`UPDATE templates SET process = '[7]'`); err != nil {
		t.Fatal(err)
	}
	read := func(tx store.Tx) error { _, err := tx.Template(numbered(1).ID); return err }
	for name, err := range map[string]error{"writer": s.Update(t.Context(), read), "reader": s.View(t.Context(), read)} {
		if e := spore.AsError(err); e == nil || e.Code != spore.CodeDamaged || e.Hint == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A caller who leaves in the middle of a statement costs the connection, and with it goes everything that it held: the file is
// not open any more, and nothing of it is left to be closed with the store.
func TestInterrupted(t *testing.T) {
	s := openInside(t)
	insert := func(n int) {
		t.Helper()
		if err := s.Update(t.Context(), func(tx store.Tx) error { return tx.InsertTemplate(numbered(n)) }); err != nil {
			t.Fatal(err)
		}
	}
	insert(0)
	before := openFiles(t, "spore.db")
	for round := range 10 {
		ctx, leave := context.WithTimeout(t.Context(), 20*time.Millisecond)
		var n int
		err := s.writes.QueryRowContext(ctx, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n").Scan(&n)
		leave()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("a statement without end: %v", err)
		}
		if round < 9 { // at last the store is closed right after it
			insert(round + 1)
		}
	}
	if after := openFiles(t, "spore.db"); after > before {
		t.Errorf("the database is open %d times, before %d", after, before)
	}
}

// openFiles counts the descriptors of this process whose file's name begins so.
func openFiles(t *testing.T, prefix string) (count int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		if err == nil && strings.HasPrefix(filepath.Base(target), prefix) { // one that has been closed since is not open
			count++
		}
	}
	return count
}
