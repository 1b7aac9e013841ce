package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// writer runs write transactions one after the other, and lets those that wait at the same time share a transaction: its
// beginning, where other servers may have to be waited for, and its commit cost more than the rest. Each function runs on its
// caller's goroutine, in a savepoint of its own, so one that fails takes nothing of the others with it. Nobody returns before
// the commit, unless they lose patience.
type writer struct {
	pool      *pgxpool.Pool
	notice    string // the statement that tells other servers of a commit
	committed func() // called after each commit that they are told of
	arrivals  chan *member
	waiting   atomic.Int64  // how many have arrived and not had their turn
	beginning atomic.Bool   // whether they wait for the database
	maxAge    time.Duration // of a batch that more may join

	quit   context.CancelFunc
	alive  context.Context
	ended  chan struct{}
	doubts sync.WaitGroup // batches whose outcome is being asked for
}

// member is one function in a batch, from its caller's side.
type member struct {
	silent  bool          // nobody need be told of it
	turn    chan *conn    // hands it the transaction
	left    chan struct{} // closed when its caller does not wait for its turn any more
	ran     chan bool     // its function has returned, with or without success
	verdict chan error    // what has become of it; nil: its own result stands
}

// Bounds of a batch: what it may make the first in it, and other servers, wait for.
const (
	maxBatch    = 64
	maxBatchAge = 10 * time.Millisecond
)

// turns is the advisory lock that every write transaction holds.
const turns = 0x73706f7265 // "spore"

// lost is what members are told of a batch that came to nothing through no fault of theirs: it may be tried again.
type lost struct{ cause error }

func (e lost) Error() string { return "a transaction was lost: " + e.cause.Error() }
func (e lost) Unwrap() error { return e.cause }

func newWriter(pool *pgxpool.Pool, notice string, committed func()) *writer {
	w := &writer{
		pool: pool, notice: notice, committed: committed, maxAge: maxBatchAge,
		arrivals: make(chan *member), ended: make(chan struct{}),
	}
	w.alive, w.quit = context.WithCancel(context.Background())
	go w.work()
	return w
}

// close lets the batch under way come to its end and refuses all others.
func (w *writer) close() {
	w.quit()
	<-w.ended
	w.doubts.Wait()
}

// do runs fn in a transaction and returns once it is committed, or rolled back because of the error returned. When the
// transaction is lost, it runs fn once more in another.
func (w *writer) do(ctx context.Context, fn func(c *conn) error) error {
	return w.twice(ctx, false, fn)
}

// doSilently is do without telling anyone.
func (w *writer) doSilently(ctx context.Context, fn func(c *conn) error) error {
	return w.twice(ctx, true, fn)
}

func (w *writer) twice(ctx context.Context, silent bool, fn func(c *conn) error) error {
	err := w.once(ctx, silent, fn)
	if _, again := errors.AsType[lost](err); again {
		err = w.once(ctx, silent, fn)
	}
	if e, again := errors.AsType[lost](err); again {
		return e.cause
	}
	return err
}

func (w *writer) once(ctx context.Context, silent bool, fn func(c *conn) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m := &member{
		silent: silent, turn: make(chan *conn), left: make(chan struct{}), ran: make(chan bool, 1), verdict: make(chan error, 1),
	}
	c, err := w.await(ctx, m)
	if err != nil {
		return err
	}
	result := m.run(c, fn)
	if verdict := m.wait(ctx, result); verdict != nil {
		return verdict
	}
	return result
}

// await waits for the turn of m.
func (w *writer) await(ctx context.Context, m *member) (*conn, error) {
	w.waiting.Add(1)
	defer w.waiting.Add(-1)
	select {
	case w.arrivals <- m:
	case <-ctx.Done():
		return nil, w.late(ctx)
	case <-w.alive.Done():
		return nil, errClosed
	}
	select {
	case c := <-m.turn:
		return c, nil
	case err := <-m.verdict:
		return nil, err
	case <-ctx.Done():
		close(m.left)
		return nil, w.late(ctx)
	}
}

// late is why a caller whose ctx has ended did not get its turn.
func (w *writer) late(ctx context.Context) error {
	if w.beginning.Load() && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return unavailable(ctx.Err())
	}
	return ctx.Err()
}

// run runs fn and says how it went, also when it panics or ends its goroutine.
func (m *member) run(c *conn, fn func(c *conn) error) (err error) {
	succeeded := false
	defer func() { m.ran <- succeeded }()
	err = fn(c)
	succeeded = err == nil
	return err
}

// wait waits for what becomes of a function that has run with that result.
func (m *member) wait(ctx context.Context, result error) error {
	select {
	case verdict := <-m.verdict:
		return verdict
	case <-ctx.Done():
	}
	if result != nil {
		return nil // what has failed is never committed
	}
	// It is all but done, and to leave now would be to leave in doubt.
	timer := time.NewTimer(longest)
	defer timer.Stop()
	select {
	case verdict := <-m.verdict:
		return verdict
	case <-timer.C:
		return undecided(ctx.Err())
	}
}

// work serves batch after batch, until the writer is closed.
func (w *writer) work() {
	defer close(w.ended)
	for {
		select {
		case m := <-w.arrivals:
			w.serve(m)
		case <-w.alive.Done():
			return
		}
	}
}

// serve begins a batch with m, takes in those who wait, and ends it.
func (w *writer) serve(m *member) {
	b, err := w.begin()
	if err != nil {
		m.verdict <- err
		for { // whoever waits for the same would only wait as long once more
			select {
			case m := <-w.arrivals:
				m.verdict <- err
			default:
				return
			}
		}
	}
	b.serve(m)
	for !b.over && b.size < maxBatch && time.Since(b.began) < w.maxAge {
		select {
		case m := <-w.arrivals:
			b.serve(m)
			continue
		default:
		}
		break
	}
	if !b.over {
		b.commit(w)
	}
}

// begin begins a transaction and waits for its turn among the servers.
func (w *writer) begin() (*batch, error) {
	w.beginning.Store(true)
	defer w.beginning.Store(false)
	ctx, cancel := context.WithTimeout(w.alive, longest)
	defer cancel()
	for fresh := false; ; fresh = true {
		pooled, err := w.pool.Acquire(ctx)
		if err != nil {
			return nil, w.refused(ctx, err)
		}
		tx, err := pooled.Conn().BeginTx(ctx, beginning)
		if err == nil {
			return &batch{pooled: pooled, tx: tx, pool: w.pool, began: time.Now(), fresh: true}, nil
		}
		discard(pooled)
		// A connection that was kept may have died since; then all may have.
		if fresh || ctx.Err() != nil {
			return nil, w.refused(ctx, err)
		}
		w.pool.Reset()
	}
}

func (w *writer) refused(ctx context.Context, err error) error {
	if w.alive.Err() != nil {
		return errClosed
	}
	return fmt.Errorf("begin a transaction: %w", failure(ctx, err))
}
