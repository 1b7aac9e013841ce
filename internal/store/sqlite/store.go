// Package sqlite is the store in one SQLite file, for a single server that owns its data directory.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/riverqueue/river/riverdriver/riversqlite"
	"modernc.org/sqlite"

	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/queue"
	"github.com/sporevm/spore/internal/store/rows"
)

// Options tune a store. The zero value is good for a server.
type Options struct {
	Logger  *slog.Logger                    // slog.Default when nil
	Backoff func(attempt int) time.Duration // how long a failed job waits; queue.Backoff when nil
}

// Store is a store.Store in one SQLite file. Writes go through one connection, where concurrent ones share commits; reads go
// through a pool and are never held up by writes.
type Store struct {
	writes  *sql.DB
	reads   *sql.DB
	writer  *writer
	queue   *queue.Queue[*sql.Tx]
	changes *broadcast
	bell    bell
	telling *telling
}

var _ store.Store = (*Store)(nil)

// Open opens the database file at path and makes it if it does not exist. It fails with spore.CodeConflict when a newer
// Spore has written the file, and with spore.CodeDamaged when it is not a database or a broken one.
//
// The caller sees to it that no other process has the file open: two would run the same jobs.
func Open(ctx context.Context, path string, opts Options) (store.Store, error) {
	s, err := open(ctx, path, opts)
	if err != nil {
		return nil, fmt.Errorf("open the database %s: %w", path, err)
	}
	return s, nil
}

func open(ctx context.Context, path string, opts Options) (_ *Store, err error) {
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	// Rows hold environments, and so perhaps secrets. SQLite gives the files that it puts beside this one the same mode.
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := file.Close(); err != nil {
		return nil, err
	}

	s := &Store{changes: newBroadcast(), bell: newBell(), telling: newTelling()}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.closePools())
		}
	}()
	if err := migrateFile(ctx, path); err != nil {
		return nil, err
	}
	// One connection: SQLite has one writer at a time, and waiting for a turn in the pool is fair where waiting for
	// SQLite's lock is not. River shares it.
	writes, err := sqlite.NewConnector(address(path, url.Values{"_txlock": {"immediate"}, "_pragma": {"foreign_keys(1)"}}))
	if err != nil {
		return nil, err
	}
	s.writes = sql.OpenDB(connector{writes})
	s.writes.SetMaxOpenConns(1)
	if s.reads, err = sql.Open("sqlite", address(path, url.Values{"_pragma": {"query_only(1)"}})); err != nil {
		return nil, err
	}
	s.reads.SetMaxOpenConns(max(4, runtime.NumCPU()))
	s.reads.SetMaxIdleConns(max(4, runtime.NumCPU()))

	s.writer = newWriter(s.writes)
	driver := ownDriver{riversqlite.New(s.writes), s.bell, s.telling}
	s.queue, err = queue.New(driver, queue.Config{Logger: opts.Logger, Backoff: opts.Backoff, Revive: s.reviveDead})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// address is the data source name of the file. Commits are flushed to the disk (synchronous FULL): what a client was told has
// happened must survive a power cut, and group commit makes that cheap. The WAL mode keeps readers and the writer out of
// each other's way.
func address(path string, extra url.Values) string {
	query := url.Values{"_pragma": append([]string{
		"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "cache_size(-16000)", "temp_store(MEMORY)", "wal_autocheckpoint(8000)",
	}, extra["_pragma"]...)}
	if lock := extra.Get("_txlock"); lock != "" {
		query.Set("_txlock", lock)
	}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: query.Encode()}).String()
}

func (s *Store) View(ctx context.Context, fn func(tx store.Tx) error) error {
	sqlTx, err := s.reads.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return translate(err)
	}
	defer sqlTx.Rollback() // a read transaction has nothing to lose
	tx := rows.NewView(ctx, readConn{sqlTx})
	defer tx.End()
	return fn(tx)
}

func (s *Store) Update(ctx context.Context, fn func(tx store.Tx) error) error {
	return s.update(ctx, func(tx *rows.Tx, _ *sql.Tx) error { return fn(tx) })
}

// update runs fn with the transaction in both its forms.
func (s *Store) update(ctx context.Context, fn func(tx *rows.Tx, sqlTx *sql.Tx) error) error {
	enqueued := false
	err := s.writer.do(ctx, func(c *conn) error {
		tx := rows.NewUpdate(ctx, c, &enqueuer{s.queue, c, &enqueued})
		defer tx.End()
		return fn(tx, c.tx)
	})
	if err != nil {
		return err
	}
	s.changes.send()
	if enqueued {
		s.bell.ring()
	}
	return nil
}

// enqueuer is the queue within one transaction.
type enqueuer struct {
	queue *queue.Queue[*sql.Tx]
	conn  *conn
	used  *bool // whether anything was enqueued
}

func (e *enqueuer) Enqueue(ctx context.Context, jobID string, attempts int) (int64, error) {
	*e.used = true
	place, err := e.queue.Enqueue(context.WithoutCancel(ctx), e.conn.tx, jobID, attempts)
	return place, e.conn.failed(err)
}

func (e *enqueuer) Waiting(ctx context.Context, place int64, jobID string) (bool, error) {
	waiting, err := e.queue.Waiting(context.WithoutCancel(ctx), e.conn.tx, place, jobID)
	return waiting, e.conn.failed(err)
}

func (s *Store) Work(ctx context.Context, workers int, run func(ctx context.Context, jobID string, attempt int, last bool) error) error {
	return s.queue.Start(ctx, workers, run)
}

// reviveDead puts jobs that are marked as running back in line. The file belongs to this process alone, and its own queue is
// not working yet, so whatever ran them is dead. Nor can anyone else be the leader of River's housekeeping.
func (s *Store) reviveDead(ctx context.Context) error {
	s.telling.begin()
	return s.update(ctx, func(_ *rows.Tx, tx *sql.Tx) error {
		for _, statement := range []string{
			`UPDATE river_job SET state = 'cancelled', finalized_at = datetime('now', 'subsec')
				WHERE state = 'running' AND json_extract(metadata, '$.cancel_attempted_at') IS NOT NULL`,
			`UPDATE river_job SET state = 'available', scheduled_at = datetime('now', 'subsec') WHERE state = 'running'`,
			`DELETE FROM river_leader`,
		} {
			if _, err := tx.ExecContext(context.WithoutCancel(ctx), statement); err != nil {
				return translate(err)
			}
		}
		return nil
	})
}

func (s *Store) CancelWork(ctx context.Context, jobID string) error {
	err := s.update(ctx, func(tx *rows.Tx, sqlTx *sql.Tx) error {
		place, err := tx.QueuePlace(jobID)
		if err != nil || place == 0 {
			return err
		}
		return s.queue.Cancel(context.WithoutCancel(ctx), sqlTx, place, jobID)
	})
	if err != nil {
		return err
	}
	s.queue.Interrupt(jobID)
	return nil
}

func (s *Store) Stop(ctx context.Context) error {
	// What has become of a run is told to the database for as long as the caller is patient.
	forget := context.AfterFunc(ctx, s.telling.cease)
	defer forget()
	return s.queue.Stop(ctx)
}

func (s *Store) Changes() <-chan struct{} { return s.changes.next() }

// Close cancels the runs under way, if Stop was not called, and closes the file.
func (s *Store) Close() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return errors.Join(s.Stop(ctx), s.closePools())
}

func (s *Store) closePools() error {
	if s.writer != nil {
		s.writer.close()
	}
	var errs []error
	for _, db := range []*sql.DB{s.reads, s.writes} { // the writer last: it folds the log back into the file
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(errs...)
}
