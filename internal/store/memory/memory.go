// Package memory is the store in memory, for simulations: nothing in it depends on chance, and its transactions cost
// microseconds. Several stores share one Database, as several controllers share one server's.
//
// The rows are persistent trees: a transaction changes copies of the paths to what it writes, and its commit puts their roots in
// place of the old ones. So a failed one leaves no trace, and a View keeps its picture whatever is written meanwhile.
package memory

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sporevm/spore/internal/store"
)

// ErrClosed is what a store answers that was closed or killed.
var ErrClosed = errors.New("store: it is closed")

// Database is rows that live as long as the process.
type Database struct {
	turn   sync.Mutex // of who writes
	now    atomic.Pointer[state]
	mu     sync.Mutex
	stores []*Store // that are open, in the order of their opening
	opened int
}

// New makes an empty database.
func New() *Database {
	db := &Database{}
	db.now.Store(&state{})
	return db
}

// Options tune a store. The zero value is good for one of several controllers.
type Options struct {
	Logger  *slog.Logger                    // slog.Default when nil
	Backoff func(attempt int) time.Duration // how long a failed job waits; 1, 2, 4, ... seconds, at most a minute, when nil
	// Now is the time; time.Now when nil. A store with another clock than that is for stepping.
	Now func() time.Time
	// Controller is who opens the store. It must have beaten before Work. Its runs are taken over by others when it is fenced, and
	// not before, even if the store was closed or killed. The runs of a nameless store are taken over at the next Work of another
	// once it is closed or killed.
	Controller string
	// Alone says that no other store is at work on the database: whatever runs in it when work begins has died.
	Alone bool
	// Stepped makes Work start nothing by itself: jobs run when Store.RunOne says so.
	Stepped bool
}

// Store is one controller's store.Store on a Database.
type Store struct {
	db  *Database
	opt Options
	// late is how much later than due this store takes jobs, other than any other store of the database. Who would come first if
	// two came at the same instant would be a matter of chance.
	late time.Duration

	closed atomic.Bool

	changeMu sync.Mutex
	change   chan struct{} // nil: nobody waits

	workMu  sync.Mutex // of Work and Stop
	working atomic.Pointer[work]
}

var _ store.Store = (*Store)(nil)

// Open makes another store on the rows of db.
func (db *Database) Open(opt Options) *Store {
	if opt.Logger == nil {
		opt.Logger = slog.Default()
	}
	if opt.Backoff == nil {
		opt.Backoff = backoff
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	s := &Store{db: db, opt: opt, late: time.Duration(db.opened) * time.Microsecond}
	db.opened++
	db.stores = append(db.stores, s)
	return s
}

func (s *Store) View(ctx context.Context, fn func(tx store.Tx) error) error {
	if err := s.usable(ctx); err != nil {
		return err
	}
	tx := &tx{ctx: ctx, store: s, state: s.db.now.Load()}
	defer tx.end()
	return fn(tx)
}

func (s *Store) Update(ctx context.Context, fn func(tx store.Tx) error) error {
	woken, err := s.update(ctx, func(tx *tx) error { return fn(tx) })
	if err != nil {
		return err
	}
	s.changed()
	if woken {
		s.db.wake()
	}
	return nil
}

// update runs fn in a transaction, and says whether it has put something into the queue.
func (s *Store) update(ctx context.Context, fn func(tx *tx) error) (woken bool, err error) {
	s.db.turn.Lock()
	defer s.db.turn.Unlock()
	if err := s.usable(ctx); err != nil {
		return false, err
	}
	next := *s.db.now.Load()
	tx := &tx{ctx: ctx, store: s, state: &next, edit: &edit{seed: next.seed}}
	defer tx.end()
	if err := fn(tx); err != nil {
		return false, err
	}
	if s.closed.Load() { // it was killed meanwhile, as a process may be just before its commit
		return false, ErrClosed
	}
	next.seed = tx.edit.seed
	s.db.now.Store(&next)
	return tx.woken, nil
}

func (s *Store) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.closed.Load() {
		return ErrClosed
	}
	return nil
}

func (s *Store) Changes() <-chan struct{} {
	s.changeMu.Lock()
	defer s.changeMu.Unlock()
	if s.change == nil {
		s.change = make(chan struct{})
	}
	return s.change
}

func (s *Store) changed() {
	s.changeMu.Lock()
	defer s.changeMu.Unlock()
	if s.change != nil {
		close(s.change)
		s.change = nil
	}
}

// Close cancels the runs under way, if Stop was not called. The rows stay.
func (s *Store) Close() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := s.Stop(ctx)
	s.leave()
	return err
}

// Kill ends the store as the death of its process would: from now on nothing can be written or read through it, a transaction
// under way is not committed, and what it ran is left as running. The contexts of its runs end, so that they can be waited
// for, but nothing of what they do then has an effect on the database. It may be called anywhere, in a transaction too.
func (s *Store) Kill() {
	s.leave()
	if w := s.working.Load(); w != nil {
		w.halt()
		w.cancel()
	}
}

func (s *Store) leave() {
	s.closed.Store(true)
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	for i, open := range s.db.stores {
		if open == s {
			s.db.stores = append(s.db.stores[:i:i], s.db.stores[i+1:]...)
			return
		}
	}
}

// wake tells all stores that work that there may be something to do.
func (db *Database) wake() {
	db.mu.Lock()
	stores := db.stores
	db.mu.Unlock()
	for _, s := range stores {
		if w := s.working.Load(); w != nil {
			w.look()
		}
	}
}
