package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"

	"github.com/pressly/goose/v3"
	"github.com/riverqueue/river/riverdriver/riversqlite"
	"github.com/riverqueue/river/rivermigrate"

	"github.com/sporevm/spore"
)

//go:embed migrations/*.sql
var migrations embed.FS

// migrateFile migrates the file at path. That goes through a connection of its own, on which foreign keys are off, since SQLite can
// change a table's rules only by making the table anew, and rows elsewhere refer to it. Each migration is one
// transaction, and one that makes tables anew checks the references at its end.
func migrateFile(ctx context.Context, path string) (err error) {
	db, err := sql.Open("sqlite", address(path, url.Values{"_txlock": {"immediate"}, "_pragma": {"foreign_keys(0)"}}))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	return migrate(ctx, db)
}

// migrate brings the tables, Spore's and River's, up to what this binary knows. It refuses a database that knows more.
func migrate(ctx context.Context, db *sql.DB) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	ours, err := goose.NewProvider(goose.DialectSQLite3, db, files)
	if err != nil {
		return fmt.Errorf("read the migrations: %w", err)
	}
	theirs, err := rivermigrate.New(riversqlite.New(db), &rivermigrate.Config{Logger: slog.New(slog.DiscardHandler)})
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

// queueVersion is the newest of River's migrations that the database has had, 0 when none. River itself cannot be asked: it
// fails on versions that it does not know.
func queueVersion(ctx context.Context, db *sql.DB) (version int64, err error) {
	var tables int
	err = db.QueryRowContext(ctx, "SELECT COUNT(*) FROM sqlite_schema WHERE type = 'table' AND name = 'river_migration'").Scan(&tables)
	if err != nil || tables == 0 {
		return 0, err
	}
	err = db.QueryRowContext(ctx, "SELECT COALESCE(MAX(version), 0) FROM river_migration").Scan(&version)
	return version, err
}

func writtenByNewer(have, want int64) error {
	return spore.Errorf(spore.CodeConflict, "data directory was written by a newer spore").
		WithHint("run the newer spore (the tables are at version %d, this one knows %d), or use another data directory", have, want)
}
