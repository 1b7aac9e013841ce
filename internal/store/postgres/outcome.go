package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// How often PostgreSQL is asked for the outcome of a transaction: at first, and when it has been away for a while.
const (
	firstAsk = 10 * time.Millisecond
	lastAsk  = time.Second
)

// outcome is what became of a transaction whose commit was not answered, because of cause. PostgreSQL keeps it for some two
// billion transactions, and is asked for it however long it is away; only when the store is closed meanwhile does it remain
// undecided. Whoever undid what was stored after all would do worse than to wait.
func (w *writer) outcome(id string, cause error) error {
	if id == "" { // there was nothing to store
		return lost{unavailable(cause)}
	}
	for wait := firstAsk; ; wait = min(2*wait, lastAsk) {
		switch status, err := w.status(id); {
		case status == "committed":
			return nil
		case status == "aborted":
			return lost{unavailable(cause)}
		case err == nil && status == "": // it is too old, or the database another one
			return undecided(cause)
		}
		select {
		case <-time.After(wait):
		case <-w.alive.Done():
			return undecided(cause)
		}
	}
}

// status is what pg_xact_status says of a transaction. A standby may not have heard of it yet, and that of another database's
// past, whose number is still to come here, was lost with it.
func (w *writer) status(id string) (status string, err error) {
	ctx, cancel := context.WithTimeout(w.alive, longest)
	defer cancel()
	err = w.pool.QueryRow(ctx, `SELECT CASE WHEN pg_is_in_recovery() THEN 'in progress' ELSE COALESCE(pg_xact_status($1::text::xid8), '') END`, id).Scan(&status)
	if e, ok := errors.AsType[*pgconn.PgError](err); ok && e.Code == "22023" { // invalid_parameter_value: it is in the future
		return "aborted", nil
	}
	return status, err
}
