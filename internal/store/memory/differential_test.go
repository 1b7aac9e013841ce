package memory_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

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

// player is a store under test.
type player struct {
	store.Store
	refs []int64 // ids that it gave to runtime refs, in their order
}

// play makes calls in one transaction and answers what came of each.
func (p *player) play(ctx context.Context, calls []call, commit bool) ([]answer, error) {
	var answers []answer
	before := p.refs
	err := p.Update(ctx, func(tx store.Tx) error {
		answers, p.refs = nil, before
		tx = numbered{tx, &p.refs}
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
	if !commit {
		p.refs = before
		if errors.Is(err, errRollback) {
			err = nil
		}
	}
	return answers, err
}

// numbered is a transaction whose runtime refs are known by which they are, counted from 1, because stores need not agree on
// their ids beyond the order.
type numbered struct {
	store.Tx
	refs *[]int64
}

func (tx numbered) PutRef(r *spore.RuntimeRef) error {
	own := *r
	if r.ID != 0 {
		own.ID = 1 << 40 // no such ref
		if int(r.ID) <= len(*tx.refs) {
			own.ID = (*tx.refs)[r.ID-1]
		}
	}
	if err := tx.Tx.PutRef(&own); err != nil {
		return err
	}
	if r.ID == 0 {
		*tx.refs = append(slices.Clip(*tx.refs), own.ID)
	}
	own.ID = int64(slices.Index(*tx.refs, own.ID) + 1)
	*r = own
	return nil
}

func (tx numbered) Refs(f store.RefFilter) ([]*spore.RuntimeRef, error) {
	list, err := tx.Tx.Refs(f)
	for _, r := range list {
		r.ID = int64(slices.Index(*tx.refs, r.ID) + 1)
	}
	return list, err
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
		onDisk := &player{Store: openSQLite(t, path)}
		defer func() {
			closing(t, onDisk)
			os.Remove(path)
		}()
		inMemory := &player{Store: memory.New().Open(memory.Options{Logger: slog.New(slog.DiscardHandler)})}
		defer closing(t, inMemory)

		// What is about one subject meets more often than what is about any.
		subjects := rapid.SliceOfNDistinct(rapid.SampledFrom(slices.Sorted(maps.Keys(kinds))), 1, 3, rapid.ID).Draw(rt, "subjects")
		var focus []kind
		for _, subject := range subjects {
			focus = append(focus, kinds[subject]...)
		}
		calls, commit := beginning(), true
		for range rapid.IntRange(5, 25).Draw(rt, "transactions") {
			want, err := onDisk.play(t.Context(), calls, commit)
			if err != nil {
				rt.Fatalf("SQLite: %v", err)
			}
			got, err := inMemory.play(t.Context(), calls, commit)
			if err != nil {
				rt.Fatalf("memory: %v", err)
			}
			for i := range want {
				if diff := cmp.Diff(want[i], got[i]); diff != "" {
					rt.Fatalf("they differ (-SQLite +memory):\n%s", diff)
				}
			}
			calls = rapid.SliceOfN(drawCall(focus), 1, 8).Draw(rt, "calls")
			commit = rapid.IntRange(1, 10).Draw(rt, "rolled back at 10") < 10
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

// drawCall draws any call of some kinds, with arguments from small pools, so that rows meet.
func drawCall(kinds []kind) *rapid.Generator[call] {
	return rapid.Custom(func(rt *rapid.T) call {
		k := one(rt, kinds)
		c := k.draw(rt)
		c.name = k.name + " " + c.name
		return c
	})
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

// beginning is some rows for others to refer to.
func beginning() []call {
	inserts := func(name string, do func(tx store.Tx) error) call {
		return call{name, func(tx store.Tx) (any, error) { return nil, do(tx) }}
	}
	var calls []call
	for n, id := range []string{"tpl-a", "tpl-b", "snap-a"} {
		row := &spore.Template{ID: id, Kind: spore.KindTemplate, Status: spore.TemplateReady, CreatedAt: moment.Add(time.Duration(n) * time.Second)}
		calls = append(calls, inserts(id, func(tx store.Tx) error { return tx.InsertTemplate(row) }))
	}
	for _, id := range []string{"sa", "sb"} {
		row := &spore.Sandbox{ID: id, State: spore.SandboxRunning, TemplateID: "tpl-a", CreatedAt: moment}
		calls = append(calls, inserts(id, func(tx store.Tx) error { return tx.InsertSandbox(row) }))
	}
	for _, id := range []string{"rfs-a", "rfs-b"} {
		row := &spore.Artifact{ID: id, Status: spore.ArtifactReady, CreatedAt: moment}
		calls = append(calls, inserts(id, func(tx store.Tx) error { return tx.PutArtifact(row) }))
	}
	job := &spore.Job{ID: "job-a", Operation: spore.OpCreate, Status: spore.JobPending, ResourceID: "tpl-a", CreatedAt: moment}
	return append(calls,
		inserts("job-a", func(tx store.Tx) error { return tx.InsertJob(job) }),
		inserts("c1", func(tx store.Tx) error { return tx.Beat("c1", moment) }))
}
