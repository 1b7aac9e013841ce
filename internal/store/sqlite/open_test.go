package sqlite_test

import (
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/sqlite"
)

func row(n int) *spore.Template {
	return &spore.Template{
		ID: fmt.Sprintf("tpl-%024x", n), Name: fmt.Sprintf("name-%d", n), Kind: spore.KindTemplate, Status: spore.TemplateReady,
		LastError: strings.Repeat("x", 500), CreatedAt: time.Unix(int64(n), 0),
	}
}

func fill(t *testing.T, s store.Store, rows int) {
	t.Helper()
	err := s.Update(t.Context(), func(tx store.Tx) error {
		for n := range rows {
			if err := tx.InsertTemplate(row(n)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func closed(t *testing.T, s store.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func wantCode(t *testing.T, err error, code spore.Code) {
	t.Helper()
	if got := spore.CodeOf(err); got != code {
		t.Fatalf("code %q, want %q; error: %v", got, code, err)
	}
}

func TestOpenNewer(t *testing.T) {
	for name, statement := range map[string]string{
		"rows":  "INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, 1)",
		"queue": "INSERT INTO river_migration (line, version) VALUES ('main', 9999)",
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "spore.db")
			closed(t, open(t, path))
			db, err := sql.Open("sqlite", path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := db.Exec(statement); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			_, err = sqlite.Open(t.Context(), path, sqlite.Options{})
			wantCode(t, err, spore.CodeConflict)
			if e := spore.AsError(err); e.Message != "data directory was written by a newer spore" || e.Hint == "" {
				t.Errorf("refused with %q, hint %q", e.Message, e.Hint)
			}
			after, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if string(before) != string(after) {
				t.Error("the refused file was changed")
			}
		})
	}
}

func TestOpenDamaged(t *testing.T) {
	whole := filepath.Join(t.TempDir(), "spore.db")
	s := open(t, whole)
	fill(t, s, 200)
	closed(t, s)
	good, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	spoilt := func(from, to int) []byte {
		bytes := append([]byte(nil), good...)
		for i := from; i < to; i++ {
			bytes[i] = 0xa5
		}
		return bytes
	}
	for name, bytes := range map[string][]byte{
		"not a database": []byte(strings.Repeat("hello, world\n", 1000)),
		"bad header":     spoilt(0, 16),
		"bad schema":     spoilt(100, 4096),
		"truncated":      good[:len(good)/2/4096*4096],
		"bad pages":      spoilt(len(good)/2, len(good)),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "spore.db")
			if err := os.WriteFile(path, bytes, 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := sqlite.Open(t.Context(), path, sqlite.Options{})
			if err == nil { // then it shows when the rows are read
				defer closed(t, s)
				err = s.View(t.Context(), func(tx store.Tx) error {
					for n := range 200 {
						if _, err := tx.Template(row(n).ID); err != nil {
							return err
						}
					}
					return nil
				})
			}
			wantCode(t, err, spore.CodeDamaged)
			if spore.AsError(err).Hint == "" {
				t.Error("no hint")
			}
		})
	}
}

func TestOpenImpossible(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{dir, filepath.Join(dir, "none", "spore.db")} {
		if s, err := sqlite.Open(t.Context(), path, sqlite.Options{}); err == nil {
			closed(t, s)
			t.Errorf("opened %s", path)
		}
	}
}

func TestPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "spore.db")
	s := open(t, path)
	defer closed(t, s)
	fill(t, s, 1)
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) != 3 {
		t.Fatalf("files %v, error %v", files, err)
	}
	for _, name := range files {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s is %s", name, info.Mode())
		}
	}
}
