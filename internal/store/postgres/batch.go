package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// batch is one write transaction with the work of one or more callers in it.
type batch struct {
	pooled  *pgxpool.Conn
	pool    *pgxpool.Pool
	tx      pgx.Tx
	began   time.Time
	fresh   bool      // the savepoint is right where the transaction is
	size    int       // functions that ran
	members []*member // whose functions succeeded
	over    bool
}

// Statements that go together are sent together.
var (
	beginning = pgx.TxOptions{BeginQuery: fmt.Sprintf("BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock(%d); SAVEPOINT member", turns)}
	next      = "RELEASE SAVEPOINT member; SAVEPOINT member"
	takeBack  = "ROLLBACK TO SAVEPOINT member"
)

// serve gives m its turn, and takes back what it did if it fails.
func (b *batch) serve(m *member) {
	b.size++
	if !b.fresh {
		if err := b.exec(next); err != nil {
			b.abandon(err, m)
			return
		}
		b.fresh = true
	}
	c := &conn{tx: b.tx, writes: true}
	select {
	case m.turn <- c:
	case <-m.left:
		return
	}
	succeeded := <-m.ran
	b.fresh = false
	switch status := b.tx.Conn().PgConn().TxStatus(); {
	case c.lost != nil:
		b.abandon(c.lost, m)
		return
	case b.tx.Conn().IsClosed():
		b.abandon(errors.New("the connection was closed"), m)
		return
	case succeeded && status == 'T':
		b.members = append(b.members, m)
		return
	case succeeded:
		m.verdict <- spore.Errorf(spore.CodeInternal, "a function went on after the database had given its transaction up")
	default:
		m.verdict <- nil
	}
	if err := b.exec(takeBack); err != nil {
		b.abandon(err)
		return
	}
	b.fresh = true
}

func (b *batch) exec(statements string) error {
	ctx, cancel := context.WithTimeout(context.Background(), longest)
	defer cancel()
	_, err := b.tx.Conn().Exec(ctx, statements)
	return err
}

// commit ends the batch and tells its members, and the other servers.
func (b *batch) commit(w *writer) {
	b.over = true
	if len(b.members) == 0 {
		if err := b.exec("ROLLBACK"); err != nil {
			discard(b.pooled)
			return
		}
		b.pooled.Release()
		return
	}
	end, loud := "COMMIT", false
	for _, m := range b.members {
		loud = loud || !m.silent
	}
	if loud {
		end = w.notice + "; " + end
	}
	if b.tx.Conn().IsClosed() {
		b.abandon(errors.New("the connection was closed"))
		return
	}
	id, err := b.transaction()
	if err != nil {
		b.abandon(err)
		return
	}
	tell := func(verdict error) {
		if loud && (verdict == nil || errors.Is(verdict, store.ErrUndecided)) {
			w.committed()
		}
		for _, m := range b.members {
			m.verdict <- verdict
		}
	}
	if err := b.exec(end); err != nil {
		discard(b.pooled)
		b.pool.Reset()
		if verdict := refused(err); verdict != nil {
			tell(verdict)
			return
		}
		w.doubts.Go(func() { tell(w.outcome(id, err)) }) // the database may be away for long, which others are to be told
		return
	}
	b.pooled.Release()
	tell(nil)
}

// transaction is the id by which PostgreSQL knows the outcome of the transaction, "" while it has written nothing.
func (b *batch) transaction() (id string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), longest)
	defer cancel()
	err = b.tx.Conn().QueryRow(ctx, "SELECT COALESCE(pg_current_xact_id_if_assigned()::text, '')").Scan(&id)
	return id, err
}

// refused is what an error at the commit means when the database gave it for an answer; nil: it gave none. What the driver holds
// to be safe to try again is not asked: it calls a connection closed, as if nothing had been sent, also when it ended before the
// answer.
func refused(err error) error {
	e, isAnswer := errors.AsType[*pgconn.PgError](err)
	switch {
	case !isAnswer, e.SeverityUnlocalized != "ERROR": // the connection ended before it was answered
		return nil
	case endsTransaction(e):
		return lost{translate(err)}
	}
	return translate(err)
}

// abandon gives the whole batch up, before anything was committed, for its members and the others given.
func (b *batch) abandon(cause error, others ...*member) {
	b.over = true
	discard(b.pooled)
	b.pool.Reset()
	verdict := lost{cause}
	if _, ok := errors.AsType[*spore.Error](cause); !ok {
		verdict = lost{unavailable(cause)}
	}
	for _, m := range append(b.members, others...) {
		m.verdict <- verdict
	}
}

// discard closes a connection whose state is not known, which also ends its transaction.
func discard(pooled *pgxpool.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = pooled.Conn().Close(ctx) // it is given up either way
	pooled.Release()
}
