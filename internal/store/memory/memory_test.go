package memory_test

import (
	"log/slog"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/memory"
	"github.com/sporevm/spore/internal/store/storetest"
)

func TestConformance(t *testing.T) {
	var databases sync.Map // by directory: what is opened twice there is the same
	storetest.Run(t, func(t *testing.T, dir string) store.Store {
		db, _ := databases.LoadOrStore(dir, memory.New())
		return db.(*memory.Database).Open(memory.Options{Logger: slog.New(slog.DiscardHandler), Backoff: storetest.Backoff, Alone: true})
	})
}

func TestShared(t *testing.T) {
	storetest.RunShared(t, func(t *testing.T) (a, b store.Store) {
		db := memory.New()
		opt := memory.Options{Logger: slog.New(slog.DiscardHandler), Backoff: storetest.Backoff}
		return db.Open(opt), db.Open(opt)
	})
}

// What callers do to the rows that they gave or got is no matter of the store's.
func TestCopies(t *testing.T) {
	s := memory.New().Open(memory.Options{Logger: slog.New(slog.DiscardHandler)})
	defer closing(t, s)
	row := func() *spore.Template {
		return &spore.Template{
			ID: "tpl-a", Kind: spore.KindTemplate, Status: spore.TemplateReady, Labels: map[string]string{"a": "b"}, Request: []byte("{}"),
			Process:  spore.Process{Cmd: []string{"x"}, Env: []string{"x"}, Entrypoint: []string{"x"}},
			Replicas: spore.ReplicaPolicy{Nodes: []string{"n"}, Selector: map[string]string{"a": "b"}},
		}
	}
	spoil := func(r *spore.Template) {
		r.Labels["a"], r.Replicas.Selector["a"], r.Request[0], r.Replicas.Nodes[0] = "spoilt", "spoilt", 'X', "spoilt"
		r.Process.Cmd[0], r.Process.Env[0], r.Process.Entrypoint[0] = "spoilt", "spoilt", "spoilt"
	}
	given := row()
	update(t, s, func(tx store.Tx) error { return tx.InsertTemplate(given) })
	spoil(given)
	for range 2 {
		var one *spore.Template
		var list []*spore.Template
		err := s.View(t.Context(), func(tx store.Tx) (err error) {
			if one, err = tx.Template("tpl-a"); err == nil {
				list, _, err = tx.Templates(store.TemplateFilter{})
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]*spore.Template{row(), row()}, append(list, one)); diff != "" {
			t.Fatal(diff)
		}
		spoil(one)
		spoil(list[0])
	}
}
