package memory_test

import (
	"log/slog"
	"sync"
	"testing"

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
