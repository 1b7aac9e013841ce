package cli

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore"
)

func notBuiltIn(what string) error {
	return spore.Errorf(spore.CodeUnsupported, "this program was built without %s", what)
}

func (a *app) serveCommand() *cobra.Command {
	cfg := ServeConfig{Version: a.Version}
	var limits limitFlags
	var engine engineFlags
	var level, format string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server on this machine",
		Long: `Run the server on this machine until it is told to end. Sandboxes go on when it does, and are taken over by the
next one on the same data directory.

Rows are kept in SQLite in the data directory, or in PostgreSQL when --database-file names a file that holds a postgres://
URL, or SPORE_DATABASE_URL is one. The URL holds a password, so it is never an argument, and the file must be readable by
its owner only.

The engine is the one that the data directory was served with before, and QEMU for a new one, unless --engine names one. Firecracker needs
KVM, and root for its jailer.`,
		Example: `  spore serve --data /srv/spore
  spore serve --engine firecracker --firecracker-dir /opt/firecracker
  spore serve --database-file /etc/spore/database --snapshot-keep-last 20 --snapshot-max-age 30d --quota-bytes 500GiB
  spore serve --listen 0.0.0.0:7070 --token-file /etc/spore/token`,
		Args: exactly(0),
		RunE: a.run(func(cmd *cobra.Command, _ []string) error {
			if a.Serve == nil {
				return notBuiltIn("a server")
			}
			logger, err := newLogger(a.Stderr, level, format)
			if err != nil {
				return usage(cmd, err)
			}
			if !slices.Contains([]string{"auto", "kvm", "tcg"}, cfg.Accel) {
				return usage(cmd, errors.New("--accel takes auto, kvm or tcg, not "+quote(cfg.Accel)))
			}
			if !slices.Contains(engines, cfg.Engine) {
				return usage(cmd, errors.New("--engine takes "+strings.Join(engines, ", ")+", not "+quote(cfg.Engine)))
			}
			if err := engine.into(&cfg.EngineConfig, cmd); err != nil {
				return err
			}
			if cfg.Pool < 0 {
				return usage(cmd, errors.New("--pool cannot be negative"))
			}
			if cfg.NetworkPool < 0 {
				return usage(cmd, errors.New("--network-pool cannot be negative"))
			}
			if cfg.ReclaimAfter < 0 {
				return usage(cmd, errors.New("--reclaim-after cannot be negative"))
			}
			for i, dir := range cfg.DiskDirs {
				if cfg.DiskDirs[i], err = filepath.Abs(dir); err != nil {
					return err
				}
			}
			if err := limits.into(&cfg, cmd); err != nil {
				return err
			}
			if cfg.DatabaseFile != "" {
				if cfg.DatabaseFile, err = filepath.Abs(cfg.DatabaseFile); err != nil {
					return err
				}
			} else {
				cfg.DatabaseURL = a.Getenv("SPORE_DATABASE_URL")
			}
			if cfg.DataDir, err = a.dataDir(); err != nil {
				return err
			}
			cfg.Logger = logger
			cfg.TokenFile = a.setting(a.tokenFile, "SPORE_TOKEN_FILE")
			return a.Serve(cmd.Context(), cfg)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Listen, "listen", "127.0.0.1:7070", "address to listen on; beyond loopback it needs --token-file")
	f.StringVar(&cfg.Engine, "engine", "auto", "the hypervisor: auto, qemu, firecracker or sim, which runs no guests")
	f.StringVar(&cfg.Accel, "accel", "auto", "what runs the guest: auto, kvm or tcg")
	f.IntVar(&cfg.Pool, "pool", 0, "thawed VMs to keep ready for each template in use")
	f.IntVar(&cfg.NetworkPool, "network-pool", 4, "isolated networks to keep ready, once the first was asked for")
	f.StringArrayVar(&cfg.DiskDirs, "disk-dir", nil, "directory from which sandboxes may be given disks; may be given several times (default none)")
	cmd.MarkFlagDirname("disk-dir")
	f.DurationVar(&cfg.ReclaimAfter, "reclaim-after", 10*time.Minute, "how long a sandbox must be idle before its memory goes to swap, where there is any; 0 is never")
	f.StringVar(&cfg.DatabaseFile, "database-file", "", "file that holds the URL of a PostgreSQL database (SPORE_DATABASE_URL is one itself)")
	f.DurationVar(&cfg.OperationTimeout, "operation-timeout", 15*time.Minute, "how long a snapshot, rollback, fork, pause or resume may take")
	engine.add(cmd)
	limits.add(cmd)
	cmd.MarkFlagFilename("database-file")
	f.StringVar(&level, "log-level", "info", "least level to log: debug, info, warn or error")
	f.StringVar(&format, "log-format", "text", "form of the log: text or json")
	cmd.RegisterFlagCompletionFunc("engine", words(engines...))
	cmd.RegisterFlagCompletionFunc("accel", words("auto", "kvm", "tcg"))
	cmd.RegisterFlagCompletionFunc("log-level", words("debug", "info", "warn", "error"))
	cmd.RegisterFlagCompletionFunc("log-format", words("text", "json"))
	return cmd
}

func newLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, errors.New("--log-level takes debug, info, warn or error, not " + quote(level))
	}
	opt := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, opt)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opt)), nil
	}
	return nil, errors.New("--log-format takes text or json, not " + quote(format))
}

func (a *app) benchCommand() *cobra.Command {
	var cfg BenchConfig
	var rows, level string
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure Spore beside the floor of the bare hypervisor",
		Long: `Measure Spore beside the floor of the bare hypervisor, in the same run. Needs no server: it starts its own, on a
data directory of their own.`,
		Example: "  spore bench --quick\n  spore bench --rows miss,fork --results bench/results",
		Args:    exactly(0),
		RunE: a.run(func(cmd *cobra.Command, _ []string) error {
			if a.Bench == nil {
				return notBuiltIn("the benchmark")
			}
			cfg.Rows = splitList(rows)
			for _, r := range cfg.Rows {
				if len(a.BenchRows) > 0 && !slices.Contains(a.BenchRows, r) {
					return usage(cmd, errors.New("there is no row "+quote(r)+"; there are "+strings.Join(a.BenchRows, ", ")))
				}
			}
			// Only a directory that was named for it: the default one may hold a server's data.
			var err error
			if a.data != "" {
				if cfg.DataDir, err = filepath.Abs(a.data); err != nil {
					return err
				}
			}
			if cfg.Image, err = imageRef(cfg.Image); err != nil {
				return err
			}
			if err := absoluteKernel(&cfg.Kernel); err != nil {
				return err
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
			report, err := a.Bench(cmd.Context(), cfg)
			if err != nil || a.output != "json" {
				return err
			}
			return a.json(report)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Image, "image", "", "image to build templates from (default a small one that is made)")
	f.StringVar(&rows, "rows", "", "only these rows, separated by commas")
	f.BoolVar(&cfg.Quick, "quick", false, "few repetitions: enough to see that everything works")
	f.StringVar(&cfg.ResultsDir, "results", "", "directory to keep the report in, as JSON")
	f.StringVar(&level, "log-level", "error", "least level of the servers to log: debug, info, warn or error")
	kernelFlags(cmd, &cfg.Kernel)
	cmd.RegisterFlagCompletionFunc("rows", words(a.BenchRows...))
	cmd.AddCommand(a.benchCenterCommand())
	return cmd
}

func (a *app) versionCommand() *cobra.Command {
	type version struct {
		Version string `json:"version"`
		Go      string `json:"go"`
		OS      string `json:"os"`
		Arch    string `json:"arch"`
	}
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this program",
		Example: "  spore version -o json",
		Args:    exactly(0),
		RunE: a.run(func(*cobra.Command, []string) error {
			v := version{a.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH}
			if a.output == "json" && !a.quiet {
				return a.json(v)
			}
			if a.quiet {
				_, err := fmt.Fprintln(a.Stdout, v.Version)
				return err
			}
			_, err := fmt.Fprintf(a.Stdout, "spore %s (%s, %s/%s)\n", v.Version, v.Go, v.OS, v.Arch)
			return err
		}),
	}
}
