package bench_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/bench"
	"github.com/sporevm/spore/internal/daemon"
	"github.com/sporevm/spore/internal/testbed"
)

// serve is how the program runs servers for the benchmark.
func serve(init string) func(context.Context, bench.Server) error {
	return func(ctx context.Context, s bench.Server) error {
		return daemon.Serve(ctx, daemon.Config{
			DataDir: s.DataDir, Listen: "127.0.0.1:0", Pool: s.Pool, Init: init, Logger: s.Logger, Ready: s.Ready, Version: "test",
		})
	}
}

// TestRun measures a few rows once, against real VMs, and looks at the report and at what is left.
func TestRun(t *testing.T) {
	vmlinuz, modules := testbed.KernelFiles(t)
	dir, err := os.MkdirTemp("", "sb") // short, for the sake of sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var out, serverLog strings.Builder
	report, err := bench.Run(t.Context(), bench.Config{
		Serve: serve(testbed.SporeInit(t)), DataDir: filepath.Join(dir, "data"), Kernel: api.KernelRequest{Kernel: vmlinuz, Modules: modules},
		Rows: []string{"miss", "cold", "rollback", "hit"}, Runs: 1, ResultsDir: filepath.Join(dir, "results"),
		Out: &out, Logger: slog.New(slog.NewTextHandler(&serverLog, nil)),
	})
	if err != nil {
		t.Fatalf("%v\n%s\nthe server's log:\n%s", err, out.String(), serverLog.String())
	}
	t.Logf("\n%s", out.String())
	if len(report.Rows) != 4 {
		t.Errorf("%d rows came back, not 4", len(report.Rows))
	}
	for _, row := range report.Rows {
		if row.Verdict == bench.Failed || row.Measured <= 0 {
			t.Errorf("row %s: %s, measured %v", row.Name, row.Verdict, row.Measured)
		}
		for _, s := range row.Series {
			if s.N == 0 || len(s.Failures) > 0 {
				t.Errorf("row %s, %s: n %d, failures %q", row.Name, s.Name, s.N, s.Failures)
			}
		}
	}
	if report.Scope.Engine == "" || report.Scope.Cores == 0 || report.Scope.Filesystem == "" {
		t.Errorf("the scope is not told: %+v", report.Scope)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "data")); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

// TestRunWithoutServer says why nothing could be measured.
func TestRunWithoutServer(t *testing.T) {
	broken := errors.New("no server today")
	_, err := bench.Run(t.Context(), bench.Config{
		Serve: func(context.Context, bench.Server) error { return broken }, DataDir: t.TempDir(), Rows: []string{"miss"},
	})
	if !errors.Is(err, broken) {
		t.Errorf("the error is %v", err)
	}
	_, err = bench.Run(t.Context(), bench.Config{Rows: []string{"nonsense"}})
	if spore.CodeOf(err) != spore.CodeInvalid {
		t.Errorf("a row that there is not: %v", err)
	}
}
