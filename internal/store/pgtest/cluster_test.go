package pgtest

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/jackc/pgx/v5"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

func run(ctx context.Context, url, statement string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, statement)
	return errors.Join(err, conn.Close(ctx))
}

func TestStart(t *testing.T) {
	first, second := Start(t), Start(t)
	if err := run(t.Context(), first, "CREATE SCHEMA s CREATE TABLE t (x int)"); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), second, "SELECT * FROM s.t"); err == nil {
		t.Error("two tests share a database")
	}
	conn, err := pgx.Connect(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var super string
	if err := conn.QueryRow(t.Context(), "SHOW is_superuser").Scan(&super); err != nil || super != "off" {
		t.Errorf("superuser: %s, error %v", super, err)
	}
}

func TestCluster(t *testing.T) {
	var dir string
	t.Run("Use", func(t *testing.T) {
		c := New(t, Options{Durable: true})
		dir = c.Dir()
		db := c.Database(t)
		if err := run(t.Context(), db, "CREATE SCHEMA s CREATE TABLE t (x int)"); err != nil {
			t.Fatal(err)
		}
		for name, stop := range map[string]func(testing.TB){"stop": c.Stop, "crash": c.Crash} {
			stop(t)
			if err := run(t.Context(), db, "SELECT 1"); err == nil {
				t.Errorf("%s: the server still answers", name)
			}
			c.Start(t)
			if err := run(t.Context(), db, "SELECT * FROM s.t"); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := run(t.Context(), db, "CREATE ROLE another"); err == nil {
			t.Error("a test may do everything")
		}
		c.Exec(t, db, "CREATE ROLE another")
	})
	if _, err := os.Stat(filepath.Join(dir, "data")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the cluster was left behind: %v", err)
	}
}
