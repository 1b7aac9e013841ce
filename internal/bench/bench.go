// Package bench measures what Spore promises of its speed, each figure beside its floor: what the bare hypervisor needs
// for the same thing, driven by hand, in the same run.
//
// Spore and floor take turns, run by run, so that what disturbs the machine disturbs both. Nothing is left out of the
// figures: a run that came to nothing is kept as a failure, with its reason.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
)

// Config says what to measure and with what.
type Config struct {
	// Serve runs a server until ctx ends and returns when it has stopped. It calls s.Ready once requests are answered.
	Serve func(ctx context.Context, s Server) error
	// DataDir is where a directory is made for the servers' data, and so says which filesystem is measured; "" is the
	// directory for temporary files. Nothing else in it is touched, and what was made is removed at the end.
	DataDir string
	// Image is what the templates are built from, in the forms that template build takes. It needs /bin/sh, dd and true.
	// "" makes a small one out of busybox.
	Image string
	// Kernel says where the guest kernel comes from; zero is the distribution's package.
	Kernel api.KernelRequest
	// Rows are the names of the rows to measure; none is all. See Names.
	Rows []string
	// Quick measures with few repetitions: enough to see that everything works.
	Quick bool
	// Runs is how often each row repeats what it measures; 0 lets each choose.
	Runs int
	// ResultsDir gets the report as JSON, in a file named by date and class of host; "" writes none.
	ResultsDir string
	// Out gets the table, and before it lines that say what is being done. May be nil.
	Out io.Writer
	// Logger is the servers' and hears nothing by default.
	Logger *slog.Logger
}

// Server is one server that the benchmark wants.
type Server struct {
	DataDir string
	Pool    int // VMs to keep ready for each template in use
	Logger  *slog.Logger
	Ready   func(url string)
}

// Names lists the rows, in the order in which they are measured.
func Names() []string {
	names := make([]string, len(rows))
	for i, r := range rows {
		names[i] = r.name
	}
	return names
}

// rowKind is one row of the table and how it is measured.
type rowKind struct {
	name    string
	pool    bool // needs a server that keeps VMs ready
	measure func(ctx context.Context, l *lab) ([]*Row, error)
}

var rows = []rowKind{
	{"miss", false, measureMiss},
	{"cold", false, measureCold},
	{"pause", false, measurePause},
	{"kept", false, measureKept},
	{"rollback", false, measureRollback},
	{"fork", false, measureFork},
	{"burst", false, measureBurst},
	{"memory", false, measureMemory},
	{"hit", true, measureHit},
}

// Run measures, prints the table and saves the report. It answers an error when it could not measure; a goal that is
// missed is none.
func Run(ctx context.Context, cfg Config) (report *Report, err error) {
	chosen, err := choose(cfg.Rows)
	if err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Out == nil {
		cfg.Out = io.Discard
	}
	dir, err := makeDir(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	report = &Report{Format: Format, Started: time.Now(), Quick: cfg.Quick}
	if report.Scope, err = hostScope(dir); err != nil {
		return nil, err
	}
	if err := measureAll(ctx, cfg, dir, chosen, report); err != nil {
		return nil, err
	}
	report.Seconds = time.Since(report.Started).Seconds()
	if report.Scope.LoadAfter, err = loadAverage(); err != nil {
		return nil, err
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

// choose answers the rows of those names, in their own order.
func choose(names []string) ([]rowKind, error) {
	if len(names) == 0 {
		return rows, nil
	}
	for _, name := range names {
		if !slices.Contains(Names(), name) {
			return nil, spore.Invalidf("rows", "there is no row %q", name).WithHint("choose from %s", strings.Join(Names(), ", "))
		}
	}
	var chosen []rowKind
	for _, r := range rows {
		if slices.Contains(names, r.name) {
			chosen = append(chosen, r)
		}
	}
	return chosen, nil
}

// makeDir makes the directory that everything of the run goes to. A hypervisor that runs as another user must be able to
// pass through it.
func makeDir(parent string) (string, error) {
	if parent != "" {
		if err := os.MkdirAll(parent, 0o711); err != nil {
			return "", spore.Invalidf("data", "the directory cannot be made: %v", err)
		}
	}
	dir, err := os.MkdirTemp(parent, "spore-bench-")
	if err != nil {
		return "", err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o711)
}

// measureAll runs the servers that the rows need, one after the other on the same data, and measures.
func measureAll(ctx context.Context, cfg Config, dir string, chosen []rowKind, report *Report) error {
	l := &lab{cfg: cfg, dir: dir, data: filepath.Join(dir, "data"), image: cfg.Image}
	defer func() { report.Mishaps = l.mishaps }()
	if l.image == "" {
		var err error
		if l.image, err = makeImage(filepath.Join(dir, "image")); err != nil {
			return err
		}
	}
	for _, pool := range []bool{false, true} {
		group := slices.DeleteFunc(slices.Clone(chosen), func(r rowKind) bool { return r.pool != pool })
		if len(group) == 0 {
			continue
		}
		err := l.serving(ctx, pool, func(ctx context.Context) error {
			for _, r := range group {
				l.say("measuring %s", r.name)
				made, err := r.measure(ctx, l)
				if err != nil {
					return fmt.Errorf("row %s: %w", r.name, err)
				}
				report.Rows = append(report.Rows, made...)
			}
			if err := l.cleared(ctx); err != nil {
				return err
			}
			// At the end: which accelerator works is known once a guest was booted.
			return l.describe(ctx, &report.Scope)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
