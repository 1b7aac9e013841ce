package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"
)

// writer runs write transactions one after the other, and lets those that wait at the same time share one commit, since a
// commit costs a flush of the disk and the rest costs little. All run on one goroutine: to hand the database from one caller's to
// the next would cost more than what most of them do with it. Each runs in a savepoint of its own, so one that fails takes nothing
// of the others with it. Nobody returns before the commit.
type writer struct {
	db      *sql.DB
	answers *answers
	maxAge  time.Duration // of a batch that more may join

	mu      sync.Mutex
	arrived sync.Cond // something was added to waiting, or closed was set
	waiting []*member
	closed  bool
	ended   chan struct{} // closed when the goroutine has ended for good

	batch *batch // the one under way, nil between two; the goroutine's alone
}

// member is one function, and what became of it.
type member struct {
	ctx  context.Context
	fn   func(c *conn) error
	done chan struct{} // closed when the rest is known

	err      error
	panicked any  // what fn panicked with
	left     bool // fn ended its goroutine
}

// batch is one SQLite transaction with the work of one or more callers in it.
type batch struct {
	conn  *sql.Conn
	tx    *sql.Tx
	began time.Time
	in    []*member // that succeeded, and wait for the commit
}

// Bounds of a batch: what it may make the first in it wait for.
const (
	maxBatch    = 256
	maxBatchAge = 20 * time.Millisecond
)

var errWriterClosed = errors.New("the database has been closed")

func newWriter(db *sql.DB) *writer {
	w := &writer{db: db, answers: newAnswers(), maxAge: maxBatchAge, ended: make(chan struct{})}
	w.arrived.L = &w.mu
	go w.work()
	return w
}

// do runs fn in a transaction and returns once it is committed, or rolled back because of the error returned. fn runs on another
// goroutine; if it panics or ends that, so does do with its caller's.
func (w *writer) do(ctx context.Context, fn func(c *conn) error) error {
	m := &member{ctx: ctx, fn: fn, done: make(chan struct{})}
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return errWriterClosed
	}
	w.waiting = append(w.waiting, m)
	w.mu.Unlock()
	w.arrived.Signal()
	<-m.done // also when ctx has ended: it may be committed all the same, and to leave would be to leave in doubt
	switch {
	case m.panicked != nil:
		panic(m.panicked)
	case m.left:
		runtime.Goexit()
	}
	return m.err
}

// work serves batch after batch, until the writer is closed and nobody waits.
func (w *writer) work() {
	served := false
	defer func() {
		if !served { // a function has ended this goroutine: the others go on in another
			go w.work()
		}
	}()
	for more := true; more; more = w.await() {
		w.serve() // at first what is left of the batch of the goroutine before
	}
	served = true
	close(w.ended)
}

// await waits until there is something to do, and answers false when there never will be.
func (w *writer) await() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.waiting) == 0 && !w.closed {
		w.arrived.Wait()
	}
	return len(w.waiting) > 0
}

// next takes the first of those who wait; nil when there is none.
func (w *writer) next() *member {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.waiting) == 0 {
		return nil
	}
	m := w.waiting[0]
	w.waiting[0] = nil
	w.waiting = w.waiting[1:]
	return m
}

// serve runs those who wait in one transaction, and commits it when nobody waits any more, or it is full.
func (w *writer) serve() {
	for w.batch == nil || len(w.batch.in) < maxBatch && time.Since(w.batch.began) <= w.maxAge {
		m := w.next()
		if m == nil {
			break
		}
		w.take(m)
	}
	if w.batch != nil {
		w.end(translate(w.batch.tx.Commit()))
	}
}

// take runs one function, in a transaction that it begins if there is none.
func (w *writer) take(m *member) {
	if err := m.ctx.Err(); err != nil {
		m.end(err)
		return
	}
	if w.batch == nil {
		if err := w.begin(context.WithoutCancel(m.ctx)); err != nil {
			m.end(translate(err))
			return
		}
	}
	w.run(m)
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
	w.batch = &batch{conn: conn, tx: tx, began: time.Now()}
	return nil
}

// end closes the batch and tells those in it what became of it.
func (w *writer) end(err error) {
	b := w.batch
	w.batch = nil
	if err != nil {
		w.answers.forget()
	}
	err = errors.Join(err, b.conn.Close()) // back to the pool
	for _, m := range b.in {
		m.end(err)
	}
}

func (m *member) end(err error) {
	m.err = err
	close(m.done)
}

// run runs a function inside the batch, and takes what it did back when it fails, panics or ends its goroutine. One that
// succeeds is told with the commit.
func (w *writer) run(m *member) {
	b := w.batch
	c := &conn{tx: b.tx, direct: direct{b.conn}, answers: w.answers}
	alone := len(b.in) == 0 // then the transaction itself will do for a savepoint
	if !alone {
		if _, err := c.Exec(context.Background(), "SAVEPOINT member"); err != nil {
			m.end(w.abandon(err))
			return
		}
	}
	var err error
	finished := false
	defer func() {
		if !finished || err != nil {
			w.answers.forget() // they may be of what is taken back
		}
		if !finished {
			m.panicked = recover() // nil when the goroutine is being ended
			m.left = m.panicked == nil
		}
		switch {
		case c.lost != nil:
			err = errors.Join(err, w.abandon(c.lost))
		case finished && err == nil:
			if !alone {
				if _, err = c.Exec(context.Background(), "RELEASE member"); err != nil {
					err = w.abandon(err)
					break
				}
			}
			b.in = append(b.in, m)
			return
		case alone:
			w.end(translate(b.tx.Rollback()))
		default:
			if _, undo := b.tx.Exec("ROLLBACK TO member; RELEASE member"); undo != nil {
				err = errors.Join(err, w.abandon(undo))
			}
		}
		m.end(err)
	}()
	err = m.fn(c)
	finished = true
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

// close waits for all who wait.
func (w *writer) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.arrived.Signal()
	<-w.ended
}
