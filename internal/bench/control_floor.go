package bench

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/sporevm/spore"
)

// bareDatabase is what the database itself needs, driven by hand on one connection, with the same promise of durability. It is for
// one caller at a time.
type bareDatabase interface {
	// commit writes the rows of so many creates, two for each, in one transaction that is on the disk when it returns.
	commit(ctx context.Context, creates int) error
	// lookUp reads the row of a template and of one of its replicas.
	lookUp(ctx context.Context, template, node string) error
	// read reads templates by their ids.
	read(ctx context.Context, ids []string) error
	close() error
}

const (
	floorTables = `CREATE TABLE IF NOT EXISTS floor_sandboxes (id TEXT PRIMARY KEY, body TEXT NOT NULL);
		CREATE TABLE IF NOT EXISTS floor_refs (id TEXT PRIMARY KEY, body TEXT NOT NULL)`
	floorSandbox = "INSERT INTO floor_sandboxes VALUES ($1, $2)"
	floorRef     = "INSERT INTO floor_refs VALUES ($1, $2)"
	oneTemplate  = "SELECT * FROM templates WHERE id = $1"
	oneReplica   = "SELECT * FROM replicas WHERE template_id = $1 AND node_id = $2"
)

// What a row of a sandbox and of a runtime ref holds beside its id, about as long.
var (
	sandboxBody = strings.Repeat("sandbox ", 30)
	refBody     = strings.Repeat("ref ", 30)
)

func named(ids []string) (list string, args []any) {
	marks := make([]string, len(ids))
	for i, id := range ids {
		marks[i] = fmt.Sprintf("$%d", i+1)
		args = append(args, id)
	}
	return "SELECT * FROM templates WHERE id IN (" + strings.Join(marks, ", ") + ")", args
}

type bareSQLite struct {
	writes, reads            *sql.DB
	begin, end, sandbox, ref *sql.Stmt
	template, replica        *sql.Stmt
	page                     *sql.Stmt
	pageOf                   int
}

func (d *sqliteFile) bare(ctx context.Context) (_ bareDatabase, err error) {
	f := &bareSQLite{}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close())
		}
	}()
	at := func(path string) string {
		pragmas := url.Values{"_pragma": {"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "cache_size(-16000)", "wal_autocheckpoint(8000)"}}
		return (&url.URL{Scheme: "file", Path: path, RawQuery: pragmas.Encode()}).String()
	}
	if f.writes, err = sql.Open("sqlite", at(d.dir+"/floor.db")); err != nil {
		return nil, err
	}
	f.writes.SetMaxOpenConns(1)
	if _, err := f.writes.ExecContext(ctx, floorTables); err != nil {
		return nil, err
	}
	if f.reads, err = sql.Open("sqlite", at(d.rows())); err != nil {
		return nil, err
	}
	f.reads.SetMaxOpenConns(1)
	for _, p := range []struct {
		db   *sql.DB
		text string
		to   **sql.Stmt
	}{
		{f.writes, "BEGIN IMMEDIATE", &f.begin}, {f.writes, "COMMIT", &f.end}, {f.writes, floorSandbox, &f.sandbox}, {f.writes, floorRef, &f.ref},
		{f.reads, oneTemplate, &f.template}, {f.reads, oneReplica, &f.replica},
	} {
		if *p.to, err = p.db.PrepareContext(ctx, p.text); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func (f *bareSQLite) commit(ctx context.Context, creates int) error {
	if _, err := f.begin.ExecContext(ctx); err != nil {
		return err
	}
	for range creates {
		id := spore.NewSandboxID()
		if _, err := f.sandbox.ExecContext(ctx, id, sandboxBody); err != nil {
			return err
		}
		if _, err := f.ref.ExecContext(ctx, id, refBody); err != nil {
			return err
		}
	}
	_, err := f.end.ExecContext(ctx)
	return err
}

func (f *bareSQLite) lookUp(ctx context.Context, template, node string) error {
	return errors.Join(drain(f.template.QueryContext(ctx, template)), drain(f.replica.QueryContext(ctx, template, node)))
}

func (f *bareSQLite) read(ctx context.Context, ids []string) (err error) {
	text, args := named(ids)
	if f.pageOf != len(ids) {
		if f.page, err = f.reads.PrepareContext(ctx, text); err != nil {
			return err
		}
		f.pageOf = len(ids)
	}
	return drain(f.page.QueryContext(ctx, args...))
}

// drain reads all rows as the bytes that they are.
func drain(rows *sql.Rows, err error) error {
	if err != nil {
		return err
	}
	columns, err := rows.Columns()
	if err != nil {
		return errors.Join(err, rows.Close())
	}
	raw, dest := make([]sql.RawBytes, len(columns)), make([]any, len(columns))
	for i := range raw {
		dest[i] = &raw[i]
	}
	n := 0
	for rows.Next() {
		if err := rows.Scan(dest...); err != nil {
			return errors.Join(err, rows.Close())
		}
		n++
	}
	if n == 0 && rows.Err() == nil {
		return errors.Join(errNoRows, rows.Close())
	}
	return errors.Join(rows.Err(), rows.Close())
}

var errNoRows = errors.New("the floor found no rows")

func (f *bareSQLite) close() error {
	var errs []error
	for _, db := range []*sql.DB{f.writes, f.reads} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(errs...)
}

type barePostgres struct{ conn *pgx.Conn }

func (d *postgresURL) bare(ctx context.Context) (bareDatabase, error) {
	conn, err := connect(ctx, d.url)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, floorTables); err != nil {
		return nil, errors.Join(err, conn.Close(ctx))
	}
	return &barePostgres{conn}, nil
}

// commit sends the whole transaction at once: fewer round trips are not possible.
func (f *barePostgres) commit(ctx context.Context, creates int) error {
	b := &pgx.Batch{}
	b.Queue("BEGIN")
	for range creates {
		id := spore.NewSandboxID()
		b.Queue(floorSandbox, id, sandboxBody)
		b.Queue(floorRef, id, refBody)
	}
	b.Queue("COMMIT")
	return f.conn.SendBatch(ctx, b).Close()
}

func (f *barePostgres) lookUp(ctx context.Context, template, node string) error {
	if err := f.drain(ctx, oneTemplate, template); err != nil {
		return err
	}
	return f.drain(ctx, oneReplica, template, node)
}

func (f *barePostgres) read(ctx context.Context, ids []string) error {
	text, args := named(ids)
	return f.drain(ctx, text, args...)
}

func (f *barePostgres) drain(ctx context.Context, text string, args ...any) error {
	rows, err := f.conn.Query(ctx, text, args...)
	if err != nil {
		return err
	}
	n := 0
	for rows.Next() {
		rows.RawValues()
		n++
	}
	rows.Close()
	if n == 0 && rows.Err() == nil {
		return errNoRows
	}
	return rows.Err()
}

func (f *barePostgres) close() error { return f.conn.Close(context.Background()) }

// sharing lets many callers commit through a floor: those that wait at the same time share one commit.
type sharing struct {
	asked chan chan error
	ended chan struct{}
}

// shareAtMost is how many share one commit at most, as in the stores.
const shareAtMost = 256

func newSharing(f bareDatabase) *sharing {
	s := &sharing{asked: make(chan chan error, shareAtMost), ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		for first := range s.asked {
			together := []chan error{first}
			for len(together) < shareAtMost && len(s.asked) > 0 {
				together = append(together, <-s.asked)
			}
			err := f.commit(context.Background(), len(together))
			for _, one := range together {
				one <- err
			}
		}
	}()
	return s
}

func (s *sharing) commit(context.Context) error {
	answer := make(chan error, 1)
	s.asked <- answer
	return <-answer
}

// stop ends it, once nobody commits any more.
func (s *sharing) stop() {
	close(s.asked)
	<-s.ended
}
