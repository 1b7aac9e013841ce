// Package rows is every statement of the store, written once for all the databases that it runs on: it maps the nouns
// to tables and carries out store.Tx over a small connection that each database supplies.
//
// The SQL is the common tongue of SQLite and PostgreSQL. What differs between them (placeholders, how errors are told) is
// behind Conn. It relies on two things that a database may have to be told: text is compared byte by byte, and transactions
// that write are serializable, so that what one has read is still so when it commits.
package rows

import (
	"context"
	"errors"

	"github.com/sporevm/spore/internal/store"
)

// Conn runs statements inside one transaction of one database. Queries use "?" for parameters.
type Conn interface {
	// Exec runs a statement and answers how many rows it touched. It wraps ErrUnique when a uniqueness rule was
	// broken and ErrReference when a foreign key was.
	Exec(ctx context.Context, query string, args ...any) (int64, error)
	// Query runs a query. Errors are as for Exec, and may show up as late as Cursor.Err.
	Query(ctx context.Context, query string, args ...any) (Cursor, error)
}

// Cursor walks through the rows of a query.
type Cursor interface {
	Next() bool
	Scan(dest ...any) error
	Err() error
	Close() error
}

// inserter is a Conn of a database that has a cheaper way than RETURNING to tell the id that it gave to a new row.
type inserter interface {
	// Insert runs an INSERT and answers the id, 0 when there is no new row.
	Insert(ctx context.Context, query string, args ...any) (int64, error)
}

// What Conn tells broken rules by.
var (
	ErrUnique    = errors.New("a row with the same key exists")
	ErrReference = errors.New("a row that is referred to does not exist")
)

// Enqueuer puts a job in the queue as part of the transaction, and answers the id of its place there.
type Enqueuer interface {
	Enqueue(ctx context.Context, jobID string, attempts int) (queueID int64, err error)
	// Waiting says whether the place is still that job's, and its run not yet over.
	Waiting(ctx context.Context, queueID int64, jobID string) (bool, error)
}

// Tx is a store.Tx. It serves one goroutine, until End.
type Tx struct {
	ctx      context.Context
	conn     Conn
	queue    Enqueuer // nil: a View
	finished bool
}

var _ store.Tx = (*Tx)(nil)

// NewView makes a Tx that refuses to write.
func NewView(ctx context.Context, conn Conn) *Tx {
	return &Tx{ctx: ctx, conn: conn}
}

// NewUpdate makes a Tx that writes.
func NewUpdate(ctx context.Context, conn Conn, q Enqueuer) *Tx {
	return &Tx{ctx: ctx, conn: conn, queue: q}
}

// End makes every later use of tx fail, so that one kept beyond its function cannot write into a stranger's transaction.
func (tx *Tx) End() { tx.finished = true }

func (tx *Tx) usable() error {
	if tx.finished {
		return errors.New("store: a transaction was used after its function returned")
	}
	return tx.ctx.Err()
}

func (tx *Tx) writable() error {
	if tx.queue == nil {
		return errors.New("store: a write inside View")
	}
	return tx.usable()
}

func (tx *Tx) exec(query string, args ...any) (int64, error) {
	if err := tx.writable(); err != nil {
		return 0, err
	}
	return tx.conn.Exec(tx.ctx, query, clean(args)...)
}

// insert runs an INSERT into a table that numbers its rows, and answers the number, 0 when there is no new row.
func (tx *Tx) insert(query string, args ...any) (id int64, err error) {
	if err := tx.writable(); err != nil {
		return 0, err
	}
	if conn, can := tx.conn.(inserter); can {
		return conn.Insert(tx.ctx, query, clean(args)...)
	}
	_, err = tx.scalar(&id, query+" RETURNING id", args...)
	return id, err
}

func (tx *Tx) query(query string, args ...any) (Cursor, error) {
	if err := tx.usable(); err != nil {
		return nil, err
	}
	return tx.conn.Query(tx.ctx, query, clean(args)...)
}

// clean makes proper text of the texts among args, which may come straight from a client: databases refuse a query over a
// text that none of their rows can hold.
func clean(args []any) []any {
	for i, arg := range args {
		if s, isText := arg.(string); isText {
			args[i] = properText(s)
		}
	}
	return args
}

// scalar reads one value into dest and says whether there was a row.
func (tx *Tx) scalar(dest any, query string, args ...any) (bool, error) {
	cursor, err := tx.query(query, args...)
	if err != nil {
		return false, err
	}
	found := cursor.Next()
	if found {
		err = cursor.Scan(dest)
	}
	return found, errors.Join(err, cursor.Err(), cursor.Close())
}

// selectRows reads all rows of a query; fields says where the columns of a T go.
func selectRows[T any](tx *Tx, fields func(*T) []any, query string, args ...any) ([]*T, error) {
	cursor, err := tx.query(query, args...)
	if err != nil {
		return nil, err
	}
	var list []*T
	for cursor.Next() {
		row := new(T)
		if err := cursor.Scan(fields(row)...); err != nil {
			return nil, errors.Join(damagedRow(err), cursor.Close())
		}
		list = append(list, row)
	}
	return list, errors.Join(cursor.Err(), cursor.Close())
}

// selectOne reads the first row of a query, nil when there is none.
func selectOne[T any](tx *Tx, fields func(*T) []any, query string, args ...any) (*T, error) {
	list, err := selectRows(tx, fields, query, args...)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return list[0], nil
}

// values is a list of rows rather than of pointers to them.
func values[T any](list []*T, err error) ([]T, error) {
	var out []T
	for _, row := range list {
		out = append(out, *row)
	}
	return out, err
}
