package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// writer runs write transactions one after the other, and lets those that wait at the same time share one commit, since a
// commit costs a flush of the disk and the rest costs little. Each function runs on its caller's goroutine, in a
// savepoint of its own, so one that fails takes nothing of the others with it. Nobody returns before the commit.
type writer struct {
	db      *sql.DB
	known   *statements
	turn    chan struct{} // holds one token while somebody has the turn
	waiting atomic.Int64  // how many wait for the turn
	batch   *batch        // of the one who has the turn; nil when no transaction is open
	maxAge  time.Duration // of a batch that more may join
}

// batch is one SQLite transaction with the work of one or more callers in it.
type batch struct {
	conn  *sql.Conn
	tx    *sql.Tx
	began time.Time
	size  int // functions that succeeded
	done  chan struct{}
	err   error // what became of the commit, once done is closed
}

// Bounds of a batch: what it may make the first in it wait for.
const (
	maxBatch    = 256
	maxBatchAge = 20 * time.Millisecond
)

func newWriter(db *sql.DB) *writer {
	return &writer{db: db, known: newStatements(), turn: make(chan struct{}, 1), maxAge: maxBatchAge}
}

// do runs fn in a transaction and returns once it is committed, or rolled back because of the error returned.
func (w *writer) do(ctx context.Context, fn func(c *conn) error) error {
	b, err := w.take(ctx, fn)
	if err != nil {
		return err
	}
	<-b.done
	return b.err
}

// take waits for the turn, runs fn and passes the turn on. The last of those who wait commits for all. That is why nobody
// stops waiting early, even if its ctx has ended: the one before may have left the commit to it.
func (w *writer) take(ctx context.Context, fn func(c *conn) error) (*batch, error) {
	w.waiting.Add(1)
	w.turn <- struct{}{}
	w.waiting.Add(-1)
	defer w.pass()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if w.batch == nil {
		if err := w.begin(context.WithoutCancel(ctx)); err != nil {
			return nil, translate(err)
		}
	}
	b := w.batch
	return b, w.run(fn)
}

func (w *writer) begin(ctx context.Context) error {
	conn, err := w.db.Conn(ctx)
	if err != nil {
		return err
	}
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	w.batch = &batch{conn: conn, tx: tx, began: time.Now(), done: make(chan struct{})}
	return nil
}

// pass gives the turn to the next one, having committed if there is nobody to leave that to, or the batch is full.
func (w *writer) pass() {
	if b := w.batch; b != nil && (w.waiting.Load() == 0 || b.size >= maxBatch || time.Since(b.began) > w.maxAge) {
		w.end(translate(b.tx.Commit()))
	}
	<-w.turn
}

// end closes the batch with what became of it.
func (w *writer) end(err error) {
	w.batch.err = errors.Join(err, w.batch.conn.Close()) // back to the pool
	close(w.batch.done)
	w.batch = nil
}

// run runs fn inside the batch, and takes what it did back when it fails, panics or ends its goroutine.
func (w *writer) run(fn func(c *conn) error) (err error) {
	b := w.batch
	c := &conn{tx: b.tx, direct: direct{b.conn, w.known}}
	alone := b.size == 0 // then the transaction itself will do for a savepoint
	if !alone {
		if _, err := c.Exec(context.Background(), "SAVEPOINT member"); err != nil {
			return w.abandon(err)
		}
	}
	finished := false
	defer func() {
		switch {
		case c.lost != nil:
			err = errors.Join(err, w.abandon(c.lost))
		case finished && err == nil:
			if !alone {
				if _, releaseErr := c.Exec(context.Background(), "RELEASE member"); releaseErr != nil {
					err = w.abandon(releaseErr)
					return
				}
			}
			b.size++
		case alone:
			w.end(b.tx.Rollback())
		default:
			if _, undoErr := b.tx.Exec("ROLLBACK TO member; RELEASE member"); undoErr != nil {
				err = errors.Join(err, w.abandon(undoErr))
			}
		}
	}()
	err = fn(c)
	finished = true
	return err
}

// abandon gives the whole batch up: SQLite has rolled it back, or its state is unknown.
func (w *writer) abandon(cause error) error {
	cause = fmt.Errorf("a transaction was given up: %w", translate(cause))
	if err := w.batch.tx.Rollback(); err != nil {
		cause = errors.Join(cause, translate(err))
	}
	w.end(cause)
	return cause
}

// close waits for its turn, and lets go of what was compiled.
func (w *writer) close() error {
	w.turn <- struct{}{}
	defer func() { <-w.turn }()
	return w.known.close()
}
