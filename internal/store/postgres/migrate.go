package postgres

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"

	"github.com/sporevm/spore"
)

//go:embed migrations/*.sql
var migrations embed.FS

// migrating is the advisory lock of the server that brings the tables up to date.
const migrating = 0x73706f7266

// oldest is the first version of PostgreSQL that is known to do.
const oldest = 150000

// migrate brings the tables, Spore's and River's, up to what this binary knows. It refuses a database that knows more.
func migrate(ctx context.Context, pool *pgxpool.Pool) (err error) {
	turn, err := pool.Acquire(ctx)
	if err != nil {
		return failure(ctx, err)
	}
	defer discard(turn) // which gives the lock back
	if err := prepare(ctx, turn.Conn()); err != nil {
		return err
	}

	db := stdlib.OpenDBFromPool(pool)
	defer func() { err = errors.Join(err, db.Close()) }()
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	ours, err := goose.NewProvider(goose.DialectPostgres, db, files)
	if err != nil {
		return fmt.Errorf("read the migrations: %w", err)
	}
	theirs, err := rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return fmt.Errorf("read the queue's migrations: %w", err)
	}

	have, want, err := ours.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("find out the version of the tables: %w", translate(err))
	}
	if have > want {
		return writtenByNewer(have, want)
	}
	var queueWant int64
	for _, m := range theirs.AllVersions() {
		queueWant = max(queueWant, int64(m.Version))
	}
	queueHave, err := queueVersion(ctx, db)
	if err != nil {
		return fmt.Errorf("find out the version of the queue's tables: %w", translate(err))
	}
	if queueHave > queueWant {
		return writtenByNewer(queueHave, queueWant)
	}

	if have < want {
		if _, err := ours.Up(ctx); err != nil {
			return fmt.Errorf("migrate the tables: %w", translate(err))
		}
	}
	if queueHave < queueWant {
		if _, err := theirs.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
			return fmt.Errorf("migrate the queue's tables: %w", translate(err))
		}
	}
	return nil
}

// prepare sees whether the database will do, waits for its turn among the servers, and makes the schema.
func prepare(ctx context.Context, conn *pgx.Conn) error {
	var version int
	var encoding string
	err := conn.QueryRow(ctx, "SELECT current_setting('server_version_num')::int, current_setting('server_encoding')").Scan(&version, &encoding)
	if err != nil {
		return failure(ctx, err)
	}
	if version < oldest {
		return spore.Errorf(spore.CodeUnsupported, "PostgreSQL %d is too old", version/10000).WithHint("use PostgreSQL %d or newer", oldest/10000)
	}
	if encoding != "UTF8" {
		return spore.Errorf(spore.CodeUnsupported, "the database keeps text as %s", encoding).WithHint("make it anew: CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0")
	}
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock($1)", int64(migrating)); err != nil {
		return failure(ctx, err)
	}
	var there bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = $1)", schema).Scan(&there); err != nil {
		return failure(ctx, err)
	}
	if there {
		return nil
	}
	if _, err := conn.Exec(ctx, "CREATE SCHEMA "+schema); err != nil {
		return fmt.Errorf("make the schema %s: %w", schema, translate(err))
	}
	return nil
}

// queueVersion is the newest of River's migrations that the database has had, 0 when none. River itself cannot be asked: it
// fails on versions that it does not know.
func queueVersion(ctx context.Context, db *sql.DB) (version int64, err error) {
	var there bool
	if err := db.QueryRowContext(ctx, "SELECT to_regclass('river_migration') IS NOT NULL").Scan(&there); err != nil || !there {
		return 0, err
	}
	err = db.QueryRowContext(ctx, "SELECT COALESCE(MAX(version), 0) FROM river_migration").Scan(&version)
	return version, err
}

func writtenByNewer(have, want int64) error {
	return spore.Errorf(spore.CodeConflict, "database was written by a newer spore").
		WithHint("run the newer spore (the tables are at version %d, this one knows %d), or use another database", have, want)
}
