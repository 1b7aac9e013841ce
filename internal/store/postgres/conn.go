package postgres

import (
	"context"
	"database/sql/driver"
	"errors"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sporevm/spore/internal/store/rows"
)

const (
	// How long a statement, or a commit, goes on after its caller has given it up. To end one in the middle costs a
	// connection, and with it the work of others in the same transaction.
	grace = 2 * time.Second
	// How long any of them may take, for callers without a deadline.
	longest = 30 * time.Second
)

// bounded is a context for one statement in a transaction that others share.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	out, cancel := context.WithTimeout(context.WithoutCancel(ctx), longest)
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(grace, cancel) })
	return out, func() {
		stop()
		cancel()
	}
}

// conn is one transaction as package rows sees it.
type conn struct {
	tx pgx.Tx
	// Whether it is a write transaction, where a statement that is refused must cost no more than itself.
	writes bool
	// Why the transaction is lost, if it is.
	lost error
}

var _ rows.Conn = (*conn)(nil)

// PostgreSQL gives a transaction up at the first refused statement; others do not, and package rows counts on that. So each
// statement that writes is sent within a savepoint, in one go.
const (
	enter = "SAVEPOINT statement"
	leave = "RELEASE SAVEPOINT statement"
	undo  = "ROLLBACK TO SAVEPOINT statement"
)

func guarded(query string, args []any) *pgx.Batch {
	b := &pgx.Batch{}
	b.Queue(enter)
	b.Queue(query, args...)
	b.Queue(leave)
	return b
}

func (c *conn) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	if c.lost != nil {
		return 0, c.lost
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	results := c.tx.SendBatch(ctx, guarded(rebind(query), cleaned(args)))
	_, err := results.Exec()
	var tag pgconn.CommandTag
	if err == nil {
		tag, err = results.Exec()
	}
	if closeErr := results.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return 0, c.undone(ctx, err)
	}
	return tag.RowsAffected(), nil
}

func (c *conn) Query(ctx context.Context, query string, args ...any) (rows.Cursor, error) {
	if c.lost != nil {
		return nil, c.lost
	}
	query, args = rebind(query), cleaned(args)
	if !c.writes {
		cursor, err := c.tx.Query(ctx, query, args...)
		if err != nil {
			return nil, c.failedIn(ctx, err)
		}
		return &reading{cursor, func(err error) error { return c.failedIn(ctx, err) }, func() {}}, nil
	}
	ctx, cancel := bounded(ctx)
	if strings.HasPrefix(query, "SELECT") {
		cursor, err := c.tx.Query(ctx, query, args...)
		if err != nil {
			cancel()
			return nil, c.failed(err)
		}
		return &reading{cursor, c.failed, cancel}, nil
	}
	results := c.tx.SendBatch(ctx, guarded(query, args))
	_, err := results.Exec()
	var cursor pgx.Rows
	if err == nil {
		cursor, err = results.Query()
	}
	if err != nil {
		defer cancel()
		results.Close()
		return nil, c.undone(ctx, err)
	}
	return &writing{Rows: cursor, results: results, undone: func(err error) error { return c.undone(ctx, err) }, done: cancel}, nil
}

// undone takes a refused statement back, so that the transaction can go on, and translates err.
func (c *conn) undone(ctx context.Context, err error) error {
	translated := c.failed(err)
	if c.lost == nil && c.tx.Conn().PgConn().TxStatus() == 'E' {
		if _, err := c.tx.Exec(ctx, undo); err != nil {
			return c.failed(err)
		}
	}
	return translated
}

// failed translates err and remembers it when it has cost the transaction.
func (c *conn) failed(err error) error {
	if err == nil {
		return nil
	}
	e, isAnswer := errors.AsType[*pgconn.PgError](err)
	switch {
	case isAnswer && endsTransaction(e):
		c.lost = translate(err)
		return c.lost
	case c.tx.Conn().IsClosed():
		c.lost = unavailable(err)
		return c.lost
	}
	return translate(err)
}

// failedIn is failed where a caller's ctx ends statements.
func (c *conn) failedIn(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		c.lost = failure(ctx, err)
		return c.lost
	}
	return c.failed(err)
}

// reading is a cursor whose errors are translated: some are found only while it walks.
type reading struct {
	pgx.Rows
	failed func(error) error
	done   context.CancelFunc
}

func (r *reading) Err() error { return r.failed(r.Rows.Err()) }

func (r *reading) Close() error {
	defer r.done()
	r.Rows.Close()
	return r.Err()
}

// writing is the cursor of a statement that writes and answers rows. That it was refused may show only at its end.
type writing struct {
	pgx.Rows
	results pgx.BatchResults
	undone  func(error) error
	done    context.CancelFunc
	closed  bool
}

func (w *writing) Err() error { return nil } // Close tells

func (w *writing) Close() error {
	if w.closed {
		return nil
	}
	w.closed = true
	defer w.done()
	w.Rows.Close()
	err := w.Rows.Err()
	if closeErr := w.results.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		return nil
	}
	return w.undone(err)
}

// rebind writes the parameters of a query, "?", as PostgreSQL knows them. Quoted text is left as it is.
func rebind(query string) string {
	if !strings.Contains(query, "?") {
		return query
	}
	var b strings.Builder
	b.Grow(len(query) + 16)
	n, quoted := 0, false
	for i := range len(query) {
		switch c := query[i]; {
		case c == '?' && !quoted:
			n++
			b.WriteByte('$')
			b.WriteString(strconv.Itoa(n))
			continue
		case c == '\'':
			quoted = !quoted
		}
		b.WriteByte(query[i])
	}
	return b.String()
}

// cleaned replaces what PostgreSQL does not take for text: what a client sends as an id may be anything, and must be merely
// unknown.
func cleaned(args []any) []any {
	for i, arg := range args {
		if _, ok := arg.(driver.Valuer); ok || arg == nil {
			continue
		}
		v := reflect.Indirect(reflect.ValueOf(arg))
		if v.Kind() != reflect.String {
			continue
		}
		if text := v.String(); !isText(text) {
			args[i] = strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
		}
	}
	return args
}

func isText(s string) bool {
	return utf8.ValidString(s) && !strings.Contains(s, "\x00")
}
