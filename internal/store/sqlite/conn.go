package sqlite

import (
	"context"
	"database/sql"

	"github.com/sporevm/spore/internal/store/rows"
)

// conn is one transaction as package rows sees it.
type conn struct {
	tx *sql.Tx
	// Of the writer; nil in a transaction that only reads.
	statements *statements
	// Why SQLite has given the transaction up, if it has. Whatever ran after that would be committed on its own.
	lost error
}

var _ rows.Conn = (*conn)(nil)

func (c *conn) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	if c.lost != nil {
		return 0, c.lost
	}
	ctx, statement := c.prepare(ctx, query)
	var result sql.Result
	var err error
	if statement != nil {
		result, err = statement.ExecContext(ctx, args...)
	} else {
		result, err = c.tx.ExecContext(ctx, query, args...)
	}
	if err != nil {
		return 0, c.failed(err)
	}
	return result.RowsAffected()
}

func (c *conn) Query(ctx context.Context, query string, args ...any) (rows.Cursor, error) {
	if c.lost != nil {
		return nil, c.lost
	}
	ctx, statement := c.prepare(ctx, query)
	var cursor *sql.Rows
	var err error
	if statement != nil {
		cursor, err = statement.QueryContext(ctx, args...)
	} else {
		cursor, err = c.tx.QueryContext(ctx, query, args...)
	}
	if err != nil {
		return nil, c.failed(err)
	}
	return &cursorOf{cursor, c}, nil
}

// prepare answers the compiled form of a query, nil when there is none, and the context to run it under. A statement that is
// interrupted takes the whole write transaction with it, the work of others included. So there statements run to their
// end, and that a caller has left is noticed between them.
func (c *conn) prepare(ctx context.Context, query string) (context.Context, *sql.Stmt) {
	if c.statements == nil {
		return ctx, nil
	}
	ctx = context.WithoutCancel(ctx)
	return ctx, c.statements.of(ctx, c.tx, query)
}

// failed translates err and remembers it when it has cost the transaction.
func (c *conn) failed(err error) error {
	if err == nil {
		return nil
	}
	translated := translate(err)
	if endsTransaction(err) {
		c.lost = translated
	}
	return translated
}

// cursorOf is a cursor whose errors are translated: SQLite finds some of them only while it walks.
type cursorOf struct {
	*sql.Rows
	conn *conn
}

func (c *cursorOf) Err() error   { return c.conn.failed(c.Rows.Err()) }
func (c *cursorOf) Close() error { return c.conn.failed(c.Rows.Close()) }
