package fcdouble_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sporevm/spore/internal/vmm/firecracker/fcdouble"
)

// real is the Firecracker to compare with, and its version.
func real(t *testing.T, variable string) (path, version string, minor int) {
	t.Helper()
	path = os.Getenv(variable)
	if path == "" {
		t.Skipf("%s names no binary to compare the stand-in with", variable)
	}
	out, err := exec.Command(path, "--version").Output()
	must(t, err)
	m := regexp.MustCompile(`v(1\.(\d+)\.\S+)`).FindStringSubmatch(string(out))
	if m == nil {
		t.Fatalf("%s --version says %q", path, out)
	}
	minor, err = strconv.Atoi(m[2])
	must(t, err)
	return path, m[1], minor
}

// save makes a snapshot in dir for the scripts that begin with one.
func save(t testing.TB, program, dir string) {
	t.Helper()
	p := launch(t, program, dir)
	for _, s := range booting {
		p.do(s.method, s.path, "%s", strings.ReplaceAll(s.body, "$D", dir))
	}
	p.do("PATCH", "/vm", pause)
	p.do("PUT", "/snapshot/create", `{"snapshot_path":"%s/state","mem_file_path":"%[1]s/memory"}`, dir)
	p.kill()
}

// play runs a script and lists what came of each step, comparable with what comes of it elsewhere.
func play(t testing.TB, program string, minor int, sc script) []string {
	t.Helper()
	dir := shortDir(t)
	furnish(t, dir)
	if sc.snapshot {
		save(t, program, dir)
	}
	p := launch(t, program, dir)
	var out []string
	for _, s := range sc.steps {
		if minor < s.since {
			continue
		}
		if s.before != nil {
			s.before(t, dir)
		}
		a := p.ask(s.method, s.path, strings.ReplaceAll(s.body, "$D", dir))
		line := fmt.Sprintf("%s %s %s: %d %s", s.method, s.path, s.body, a.status, plain(t, a.body, dir))
		if a.deprecated {
			line += " (deprecated)"
		}
		if s.dies {
			line += fmt.Sprintf(", exit code %d", p.exit())
		}
		out = append(out, line)
	}
	return out
}

// plain takes from a body what differs from run to run.
func plain(t testing.TB, body, dir string) string {
	t.Helper()
	body = strings.ReplaceAll(body, dir, "$D")
	if body == "" {
		return ""
	}
	var v map[string]any
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		return body // not JSON, as what is no request gets
	}
	if drives, ok := v["drives"].([]any); ok {
		slices.SortFunc(drives, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	}
	text, err := json.Marshal(v)
	must(t, err)
	return regexp.MustCompile(`CRC64 validation failed: \d+`).ReplaceAllString(string(text), "CRC64 validation failed: N")
}

// TestConformance runs the same scripts on a real Firecracker and on the stand-in for its version.
func TestConformance(t *testing.T) {
	path, version, minor := real(t, "SPORE_FIRECRACKER")
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err != nil {
		t.Skipf("no real Firecracker runs here: %v", err)
	} else {
		f.Close()
	}
	stand := double(t, version)
	for _, sc := range scripts {
		t.Run(strings.ReplaceAll(sc.name, " ", "_"), func(t *testing.T) {
			if diff := cmp.Diff(play(t, path, minor, sc), play(t, stand, minor, sc)); diff != "" {
				t.Errorf("real (-) and stand-in (+) differ:\n%s", diff)
			}
		})
	}
}

// TestScripts runs the scripts on the stand-in for the oldest version; TestDescribed does on the newest that is described.
func TestScripts(t *testing.T) {
	for _, version := range fcdouble.Versions[:1] {
		minor, err := strconv.Atoi(strings.Split(version, ".")[1])
		must(t, err)
		stand := double(t, version)
		for _, sc := range scripts {
			t.Run(version+"/"+strings.ReplaceAll(sc.name, " ", "_"), func(t *testing.T) {
				for _, line := range play(t, stand, minor, sc) {
					var fault struct {
						Message string `json:"fault_message"`
					}
					_, body, _ := strings.Cut(line, ": 400 ")
					body, _, _ = strings.Cut(body, ", exit code")
					if body != "" && !strings.Contains(body, "unanswered requests") && (json.Unmarshal([]byte(body), &fault) != nil || fault.Message == "") {
						t.Errorf("a refusal without a message: %s", line)
					}
					if strings.Contains(line, ", exit code") && !strings.HasSuffix(line, ", exit code 1") {
						t.Errorf("a failed load must end the VMM: %s", line)
					}
				}
			})
		}
	}
}

// TestFlags compares what command lines come to.
func TestFlags(t *testing.T) {
	path, version, minor := real(t, "SPORE_FIRECRACKER")
	compareFlags(t, path, double(t, version), [][]string{
		{"--foo"}, {"foo"}, {"--id"}, {"--id", "--api-sock"}, {"--id", "a", "--id", "b"}, {"--no-api"}, {"--id", "a_b"}, {"--id", ""},
		{"--no-seccomp", "--seccomp-filter", "x"}, {"--level", "xx"}, {"--version", "--foo"}, {"--snapshot-version"},
		{"--describe-snapshot", "/nope"}, {"--log-path", "/nope/x"}, {"--api-sock", "/nope/x"}, {"--api-sock", "/dev/null"},
	})
	_ = minor
}

// TestJailerFlags compares what the jailers refuse.
func TestJailerFlags(t *testing.T) {
	path, version, _ := real(t, "SPORE_JAILER")
	base := shortDir(t)
	exe := fcdouble.Build(t, fcdouble.Options{Version: version}).Firecracker // its name matters
	good := func(more ...string) []string {
		return append([]string{"--id", "x", "--exec-file", exe, "--uid", "1234", "--gid", "1234", "--chroot-base-dir", base}, more...)
	}
	compareFlags(t, path, fcdouble.Build(t, fcdouble.Options{Version: version}).Jailer, [][]string{
		{}, {"--version"}, {"--id", "x"}, {"--id", "x_y", "--exec-file", exe, "--uid", "1", "--gid", "1"}, {"--id", "x", "--exec-file", "/nope", "--uid", "1", "--gid", "1"},
		{"--id", "x", "--exec-file", exe, "--uid", "a", "--gid", "1", "--chroot-base-dir", base}, {"--id", "x", "--exec-file", exe, "--uid", "1", "--gid", "-1", "--chroot-base-dir", base},
		{"--id", "x", "--exec-file", exe, "--uid", "1", "--gid", "1", "--chroot-base-dir", "/nope"}, {"--id", "x", "--exec-file", exe, "--uid", "1", "--gid", "1", "--chroot-base-dir", "/dev/null"},
		{"--id", "x", "--exec-file", "/tmp", "--uid", "1", "--gid", "1", "--chroot-base-dir", base}, good("--netns", "/nope"), good("--cgroup", "foo"), good("--cgroup", "foo.bar=1"), good("--cgroup", "foobar=1"),
		good("--cgroup", "../foo.bar=1"), good("--cgroup-version", "3", "--cgroup", "a.b=1"), good("--cgroup-version", "x"), good("--parent-cgroup", "../x"), good("--parent-cgroup", "/x"),
		good("--resource-limit", "x=1"), good("--resource-limit", "fsize"), good("--resource-limit", "no-file=x"), good("--foo"), good("--daemonize", "x"),
	})
}

// compareFlags runs two programs, which must end by themselves or be refused, with the same arguments.
func compareFlags(t *testing.T, path, stand string, lines [][]string) {
	t.Helper()
	varying := regexp.MustCompile(`(?m)^\d{4}-\S+ |\(\d+\) panicked|[^ ]*\.rs:\d+:\d+:`) // times, threads, and where in a source a panic was
	for _, args := range lines {
		var got []string
		for _, program := range []string{path, stand} {
			cmd := exec.Command("timeout", append([]string{"1", program}, args...)...)
			cmd.Dir = shortDir(t)
			var out, errs strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &errs
			cmd.Run() // its code is looked at
			text := varying.ReplaceAllString(out.String(), "")
			got = append(got, fmt.Sprintf("code %d\n%s\n%s", cmd.ProcessState.ExitCode(), text, varying.ReplaceAllString(errs.String(), "")))
		}
		if diff := cmp.Diff(got[0], got[1]); diff != "" {
			t.Errorf("%q: real (-) and stand-in (+) differ:\n%s", args, diff)
		}
	}
}
