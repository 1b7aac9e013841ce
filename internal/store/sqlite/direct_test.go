package sqlite

import (
	"database/sql/driver"
	"fmt"
	"testing"

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

// More statements than are kept compiled work as well, and so do those kept when the pool has opened another connection.
func TestStatements(t *testing.T) {
	s := openInside(t)
	for round := range 2 {
		err := s.writer.do(t.Context(), func(c *conn) error {
			for n := range maxStatements + 10 {
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
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if kept := len(s.writer.known.compiled); kept != maxStatements {
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
