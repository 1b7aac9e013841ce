package bench

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/pgcluster"
	"github.com/sporevm/spore/internal/store/postgres"
	"github.com/sporevm/spore/internal/store/sqlite"
)

// database is one that a center can be measured on.
type database interface {
	describe(ctx context.Context) (name, version, durability string, err error)
	// alone says whether a server has it for itself, as it is in production.
	alone() bool
	open(ctx context.Context, controller string, log *slog.Logger) (store.Store, error)
	// bare opens the same database without Spore.
	bare(ctx context.Context) (bareDatabase, error)
	// settle lets the database take note of how many rows there are now.
	settle(ctx context.Context) error
	// remove clears away what was made.
	remove(ctx context.Context) error
}

func openDatabase(ctx context.Context, cfg ControlConfig, dir string) (database, error) {
	if cfg.Postgres {
		return openPostgres(ctx, cfg)
	}
	return &sqliteFile{dir: dir}, nil
}

// sqliteFile is SQLite in the directory of the run, which is removed at the end.
type sqliteFile struct{ dir string }

func (d *sqliteFile) alone() bool                  { return true }
func (d *sqliteFile) settle(context.Context) error { return nil }
func (d *sqliteFile) remove(context.Context) error { return nil }
func (d *sqliteFile) rows() string                 { return d.dir + "/spore.db" }

func (d *sqliteFile) describe(ctx context.Context) (name, version, durability string, err error) {
	db, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		return "", "", "", err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	err = db.QueryRowContext(ctx, "SELECT sqlite_version()").Scan(&version)
	return "SQLite", version, "journal_mode WAL, synchronous FULL", err
}

func (d *sqliteFile) open(ctx context.Context, _ string, log *slog.Logger) (store.Store, error) {
	return sqlite.Open(ctx, d.rows(), sqlite.Options{Logger: log})
}

// postgresURL is a PostgreSQL database that was empty, or a server for this run alone.
type postgresURL struct {
	url     string
	cluster *pgcluster.Cluster // nil when the database was given
}

// schema is where Spore's tables are.
const schema = "spore"

func openPostgres(ctx context.Context, cfg ControlConfig) (_ database, err error) {
	d := &postgresURL{url: cfg.DatabaseURL}
	if d.url == "" {
		if d.cluster, err = pgcluster.Start(pgcluster.Options{Durable: true}); err != nil {
			return nil, err
		}
		if d.url, err = d.cluster.Create(ctx); err != nil {
			return nil, errors.Join(err, d.cluster.Close())
		}
		return d, nil
	}
	// What is there would be measured too, and be gone at the end.
	taken := false
	err = d.with(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, "SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = $1)", schema).Scan(&taken)
	})
	if err == nil && taken {
		err = spore.Errorf(spore.CodeConflict, "the database has a schema %q already", schema).WithHint("measure on one that is empty: createdb spore_bench")
	}
	return d, err
}

func (d *postgresURL) with(ctx context.Context, do func(*pgx.Conn) error) (err error) {
	conn, err := connect(ctx, d.url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	return do(conn)
}

// connect opens a connection. What went wrong may quote the URL, and a password in it.
func connect(ctx context.Context, url string) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, spore.Invalidf("database", "the connection string cannot be read")
	}
	config.RuntimeParams["search_path"] = schema
	return pgx.ConnectConfig(ctx, config)
}

func (d *postgresURL) alone() bool { return false }

func (d *postgresURL) describe(ctx context.Context) (name, version, durability string, err error) {
	err = d.with(ctx, func(conn *pgx.Conn) error {
		var fsync, commit, pages string
		err := conn.QueryRow(ctx, `SELECT current_setting('server_version'), current_setting('fsync'), current_setting('synchronous_commit'),
			current_setting('full_page_writes')`).Scan(&version, &fsync, &commit, &pages)
		durability = fmt.Sprintf("fsync %s, synchronous_commit %s, full_page_writes %s", fsync, commit, pages)
		return err
	})
	return "PostgreSQL", version, durability, err
}

func (d *postgresURL) open(ctx context.Context, controller string, log *slog.Logger) (store.Store, error) {
	return postgres.Open(ctx, postgres.Options{URL: d.url, Controller: controller, Logger: log})
}

func (d *postgresURL) settle(ctx context.Context) error {
	return d.with(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "VACUUM ANALYZE templates")
		return err
	})
}

func (d *postgresURL) remove(ctx context.Context) error {
	if d.cluster != nil {
		return d.cluster.Close()
	}
	return d.with(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "DROP SCHEMA IF EXISTS "+schema+" CASCADE")
		return err
	})
}
