package sqlite_test

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
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
	// Migrating takes longer than most tests, so they start from a copy of an empty database.
	empty := filepath.Join(t.TempDir(), "spore.db")
	if err := open(t, empty).Close(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(empty)
	if err != nil {
		t.Fatal(err)
	}
	storetest.Run(t, func(t *testing.T, dir string) store.Store {
		path := filepath.Join(dir, "a?b %41#.db") // which SQLite would misread were it not escaped
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return open(t, path)
	})
}
