// Package rows is every statement of the store, written once for all the databases that it runs on: it maps the nouns
// to tables and carries out store.Tx over a small connection that each database supplies.
//
// The SQL is the common tongue of SQLite and PostgreSQL. What differs between them (placeholders, how labels are
// searched, how errors are told) is behind Conn and Dialect.
package rows

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sporevm/spore"
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

// What Conn tells broken rules by.
var (
	ErrUnique    = errors.New("a row with the same key exists")
	ErrReference = errors.New("a row that is referred to does not exist")
)

// Dialect is what the databases do not have in common.
type Dialect struct {
	// HasLabel is a condition on the JSON column labels, with two parameters: key and value.
	HasLabel string
}

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
	dialect  Dialect
	queue    Enqueuer // nil: a View
	finished bool
}

var _ store.Tx = (*Tx)(nil)

// NewView makes a Tx that refuses to write.
func NewView(ctx context.Context, conn Conn, d Dialect) *Tx {
	return &Tx{ctx: ctx, conn: conn, dialect: d}
}

// NewUpdate makes a Tx that writes.
func NewUpdate(ctx context.Context, conn Conn, d Dialect, q Enqueuer) *Tx {
	return &Tx{ctx: ctx, conn: conn, dialect: d, queue: q}
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
	return tx.conn.Exec(tx.ctx, query, args...)
}

func (tx *Tx) query(query string, args ...any) (Cursor, error) {
	if err := tx.usable(); err != nil {
		return nil, err
	}
	return tx.conn.Query(tx.ctx, query, args...)
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

// transition is how a row with a state machine changes: write the row if the state that it is in now may
// become next. The check and the write are one statement, so no rival can come between them.
type transition[S ~string] struct {
	table, key, column string // where the state is
	noun               string // what messages call the row
	machine            spore.Transitions[S]
}

// apply runs "UPDATE table SET set WHERE key = id", provided that the state allows it.
func (m transition[S]) apply(tx *Tx, id any, next S, set string, args []any) error {
	var from []any
	for state := range m.machine {
		if m.machine.Allows(state, next) {
			from = append(from, string(state))
		}
	}
	if len(from) == 0 {
		return spore.Errorf(spore.CodeConflict, "%s %v cannot become %q: there is no such state", m.noun, id, next)
	}
	query := fmt.Sprintf("UPDATE %s SET %s WHERE %s = ? AND %s IN (%s)", m.table, set, m.key, m.column, parameters(len(from)))
	affected, err := tx.exec(query, slices.Concat(args, []any{id}, from)...)
	if err != nil || affected > 0 {
		return err
	}
	var now string
	found, err := tx.scalar(&now, fmt.Sprintf("SELECT %s FROM %s WHERE %s = ?", m.column, m.table, m.key), id)
	if err != nil {
		return err
	}
	if !found {
		return unknown(m.noun, id)
	}
	if err := m.machine.Check(fmt.Sprintf("%s %v", m.noun, id), S(now), next); err != nil {
		return err
	}
	return spore.Errorf(spore.CodeConflict, "%s %v was changed by somebody else at the same time", m.noun, id)
}

func unknown(noun string, id any) error {
	return spore.Errorf(spore.CodeNotFound, "there is no %s %v", noun, id)
}

// assignments renders "(a, b) = (?, ?)" for columns, a list like "a, b".
func assignments(columns string) string {
	return "(" + columns + ") = (" + parameters(strings.Count(columns, ",")+1) + ")"
}

func parameters(n int) string {
	return strings.TrimSuffix(strings.Repeat("?, ", n), ", ")
}

// insertion renders an INSERT that does nothing when the row breaks a uniqueness rule: the caller sees from the number
// of rows that it did, and the transaction stays usable on every database.
func insertion(table, columns string) string {
	return "INSERT INTO " + table + " (" + columns + ") VALUES (" + parameters(strings.Count(columns, ",")+1) + ") ON CONFLICT DO NOTHING"
}

func asAny[S ~string](list []S) []any {
	out := make([]any, len(list))
	for i, s := range list {
		out[i] = string(s)
	}
	return out
}
