package cli_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sporevm/spore/internal/cli"
)

func TestBenchCenter(t *testing.T) {
	s := newShell(t)
	if o := s.want(1, "bench", "center"); !strings.Contains(o.errOut, "built without") {
		t.Errorf("%s", o.errOut)
	}
	var got cli.BenchCenterConfig
	s.opt.BenchCenter = func(_ context.Context, cfg cli.BenchCenterConfig) (any, error) {
		got = cfg
		fmt.Fprintln(cfg.Out, "table")
		return map[string]int{"rows": 1}, nil
	}
	if o := s.want(0, "bench", "center", "--quick", "--callers", "8", "--machines", "9", "--snapshots", "10", "--results", "r"); o.out != "table\n" ||
		got.Postgres || !got.Quick || got.Callers != 8 || got.Machines != 9 || got.Snapshots != 10 || got.ResultsDir != "r" || got.DataDir != "" {
		t.Errorf("%s %+v", o.out, got)
	}
	if s.want(0, "bench", "center", "--database", "postgres"); !got.Postgres || got.DatabaseFile != "" {
		t.Errorf("%+v", got)
	}
	if s.want(0, "bench", "center", "--database-file", "db", "--data", "here"); !got.Postgres || !filepath.IsAbs(got.DatabaseFile) || !filepath.IsAbs(got.DataDir) {
		t.Errorf("%+v", got)
	}
	if o := s.want(0, "bench", "center", "-o", "json"); strings.TrimSpace(o.out) != "{\n  \"rows\": 1\n}" {
		t.Errorf("%s", o.out)
	}
	s.want(2, "bench", "center", "--database", "oracle")
	s.want(2, "bench", "center", "--database", "sqlite", "--database-file", "db")
	s.want(2, "bench", "center", "--log-level", "loud")
	s.want(2, "bench", "center", "more")
}
