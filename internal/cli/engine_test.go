package cli_test

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/cli"
)

func TestServeEngine(t *testing.T) {
	s := newShell(t)
	var got cli.ServeConfig
	s.opt.Serve = func(_ context.Context, cfg cli.ServeConfig) error { got = cfg; return nil }
	s.want(0, "serve")
	if got.Engine != "auto" || got.EngineConfig != (cli.EngineConfig{FirecrackerPool: 2, MemoryBackend: "auto"}) {
		t.Errorf("%+v", got)
	}
	s.want(0, "serve", "--engine", "firecracker", "--firecracker-dir", "fc", "--no-jailer", "--firecracker-pool", "0", "--memory-backend", "uffd")
	if got.Engine != "firecracker" || !filepath.IsAbs(got.FirecrackerDir) || !got.NoJailer || got.FirecrackerPool != 0 || got.MemoryBackend != "uffd" {
		t.Errorf("%+v", got)
	}
	for _, args := range [][]string{{"--engine", "bochs"}, {"--memory-backend", "tape"}, {"--firecracker-pool", "-1"}} {
		if o := s.want(2, append([]string{"serve"}, args...)...); !strings.Contains(o.errOut, args[0]) {
			t.Errorf("%v: %s", args, o.errOut)
		}
	}
}

func TestDoctorClean(t *testing.T) {
	s := newShell(t)
	if o := s.want(1, "doctor", "--clean"); !strings.Contains(o.errOut, "built without") {
		t.Error(o.errOut)
	}
	var got cli.CleanConfig
	var fails error
	s.opt.Clean = func(_ context.Context, cfg cli.CleanConfig) ([]cli.Leftover, error) {
		got = cfg
		return []cli.Leftover{{Kind: "vm", Name: "v1", Detail: "process 7, of no sandbox"}}, fails
	}
	dir := t.TempDir()
	if o := s.want(0, "doctor", "--clean", "--dry-run", "--data", dir); !got.DryRun || got.Sandboxes || got.DataDir != dir || !strings.Contains(o.out, "process 7") {
		t.Errorf("%+v %s", got, o.out)
	}
	if o := s.want(0, "doctor", "--clean", "--sandboxes", "-q"); got.DryRun || !got.Sandboxes || o.out != "v1\n" {
		t.Errorf("%+v %q", got, o.out)
	}
	fails = spore.Errorf(spore.CodeInUse, "the group stays")
	if o := s.want(1, "doctor", "--clean"); !strings.Contains(o.out, "v1") || !strings.Contains(o.errOut, "the group stays") {
		t.Errorf("%s%s", o.out, o.errOut)
	}
	s.want(2, "doctor", "--dry-run")
	s.want(2, "doctor", "--sandboxes")
	var asked cli.DoctorConfig
	s.opt.Doctor = func(_ context.Context, cfg cli.DoctorConfig) ([]cli.Check, error) { asked = cfg; return nil, nil }
	s.want(0, "doctor", "--firecracker-dir", "fc", "--no-jailer")
	if !filepath.IsAbs(asked.FirecrackerDir) || !asked.NoJailer {
		t.Errorf("%+v", asked)
	}
}

// TestEnginesPage holds docs/engines.md against what there is: every command, call, flag and test that it names exists.
func TestEnginesPage(t *testing.T) {
	raw, err := os.ReadFile("../../docs/engines.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := checkPage(t, string(raw))
	if seen["command"] < 20 || seen["call"] < 10 || seen["test"] < 40 {
		t.Errorf("found %v only", seen)
	}
	for _, m := range regexp.MustCompile(`\]\(([a-z-]+\.md)\)`).FindAllStringSubmatch(string(raw), -1) {
		if _, err := os.Stat(filepath.Join("../../docs", m[1])); err != nil {
			t.Error(err)
		}
	}
}
