package guest

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/api/process"
	"github.com/sporevm/spore/internal/testbed"
)

// TestGuest boots one machine, uses it, freezes it, thaws it twice and ends it.
func TestGuest(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	dir := t.TempDir()
	var f template
	f.kernel, f.initrd = testbed.Kernel(t)
	f.rootfs, f.disk = makeDrives(t, dir)
	f.memory, f.state = filepath.Join(dir, "memory"), filepath.Join(dir, "state")

	begin := time.Now()
	m := startMachine(t, f.kernel, f.initrd, f.memory, f.disk, f.rootfs, false)
	a, err := Connect(ctx, m.dial, Watcher{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	t.Logf("boot to agent: %v", time.Since(begin))

	t.Run("configure", func(t *testing.T) { testConfigure(t, ctx, a) })
	t.Run("run", func(t *testing.T) { testRun(t, ctx, a) })
	t.Run("terminal", func(t *testing.T) { testTerminal(t, ctx, a) })
	t.Run("files", func(t *testing.T) { testFiles(t, ctx, a) })
	t.Run("full disk", func(t *testing.T) { testFullDisk(t, ctx, a) })
	t.Run("ports", func(t *testing.T) { testPorts(t, ctx, a) })
	t.Run("pause", func(t *testing.T) { testPause(t, ctx, m, a) })
	t.Run("reconnect", func(t *testing.T) {
		b, err := Connect(ctx, m.dial, Watcher{})
		if err != nil {
			t.Fatal(err)
		}
		a.Close()
		a = b
		want(t, ctx, a, Command{Path: "echo", Args: []string{"again"}}, "again\n")
	})
	if t.Failed() {
		return
	}
	if err := a.Warm(ctx); err != nil {
		t.Fatal(err)
	}
	if err := a.Quiesce(ctx); err != nil {
		t.Fatal(err)
	}
	m.freeze(f.state)
	a.Close()
	m.stop()

	seen := map[string]string{}
	for i := range 2 {
		name := fmt.Sprintf("fork%d", i)
		t.Run(name, func(t *testing.T) { testThaw(t, ctx, f, name, seen) })
	}
}

// TestBareImage boots an image that holds one static program and nothing else, not even a directory.
func TestBareImage(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	copyFile(t, filepath.Join(root, "busybox"), "/bin/busybox")
	if err := os.Chmod(filepath.Join(root, "busybox"), 0o755); err != nil {
		t.Fatal(err)
	}
	kernel, initrd := testbed.Kernel(t)
	rootfs, disk := makeFilesystems(t, dir, root)
	m := startMachine(t, kernel, initrd, filepath.Join(dir, "memory"), disk, rootfs, false)
	a, err := Connect(ctx, m.dial, Watcher{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if e, err := a.Configure(ctx, Config{Entrypoint: []string{"/busybox"}, Cmd: []string{"sleep", "1000"}, User: "123:456"}); err != nil || e.State != "running" {
		t.Fatalf("%+v, %v", e, err)
	}
	if err := a.Warm(ctx); err != nil {
		t.Fatal(err)
	}
	want(t, ctx, a, Command{Path: "/busybox", Args: []string{"id"}}, "uid=123 gid=456\n")
	want(t, ctx, a, Command{Path: "/busybox", Args: []string{"cat", "/etc/hostname"}}, "sandbox\n")
	if _, err := a.Run(ctx, sh("true")); spore.CodeOf(err) != spore.CodeNotFound {
		t.Fatal(err)
	}
	if err := a.Poweroff(ctx, 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.done:
	case <-ctx.Done():
		t.Fatal("the machine did not power off")
	}
}

func testConfigure(t *testing.T, ctx context.Context, a *Agent) {
	e, err := a.Configure(ctx, Config{
		Entrypoint: []string{"sh", "-c"}, Cmd: []string{`echo "I am $(id -un) in $(pwd), $COLOR"; trap 'echo stopped > /tmp/stopped; exit 7' QUIT; while :; do sleep 1; done`},
		WorkingDir: "/srv/app", Env: []string{"COLOR=red"}, User: "worker", StopSignal: "SIGQUIT",
	})
	if err != nil || e.State != "running" {
		t.Fatalf("%+v, %v", e, err)
	}
	if _, err := a.Configure(ctx, Config{}); spore.CodeOf(err) != spore.CodeConflict {
		t.Fatalf("a second time: %v", err)
	}
	logs, err := a.Logs(ctx, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	line := make([]byte, len("I am worker in /srv/app, red\n"))
	if _, err := io.ReadFull(logs, line); err != nil || string(line) != "I am worker in /srv/app, red\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if s, err := a.Status(ctx); err != nil || !s.Configured || s.Entrypoint.State != "running" {
		t.Fatalf("%+v, %v", s, err)
	}
}

// want runs a command that must succeed and print that.
func want(t *testing.T, ctx context.Context, a *Agent, c Command, out string) {
	t.Helper()
	r, err := a.Run(ctx, c)
	if err != nil || r.ExitCode != 0 || string(r.Stdout) != out {
		t.Fatalf("%s %q: %d %q %q, %v", c.Path, c.Args, r.ExitCode, r.Stdout, r.Stderr, err)
	}
}

func sh(script string) Command { return Command{Path: "sh", Args: []string{"-c", script}} }

func testRun(t *testing.T, ctx context.Context, a *Agent) {
	want(t, ctx, a, Command{Path: "id"}, "uid=1000(worker) gid=1000(worker) groups=29(audio)\n")
	want(t, ctx, a, Command{Path: "/bin/bash", Args: []string{"-l", "-c", "pwd; echo $COLOR $HOME"}, User: "root"}, "/srv/app\nred /root\n")
	want(t, ctx, a, Command{Path: "cat", Stdin: bytes.Repeat([]byte("x"), 200_000), User: "0:1000"}, strings.Repeat("x", 200_000))
	want(t, ctx, a, sh("ls /dev/fd/0 /dev/ptmx /dev/shm/.. >/dev/null && echo > /dev/stderr && echo ok > /dev/stdout"), "ok\n")
	r, err := a.Run(ctx, sh("echo oops >&2; exit 5"))
	if err != nil || r.ExitCode != 5 || string(r.Stderr) != "oops\n" {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, err := a.Run(ctx, Command{Path: "/no/such"}); spore.CodeOf(err) != spore.CodeNotFound || !strings.Contains(err.Error(), "/no/such") {
		t.Fatal(err)
	}
	// Orphans are reaped: none is left, not even as a zombie.
	want(t, ctx, a, sh("for p in $( (sleep 0.01 >/dev/null & echo $!); (sleep 0.01 >/dev/null & echo $!) ); do "+
		"while [ -e /proc/$p ]; do sleep 0.01; done; echo gone; done"), "gone\ngone\n")
	// A flood is bounded and can be ended.
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, err := a.Run(short, sh("trap '' TERM; yes")); spore.CodeOf(err) != spore.CodeCanceled {
		t.Fatal(err)
	}
	want(t, ctx, a, sh("while ps | grep -q '[y]es$'; do sleep 0.01; done; echo gone"), "gone\n")
}

func testTerminal(t *testing.T, ctx context.Context, a *Agent) {
	stream, err := a.rpc.process.Start(ctx, connect.NewRequest(&process.StartRequest{
		Process: &process.ProcessConfig{Cmd: "sh", Args: []string{"-c", "stty size; tty; exec true"}},
		Pty:     &process.PTY{Size: &process.PTY_Size{Cols: 91, Rows: 17}},
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	var out bytes.Buffer
	for stream.Receive() {
		out.Write(stream.Msg().GetEvent().GetData().GetPty())
	}
	if err := stream.Err(); err != nil || !strings.Contains(out.String(), "17 91") || !strings.Contains(out.String(), "/dev/pts/") {
		t.Fatalf("%q, %v", out.String(), err)
	}
}

// do makes a request of the agent's public routes.
func do(t *testing.T, ctx context.Context, a *Agent, method, target string, body io.Reader, size int64) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+target, body)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = size
	req.Header.Set("Content-Type", "application/octet-stream")
	res, err := a.Transport().RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, data
}

func testFiles(t *testing.T, ctx context.Context, a *Agent) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	path := "/files?path=" + url.QueryEscape("/srv/app/new/dir/file")
	if code, body := do(t, ctx, a, http.MethodPost, path, bytes.NewReader(data), int64(len(data))); code != 200 {
		t.Fatalf("%d %s", code, body)
	}
	if code, body := do(t, ctx, a, http.MethodGet, path, nil, 0); code != 200 || !bytes.Equal(body, data) {
		t.Fatalf("%d, %d bytes", code, len(body))
	}
	want(t, ctx, a, sh("stat -c '%U %G %a %s' new/dir/file new/dir; ls -A new/dir"), "worker worker 644 1048576\nworker worker 755 1024\nfile\n")
	if code, _ := do(t, ctx, a, http.MethodGet, "/files?path=missing", nil, 0); code != 404 {
		t.Fatal(code)
	}
}

func testFullDisk(t *testing.T, ctx context.Context, a *Agent) {
	const size = 200 << 20
	path := "/files?path=" + url.QueryEscape("/srv/app/huge")
	code, body := do(t, ctx, a, http.MethodPost, path, io.LimitReader(zeros{}, size), -1)
	if code != http.StatusInsufficientStorage {
		t.Fatalf("%d %s", code, body)
	}
	want(t, ctx, a, sh("ls -A /srv/app"), "new\n") // nothing half-written
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func testPorts(t *testing.T, ctx context.Context, a *Agent) {
	if _, err := a.DialPort(ctx, 8080); spore.CodeOf(err) != spore.CodeUnreachable {
		t.Fatal(err)
	}
	unready(t, ctx, a, Probe{HTTPPort: 8080, HTTPPath: "/", Interval: 50 * time.Millisecond}, "8080")
	want(t, ctx, a, sh("mkdir /tmp/www; echo hello > /tmp/www/index.html; httpd -p 127.0.0.1:8080 -h /tmp/www"), "")
	for _, p := range []Probe{{HTTPPort: 8080, HTTPPath: "/"}, {Port: 8080}, {Command: []string{"true"}}, {}} {
		if err := a.Ready(ctx, p); err != nil {
			t.Fatalf("%+v: %v", p, err)
		}
	}
	unready(t, ctx, a, Probe{Command: []string{"sh", "-c", "echo not yet >&2; exit 1"}, Interval: time.Hour}, "not yet")
}

// unready wants a probe to fail and to say why. A guest that is too slow to tell within the time is given more.
func unready(t *testing.T, ctx context.Context, a *Agent, p Probe, why string) {
	t.Helper()
	var err error
	for _, d := range []time.Duration{time.Second, 4 * time.Second, 16 * time.Second, time.Minute} {
		short, cancel := context.WithTimeout(ctx, d)
		err = a.Ready(short, p)
		cancel()
		if spore.CodeOf(err) != spore.CodeUnreachable {
			break
		}
		if strings.Contains(err.Error(), why) {
			return
		}
	}
	t.Fatal(err)
}

func testPause(t *testing.T, ctx context.Context, m *machine, a *Agent) {
	m.do("stop", nil)
	done := make(chan error, 1)
	go func() {
		r, err := a.Run(ctx, Command{Path: "true"})
		if err == nil && r.ExitCode != 0 {
			err = fmt.Errorf("%+v", r)
		}
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("a paused guest answers: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	m.do("cont", nil)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func testThaw(t *testing.T, ctx context.Context, f template, name string, seen map[string]string) {
	m := f.thaw(t)
	begin := time.Now()
	m.do("cont", nil)
	a, err := Connect(ctx, m.dial, Watcher{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	linked := time.Now()
	id := hex.EncodeToString([]byte((name + "................")[:16]))
	facts, err := a.Greet(ctx, Identity{SandboxID: name, Hostname: name, MachineID: id, Env: map[string]string{"WHO": name}, DropConnections: true})
	if err != nil {
		t.Fatal(err)
	}
	greeted := time.Now()
	want(t, ctx, a, Command{Path: "true"}, "")
	t.Logf("after cont: link %v, identity %v, first command %v, together %v",
		linked.Sub(begin), greeted.Sub(linked), time.Since(greeted), time.Since(begin))
	if facts.Hostname != name || facts.BootID == "" || facts.Kernel == "" || facts.Agent == "" || len(facts.Warnings) > 0 {
		t.Errorf("%+v", facts)
	}
	r, err := a.Run(ctx, sh("cat /etc/machine-id /etc/hostname; hostname; cat /proc/sys/kernel/random/uuid; dd if=/dev/urandom bs=16 count=1 2>/dev/null | md5sum; echo $SPORE_SANDBOX_ID $WHO; grep -c sandbox /etc/hosts; date +%s"))
	if err != nil || r.ExitCode != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	lines := strings.Split(strings.TrimSpace(string(r.Stdout)), "\n")
	if len(lines) != 8 {
		t.Fatalf("%q", lines)
	}
	for i, want := range map[int]string{0: id, 1: name, 2: name, 5: name + " " + name, 6: "1"} {
		if lines[i] != want {
			t.Errorf("line %d is %q, want %q", i, lines[i], want)
		}
	}
	for _, i := range []int{0, 1, 3, 4} {
		if other, ok := seen[lines[i]]; ok {
			t.Errorf("%s and %s have %q in common", name, other, lines[i])
		}
		seen[lines[i]] = name
	}
	if !regexp.MustCompile(`^[0-9a-f-]{36}$`).MatchString(lines[3]) {
		t.Errorf("uuid %q", lines[3])
	}
	var clock int64
	if _, err := fmt.Sscan(lines[7], &clock); err != nil || time.Since(time.Unix(clock, 0)).Abs() > time.Minute {
		t.Errorf("the guest's clock says %s", lines[7])
	}
	if s, err := a.Status(ctx); err != nil || s.Entrypoint.State != "running" {
		t.Errorf("%+v, %v", s, err)
	}
	if err := a.Poweroff(ctx, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.done:
	case <-ctx.Done():
		t.Fatal("the machine did not power off")
	}
}
