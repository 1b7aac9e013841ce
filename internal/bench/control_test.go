package bench_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/bench"
	"github.com/sporevm/spore/internal/store/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// TestRunControl measures very little on each database, and looks at the report and at what is left.
func TestRunControl(t *testing.T) {
	for name, postgres := range map[string]bool{"sqlite": false, "postgresql": true} {
		t.Run(name, func(t *testing.T) {
			url := ""
			if postgres {
				url = pgtest.Start(t)
			}
			var out strings.Builder
			dir := t.TempDir()
			cfg := bench.ControlConfig{
				DataDir: filepath.Join(dir, "data"), Postgres: postgres, DatabaseURL: url, Callers: 4, Machines: 12, Snapshots: 300,
				Slice: 40 * time.Millisecond, Rounds: 1, Quick: true, ResultsDir: filepath.Join(dir, "results"), Out: &out,
			}
			for range 2 { // what the first has made does not keep the second from measuring
				report, err := bench.RunControl(t.Context(), cfg)
				if err != nil {
					t.Fatalf("%v\n%s", err, out.String())
				}
				checkControl(t, report)
			}
			t.Logf("\n%s", out.String())
			saved, err := filepath.Glob(filepath.Join(dir, "results", "center-*-"+name+"-quick*.json"))
			if err != nil || len(saved) != 2 {
				t.Fatalf("saved are %v, %v", saved, err)
			}
			raw, err := os.ReadFile(saved[0])
			var back bench.ControlReport
			if err != nil || json.Unmarshal(raw, &back) != nil || len(back.Rows) != 3 {
				t.Errorf("the saved report does not read back: %v", err)
			}
			if left, err := os.ReadDir(filepath.Join(dir, "data")); err != nil || len(left) > 0 {
				t.Errorf("left over: %v, %v", left, err)
			}
		})
	}
}

func checkControl(t *testing.T, report *bench.ControlReport) {
	t.Helper()
	if len(report.Rows) != 3 {
		t.Fatalf("%d rows came back, not 3", len(report.Rows))
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
	if s := report.Scope; s.DatabaseVersion == "" || s.Durability == "" || s.Cores == 0 || s.Filesystem == "" {
		t.Errorf("the scope is not told: %+v", s)
	}
}

// TestRunControlRefuses what it could not measure, and databases that somebody uses.
func TestRunControlRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  bench.ControlConfig
		want spore.Code
	}{
		"callers":  {bench.ControlConfig{Callers: -1}, spore.CodeInvalid},
		"machines": {bench.ControlConfig{Machines: 1 << 20}, spore.CodeInvalid},
		"slice":    {bench.ControlConfig{Slice: time.Hour}, spore.CodeInvalid},
		"database": {bench.ControlConfig{DatabaseURL: "postgres://x"}, spore.CodeInvalid},
		"url":      {bench.ControlConfig{Postgres: true, DatabaseURL: "postgres://x:y:z@%"}, spore.CodeInvalid},
	} {
		c.cfg.DataDir = t.TempDir()
		if _, err := bench.RunControl(t.Context(), c.cfg); spore.CodeOf(err) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	cluster := pgtest.New(t, pgtest.Options{})
	url := cluster.Database(t)
	cluster.Exec(t, url, "CREATE SCHEMA spore CREATE TABLE precious (x int)")
	_, err := bench.RunControl(t.Context(), bench.ControlConfig{Postgres: true, DatabaseURL: url, DataDir: t.TempDir()})
	if spore.CodeOf(err) != spore.CodeConflict {
		t.Errorf("a database in use: %v", err)
	}
	cluster.Exec(t, url, "INSERT INTO spore.precious VALUES (1)")
}
