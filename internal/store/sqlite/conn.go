package sqlite

import (
	"context"
	"database/sql"

	"github.com/sporevm/spore/internal/store/rows"
)

// readConn is a transaction that only reads, as package rows sees it.
type readConn struct{ tx *sql.Tx }

var _ rows.Conn = readConn{}

func (c readConn) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	result, err := c.tx.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, translate(err)
	}
	return result.RowsAffected()
}

func (c readConn) Query(ctx context.Context, query string, args ...any) (rows.Cursor, error) {
	cursor, err := c.tx.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, translate(err)
	}
	return reading{cursor}, nil
}

// reading is a cursor whose errors are translated: SQLite finds some of them only while it walks.
type reading struct{ *sql.Rows }

func (c reading) Err() error   { return translate(c.Rows.Err()) }
func (c reading) Close() error { return translate(c.Rows.Close()) }

// conn is a write transaction as package rows sees it. A statement that is interrupted takes the whole transaction with it, the
// work of others included. So statements run to their end, and that a caller has left is noticed between them.
type conn struct {
	tx      *sql.Tx
	direct  direct
	answers *answers
	// Why SQLite has given the transaction up, if it has. Whatever ran after that would be committed on its own.
	lost error
}

var _ rows.Conn = (*conn)(nil)

func (c *conn) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	if c.lost != nil {
		return 0, c.lost
	}
	c.answers.writes(query)
	result, err := c.direct.exec(context.WithoutCancel(ctx), query, args)
	if err != nil {
		return 0, c.failed(err)
	}
	return result.RowsAffected()
}

// Insert is Exec of an INSERT into a table that numbers its rows. It answers the number of the new row, 0 when there is none.
func (c *conn) Insert(ctx context.Context, query string, args ...any) (int64, error) {
	if c.lost != nil {
		return 0, c.lost
	}
	c.answers.writes(query)
	result, err := c.direct.exec(context.WithoutCancel(ctx), query, args)
	if err != nil {
		return 0, c.failed(err)
	}
	if affected, err := result.RowsAffected(); err != nil || affected == 0 {
		return 0, err
	}
	return result.LastInsertId()
}

func (c *conn) Query(ctx context.Context, query string, args ...any) (rows.Cursor, error) {
	if c.lost != nil {
		return nil, c.lost
	}
	key, err := c.answers.key(query, args)
	if err != nil {
		return nil, err
	}
	if key != "" {
		if known := c.answers.of(key); known != nil {
			return known, nil
		}
	}
	cursor, err := c.direct.query(context.WithoutCancel(ctx), query, args)
	if err != nil {
		return nil, c.failed(err)
	}
	if key != "" {
		c.answers.keep(key, cursor)
	}
	return cursor, nil
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
