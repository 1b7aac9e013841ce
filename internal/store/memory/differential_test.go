package memory_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/memory"
	"github.com/sporevm/spore/internal/store/sqlite"
)

// call is one call of a method of a transaction, to be made on several stores.
type call struct {
	name string
	do   func(tx store.Tx) (any, error)
}

func (c call) GoString() string { return c.name }

// answer is what came of a call, as far as stores must agree on it.
type answer struct {
	Call   string
	Value  any
	Code   spore.Code
	Reason spore.Reason
	Field  string
}

var errRollback = errors.New("on purpose")

// play makes calls in one transaction and answers what came of each.
func play(ctx context.Context, s store.Store, calls []call, commit bool) ([]answer, error) {
	var answers []answer
	err := s.Update(ctx, func(tx store.Tx) error {
		answers = nil
		for _, c := range calls {
			a := answer{Call: c.name}
			value, err := c.do(tx)
			if err != nil {
				e := spore.AsError(err)
				a.Code, a.Reason, a.Field = e.Code, e.Reason, e.Field
			} else {
				a.Value = value
			}
			answers = append(answers, a)
		}
		if !commit {
			return errRollback
		}
		return nil
	})
	if !commit && errors.Is(err, errRollback) {
		err = nil
	}
	return answers, err
}

// The store in memory and the one in SQLite answer the same to whatever they are asked.
func TestLikeSQLite(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.db")
	closing(t, openSQLite(t, empty))
	migrated, err := os.ReadFile(empty)
	if err != nil {
		t.Fatal(err)
	}
	dir, n := t.TempDir(), 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		path := filepath.Join(dir, fmt.Sprint(n, ".db"))
		if err := os.WriteFile(path, migrated, 0o600); err != nil {
			rt.Fatal(err)
		}
		onDisk := openSQLite(t, path)
		defer func() {
			closing(t, onDisk)
			os.Remove(path)
		}()
		inMemory := memory.New().Open(memory.Options{Logger: slog.New(slog.DiscardHandler)})
		defer closing(t, inMemory)

		for range rapid.IntRange(5, 25).Draw(rt, "transactions") {
			calls := rapid.SliceOfN(rapid.Custom(drawCall), 1, 8).Draw(rt, "calls")
			commit := rapid.IntRange(1, 10).Draw(rt, "rolled back at 10") < 10
			want, err := play(t.Context(), onDisk, calls, commit)
			if err != nil {
				rt.Fatalf("SQLite: %v", err)
			}
			got, err := play(t.Context(), inMemory, calls, commit)
			if err != nil {
				rt.Fatalf("memory: %v", err)
			}
			for i := range want {
				if diff := cmp.Diff(want[i], got[i]); diff != "" {
					rt.Fatalf("they differ (-SQLite +memory):\n%s", diff)
				}
			}
		}
	})
}

func openSQLite(t *testing.T, path string) store.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), path, sqlite.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func closing(t *testing.T, s store.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// drawCall draws any call, with arguments from small pools, so that rows meet.
func drawCall(rt *rapid.T) call {
	k := rapid.SampledFrom(kinds).Draw(rt, "method")
	c := k.draw(rt)
	c.name = k.name + " " + c.name
	return c
}

type kind struct {
	name string
	draw func(rt *rapid.T) call
}

// writes makes a kind of call that writes a row. Each store gets a copy of its own, and what it does to that is compared.
func writes[R any](name string, row func(rt *rapid.T) R, write func(tx store.Tx, row *R) error) kind {
	return kind{name, func(rt *rapid.T) call {
		r := row(rt)
		return call{fmt.Sprintf("%+v", r), func(tx store.Tx) (any, error) {
			own := r
			err := write(tx, &own)
			return own, err
		}}
	}}
}

// asks makes a kind of call that takes texts from pools.
func asks(name string, do func(tx store.Tx, args []string) (any, error), pools ...[]string) kind {
	return kind{name, func(rt *rapid.T) call {
		args := make([]string, len(pools))
		for i, pool := range pools {
			args[i] = one(rt, pool)
		}
		return call{fmt.Sprintf("%q", args), func(tx store.Tx) (any, error) { return do(tx, args) }}
	}}
}

// lists makes a kind of call that walks through all pages of a list.
func lists[F, R any](name string, filter func(rt *rapid.T) F, paging func(*F) *store.Paging, list func(tx store.Tx, f F) ([]R, store.Page, error)) kind {
	return kind{name, func(rt *rapid.T) call {
		f := filter(rt)
		p := paging(&f)
		p.Limit = rapid.SampledFrom([]int{0, 1, 2, 3, 1000, 1001, -1}).Draw(rt, "limit")
		return call{fmt.Sprintf("%+v", f), func(tx store.Tx) (any, error) {
			var pages [][]R
			own := f
			for {
				rows, page, err := list(tx, own)
				if err != nil {
					return nil, err
				}
				pages = append(pages, rows)
				if page.Next == "" {
					return pages, nil
				}
				paging(&own).After = page.Next
			}
		}}
	}}
}

func one[T any](rt *rapid.T, pool []T) T {
	return rapid.SampledFrom(pool).Draw(rt, fmt.Sprintf("%T", pool))
}
