package cli

import (
	"errors"
	"io"
	"log/slog"
	"path/filepath"

	"github.com/spf13/cobra"
)

// BenchCenterConfig is what `spore bench center` was told. Numbers that are 0 were not given.
type BenchCenterConfig struct {
	DataDir      string // where SQLite's file is made; "" is a temporary directory
	Postgres     bool
	DatabaseFile string // absolute; holds the URL of an empty PostgreSQL database. "" starts a server for the run
	Callers      int
	Machines     int
	Snapshots    int
	Quick        bool
	ResultsDir   string
	Out          io.Writer
	Logger       *slog.Logger
}

func (a *app) benchCenterCommand() *cobra.Command {
	var cfg BenchCenterConfig
	var database, level string
	cmd := &cobra.Command{
		Use:   "center",
		Short: "Measure the control plane with simulated machines",
		Long: `Measure the control plane with simulated machines: durable creates per second, how long it takes to decide where a
sandbox starts, and pages of a long list, beside what the bare database needs. No VM is started, and no server needed.

The rows are kept in SQLite, in a directory of their own, or in PostgreSQL: in the database whose URL --database-file holds, which
must have no schema "spore" yet, or else on a server that is started for the run, if PostgreSQL is installed.`,
		Example: "  spore bench center --quick\n  spore bench center --database postgres --results bench/results",
		Args:    exactly(0),
		RunE: a.run(func(cmd *cobra.Command, _ []string) error {
			if a.BenchCenter == nil {
				return notBuiltIn("the benchmark of the control plane")
			}
			var err error
			if cfg.DatabaseFile != "" {
				if cmd.Flags().Changed("database") && database != "postgres" {
					return usage(cmd, errors.New("--database-file names a PostgreSQL database"))
				}
				database = "postgres"
				if cfg.DatabaseFile, err = filepath.Abs(cfg.DatabaseFile); err != nil {
					return err
				}
			}
			switch database {
			case "sqlite":
			case "postgres":
				cfg.Postgres = true
			default:
				return usage(cmd, errors.New("--database takes sqlite or postgres, not "+quote(database)))
			}
			if a.data != "" { // only one that was named for it: the default one may hold a server's data
				if cfg.DataDir, err = filepath.Abs(a.data); err != nil {
					return err
				}
			}
			if cfg.Logger, err = newLogger(a.Stderr, level, "text"); err != nil {
				return usage(cmd, err)
			}
			cfg.Out = a.Stdout
			switch {
			case a.quiet:
				cfg.Out = io.Discard
			case a.output == "json":
				cfg.Out = a.Stderr
			}
			report, err := a.BenchCenter(cmd.Context(), cfg)
			if err != nil || a.output != "json" {
				return err
			}
			return a.json(report)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&database, "database", "sqlite", "sqlite or postgres")
	f.StringVar(&cfg.DatabaseFile, "database-file", "", "file that holds the URL of an empty PostgreSQL database")
	f.IntVar(&cfg.Callers, "callers", 0, "that create at the same time (default 64)")
	f.IntVar(&cfg.Machines, "machines", 0, "simulated machines (default 1000)")
	f.IntVar(&cfg.Snapshots, "snapshots", 0, "in the lists (default 100000)")
	f.BoolVar(&cfg.Quick, "quick", false, "few of all: enough to see that everything works")
	f.StringVar(&cfg.ResultsDir, "results", "", "directory to keep the report in, as JSON")
	f.StringVar(&level, "log-level", "error", "least level to log: debug, info, warn or error")
	cmd.MarkFlagFilename("database-file")
	cmd.RegisterFlagCompletionFunc("database", words("sqlite", "postgres"))
	return cmd
}
