package cli_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/cli"
)

// commands walks all commands that people see.
func commands(c *cobra.Command, visit func(*cobra.Command)) {
	visit(c)
	for _, sub := range c.Commands() {
		if !sub.Hidden && sub.Name() != "help" {
			commands(sub, visit)
		}
	}
}

func TestEveryCommandIsExplained(t *testing.T) {
	var paths []string
	commands(cli.Root(), func(c *cobra.Command) {
		paths = append(paths, c.CommandPath())
		if c.Short == "" || strings.HasSuffix(c.Short, ".") || c.Example == "" || !strings.HasPrefix(c.Example, "  ") {
			t.Errorf("%s: short help %q, example %q", c.CommandPath(), c.Short, c.Example)
		}
		if c.RunE == nil || c.Args == nil {
			t.Errorf("%s: does nothing, or takes anything", c.CommandPath())
		}
	})
	for _, want := range strings.Fields(`serve doctor kernel-install kernel-ls kernel-rm template-build template-ls template-info template-rm template-commit run
		metrics template-set template-redo template-replicas template-refs template-nodes alias-set alias-ls alias-info alias-rm alias-history tag log diff
		operation-show artifact-ls artifact-info artifact-verify artifact-download artifact-token compat-matrix compat-scan compat-adopt
		node-ls node-info node-label node-drain node-undrain node-forget node-storage sandbox-refs snapshot-redo
		sandbox-create sandbox-ls sandbox-show sandbox-rm sandbox-pause sandbox-resume sandbox-extend sandbox-exec sandbox-cp sandbox-logs
		snapshot-create snapshot-ls snapshot-info snapshot-rm snapshot-log fork rollback job-ls job-show job-watch job-cancel job-log
		bench fsck gc explain completion version`) {
		if path := "spore " + strings.ReplaceAll(want, "-", " "); !slices.Contains(paths, path) {
			t.Errorf("there is no %s", path)
		}
	}
}

func TestDestructionCanBeRehearsed(t *testing.T) {
	commands(cli.Root(), func(c *cobra.Command) {
		if slices.Contains([]string{"rm", "gc", "rollback", "forget", "adopt"}, c.Name()) && c.Flags().Lookup("dry-run") == nil {
			t.Errorf("%s has no --dry-run", c.CommandPath())
		}
	})
	s := newShell(t)
	s.svc.AddTemplate("python")
	box := strings.TrimSpace(s.want(0, "sandbox", "create", "python", "-q").out)
	snap := strings.TrimSpace(s.want(0, "snapshot", "create", box, "--name", "one", "-q").out)
	kernel := strings.TrimSpace(s.want(0, "kernel", "ls", "-q").out)
	for _, args := range [][]string{
		{"template", "rm", "--dry-run", "python"}, {"snapshot", "rm", "--dry-run", snap}, {"sandbox", "rm", "--dry-run", box},
		{"kernel", "rm", "--dry-run", kernel}, {"rollback", "--dry-run", box, "one"}, {"gc", "--dry-run"},
	} {
		s.want(0, args...)
	}
	for _, method := range []string{"KillSandbox", "RemoveKernel", "Rollback"} {
		if slices.Contains(s.svc.Calls(), method) {
			t.Errorf("a rehearsal called %s", method)
		}
	}
	s.want(0, "template", "info", "python")
	s.want(0, "snapshot", "info", snap)
}

// TestOutput keeps what each command prints, in each format.
func TestOutput(t *testing.T) {
	s := newShell(t)
	s.svc.AddTemplate("python")
	var got strings.Builder
	show := func(code int, args ...string) outcome {
		t.Helper()
		o := s.want(code, args...)
		fmt.Fprintf(&got, "$ spore %s\n%s", strings.Join(args, " "), o.out)
		for line := range strings.Lines(o.errOut) {
			fmt.Fprintf(&got, "! %s", line)
		}
		return o
	}
	show(0, "template", "build", "web", "--image", "nginx:1", "--cpus", "2", "--memory", "1G", "--disk", "2048", "--env", "A=1", "--user", "app",
		"--workdir", "/srv", "--entrypoint", "/bin/sh -c", "--cmd", `'echo "hi there"'`, "--ready-http", ":8080/ok", "--ready-timeout", "5s", "--label", "team=red")
	show(0, "template", "build", "api", "--image", "nginx:1", "--detach", "--ready-port", "80", "-q")
	for _, format := range [][]string{{}, {"-o", "wide"}, {"-o", "json"}, {"-q"}} {
		show(0, append([]string{"template", "ls"}, format...)...)
	}
	show(0, "template", "info", "web")
	show(0, "template", "info", "python", "-o", "json")
	box := strings.TrimSpace(show(0, "sandbox", "create", "python", "--ttl", "3h", "--on-end", "pause", "-e", "TOKEN=x", "--label", "a=b", "-q").out)
	for _, format := range [][]string{{}, {"-o", "wide"}, {"-o", "json"}, {"-q"}} {
		show(0, append([]string{"sandbox", "ls"}, format...)...)
	}
	show(0, "sandbox", "show", box)
	show(0, "sandbox", "pause", box)
	show(1, "sandbox", "pause", box)
	show(0, "sandbox", "resume", box, "--ttl", "2h")
	show(0, "sandbox", "extend", box, "--ttl", "0s", "--on-end", "kill")
	show(0, "sandbox", "logs", box)
	show(0, "sandbox", "logs", "--console", box)
	show(0, "snapshot", "create", box, "--name", "one")
	show(0, "snapshot", "create", box, "--label", "x=y", "-o", "json")
	show(0, "fork", "one", "-n", "2")
	show(0, "rollback", "--dry-run", box, "one")
	show(0, "rollback", box, "one")
	for _, format := range [][]string{{}, {"-o", "wide"}, {"-q"}} {
		show(0, append([]string{"snapshot", "ls"}, format...)...)
	}
	show(0, "template", "commit", box, "committed")
	show(0, "snapshot", "log")
	show(0, "snapshot", "log", "--graph")
	show(0, "snapshot", "log", "--graph", "one")
	show(1, "snapshot", "log", "--graph", "nothing")
	job := strings.Fields(show(0, "job", "ls", "-q", "--operation", "create").out)[0]
	show(0, "job", "ls", "--status", "ready", "--operation", "snapshot_create")
	show(0, "job", "show", job)
	show(0, "job", "watch", job)
	show(0, "job", "log", job)
	show(0, "job", "log", "-f", job, "-o", "json")
	show(1, "job", "cancel", job)
	show(0, "kernel", "install")
	show(0, "kernel", "install", "-q", "--kernel", "/k", "--modules", "/m")
	show(0, "kernel", "ls")
	show(1, "kernel", "rm", "krn-none", "krn-000000000000000000000001")
	show(0, "fsck")
	show(0, "fsck", "--full", "-o", "json")
	s.svc.Fail = func(m string) error {
		if m == "Check/problem" || m == "Fork/1" {
			return spore.Errorf(spore.CodeBusy, "no room for another sandbox").WithHint("end one")
		}
		return nil
	}
	show(1, "fsck")
	show(1, "fork", "one", "-n", "2", "-q")
	s.svc.Fail = nil
	show(0, "gc", "--dry-run")
	show(0, "gc", "-o", "json")
	show(0, "explain", "python")
	show(0, "template", "rm", "--dry-run", "python")
	show(1, "template", "rm", "api", "nothing", "web")
	show(0, "sandbox", "rm", box)
	show(1, "sandbox", "show", box)
	show(1, "template", "build", "Bad_Name", "--image", "x")
	show(1, "template", "build", "python", "--image", "x")
	show(1, "template", "build", "tiny", "--image", "x", "--memory", "64")
	show(0, "version")
	golden(t, "output.txt", got.String())
}

func TestUsageErrors(t *testing.T) {
	s := newShell(t)
	for _, args := range [][]string{
		{"nonsense"}, {"template", "nonsense"}, {"template", "ls", "--nonsense"}, {"template", "ls", "extra"}, {"template", "build"},
		{"template", "build", "x"}, {"template", "build", "x", "--image", "y", "--memory", "lots"}, {"template", "build", "x", "--image", "y", "--ready-http", ":0/x"},
		{"-o", "yaml", "version"}, {"sandbox", "create", "x", "--on-end", "explode"}, {"sandbox", "create", "x", "--ttl", "-1s"}, {"sandbox", "extend", "s1"},
		{"sandbox", "cp", "a", "b"}, {"sandbox", "cp", "s1:a", "s2:b"}, {"sandbox", "exec", "s1"}, {"run"}, {"run", "x", "--on-end", "kill", "--"}, {"fork", "s1", "-n", "0"},
		{"serve", "extra"}, {"completion", "tcsh"}, {"sandbox", "logs", "s1", "--limit", "0"}, {"sandbox", "create", "x", "--label", "nolabel"},
	} {
		o := s.run(args...)
		if o.code != 2 || o.out != "" || !strings.HasPrefix(o.errOut, "error: ") || !strings.Contains(o.errOut, "\nhint: ") {
			t.Errorf("%v: %d\n%s%s", args, o.code, o.out, o.errOut)
		}
	}
	if calls := s.svc.Calls(); len(calls) > 0 {
		t.Errorf("the server was asked: %v", calls)
	}
}

func TestWhereTheServerIs(t *testing.T) {
	s := newShell(t)
	url := s.env["SPORE_URL"]
	s.env = map[string]string{}
	s.want(0, "--server", url, "sandbox", "ls")
	data := t.TempDir()
	if o := s.want(1, "--data", data, "sandbox", "ls"); !strings.Contains(o.errOut, "spore serve --data") {
		t.Error(o.errOut)
	}
	if err := os.WriteFile(filepath.Join(data, "server.json"), []byte(`{"url": "`+url+`", "pid": 1}`), 0o644); err != nil {
		t.Fatal(err)
	}
	s.want(0, "--data", data, "sandbox", "ls")
	s.env["SPORE_DATA"] = data
	s.want(0, "sandbox", "ls")
	s.env["SPORE_TOKEN_FILE"] = filepath.Join(data, "none")
	s.want(1, "sandbox", "ls")
}

func TestServeDoctorBench(t *testing.T) {
	s := newShell(t)
	for _, name := range []string{"serve", "doctor", "bench"} {
		if o := s.want(1, name); !strings.Contains(o.errOut, "built without") {
			t.Errorf("%s: %s", name, o.errOut)
		}
	}
	var served cli.ServeConfig
	s.opt.Serve = func(_ context.Context, cfg cli.ServeConfig) error { served = cfg; return nil }
	dir := t.TempDir()
	s.want(0, "serve", "--listen", "127.0.0.1:0", "--data", dir, "--pool", "3", "--accel", "tcg", "--token-file", "/t", "--log-level", "debug", "--log-format", "json")
	if served.Listen != "127.0.0.1:0" || served.DataDir != dir || served.Pool != 3 || served.Accel != "tcg" || served.TokenFile != "/t" || served.Version != "0.1.0" || served.Logger == nil {
		t.Errorf("%+v", served)
	}
	s.want(2, "serve", "--accel", "magic")
	s.want(2, "serve", "--log-level", "loud")
	s.opt.Doctor = func(context.Context, cli.DoctorConfig) ([]cli.Check, error) {
		return []cli.Check{{Name: "kvm", Status: cli.CheckWarn, Detail: "does not run a guest", Hint: "use bare metal"}, {Name: "qemu", Status: cli.CheckFail, Detail: "missing"}}, nil
	}
	if o := s.want(1, "doctor"); !strings.Contains(o.out, "kvm    warn") || !strings.Contains(o.errOut, "use bare metal") {
		t.Errorf("%s%s", o.out, o.errOut)
	}
	var measured cli.BenchConfig
	s.opt.BenchRows = []string{"miss", "fork"}
	s.opt.Bench = func(_ context.Context, cfg cli.BenchConfig) (any, error) {
		measured = cfg
		fmt.Fprintln(cfg.Out, "table")
		return map[string]int{"rows": 1}, nil
	}
	if o := s.want(0, "bench", "--rows", "miss,fork", "--quick", "--image", "oci:img"); o.out != "table\n" || !filepath.IsAbs(strings.TrimPrefix(measured.Image, "oci:")) || len(measured.Rows) != 2 {
		t.Errorf("%s %+v", o.out, measured)
	}
	if o := s.want(0, "bench", "-o", "json"); strings.TrimSpace(o.out) != "{\n  \"rows\": 1\n}" {
		t.Errorf("%s", o.out)
	}
	s.want(2, "bench", "--rows", "speed")
}

func TestInterruptedBuildLeavesNothing(t *testing.T) {
	s := newShell(t)
	s.svc.AutoFinish = false
	ctx, interrupt := context.WithCancel(t.Context())
	s.svc.Fail = func(m string) error {
		if m == "WatchJob" {
			interrupt()
		}
		return nil
	}
	o := s.runContext(ctx, "template", "build", "web", "--image", "x")
	if o.code != 130 || !strings.Contains(o.errOut, "interrupted") {
		t.Errorf("%d %s", o.code, o.errOut)
	}
	if calls := s.svc.Calls(); !slices.Contains(calls, "CancelJob") || !slices.Contains(calls, "DeleteTemplate") {
		t.Errorf("%v", calls)
	}
	if o := s.want(0, "template", "ls", "-q"); o.out != "" {
		t.Errorf("left behind: %s", o.out)
	}
}

func TestInterruptedCreateLeavesNothing(t *testing.T) {
	s := newShell(t)
	s.svc.AddTemplate("python")
	for _, args := range [][]string{{"sandbox", "create", "python"}, {"fork", "python", "-n", "3"}, {"run", "python", "--", "true"}} {
		ctx, interrupt := context.WithCancel(t.Context())
		s.svc.Fail = func(m string) error {
			if m == "CreateSandbox" || m == "Fork" {
				interrupt()
			}
			return nil
		}
		if o := s.runContext(ctx, args...); o.code != 130 {
			t.Errorf("%v: %d %s", args, o.code, o.errOut)
		}
		s.svc.Fail = nil
		if o := s.want(0, "sandbox", "ls", "-q"); o.out != "" {
			t.Errorf("%v left behind: %s", args, o.out)
		}
	}
}

func TestCompletion(t *testing.T) {
	s := newShell(t)
	s.svc.AddTemplate("python")
	box := strings.TrimSpace(s.want(0, "sandbox", "create", "python", "-q").out)
	for _, c := range []struct {
		want, not string
		args      []string
	}{
		{"python\ttemplate, READY", "", []string{"template", "info", ""}},
		{box + "\tRUNNING", "", []string{"sandbox", "rm", ""}},
		{"krn-", "", []string{"kernel", "rm", ""}},
		{"wide", "", []string{"template", "ls", "-o", ""}},
		{"kvm", "", []string{"serve", "--accel", ""}},
		{"python", "", []string{"sandbox", "ls", "--template", ""}},
		{":4", "python", []string{"template", "info", "python", ""}},
		{":4", box, []string{"sandbox", "rm", box, ""}}, // once is enough
		{"fsck", "", []string{""}},
	} {
		o := s.want(0, append([]string{"__complete"}, c.args...)...)
		if !strings.Contains(o.out, c.want) || c.not != "" && strings.Contains(o.out, c.not) {
			t.Errorf("%v: %s", c.args, o.out)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if o := s.want(0, "completion", shell); !strings.Contains(o.out, "spore") {
			t.Errorf("%s: %s", shell, o.out)
		}
	}
}

func TestControlCharactersAreEscaped(t *testing.T) {
	s := newShell(t)
	s.svc.AddTemplate("python")
	s.want(0, "sandbox", "create", "python", "--label", "a=\x1b]0;pwned\x07")
	if o := s.want(0, "sandbox", "ls", "-o", "wide"); strings.Contains(o.out, "\x1b") || !strings.Contains(o.out, `a=\x1b]0;pwned\a`) {
		t.Errorf("%q", o.out)
	}
	s.svc.Fail = func(string) error { return spore.Errorf(spore.CodeConflict, "bad \x1b[2Jname") }
	if o := s.want(1, "sandbox", "ls"); strings.Contains(o.errOut, "\x1b") {
		t.Errorf("%q", o.errOut)
	}
	s.svc.Fail = func(string) error { return errors.New("secret") }
	if o := s.want(1, "sandbox", "ls"); strings.Contains(o.errOut, "secret") || !strings.Contains(o.errOut, "internal error") {
		t.Errorf("%q", o.errOut)
	}
}
