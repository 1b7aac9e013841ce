package postgres_test

import (
	"log/slog"
	"sync"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/pgtest"
	"github.com/sporevm/spore/internal/store/postgres"
	"github.com/sporevm/spore/internal/store/storetest"
)

func open(t testing.TB, url, controller string) store.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), postgres.Options{
		URL: url, Controller: controller, Logger: slog.New(slog.DiscardHandler), Backoff: storetest.Backoff,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// databases are the databases of the suite, by the directories that it knows them by.
type databases struct {
	mu     sync.Mutex
	urls   map[string]string
	opened int
}

func (d *databases) url(t *testing.T, dir string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.urls == nil {
		d.urls = map[string]string{}
	}
	if d.urls[dir] == "" {
		d.urls[dir] = pgtest.Start(t)
	}
	return d.urls[dir]
}

func TestConformance(t *testing.T) {
	var all databases
	storetest.Run(t, func(t *testing.T, dir string) store.Store { return open(t, all.url(t, dir), spore.NewJobID()) })
}
