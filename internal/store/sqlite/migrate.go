package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
	"log/slog"

	"github.com/pressly/goose/v3"
	"github.com/riverqueue/river/riverdriver/riversqlite"
	"github.com/riverqueue/river/rivermigrate"

	"github.com/sporevm/spore"
)

//go:embed migrations/*.sql
var migrations embed.FS

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
	queueWant := 0
	for _, m := range theirs.AllVersions() {
		queueWant = max(queueWant, m.Version)
	}
	existing, err := theirs.ExistingVersions(ctx)
	if err != nil {
		return fmt.Errorf("find out the version of the queue's tables: %w", translate(err))
	}
	for _, m := range existing {
		if m.Version > queueWant {
			return writtenByNewer(int64(m.Version), int64(queueWant))
		}
	}

	if have < want {
		if _, err := ours.Up(ctx); err != nil {
			return fmt.Errorf("migrate the tables: %w", translate(err))
		}
	}
	if len(existing) < len(theirs.AllVersions()) {
		if _, err := theirs.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
			return fmt.Errorf("migrate the queue's tables: %w", translate(err))
		}
	}
	return nil
}

func writtenByNewer(have, want int64) error {
	return spore.Errorf(spore.CodeConflict, "data directory was written by a newer spore").
		WithHint("run the newer spore (the tables are at version %d, this one knows %d), or use another data directory", have, want)
}
