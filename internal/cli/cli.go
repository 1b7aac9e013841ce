// Package cli is the spore command: it reads flags, asks a server through the client, and prints what comes back.
package cli

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

// Options are what the command line is given by main, and by tests.
type Options struct {
	Args           []string // without the program's name
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Getenv         func(string) string // nil is os.Getenv
	Now            func() time.Time    // nil is time.Now
	Version        string

	// The commands that are no clients need rooms that the command line does not know. One that is nil is refused as
	// not built in.

	// Serve runs a server until ctx ends.
	Serve func(ctx context.Context, cfg ServeConfig) error
	// Doctor examines this machine.
	Doctor func(ctx context.Context, cfg DoctorConfig) ([]Check, error)
	// Clean removes from this machine what a server that is gone has left there, and answers what that was.
	Clean func(ctx context.Context, cfg CleanConfig) ([]Leftover, error)
	// Bench measures, writing the table and what it does to cfg.Out, and answers the report, which marshals to JSON.
	Bench func(ctx context.Context, cfg BenchConfig) (report any, err error)
	// BenchRows are the names that BenchConfig.Rows may have.
	BenchRows []string
	// BenchCenter is Bench for the control plane.
	BenchCenter func(ctx context.Context, cfg BenchCenterConfig) (report any, err error)
}

// ServeConfig is what `spore serve` was told.
type ServeConfig struct {
	Listen    string // host:port or unix:PATH
	DataDir   string // absolute
	TokenFile string // "" is none
	Engine    string // "auto", "qemu", "firecracker" or "sim"
	Accel     string // "auto", "kvm" or "tcg"
	Pool      int    // thawed VMs kept ready per hot template

	NetworkPool int      // isolated networks kept ready
	DiskDirs    []string // absolute; from which sandboxes may be given disks

	ReclaimAfter time.Duration // how long a sandbox must be idle; 0 is never

	Version string
	Logger  *slog.Logger

	// EngineConfig says where hypervisors are and how they are used.
	EngineConfig

	// Of the database at most one is set; with neither it is SQLite in DataDir.
	DatabaseFile string // absolute; holds a URL
	DatabaseURL  string // a secret

	StorageLimits       spore.StorageLimits // of the disk
	KeepLast            int                 // snapshots of each sandbox; 0 is all
	MaxAge              time.Duration       // of snapshots; 0 is none
	SnapshotsPerSandbox int                 // quotas; 0 is none
	Templates           int
	QuotaBytes          int64
	OperationTimeout    time.Duration
}

// EngineConfig is what a command that deals with hypervisors was told of them.
type EngineConfig struct {
	FirecrackerDir  string // absolute; one directory for each version; "" is the default place
	NoJailer        bool
	FirecrackerPool int // processes started ahead
	HugePages       bool
	MemoryBackend   string // "auto", "file" or "uffd"
}

// DoctorConfig is what `spore doctor` was told.
type DoctorConfig struct {
	DataDir string // absolute; may not exist
	EngineConfig
}

// CleanConfig is what `spore doctor --clean` was told.
type CleanConfig struct {
	DataDir   string // absolute; may not exist
	Sandboxes bool   // those that run without a server go too
	DryRun    bool   // remove nothing
}

// Leftover is something on the host that a server which is gone has left there.
type Leftover struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Detail string `json:"detail,omitempty"`
}

// CheckStatus is the verdict of one check of the doctor.
type CheckStatus string

const (
	CheckOK   CheckStatus = "ok"
	CheckWarn CheckStatus = "warn" // Spore works, but slower or with less
	CheckFail CheckStatus = "fail" // Spore does not work
)

// Check is one thing that the doctor looked at.
type Check struct {
	Name   string      `json:"name"`
	Status CheckStatus `json:"status"`
	Detail string      `json:"detail"`
	Hint   string      `json:"hint,omitempty"` // what to do about it
}

// BenchConfig is what `spore bench` was told.
type BenchConfig struct {
	DataDir    string            // where the servers that are measured keep data; "" is a temporary directory
	Image      string            // what templates are built from; "" lets the benchmark make one
	Kernel     api.KernelRequest // where the guest kernel comes from; zero is the distribution's package
	Rows       []string          // names of the rows to measure; none is all
	Quick      bool              // few repetitions
	ResultsDir string            // where the report is kept as JSON; "" keeps none
	Out        io.Writer
	Logger     *slog.Logger
}

// Exit codes, as containers have taught people to read them.
const (
	exitOK            = 0
	exitFailure       = 1
	exitUsage         = 2
	exitSpore         = 125 // run and exec: Spore failed, not the command
	exitNotExecutable = 126
	exitNotFound      = 127
	exitSignal        = 128 // plus the signal's number
)

// app is one run of the command line.
type app struct {
	Options
	dashed  bool // the arguments have a "--"
	started bool // a command has begun; errors before are errors of usage

	server    string
	data      string
	tokenFile string
	output    string
	quiet     bool

	cl *client.Client
}

// Run runs the command line and answers the exit code of the process.
func Run(ctx context.Context, opt Options) int {
	if opt.Getenv == nil {
		opt.Getenv = os.Getenv
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	a := &app{Options: opt, dashed: slices.Contains(opt.Args, "--")}
	root := a.root()
	root.SetArgs(opt.Args)
	root.SetIn(opt.Stdin)
	root.SetOut(opt.Stdout)
	root.SetErr(opt.Stderr)
	err := root.ExecuteContext(ctx)
	if a.cl != nil {
		a.cl.Close()
	}
	return a.finish(err)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "spore",
		Short: "Turn container images into microVMs that start in milliseconds, and branch them like git",
		Long: `Spore turns container images into microVM templates that start in milliseconds, and lets a running
sandbox be snapshotted, forked, rolled back and committed.

Every command but serve, doctor and bench asks a server. It is found by --server, SPORE_URL, the data
directory that --data or SPORE_DATA names, or at ` + client.DefaultURL + `.`,
		Example: `  spore serve &
  spore kernel install
  spore template build python --image docker.io/library/python:3.12-slim
  spore run -it python -- python3`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs,
		RunE:          group,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return a.checkFlags(cmd)
		},
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.server, "server", "", "URL of the server: http://HOST:PORT or unix:PATH (SPORE_URL)")
	flags.StringVar(&a.data, "data", "", "data directory of the server (SPORE_DATA)")
	flags.StringVar(&a.tokenFile, "token-file", "", "file that holds the server's token (SPORE_TOKEN_FILE)")
	flags.StringVarP(&a.output, "output", "o", "table", "output format: table, wide or json")
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "print ids only, and no progress")
	root.RegisterFlagCompletionFunc("output", words("table", "wide", "json"))
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		a.serveCommand(), a.doctorCommand(), a.kernelCommand(), a.templateCommand(), a.runCommand(), a.sandboxCommand(), a.portCommand(), a.snapshotCommand(),
		a.forkCommand(), a.rollbackCommand(), a.aliasCommand(), a.aliasSet("tag"), a.log("spore log"), a.diffCommand(), a.jobCommand(), a.operationCommand(),
		a.artifactCommand(), a.compatCommand(), a.nodeCommand(), a.benchCommand(), a.fsckCommand(), a.gcCommand(), a.explainCommand(), a.metricsCommand(),
		a.completionCommand(), a.versionCommand(),
	)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(cmd, err) })
	return root
}

func (a *app) checkFlags(cmd *cobra.Command) error {
	switch a.output {
	case "table", "wide", "json":
		return nil
	}
	return usage(cmd, errors.New("-o takes table, wide or json, not "+quote(a.output)))
}

// group is a command that only has others below it.
func group(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	text := "there is no command " + quote(cmd.CommandPath()+" "+args[0])
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		text += "; did you mean " + near[0] + "?"
	}
	return usage(cmd, errors.New(text))
}

func newGroup(use, short, example string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Example: example, Args: cobra.ArbitraryArgs, RunE: group}
	c.AddCommand(commands...)
	return c
}

// run wraps the body of a command: Ctrl-C and a request to end cancel its context, and a second one ends the process.
func (a *app) run(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return a.runRaw(func(cmd *cobra.Command, args []string) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		context.AfterFunc(ctx, stop)
		cmd.SetContext(ctx)
		return f(cmd, args)
	})
}

// runRaw wraps the body of a command that sees to signals itself.
func (a *app) runRaw(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.started = true
		return f(cmd, args)
	}
}

// exactly, atLeast and between are cobra's, told to the user in words.
func exactly(n int) cobra.PositionalArgs { return between(n, n) }
func atLeast(n int) cobra.PositionalArgs { return between(n, 1<<30) }

func between(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return usage(cmd, errors.New("too few arguments"))
		case len(args) > most:
			return usage(cmd, errors.New("too many arguments"))
		}
		return nil
	}
}
