package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/sporevm/spore"
)

// ControlConfig says how to measure the control plane: what a center and its database cost, with machines that are only a
// model. Zero numbers take the defaults.
type ControlConfig struct {
	// DataDir is where a directory is made for SQLite's file and the floor's; see Config.
	DataDir string
	// Postgres measures on PostgreSQL instead of SQLite. DatabaseURL is its database, which must not hold Spore's tables yet: they
	// are made, and removed at the end. "" starts a server for the time of the run, if one is installed.
	Postgres    bool
	DatabaseURL string

	Callers   int           // that create at the same time; default 64
	Machines  int           // default 1,000
	Snapshots int           // in the lists; default 100,000
	Slice     time.Duration // how long each way of creating is measured before the next has its turn; default 2 seconds
	Rounds    int           // how often each has its turn; default 8
	Quick     bool          // few of all
	// ResultsDir gets the report as JSON, in a file named by date and database; "" writes none.
	ResultsDir string
	Out        io.Writer
	Logger     *slog.Logger
}

func (cfg ControlConfig) complete() (ControlConfig, error) {
	pick := func(n *int, usual, quick int) {
		if *n == 0 && cfg.Quick {
			*n = quick
		} else if *n == 0 {
			*n = usual
		}
	}
	pick(&cfg.Callers, 64, 16)
	pick(&cfg.Machines, 1000, 50)
	pick(&cfg.Snapshots, 100_000, 2000)
	pick(&cfg.Rounds, 8, 1)
	if cfg.Slice == 0 {
		cfg.Slice = 2 * time.Second
		if cfg.Quick {
			cfg.Slice = 200 * time.Millisecond
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Out == nil {
		cfg.Out = io.Discard
	}
	for _, c := range []struct {
		field   string
		n, most int
	}{
		{"callers", cfg.Callers, 10_000}, {"machines", cfg.Machines, spore.MaxReplicas},
		{"snapshots", cfg.Snapshots, 10_000_000}, {"rounds", cfg.Rounds, 1000},
	} {
		if c.n < 1 || c.n > c.most {
			return cfg, spore.Invalidf(c.field, "%d is out of range", c.n).WithHint("between 1 and %d", c.most)
		}
	}
	if cfg.DatabaseURL != "" && !cfg.Postgres {
		return cfg, spore.Invalidf("database", "a database was given, and SQLite has none").WithHint("--database postgres")
	}
	if cfg.Slice < 0 || cfg.Slice > time.Minute {
		return cfg, spore.Invalidf("slice", "%s is out of range", cfg.Slice).WithHint("at most a minute")
	}
	return cfg, nil
}

// ControlReport is one run of the benchmark of the control plane.
type ControlReport struct {
	Format  int          `json:"format"`
	Started time.Time    `json:"started"`
	Seconds float64      `json:"seconds"`
	Quick   bool         `json:"quick"`
	Scope   ControlScope `json:"scope"`
	Rows    []*Row       `json:"rows"`
}

// ControlScope is what the figures hold for. It names no host.
type ControlScope struct {
	Kernel          string  `json:"kernel"`
	Arch            string  `json:"arch"`
	Cores           int     `json:"cores"`
	CPU             string  `json:"cpu"`
	MemoryMiB       int     `json:"memoryMiB"`
	Filesystem      string  `json:"filesystem"` // of the data directory
	LoadBefore      float64 `json:"loadBefore"` // one-minute load average as the run began
	LoadAfter       float64 `json:"loadAfter"`
	Database        string  `json:"database"`
	DatabaseVersion string  `json:"databaseVersion"`
	Durability      string  `json:"durability"` // the settings by which the database flushes commits
	Engine          string  `json:"engine"`
	Machines        int     `json:"machines"`
	Callers         int     `json:"callers"`
	Snapshots       int     `json:"snapshots"`
	Within          string  `json:"within"`  // what is in the figures
	Without         string  `json:"without"` // what is not
}

const (
	controlWithin = "the calls of one center in one process with its database, each to its end and, where it writes, until the database says " +
		"that it is on the disk; beside them the center's own loops, which ask every machine how it is every ten seconds"
	controlWithout = "HTTP, JSON, tokens, virtual machines: a machine is a model in the same process that answers within microseconds; the disk " +
		"is the host's, and how long it takes to flush is the series flush"
)

func (s ControlScope) String() string {
	return fmt.Sprintf("Scope: %s %s (%s), %d simulated machines, %d callers, Linux %s on %d cores (%s, %s), %d MiB of memory, data on %s, "+
		"load %.2f before and %.2f after.\nIn the figures: %s.\nNot in them: %s.\n",
		s.Database, s.DatabaseVersion, s.Durability, s.Machines, s.Callers, s.Kernel, s.Cores, s.CPU, s.Arch, s.MemoryMiB, s.Filesystem,
		s.LoadBefore, s.LoadAfter, s.Within, s.Without)
}

// RunControl measures the control plane, prints the table and saves the report. It answers an error when it could not
// measure; a goal that is missed is none.
func RunControl(ctx context.Context, cfg ControlConfig) (report *ControlReport, err error) {
	if cfg, err = cfg.complete(); err != nil {
		return nil, err
	}
	dir, err := makeDir(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	report = &ControlReport{Format: Format, Started: time.Now(), Quick: cfg.Quick}
	host, err := hostScope(dir)
	if err != nil {
		return nil, err
	}
	report.Scope = ControlScope{
		Kernel: host.Kernel, Arch: host.Arch, Cores: host.Cores, CPU: host.CPU, MemoryMiB: host.MemoryMiB, Filesystem: host.Filesystem,
		LoadBefore: host.LoadBefore, Engine: "sim", Machines: cfg.Machines, Callers: cfg.Callers, Snapshots: cfg.Snapshots,
		Within: controlWithin, Without: controlWithout,
	}
	if err := measureControl(ctx, cfg, dir, report); err != nil {
		return nil, err
	}
	report.Seconds = time.Since(report.Started).Seconds()
	if report.Scope.LoadAfter, err = loadAverage(); err != nil {
		return nil, err
	}
	for _, row := range report.Rows {
		for _, s := range row.Series {
			s.thin()
		}
	}
	if err := report.Print(cfg.Out); err != nil || cfg.ResultsDir == "" {
		return report, err
	}
	path, err := report.Save(cfg.ResultsDir)
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(cfg.Out, "Saved as %s\n", path)
	return report, err
}

func measureControl(ctx context.Context, cfg ControlConfig, dir string, report *ControlReport) (err error) {
	db, err := openDatabase(ctx, cfg, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.remove(context.WithoutCancel(ctx))) }()
	if report.Scope.Database, report.Scope.DatabaseVersion, report.Scope.Durability, err = db.describe(ctx); err != nil {
		return err
	}
	w := &controlWorld{cfg: cfg, dir: dir, db: db}
	err = w.serving(ctx, func(ctx context.Context) error {
		row, err := w.measureCreates(ctx)
		if err != nil {
			return fmt.Errorf("row creates: %w", err)
		}
		report.Rows = append(report.Rows, row)
		if row, err = w.measureDecisions(ctx); err != nil {
			return fmt.Errorf("row decisions: %w", err)
		}
		report.Rows = append(report.Rows, row)
		return nil
	})
	if err != nil {
		return err
	}
	row, err := w.measurePages(ctx)
	if err != nil {
		return fmt.Errorf("row pages: %w", err)
	}
	report.Rows = append(report.Rows, row)
	return nil
}

// Print writes the report as a table for people.
func (r *ControlReport) Print(w io.Writer) error {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.AppendHeader(table.Row{"row", "what", "n", "fail", "p50", "p90", "p99", "x floor", "measured", "goal", "verdict"})
	for i, row := range r.Rows {
		if i > 0 {
			t.AppendSeparator()
		}
		t.AppendRow(table.Row{row.Name, row.What, "", row.failures(), "", "", "", "", fine(row.Measured, row.Unit), row.Goal, row.Verdict})
		for _, s := range row.Series {
			ratio := ""
			if s.Ratio != 0 {
				ratio = fine(s.Ratio, times)
			}
			t.AppendRow(table.Row{"", "  " + s.Name, s.N, len(s.Failures), fine(s.P50, s.Unit), fine(s.P90, s.Unit), fine(s.P99, s.Unit), ratio, "", "", ""})
		}
	}
	var b strings.Builder
	b.WriteString(t.Render() + "\n")
	for _, row := range r.Rows {
		if row.Note != "" {
			fmt.Fprintf(&b, "%s: %s\n", row.Name, row.Note)
		}
		for _, s := range row.Series {
			for _, f := range s.Failures[:min(len(s.Failures), 10)] {
				fmt.Fprintf(&b, "%s, %s failed: %s\n", row.Name, s.Name, f)
			}
		}
	}
	b.WriteString(r.Scope.String())
	if r.Quick {
		b.WriteString("This was a quick run: too few repetitions to judge by.\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// fine is figure for things that take less than a millisecond, or happen thousands of times in a second.
func fine(v float64, unit string) string {
	switch unit {
	case milliseconds:
		return fmt.Sprintf("%.3f ms", v)
	case perSecond:
		return fmt.Sprintf("%.0f/s", v)
	}
	return figure(v, unit)
}

// Save writes the report as JSON into dir, in a file named by date and database, and answers its path.
func (r *ControlReport) Save(dir string) (string, error) {
	stem := "center-" + r.Started.UTC().Format(time.DateOnly) + "-" + strings.ToLower(r.Scope.Database)
	if r.Quick {
		stem += "-quick"
	}
	return save(filepath.Join(dir, stem), r)
}
