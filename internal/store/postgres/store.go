// Package postgres is the store in a PostgreSQL database, which several servers share.
//
// Update functions take turns across all servers: each holds one advisory lock until its transaction ends. So what a function
// has read stays so until it is done, on this database as on the others, and none has to be tried again because of a rival.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/queue"
	"github.com/sporevm/spore/internal/store/rows"
)

// Options say which database to open, and tune the store.
type Options struct {
	// URL is a connection string as libpq knows them: "postgres://user:password@host:port/database?sslmode=..." or "host=... dbname=...".
	// It is never logged, nor part of an error.
	URL string
	// Controller is the id of this server, by which the others know whose runs are whose. Without it the store cannot Work. It
	// must have beaten (ControllerRows.Beat) before Work: runs of controllers that are unknown or fenced are taken over.
	Controller string
	Logger     *slog.Logger                    // slog.Default when nil
	Backoff    func(attempt int) time.Duration // how long a failed job waits; queue.Backoff when nil
}

// Store is a store.Store in a PostgreSQL database. While the database does not answer, every call fails with
// spore.CodeUnreachable (spore.ReasonStoreUnavailable); once it does again, so does the store.
type Store struct {
	writes  *pgxpool.Pool // for the writer and the queue, whose uses are short
	reads   *pgxpool.Pool
	writer  *writer
	queue   *queue.Queue[pgx.Tx]
	shift   *shift
	changes *broadcast
	ears    *listener
}

var _ store.Store = (*Store)(nil)

// Open connects to the database and brings its tables, which have a schema of their own, up to date. It fails with
// spore.CodeInvalid when the URL cannot be read, with spore.CodeUnreachable when the database does not let it in, and with
// spore.CodeConflict when a newer Spore has been at work in it.
func Open(ctx context.Context, opts Options) (store.Store, error) {
	s, err := open(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	return s, nil
}

func open(ctx context.Context, opts Options) (_ *Store, err error) {
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	config, err := parseURL(opts.URL)
	if err != nil {
		return nil, err
	}
	s := &Store{changes: newBroadcast()}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.release())
		}
	}()
	writes := config.Copy()
	writes.MaxConns = 6
	// A server that hangs in the middle of a transaction, or whose machine is gone, must not hold up the others for ever.
	if params := writes.ConnConfig.RuntimeParams; params["idle_in_transaction_session_timeout"] == "" {
		params["idle_in_transaction_session_timeout"] = "10s"
	}
	if s.writes, err = pgxpool.NewWithConfig(ctx, writes); err != nil {
		return nil, translate(err)
	}
	if err := migrate(ctx, s.writes); err != nil {
		return nil, err
	}
	reads := config.Copy()
	reads.MaxConns = int32(max(8, 2*runtime.NumCPU()))
	if s.reads, err = pgxpool.NewWithConfig(ctx, reads); err != nil {
		return nil, translate(err)
	}

	s.shift = newShift(opts.Controller, riverpgxv5.New(s.writes), opts.Logger)
	if s.ears, err = listen(ctx, config.ConnConfig, s.changes, s.shift.look, opts.Logger); err != nil {
		return nil, err
	}
	s.writer = newWriter(s.writes, s.ears.notice(), s.changes.send)
	s.queue, err = queue.New(sharedDriver{s.shift.river, s.shift}, queue.Config{
		ID: opts.Controller, Logger: opts.Logger, Backoff: opts.Backoff, Revive: s.shift.begin, Away: s.ears.away.Load,
	})
	if err != nil {
		return nil, err
	}
	s.shift.writer, s.shift.interrupt = s.writer, s.queue.Interrupt
	return s, nil
}

func (s *Store) View(ctx context.Context, fn func(tx store.Tx) error) error {
	pooled, sqlTx, err := s.beginView(ctx)
	if err != nil {
		return err
	}
	defer pooled.Release() // which closes the connection if it is still in a transaction
	defer func() {
		// Ending the transaction is only for the connection to be used again: there is nothing to lose.
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		_ = sqlTx.Rollback(end)
	}()
	c := &conn{tx: sqlTx}
	tx := rows.NewView(ctx, c)
	defer tx.End()
	if err := fn(tx); err != nil || c.lost == nil {
		return err
	}
	return c.lost
}

// beginView begins a transaction that only reads, and sees the rows as they are now until it ends.
func (s *Store) beginView(ctx context.Context) (*pgxpool.Conn, pgx.Tx, error) {
	for fresh := false; ; fresh = true {
		pooled, err := s.reads.Acquire(ctx)
		if err != nil {
			return nil, nil, failure(ctx, err)
		}
		tx, err := pooled.Conn().BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
		if err == nil {
			return pooled, tx, nil
		}
		pooled.Release()
		// A connection that was kept may have died since; then all may have.
		if fresh || ctx.Err() != nil {
			return nil, nil, failure(ctx, err)
		}
		s.reads.Reset()
	}
}

func (s *Store) Update(ctx context.Context, fn func(tx store.Tx) error) error {
	fenced := false
	err := s.update(ctx, func(c *conn, tx *rows.Tx) error {
		fenced = false
		return fn(fencing{tx, &fenced})
	})
	if err == nil && fenced {
		s.shift.look()
	}
	return err
}

// fencing notices that a controller was declared dead, so that its runs are taken over at once.
type fencing struct {
	*rows.Tx
	fenced *bool
}

func (tx fencing) Fence(id string) error {
	*tx.fenced = true
	return tx.Tx.Fence(id)
}

// update runs fn with the transaction in both its forms.
func (s *Store) update(ctx context.Context, fn func(c *conn, tx *rows.Tx) error) error {
	return s.writer.do(ctx, func(c *conn) error {
		tx := rows.NewUpdate(ctx, c, enqueuer{s.queue, c})
		defer tx.End()
		return fn(c, tx)
	})
}

// enqueuer is the queue within one transaction.
type enqueuer struct {
	queue *queue.Queue[pgx.Tx]
	conn  *conn
}

func (e enqueuer) Enqueue(ctx context.Context, jobID string, attempts int) (int64, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	place, err := e.queue.Enqueue(ctx, e.conn.tx, jobID, attempts)
	return place, e.conn.failed(err)
}

func (e enqueuer) Waiting(ctx context.Context, place int64, jobID string) (bool, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	waiting, err := e.queue.Waiting(ctx, e.conn.tx, place, jobID)
	return waiting, e.conn.failed(err)
}

func (s *Store) Work(ctx context.Context, workers int, run func(ctx context.Context, jobID string, attempt int, last bool) error) error {
	if s.shift.controller == "" {
		return errors.New("a store without the id of its controller cannot work")
	}
	if err := s.queue.Start(ctx, workers, run); err != nil {
		return err
	}
	s.shift.tend(ctx)
	return nil
}

func (s *Store) CancelWork(ctx context.Context, jobID string) error {
	err := s.update(ctx, func(c *conn, tx *rows.Tx) error {
		place, err := tx.QueuePlace(jobID)
		if err != nil || place == 0 {
			return err
		}
		ctx, cancel := bounded(ctx)
		defer cancel()
		return c.failed(s.queue.Cancel(ctx, c.tx, place, jobID))
	})
	if err != nil {
		return err
	}
	s.queue.Interrupt(jobID) // if it runs elsewhere, the database passes the word on
	return nil
}

func (s *Store) Stop(ctx context.Context) error {
	// What has become of a run is told to the database for as long as the caller is patient.
	forget := context.AfterFunc(ctx, s.shift.cease)
	defer forget()
	s.shift.leave() // a look at a queue that does not answer would keep the runs from ending
	return s.queue.Stop(ctx)
}

func (s *Store) Changes() <-chan struct{} { return s.changes.next() }

// Close cancels the runs under way, if Stop was not called, and closes the connections.
func (s *Store) Close() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return errors.Join(s.Stop(ctx), s.release())
}

// release lets go of the database.
func (s *Store) release() error {
	if s.ears != nil {
		s.ears.close()
	}
	if s.writer != nil {
		s.writer.close()
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		for _, pool := range []*pgxpool.Pool{s.reads, s.writes} {
			if pool != nil {
				pool.Close()
			}
		}
	}()
	const patience = 10 * time.Second
	select {
	case <-closed:
		return nil
	case <-time.After(patience):
		return spore.Errorf(spore.CodeInternal, "transactions were still open %s after the store was closed", patience)
	}
}
