package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/puddle/v2"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/rows"
)

var errClosed = errors.New("the store is closed")

// failure is what a failed try to reach the database means to a caller with this ctx.
func failure(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	if errors.Is(err, puddle.ErrClosedPool) {
		return errClosed
	}
	if e, ok := errors.AsType[*spore.Error](translate(err)); ok {
		return e
	}
	return unavailable(err)
}

// unavailable is the refusal while the database does not answer.
func unavailable(cause error) *spore.Error {
	return spore.Errorf(spore.CodeUnreachable, "the database does not answer").WithCause(cause).Because(spore.ReasonStoreUnavailable).
		WithHint("try again in a moment; if it lasts, see whether PostgreSQL runs and can be reached from the server")
}

// undecided is the answer when the database went away between the order to commit and its reply, and could not be asked since.
func undecided(cause error) *spore.Error {
	return spore.Errorf(spore.CodeUnreachable, "the database went away while the change was being stored: it may have been kept or not").
		WithCause(errors.Join(store.ErrUndecided, cause)).Because(spore.ReasonStoreUnavailable).
		WithHint("ask again with the same idempotency key, which repeats nothing; or look whether the change is there")
}

// translate gives PostgreSQL's errors the meaning that the rest of Spore knows. Others pass through as they are.
func translate(err error) error {
	if _, ok := errors.AsType[*spore.Error](err); ok {
		return err
	}
	e, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
			return unavailable(err)
		}
		return err
	}
	switch e.Code {
	case "23505": // unique_violation
		return fmt.Errorf("%w (%w)", rows.ErrUnique, err)
	case "23503": // foreign_key_violation
		return fmt.Errorf("%w (%w)", rows.ErrReference, err)
	case "28000", "28P01": // invalid_authorization_specification, invalid_password
		return unavailable(err).WithHint("the database refuses the user or the password: check the connection string and pg_hba.conf")
	case "3D000": // invalid_catalog_name
		return unavailable(err).WithHint("there is no such database: create it, or check the name in the connection string")
	case "42501": // insufficient_privilege
		return unavailable(err).WithHint("the database user may not do that: GRANT CREATE ON DATABASE to it, or make it the owner of the schema %s", schema)
	case "53100": // disk_full
		return spore.Errorf(spore.CodeNoSpace, "the disk that holds the database is full").WithCause(err).
			WithHint("make room on it, then try again")
	case "53300": // too_many_connections
		return unavailable(err).WithHint("the database has too many connections: raise max_connections, or end what else uses it")
	case "25006": // read_only_sql_transaction
		return unavailable(err).WithHint("the database only reads, as a standby does: connect to the primary (target_session_attrs=read-write)")
	case "XX001", "XX002": // data_corrupted, index_corrupted
		return spore.Errorf(spore.CodeDamaged, "the database is damaged").WithCause(err).WithHint("restore it from a backup")
	}
	if endsTransaction(e) {
		return unavailable(err)
	}
	return err
}

// endsTransaction says whether e means that a whole transaction is undone, whoever's fault that is, and may be tried again.
func endsTransaction(e *pgconn.PgError) bool {
	switch {
	case e.SeverityUnlocalized == "FATAL", e.SeverityUnlocalized == "PANIC": // the connection is gone
		return true
	case e.Code == "25006":
		return true
	case strings.HasPrefix(e.Code, "08"): // connection exceptions
		return true
	case strings.HasPrefix(e.Code, "40"): // serialization failure, deadlock
		return true
	case strings.HasPrefix(e.Code, "57P"): // the server shuts down, or starts
		return true
	}
	return false
}

// isUnavailable says whether err means that the database did not answer.
func isUnavailable(err error) bool {
	e, ok := errors.AsType[*spore.Error](err)
	return ok && e.Reason == spore.ReasonStoreUnavailable
}
