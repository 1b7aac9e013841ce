package postgres_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/pgtest"
	"github.com/sporevm/spore/internal/store/postgres"
)

func execute(t testing.TB, url, statement string) {
	t.Helper()
	conn := connect(t, url)
	defer conn.Close(context.Background())
	if _, err := conn.Exec(context.Background(), statement); err != nil {
		t.Fatal(err)
	}
}

// with changes the user or the name in the URL of a database.
func with(t testing.TB, text, user, name string) string {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if user != "" {
		u.User = url.User(user)
	}
	if name != "" {
		u.Path = "/" + name
	}
	return u.String()
}

func TestOpenNewer(t *testing.T) {
	t.Parallel()
	db := pgtest.Start(t)
	closed(t, open(t, db))
	for _, c := range []struct{ add, remove string }{
		{"INSERT INTO spore.goose_db_version (version_id, is_applied) VALUES (9999, true)", "DELETE FROM spore.goose_db_version WHERE version_id = 9999"},
		{"INSERT INTO spore.river_migration (line, version) VALUES ('main', 9999)", "DELETE FROM spore.river_migration WHERE version = 9999"},
	} {
		execute(t, db, c.add)
		_, err := postgres.Open(t.Context(), postgres.Options{URL: db})
		wantCode(t, err, spore.CodeConflict)
		if e := spore.AsError(err); e.Message != "database was written by a newer spore" || e.Hint == "" {
			t.Errorf("refused with %q, hint %q", e.Message, e.Hint)
		}
		execute(t, db, c.remove)
	}
	closed(t, open(t, db))
}

// Several servers may meet a new database at the same time.
func TestOpenTogether(t *testing.T) {
	t.Parallel()
	db := pgtest.Start(t)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			s, err := postgres.Open(t.Context(), postgres.Options{URL: db, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Error(err)
				return
			}
			closed(t, s)
		})
	}
	all.Wait()
}

func TestOpenImpossible(t *testing.T) {
	t.Parallel()
	db := pgtest.Start(t)
	execute(t, with(t, db, "postgres", ""), `CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C'`)
	execute(t, with(t, db, "postgres", ""), `CREATE ROLE nobody LOGIN`)
	t.Cleanup(func() {
		for _, what := range []string{"DATABASE latin", "ROLE nobody"} {
			execute(t, with(t, db, "postgres", "postgres"), "DROP "+what)
		}
	})
	dead := strings.Replace(db, "host=", "host=%2Fnone", 1)
	for name, c := range map[string]struct {
		url  string
		code spore.Code
	}{
		"empty":         {"", spore.CodeInvalid},
		"no URL":        {"https://example.org", spore.CodeInvalid},
		"no server":     {dead, spore.CodeUnreachable},
		"no database":   {with(t, db, "", "none"), spore.CodeUnreachable},
		"no such user":  {with(t, db, "none", ""), spore.CodeUnreachable},
		"no rights":     {with(t, db, "nobody", ""), spore.CodeUnreachable},
		"wrong letters": {with(t, db, "postgres", "latin"), spore.CodeUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := postgres.Open(t.Context(), postgres.Options{URL: c.url})
			if err == nil {
				closed(t, s)
			}
			wantCode(t, err, c.code)
			if c.code == spore.CodeUnreachable {
				wantUnavailable(t, err)
			}
			if spore.AsError(err).Hint == "" {
				t.Errorf("no hint: %v", err)
			}
		})
	}
}

// everything renders an error and all that it holds.
func everything(err error) string {
	var b strings.Builder
	var walk func(error)
	walk = func(err error) {
		if err == nil {
			return
		}
		fmt.Fprintf(&b, "%v\n", err)
		if e, ok := err.(*spore.Error); ok {
			fmt.Fprintln(&b, e.Hint)
		}
		switch e := err.(type) {
		case interface{ Unwrap() error }:
			walk(e.Unwrap())
		case interface{ Unwrap() []error }:
			for _, one := range e.Unwrap() {
				walk(one)
			}
		}
	}
	walk(err)
	return b.String()
}

const secret = "Pa55-w0rd"

func TestSecret(t *testing.T) {
	t.Parallel()
	p, db := newProxy(t, database(t))
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	u, err := url.Parse(db)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("spore", secret)
	s, err := postgres.Open(t.Context(), postgres.Options{URL: u.String(), Logger: logger, Controller: "c"})
	if err != nil {
		t.Fatal(err)
	}
	changes := s.Changes()
	p.cutAll()
	receive(t, changes, "the connection")
	if err := s.Work(t.Context(), 1, func(context.Context, string, int, bool) error { return nil }); err != nil {
		t.Fatal(err)
	}
	closed(t, s)
	if log.Len() == 0 || strings.Contains(log.String(), secret) {
		t.Errorf("logged: %s", log.String())
	}
	for _, text := range []string{
		"postgres://spore:" + secret + "@localhost:1/x",
		"postgres://spore:" + secret + "@/none?host=/none",
		"postgres://spore:%zz" + secret + "@localhost/x",
		"postgres://spore:1/" + secret + "@localhost/x",
		"postgres://spore:" + secret + "#@localhost/x",
		"postgres://spore:1?" + secret + "@localhost/x",
		"postgres://spore:" + secret,
		"host=localhost port=1 password=" + secret,
		"host=localhost port=x password=" + secret,
		"password='" + secret,
		"password=" + secret + " sslmode=maybe",
		secret,
	} {
		s, err := postgres.Open(t.Context(), postgres.Options{URL: text})
		if err == nil {
			closed(t, s)
			t.Errorf("%q was opened", text)
		}
		if told := everything(err); strings.Contains(told, secret) {
			t.Errorf("%q is told: %s", text, told)
		}
	}
}

// The database refuses by itself what the code must never ask for.
func TestConstraints(t *testing.T) {
	t.Parallel()
	db := database(t)
	s := open(t, db)
	defer closed(t, s)
	update(t, s, func(tx store.Tx) error {
		j := &spore.Job{ID: "job-1", Operation: spore.OpCreate, ResourceID: "tpl-x", Status: spore.JobPending}
		sandbox := &spore.Sandbox{ID: "s1", TemplateID: row(1).ID, State: spore.SandboxRunning}
		named := row(2)
		named.Name = "taken"
		ref := &spore.RuntimeRef{TemplateID: row(1).ID, SandboxID: "s1", Status: spore.RefReserved}
		return errors.Join(tx.InsertTemplate(row(1)), tx.InsertTemplate(named), tx.InsertSandbox(sandbox), tx.InsertJob(j), tx.PutRef(ref))
	})
	conn := connect(t, db)
	defer conn.Close(context.Background())
	for _, statement := range []string{
		"UPDATE spore.templates SET status = 'BROKEN'",
		"UPDATE spore.templates SET labels = '[]'",
		"UPDATE spore.templates SET process = 'no JSON'",
		"UPDATE spore.templates SET name = 'taken'",
		"UPDATE spore.templates SET id = '' WHERE name = 'taken'",
		"UPDATE spore.sandboxes SET template_id = 'none'",
		"UPDATE spore.sandboxes SET generation = -1",
		"UPDATE spore.jobs SET progress = 101",
		"DELETE FROM spore.templates",
		"INSERT INTO spore.job_log VALUES ('none', 1, 0, 'info', '')",
		"INSERT INTO spore.aliases VALUES ('a', 'b', 'none', '', '', 0)",
		"INSERT INTO spore.controllers VALUES ('c', 0, 0, 2)",
		"INSERT INTO spore.jobs SELECT 'job-2', operation, resource_type, resource_id, sandbox_id, request_id, node_id, artifact_id, owner, created_at, status, redo, nodes_expected, nodes_ready, nodes_failed, phase, progress, pull, attempt_no, retry_of_job_id, error FROM spore.jobs",
		"INSERT INTO spore.runtime_refs (template_id, sandbox_id, node_id, binding, sandbox_gen, status, reason, attached_at, released_at, lease_until, last_seen_at, last_error) SELECT template_id, sandbox_id, node_id, binding, sandbox_gen, 'ACTIVE', reason, attached_at, released_at, lease_until, last_seen_at, last_error FROM spore.runtime_refs",
	} {
		if _, err := conn.Exec(t.Context(), statement); err == nil {
			t.Errorf("accepted: %s", statement)
		}
	}
}

// Ids that clients make up are merely unknown, whatever is in them, and cost a transaction nothing.
func TestHostileText(t *testing.T) {
	t.Parallel()
	s := open(t, database(t))
	defer closed(t, s)
	for n, id := range []string{"tpl-\x00", "\xff\xfe", "'; DROP TABLE templates; --", "$1", "?", strings.Repeat("x", 1<<20)} {
		update(t, s, func(tx store.Tx) error {
			_, err := tx.Template(id)
			wantCode(t, err, spore.CodeNotFound)
			wantCode(t, tx.DeleteReplica(id, id), "")
			return tx.InsertTemplate(row(n))
		})
		view(t, s, func(tx store.Tx) error {
			_, err := tx.FindTemplate(id)
			wantCode(t, err, spore.CodeNotFound)
			_, err = tx.Template(row(n).ID)
			return err
		})
	}
}
