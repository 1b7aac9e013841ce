package daemon_test

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
	"github.com/sporevm/spore/internal/daemon"
	"github.com/sporevm/spore/internal/testbed"
)

// The tests run the server as a process of its own, so that it can be killed: the test binary starts itself again with
// this variable set to what it is to serve.
const serveVariable = "SPORE_TEST_SERVE"

// serving is what a server process is told.
type serving struct {
	daemon.Config
	CrashAt  string // the step at which the process kills itself
	CrashNth int    // at which time it comes by there, from 1
	Steps    string // file that gets the name of each step
}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == daemon.NetworkCommand {
		os.Exit(daemon.NetworkStack(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "pager" {
		os.Exit(daemon.Pager(os.Args[2:]))
	}
	if raw := os.Getenv(serveVariable); raw != "" {
		if err := serve(raw); err != nil {
			fmt.Fprintln(os.Stderr, "serve:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func serve(raw string) error {
	var s serving
	if err := json.Unmarshal([]byte(raw), &s); err != nil {
		return err
	}
	s.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	s.Ready = func(url string) { fmt.Println(url) }
	var mu sync.Mutex
	seen := map[string]int{}
	s.Hook = func(step string) {
		mu.Lock()
		defer mu.Unlock()
		if s.Steps != "" {
			f, err := os.OpenFile(s.Steps, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			if err == nil {
				fmt.Fprintln(f, step)
				f.Close()
			}
		}
		if seen[step]++; step == s.CrashAt && seen[step] == max(1, s.CrashNth) {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return daemon.Serve(ctx, s.Config)
}

// server is a server process on a data directory.
type server struct {
	*client.Client
	dir  string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of its end; valid after done
}

// start starts a server. It is stopped, and everything that it left is looked for, when the test ends.
func start(t *testing.T, s serving) *server {
	t.Helper()
	if s.Listen == "" {
		s.Listen = "127.0.0.1:0"
	}
	s.Init, s.Accel = testbed.SporeInit(t), cmp.Or(s.Accel, accel())
	raw, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serveVariable+"="+string(raw))
	logs := &logWriter{t: t}
	cmd.Stderr = logs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	srv := &server{dir: s.DataDir, cmd: cmd, done: make(chan struct{})}
	url, readErr := bufio.NewReader(out).ReadString('\n')
	go func() {
		io.Copy(io.Discard, out)
		srv.err = cmd.Wait()
		close(srv.done)
	}()
	t.Cleanup(func() { srv.stop(t) })
	if readErr != nil {
		<-srv.done
		t.Fatalf("the server did not start: %v", srv.err)
	}
	if srv.Client, err = client.New(strings.TrimSpace(url)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Client.Close)
	return srv
}

// stop asks the server to end in order and waits for it. It is harmless when the server has ended.
func (s *server) stop(t *testing.T) {
	t.Helper()
	s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
	case <-time.After(time.Minute):
		s.cmd.Process.Kill()
		<-s.done
		t.Error("the server did not end within a minute of being told to")
	}
}

// crash kills the server and waits for its end.
func (s *server) crash() {
	s.cmd.Process.Kill()
	<-s.done
}

// logWriter passes a server's log on to the test's, until the test has ended.
type logWriter struct {
	t    *testing.T
	mu   sync.Mutex
	part []byte
}

func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.part = append(w.part, p...)
	for {
		line, rest, ok := strings.Cut(string(w.part), "\n")
		if !ok {
			return len(p), nil
		}
		w.part = []byte(rest)
		if w.t.Context().Err() == nil {
			w.t.Log(line)
		}
	}
}

// dataDir makes a data directory that is looked over when the test ends: no process may live in it.
func dataDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "spore-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, pid := range processesIn(t, dir) {
			t.Errorf("process %d was left in %s: %s", pid, dir, cmdline(pid))
			syscall.Kill(pid, syscall.SIGKILL)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// processesIn lists the processes whose command line or working directory is in dir.
func processesIn(t *testing.T, dir string) (pids []int) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		for _, link := range []string{"cwd", "root"} {
			at, err := os.Readlink(filepath.Join("/proc", e.Name(), link))
			if err == nil && strings.HasPrefix(at, dir+"/") {
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids
}

func cmdline(pid int) string {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.ReplaceAll(string(raw), "\x00", " ")
}

// installKernel installs the testbed's kernel.
func (s *server) installKernel(t *testing.T) {
	t.Helper()
	vmlinuz, modules := testbed.KernelFiles(t)
	if _, err := s.InstallKernel(t.Context(), api.KernelRequest{Kernel: vmlinuz, Modules: modules}, nil); err != nil {
		t.Fatal(err)
	}
}

// build builds a template from an image of the testbed and waits for it.
func (s *server) build(t *testing.T, name, image string) *api.Template {
	t.Helper()
	tj, err := s.BuildTemplate(t.Context(), api.BuildRequest{Name: name, Image: testbed.Ref(testbed.Image(t, image)), MemoryMiB: 256, DiskMiB: 512})
	if err != nil {
		t.Fatal(err)
	}
	return s.await(t, tj)
}

func (s *server) await(t *testing.T, tj *api.TemplateJob) *api.Template {
	t.Helper()
	if _, err := s.WaitJob(t.Context(), tj.Job.ID, nil); err != nil {
		t.Fatalf("job %s: %v", tj.Job.ID, err)
	}
	made, err := s.GetTemplate(t.Context(), tj.Template.ID)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// create starts a sandbox.
func (s *server) create(t *testing.T, template string) *api.Sandbox {
	t.Helper()
	sb, err := s.CreateSandbox(t.Context(), api.CreateRequest{Template: template})
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

// sh runs a shell command in a sandbox and answers its output. One that hangs fails its test, rather than the whole suite.
func (s *server) sh(t *testing.T, sandbox, command string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	out, err := s.Sandbox(sandbox).Command(ctx, "/bin/sh", "-c", command).CombinedOutput()
	if err != nil {
		t.Fatalf("%s in %s: %v: %s", command, sandbox, err, out)
	}
	return strings.TrimSpace(string(out))
}

// kill ends a sandbox.
func (s *server) kill(t *testing.T, sandbox string) {
	t.Helper()
	if err := s.DeleteSandbox(t.Context(), sandbox); err != nil {
		t.Fatal(err)
	}
}

// clean removes every sandbox, template and snapshot, collects the garbage, and checks that nothing at all is left.
func (s *server) clean(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	for sb, err := range s.ListSandboxes(ctx, api.ListSandboxesParams{}) {
		if err != nil {
			t.Fatal(err)
		}
		s.kill(t, sb.ID)
	}
	for tpl, err := range s.ListTemplates(ctx, api.ListTemplatesParams{}) {
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.DeleteTemplate(ctx, tpl.ID, client.DeleteOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
	}
	for snap, err := range s.ListSnapshots(ctx, api.ListSnapshotsParams{}) {
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.DeleteSnapshot(ctx, snap.ID, client.DeleteOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.CollectGarbage(ctx, false); err != nil {
		t.Fatal(err)
	}
	s.checked(t)
	for _, dir := range []string{"vms", "artifacts", "frozen/manifests", "frozen/pieces", "frozen/pins", "frozen/staging", "tmp"} {
		entries, err := os.ReadDir(filepath.Join(s.dir, dir))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, e := range entries {
			t.Errorf("%s/%s was left", dir, e.Name())
		}
	}
	if pids := processesIn(t, s.dir); len(pids) > 0 {
		t.Errorf("processes %v were left", pids)
	}
}

// checked runs fsck over every byte and wants no problem found.
func (s *server) checked(t *testing.T) {
	t.Helper()
	report, err := s.Check(t.Context(), true, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range report.Problems {
		t.Errorf("fsck: %s: %s: %s (%s)", p.Object, p.Kind, p.Detail, p.Hint)
	}
}

// wantCode fails the test unless err is a refusal of that class with a message that mentions each of words.
func wantCode(t *testing.T, err error, code spore.Code, words ...string) {
	t.Helper()
	if got := spore.CodeOf(err); got != code {
		t.Errorf("error is %q (%v), want %q", got, err, code)
		return
	}
	e := spore.AsError(err)
	text := e.Error() + " " + e.Hint
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("error %q does not mention %q", text, w)
		}
	}
}

// daemonConfig is how the tests serve: on a data directory of the test's own.
func daemonConfig(t *testing.T) daemon.Config {
	return daemon.Config{DataDir: dataDir(t), Accel: accel()}
}

// accel is how the tests run guests. Trying KVM anew on each data directory would take longer than the tests, where it
// does not work; SPORE_TEST_ACCEL=kvm runs them on a host where it does.
func accel() string { return cmp.Or(os.Getenv("SPORE_TEST_ACCEL"), "tcg") }

// killVMOf kills the hypervisor of a sandbox, as the kernel would when memory runs out.
func killVMOf(t *testing.T, dir, sandbox string) {
	t.Helper()
	owners, err := filepath.Glob(filepath.Join(dir, "vms", "*", "owner.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range owners {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(raw), `"sandbox":"`+sandbox+`"`) {
			continue
		}
		vm := filepath.Dir(path)
		for _, pid := range processesIn(t, dir) {
			for _, link := range []string{"cwd", "root"} {
				if at, err := os.Readlink(fmt.Sprintf("/proc/%d/%s", pid, link)); err == nil && strings.HasPrefix(at, vm) {
					syscall.Kill(pid, syscall.SIGKILL)
					return
				}
			}
		}
	}
	t.Fatalf("no hypervisor of sandbox %s was found", sandbox)
}
