package cli_test

import (
	"context"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/creack/pty"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/cli"
	"github.com/sporevm/spore/internal/gateway/gatewaytest"
)

// newGuestShell has a template whose sandboxes are this machine.
func newGuestShell(t testing.TB) (s *shell, box string) {
	t.Helper()
	s = newShell(t)
	s.svc.AgentTransport = gatewaytest.Agent(t)
	s.svc.AddTemplate("host")
	return s, strings.TrimSpace(s.want(0, "sandbox", "create", "host", "-q").out)
}

func TestExec(t *testing.T) {
	s, box := newGuestShell(t)
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		code        int
		out, errOut string
		args        []string
	}{
		{0, "hi\n", "", []string{box, "echo", "hi"}},
		{0, "-n x\n", "", []string{box, "--", "printf", "%s\n", "-n x"}},
		{7, "", "bad\n", []string{box, "sh", "-c", "echo bad >&2; exit 7"}},
		{137, "", "", []string{box, "sh", "-c", "kill -9 $$"}},
		{0, dir + "\n", "", []string{"-w", dir, box, "pwd"}},
		{0, "1 here\n", "", []string{"-e", "A=1", "-e", "FROM_HERE", box, "sh", "-c", "echo $A $FROM_HERE"}},
		{127, "", "error: nonsense: no such command in the sandbox\n", []string{box, "nonsense"}},
		{126, "", "error: " + plain + ": not executable for this user\n", []string{box, plain}},
		{126, "", "error: " + dir + " is a directory, not a command\n", []string{box, dir}},
		{125, "", "error: there is no sandbox \"s00\"\nhint: spore sandbox ls\n", []string{"s00", "true"}},
		{125, "", "error: -t needs a terminal, and standard input is none\n", []string{"-it", box, "true"}},
	} {
		s.env["FROM_HERE"] = "here"
		o := s.run(append([]string{"sandbox", "exec"}, c.args...)...)
		if o.code != c.code || o.out != c.out || o.errOut != c.errOut {
			t.Errorf("exec %q: %+v", c.args, o)
		}
	}
	s.stdin = strings.NewReader("a\nb\n")
	if o := s.want(0, "sandbox", "exec", "-i", box, "wc", "-l"); strings.TrimSpace(o.out) != "2" {
		t.Errorf("%+v", o)
	}
	s.stdin = strings.NewReader("a\nb\n")
	if o := s.want(0, "sandbox", "exec", box, "wc", "-l"); strings.TrimSpace(o.out) != "0" {
		t.Errorf("input that was not asked for: %+v", o)
	}
}

func TestRun(t *testing.T) {
	s, box := newGuestShell(t)
	s.want(0, "sandbox", "rm", box)
	for _, c := range []struct {
		code int
		out  string
		args []string
	}{
		{0, "hi\n", []string{"host", "--", "echo", "hi"}},
		{0, "hi\n", []string{"host", "echo", "hi"}},
		{9, "", []string{"host", "--", "sh", "-c", "exit 9"}},
		{127, "", []string{"host", "--", "nonsense"}},
		{127, "", []string{"host"}}, // the image's own: /bin/serve, which this machine does not have
		{125, "", []string{"nothing", "--", "true"}},
		{125, "", []string{"-it", "host", "--", "true"}},
		{0, "1\n", []string{"-e", "A=1", "host", "--", "sh", "-c", "echo $A"}},
	} {
		o := s.run(append([]string{"run"}, c.args...)...)
		if o.code != c.code || o.out != c.out {
			t.Errorf("run %q: %+v", c.args, o)
		}
		if left := s.want(0, "sandbox", "ls", "-q"); left.out != "" {
			t.Errorf("run %q left behind %s", c.args, left.out)
		}
	}
	o := s.want(3, "run", "--keep", "--ttl", "1h", "host", "--", "sh", "-c", "exit 3")
	if left := s.want(0, "sandbox", "ls", "-q"); left.out == "" || !strings.Contains(o.errOut, left.out) {
		t.Errorf("%+v, left %q", o, left.out)
	}
}

// TestMain lets a test run the command line as a process of its own, which signals can reach.
func TestMain(m *testing.M) {
	if os.Getenv("SPORE_CLI_TEST") == "1" {
		os.Exit(cli.Run(context.Background(), cli.Options{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}))
	}
	os.Exit(m.Run())
}

// process runs a command line in a process of its own.
func (s *shell) process(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "SPORE_CLI_TEST=1", "SPORE_URL="+s.env["SPORE_URL"], "TERM=xterm")
	return cmd
}

// until waits for a part of what a process prints.
func until(t *testing.T, r io.Reader, part string) string {
	t.Helper()
	var seen strings.Builder
	buf := make([]byte, 1024)
	for !strings.Contains(seen.String(), part) {
		n, err := r.Read(buf)
		seen.Write(buf[:n])
		if err != nil {
			t.Fatalf("%v before %q; there was %q", err, part, seen.String())
		}
	}
	return seen.String()
}

func exitCode(t *testing.T, err error) int {
	t.Helper()
	if err == nil {
		return 0
	}
	exit, ok := err.(*exec.ExitError)
	if !ok {
		t.Fatal(err)
	}
	return exit.ExitCode()
}

func TestSignalsArePassedOn(t *testing.T) {
	s, box := newGuestShell(t)
	s.want(0, "sandbox", "rm", box)
	for _, c := range []struct {
		script  string
		signals int
		code    int
	}{
		{`trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.01; done`, 1, 5},
		{`trap 'echo again' INT; echo ready; while :; do sleep 0.01; done`, 3, 137},
	} {
		cmd := s.process("run", "host", "--", "sh", "-c", c.script)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		until(t, out, "ready")
		for i := range c.signals {
			if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
				t.Error(err)
			}
			if i < c.signals-1 {
				until(t, out, "again")
			}
		}
		io.Copy(io.Discard, out)
		if code := exitCode(t, cmd.Wait()); code != c.code {
			t.Errorf("exit code %d, want %d", code, c.code)
		}
		if left := s.want(0, "sandbox", "ls", "-q"); left.out != "" {
			t.Errorf("left behind: %s", left.out)
		}
	}
}

func TestSignalDuringCreate(t *testing.T) {
	s, box := newGuestShell(t)
	begun, proceed := make(chan struct{}), make(chan struct{})
	s.svc.Wait = func(context.Context) {
		close(begun)
		<-proceed
	}
	s.want(0, "sandbox", "rm", box)
	cmd := s.process("run", "host", "--", "echo", "never")
	errOut, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-begun
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	until(t, errOut, "ending")
	close(proceed)
	io.Copy(io.Discard, errOut)
	if code := exitCode(t, cmd.Wait()); code != 143 {
		t.Errorf("exit code %d", code)
	}
	if left := s.want(0, "sandbox", "ls", "-q"); left.out != "" {
		t.Errorf("left behind: %s", left.out)
	}
}

func TestTerminal(t *testing.T) {
	s, box := newGuestShell(t)
	cmd := s.process("sandbox", "exec", "-it", box, "sh", "-c", `stty size; echo "$TERM"; while [ "$(stty size)" != "40 120" ]; do sleep 0.01; done; echo resized; read x; echo "got $x"; exit 4`)
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 30, Cols: 100})
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	if seen := until(t, tty, "xterm"); !strings.Contains(seen, "30 100") {
		t.Errorf("%q", seen)
	}
	if err := pty.Setsize(tty, &pty.Winsize{Rows: 40, Cols: 120}); err != nil {
		t.Fatal(err)
	}
	until(t, tty, "resized")
	io.WriteString(tty, "typed\r")
	until(t, tty, "got typed")
	if code := exitCode(t, cmd.Wait()); code != 4 {
		t.Errorf("exit code %d", code)
	}
}

func TestCopy(t *testing.T) {
	s, box := newGuestShell(t)
	local, remote := t.TempDir(), t.TempDir()
	write := func(file, contents string, mode os.FileMode) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(contents), mode); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(file, contents string, mode os.FileMode) {
		t.Helper()
		got, err := os.ReadFile(file)
		if err != nil || string(got) != contents {
			t.Errorf("%s: %q, %v", file, got, err)
			return
		}
		if st, err := os.Stat(file); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: mode %v, %v", file, st.Mode(), err)
		}
	}
	tree := filepath.Join(local, "tree")
	write(filepath.Join(tree, "run.sh"), "#!", 0o755)
	write(filepath.Join(tree, "sub dir", "a:b"), "deep", 0o644)
	if err := os.Symlink("sub dir/a:b", filepath.Join(tree, "link")); err != nil {
		t.Fatal(err)
	}
	s.want(0, "sandbox", "cp", tree, box+":"+remote)
	expect(filepath.Join(remote, "tree", "run.sh"), "#!", 0o755)
	expect(filepath.Join(remote, "tree", "sub dir", "a:b"), "deep", 0o644)
	if to, err := os.Readlink(filepath.Join(remote, "tree", "link")); err != nil || to != "sub dir/a:b" {
		t.Errorf("link: %q, %v", to, err)
	}
	write(filepath.Join(tree, "sub dir", "a:b"), "deeper", 0o644)
	write(filepath.Join(remote, "tree", "other"), "stays", 0o600)
	s.want(0, "sandbox", "cp", tree, box+":"+remote)
	expect(filepath.Join(remote, "tree", "sub dir", "a:b"), "deeper", 0o644)
	expect(filepath.Join(remote, "tree", "other"), "stays", 0o600)
	s.want(0, "sandbox", "cp", filepath.Join(tree, "run.sh"), box+":"+remote+"/renamed")
	expect(filepath.Join(remote, "renamed"), "#!", 0o755)
	s.want(0, "sandbox", "cp", filepath.Join(tree, "run.sh"), box+":"+remote+"/new/")
	expect(filepath.Join(remote, "new", "run.sh"), "#!", 0o755)

	back := filepath.Join(local, "back")
	s.want(0, "sandbox", "cp", box+":"+remote+"/tree", back)
	expect(filepath.Join(back, "run.sh"), "#!", 0o755)
	expect(filepath.Join(back, "other"), "stays", 0o600)
	if to, err := os.Readlink(filepath.Join(back, "link")); err != nil || to != "sub dir/a:b" {
		t.Errorf("link: %q, %v", to, err)
	}
	write(filepath.Join(back, "mine"), "kept", 0o644)
	s.want(0, "sandbox", "cp", box+":"+remote+"/tree", local) // over the source
	s.want(0, "sandbox", "cp", box+":"+remote+"/tree/run.sh", back)
	expect(filepath.Join(back, "mine"), "kept", 0o644)
	big := filepath.Join(local, "big")
	if err := os.WriteFile(big, make([]byte, 5<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	s.want(0, "sandbox", "cp", big, box+":"+remote)
	if st, err := os.Stat(filepath.Join(remote, "big")); err != nil || st.Size() != 5<<20 {
		t.Error(st, err)
	}
	if err := syscall.Mkfifo(filepath.Join(remote, "tree", "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	if o := s.want(1, "sandbox", "cp", box+":"+remote+"/tree", filepath.Join(local, "again")); !strings.Contains(o.errOut, "pipe") {
		t.Errorf("%+v", o)
	}
	expect(filepath.Join(local, "again", "run.sh"), "#!", 0o755)
	for _, args := range [][]string{
		{box + ":" + remote + "/none", local}, {filepath.Join(local, "none"), box + ":/tmp"}, {tree, box + ":" + remote + "/renamed"},
		{box + ":" + remote + "/big", filepath.Join(local, "none") + "/"}, {box + ":" + remote + "/tree/pipe", local},
	} {
		if o := s.run("sandbox", "cp", args[0], args[1]); o.code != 1 || o.errOut == "" {
			t.Errorf("cp %v: %+v", args, o)
		}
	}
	for _, dir := range []string{local, remote, back} {
		if left, _ := filepath.Glob(filepath.Join(dir, ".spore-*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

// TestCopyToFullDisk fails in the middle of a directory: nothing of it is left.
func TestCopyToFullDisk(t *testing.T) {
	s, box := newGuestShell(t)
	local, remote := t.TempDir(), t.TempDir()
	for _, name := range []string{"a", "b", "c"} {
		if err := os.WriteFile(filepath.Join(local, name), make([]byte, 1<<16), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	real, n := s.svc.AgentTransport, 0
	s.svc.AgentTransport = roundTrip(func(r *http.Request) (*http.Response, error) {
		if r.URL.Path == "/files" {
			if n++; n == 3 {
				return &http.Response{StatusCode: 507, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(`{"code":507,"message":"the sandbox's disk is full"}`)), Request: r}, nil
			}
		}
		return real.RoundTrip(r)
	})
	o := s.want(1, "sandbox", "cp", local, box+":"+remote)
	if !strings.Contains(o.errOut, "disk is full") {
		t.Errorf("%+v", o)
	}
	if left, err := os.ReadDir(remote); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func FuzzParsers(f *testing.F) {
	for _, seed := range []string{"512", "2G", "1TiB", "-1", "9999999999T", "", "G", ":80/x", "/x", ":0/", "a 'b c' \"d", "s1:/x", "./a:b", "\x1b[2J", "70,85,95", "0,1,200", "30d", "36h", "99999999999d", "500GiB", "9EB", "zone=a disk-", "-", "=", "8080:80", "0.0.0.0:1:2", "[::1]:1:2", "80", "::", "[]:1:2", "1:2:3:4"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		if n, err := cli.ParseMiB(in); err == nil && n < 1 {
			t.Errorf("%q is %d MiB", in, n)
		}
		if path, port, err := cli.HTTPProbe(in); err == nil && (port < 0 || port > 65535 || port != 0 && !strings.HasPrefix(path, "/")) {
			t.Errorf("%q probes %q on %d", in, path, port)
		}
		if _, sandbox := cli.Target(in); strings.ContainsAny(sandbox, "/.") {
			t.Errorf("%q is in sandbox %q", in, sandbox)
		}
		words, err := cli.SplitWords(in)
		if err != nil && !strings.ContainsAny(in, `'"`) {
			t.Errorf("%q: %v", in, err)
		}
		for _, w := range words {
			if len(w) > len(in) {
				t.Errorf("%q has the word %q", in, w)
			}
		}
		if l, err := cli.ParseStorageLimits(in); err == nil && l.Validate() != nil {
			t.Errorf("%q is the limits %v", in, l)
		}
		if d, err := cli.ParseAge(in); err == nil && d < 0 {
			t.Errorf("%q is %s", in, d)
		}
		if n, err := cli.ParseQuota(in); err == nil && n < 0 {
			t.Errorf("%q is %d bytes", in, n)
		}
		if set, unset, err := cli.LabelArgs(strings.Fields(in)); err == nil {
			for _, key := range unset {
				if _, both := set[key]; both || key == "" {
					t.Errorf("%q sets %v and takes away %v", in, set, unset)
				}
			}
		}
		if p, err := cli.ParsePublish(in); err == nil {
			if spore.ValidatePorts([]spore.PortForward{{HostAddress: p.HostAddress, HostPort: p.HostPort, GuestPort: p.GuestPort}}) != nil {
				t.Errorf("%q publishes %+v", in, p)
			}
		}
		if address, port, err := cli.ParsePlace(in); err == nil {
			if _, bad := netip.ParseAddr(address); port < 1 || port > 65535 || address != "" && bad != nil {
				t.Errorf("%q is port %d of %q", in, port, address)
			}
		}
		if clean := cli.Printable(in, false); strings.ContainsAny(clean, "\x1b\n\r\x07") {
			t.Errorf("%q prints as %q", in, clean)
		}
	})
}
