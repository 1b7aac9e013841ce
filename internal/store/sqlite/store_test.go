package sqlite_test

import (
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/sqlite"
	"github.com/sporevm/spore/internal/store/storetest"
)

func open(t testing.TB, path string) store.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), path, sqlite.Options{Logger: slog.New(slog.DiscardHandler), Backoff: storetest.Backoff})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformance(t *testing.T) {
	// A path that SQLite would misread were it not escaped.
	storetest.Run(t, func(t *testing.T, dir string) store.Store { return open(t, filepath.Join(dir, "a?b %41#.db")) })
}
