package postgres_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/pgtest"
	"github.com/sporevm/spore/internal/store/postgres"
	"github.com/sporevm/spore/internal/store/storetest"
)

var controllers atomic.Int64

// open opens a store for a controller of its own.
func open(t testing.TB, url string) store.Store {
	t.Helper()
	return openAs(t, url, fmt.Sprintf("controller-%d", controllers.Add(1)))
}

func openAs(t testing.TB, url, controller string) store.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), postgres.Options{
		URL: url, Controller: controller, Logger: slog.New(slog.DiscardHandler), Backoff: storetest.Backoff,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// databases are emptied and used again, since to make one takes longer than most tests.
type databases struct {
	parent *testing.T
	free   []string
	byDir  map[string]string
}

func newDatabases(t *testing.T) *databases { return &databases{parent: t, byDir: map[string]string{}} }

// get answers the URL of an empty database for one test, the same for the same directory.
func (d *databases) get(t *testing.T, dir string) (url string) {
	t.Helper()
	if url, ok := d.byDir[dir]; ok {
		return url
	}
	if n := len(d.free); n > 0 {
		url, d.free = d.free[n-1], d.free[:n-1]
		empty(t, url)
	} else {
		url = pgtest.Start(d.parent)
	}
	d.byDir[dir] = url
	t.Cleanup(func() { d.free = append(d.free, url) })
	return url
}

// empty removes all rows of a database.
func empty(t *testing.T, url string) {
	t.Helper()
	conn := connect(t, url)
	defer conn.Close(context.Background())
	_, err := conn.Exec(t.Context(), `DO $$ DECLARE tables text; BEGIN
		SELECT string_agg(format('%I.%I', schemaname, tablename), ', ') INTO tables FROM pg_tables
			WHERE schemaname = 'spore' AND tablename NOT IN ('goose_db_version', 'river_migration');
		EXECUTE 'TRUNCATE ' || tables || ' RESTART IDENTITY';
	END $$`)
	if err != nil {
		t.Fatal(err)
	}
}

func connect(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestConformance(t *testing.T) {
	all := newDatabases(t)
	storetest.Run(t, func(t *testing.T, dir string) store.Store { return open(t, all.get(t, dir)) })
}

func TestConformanceShared(t *testing.T) {
	all := newDatabases(t)
	storetest.RunShared(t, func(t *testing.T) (a, b store.Store) {
		url := all.get(t, t.TempDir())
		a, b = openAs(t, url, "a"), openAs(t, url, "b")
		update(t, a, func(tx store.Tx) error { return beat(tx, "a", "b") })
		return a, b
	})
}

// beat says that controllers live.
func beat(tx store.Tx, ids ...string) error {
	for _, id := range ids {
		if err := tx.Beat(id, time.Now()); err != nil {
			return err
		}
	}
	return nil
}

func update(t testing.TB, s store.Store, fn func(tx store.Tx) error) {
	t.Helper()
	if err := s.Update(context.Background(), fn); err != nil {
		t.Fatal(err)
	}
}

func view(t testing.TB, s store.Store, fn func(tx store.Tx) error) {
	t.Helper()
	if err := s.View(context.Background(), fn); err != nil {
		t.Fatal(err)
	}
}

func closed(t testing.TB, s store.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func wantCode(t testing.TB, err error, code spore.Code) {
	t.Helper()
	if got := spore.CodeOf(err); got != code {
		t.Fatalf("code %q, want %q; error: %v", got, code, err)
	}
}

// wantUnavailable fails the test unless err says that the database does not answer, and what to do.
func wantUnavailable(t testing.TB, err error) {
	t.Helper()
	wantCode(t, err, spore.CodeUnreachable)
	if e := spore.AsError(err); e.Reason != spore.ReasonStoreUnavailable || e.Hint == "" {
		t.Errorf("reason %q, hint %q", e.Reason, e.Hint)
	}
}

func row(n int) *spore.Template {
	return &spore.Template{ID: fmt.Sprintf("tpl-%024x", n), Kind: spore.KindTemplate, Status: spore.TemplateReady, CreatedAt: time.Unix(int64(n), 0)}
}

// has says whether a template is there.
func has(t testing.TB, s store.Store, id string) bool {
	t.Helper()
	there := false
	view(t, s, func(tx store.Tx) error {
		_, err := tx.Template(id)
		there = err == nil
		if spore.CodeOf(err) == spore.CodeNotFound {
			return nil
		}
		return err
	})
	return there
}
