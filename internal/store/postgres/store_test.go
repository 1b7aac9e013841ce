package postgres_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
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

// free are databases that no test uses. They are emptied and used again, since to make one takes longer than most tests.
var free struct {
	sync.Mutex
	urls []string
}

// database answers the URL of an empty database for one test.
func database(t testing.TB) (url string) {
	t.Helper()
	free.Lock()
	if n := len(free.urls); n > 0 {
		url, free.urls = free.urls[n-1], free.urls[:n-1]
	}
	free.Unlock()
	if url == "" {
		url = pgtest.Lasting(t)
	} else {
		empty(t, url)
	}
	t.Cleanup(func() {
		free.Lock()
		defer free.Unlock()
		free.urls = append(free.urls, url)
	})
	return url
}

// empty removes all rows of a database.
func empty(t testing.TB, url string) {
	t.Helper()
	conn := connect(t, url)
	defer conn.Close(context.Background())
	// What refers to others was made after them. TRUNCATE would make a hundred files anew.
	_, err := conn.Exec(t.Context(), `DO $$ DECLARE name regclass; BEGIN
		FOR name IN SELECT oid FROM pg_class WHERE relnamespace = 'spore'::regnamespace AND relkind = 'r'
			AND relname NOT IN ('goose_db_version', 'river_migration') ORDER BY oid DESC
		LOOP EXECUTE format('DELETE FROM %s', name); END LOOP;
	END $$`)
	if err != nil {
		t.Fatal(err)
	}
}

func connect(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestConformance(t *testing.T) {
	t.Parallel()
	urls := map[string]string{} // by the directories that the suite knows databases by
	storetest.Run(t, func(t *testing.T, dir string) store.Store {
		if urls[dir] == "" {
			urls[dir] = database(t)
		}
		return open(t, urls[dir])
	})
}

func TestConformanceShared(t *testing.T) {
	t.Parallel()
	storetest.RunShared(t, func(t *testing.T) (a, b store.Store) {
		url := database(t)
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
