package client_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
	"github.com/sporevm/spore/internal/agent"
	"github.com/sporevm/spore/internal/gateway/gatewaytest"
)

// newSandbox starts a sandbox whose agent is a real one that runs its commands on this machine.
func newSandbox(t testing.TB) (*client.Sandbox, *gatewaytest.Service) {
	t.Helper()
	c, svc := newServer(t)
	svc.AgentTransport = gatewaytest.Agent(t)
	svc.AddTemplate("python")
	s, err := c.CreateSandbox(t.Context(), api.CreateRequest{Template: "python"})
	if err != nil {
		t.Fatal(err)
	}
	return c.Sandbox(s.ID), svc
}

func TestCommand(t *testing.T) {
	s, _ := newSandbox(t)
	dir := t.TempDir()
	cmd := s.Command(t.Context(), "/bin/sh", "-c", `read line; echo "$line $WHO $PWD"; echo oops >&2; exit 3`)
	cmd.Stdin = strings.NewReader("hello\n")
	cmd.Env = map[string]string{"WHO": "you"}
	cmd.Dir = dir
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *client.ExitError
	if !errors.As(err, &exit) || exit.Code != 3 || exit.Signaled {
		t.Errorf("%#v", err)
	}
	if out.String() != "hello you "+dir+"\n" || errOut.String() != "oops\n" {
		t.Errorf("%q %q", out.String(), errOut.String())
	}
	if cmd.PID() == 0 {
		t.Error("no pid")
	}
	if err := cmd.Run(); err == nil {
		t.Error("a command ran twice")
	}
	if got, err := s.Command(t.Context(), "/bin/sh", "-c", "echo a; echo b >&2").Output(); err != nil || string(got) != "a\n" {
		t.Errorf("%q %v", got, err)
	}
	got, err := s.Command(t.Context(), "/bin/sh", "-c", "echo why >&2; exit 1").Output()
	if !errors.As(err, &exit) || string(exit.Stderr) != "why\n" || len(got) != 0 {
		t.Errorf("%q %#v", got, err)
	}
	if got, err := s.Command(t.Context(), "/bin/sh", "-c", "echo a; echo b >&2").CombinedOutput(); err != nil || len(got) != 4 {
		t.Errorf("%q %v", got, err)
	}
	if err := s.Command(t.Context(), "/bin/cat").Run(); err != nil {
		t.Errorf("no input is empty input: %v", err)
	}
}

func TestCommandThatCannotStart(t *testing.T) {
	s, _ := newSandbox(t)
	err := s.Command(t.Context(), "/does/not/exist").Run()
	if !errors.Is(err, client.ErrCommandNotFound) || spore.CodeOf(err) != spore.CodeNotFound {
		t.Errorf("%#v", err)
	}
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.Command(t.Context(), plain).Run(); !errors.Is(err, client.ErrNotExecutable) {
		t.Errorf("%#v", err)
	}
	if err := s.Command(t.Context(), "").Run(); spore.CodeOf(err) != spore.CodeInvalid {
		t.Error(err)
	}
	cmd := s.Command(t.Context(), "/bin/true")
	cmd.User = "nobody-of-that-name"
	if err := cmd.Run(); spore.CodeOf(err) != spore.CodeInvalid {
		t.Errorf("%#v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Command(ctx, "/bin/true").Run(); spore.CodeOf(err) != spore.CodeCanceled {
		t.Error(err)
	}
}

func TestUserAndGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	s, _ := newSandbox(t)
	for user, want := range map[string]string{"1000:1001": "1000:1001\n", "0": "0:0\n"} {
		cmd := s.Command(t.Context(), "/bin/sh", "-c", "echo $(id -u):$(id -g)")
		cmd.User = user
		cmd.Dir = "/"
		if out, err := cmd.Output(); err != nil || string(out) != want {
			t.Errorf("%s: %q, %v", user, out, err)
		}
	}
}

// ready tells when a command has printed something.
type ready struct{ said chan string }

func (r ready) Write(p []byte) (int, error) {
	r.said <- string(p)
	return len(p), nil
}

func TestSignal(t *testing.T) {
	s, _ := newSandbox(t)
	cmd := s.Command(t.Context(), "/bin/sh", "-c", `trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.01; done`)
	out := ready{make(chan string, 10)}
	cmd.Stdout = out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-out.said
	if err := cmd.Signal(t.Context(), syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	var exit *client.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Code != 9 || <-out.said != "caught\n" {
		t.Errorf("%#v", err)
	}
	if err := cmd.Signal(t.Context(), syscall.SIGTERM); spore.CodeOf(err) != spore.CodeNotFound {
		t.Errorf("signal to what has ended: %v", err)
	}
	killed := s.Command(t.Context(), "/bin/sh", "-c", "kill -9 $$")
	if err := killed.Run(); !errors.As(err, &exit) || exit.Code != 137 || !exit.Signaled {
		t.Errorf("%#v", err)
	}
}

// TestContextKills ends the context of a command that ignores every polite signal.
func TestContextKills(t *testing.T) {
	s, _ := newSandbox(t)
	ctx, cancel := context.WithCancel(t.Context())
	cmd := s.Command(ctx, "/bin/sh", "-c", `trap '' TERM INT HUP; echo ready; while :; do sleep 0.01; done`)
	out := ready{make(chan string, 10)}
	cmd.Stdout = out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-out.said
	cancel()
	if err := cmd.Wait(); spore.CodeOf(err) != spore.CodeCanceled || !errors.Is(err, context.Canceled) {
		t.Errorf("%#v", err)
	}
	running, err := s.Processes(t.Context())
	if err != nil || len(running) != 0 {
		t.Errorf("%v, %v", running, err)
	}
}

func TestFloodAndBrokenWriter(t *testing.T) {
	s, _ := newSandbox(t)
	var n counter
	cmd := s.Command(t.Context(), "/bin/sh", "-c", "head -c 3000000 /dev/zero")
	cmd.Stdout = &n
	if err := cmd.Run(); err != nil || n != 3000000 {
		t.Errorf("%d bytes, %v", n, err)
	}
	full := errors.New("full")
	endless := s.Command(t.Context(), "/bin/cat", "/dev/zero")
	endless.Stdout = brokenWriter{full}
	if err := endless.Run(); !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
	if running, err := s.Processes(t.Context()); err != nil || len(running) != 0 {
		t.Errorf("%v, %v", running, err)
	}
}

type counter int

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

type brokenWriter struct{ err error }

func (w brokenWriter) Write([]byte) (int, error) { return 0, w.err }

func TestLargeInput(t *testing.T) {
	s, _ := newSandbox(t)
	cmd := s.Command(t.Context(), "/bin/sh", "-c", "wc -c")
	cmd.Stdin = io.LimitReader(zeros{}, 3<<20)
	out, err := cmd.Output()
	if err != nil || strings.TrimSpace(string(out)) != "3145728" {
		t.Errorf("%q, %v", out, err)
	}
	early := s.Command(t.Context(), "/bin/true")
	early.Stdin = zeros{}
	if err := early.Run(); err != nil {
		t.Errorf("a command that does not read: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestTerminal(t *testing.T) {
	s, _ := newSandbox(t)
	cmd := s.Command(t.Context(), "/bin/sh", "-c", `stty size; read x; stty size; test -t 0 && test -t 1 && echo "tty $x"`)
	cmd.TTY = &client.TTY{Cols: 100, Rows: 30}
	in, type_ := io.Pipe()
	cmd.Stdin = in
	out := ready{make(chan string, 100)}
	cmd.Stdout = out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	first := <-out.said
	if !strings.HasPrefix(first, "30 100") {
		t.Errorf("size %q", first)
	}
	if err := cmd.Resize(t.Context(), client.TTY{Cols: 120, Rows: 40}); err != nil {
		t.Error(err)
	}
	io.WriteString(type_, "typed\n")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	close(out.said)
	rest := ""
	for part := range out.said {
		rest += part
	}
	if !strings.Contains(rest, "40 120") || !strings.Contains(rest, "tty typed") {
		t.Errorf("%q", rest)
	}
	type_.Close()
}

func TestConnectionBreaks(t *testing.T) {
	c, svc := newServer(t)
	svc.AddTemplate("python")
	box, err := c.CreateSandbox(t.Context(), api.CreateRequest{Template: "python"})
	if err != nil {
		t.Fatal(err)
	}
	real := gatewaytest.Agent(t)
	svc.AgentTransport = roundTrip(func(r *http.Request) (*http.Response, error) {
		resp, err := real.RoundTrip(r)
		if err == nil && strings.HasSuffix(r.URL.Path, "/Start") {
			resp.Body = &breaking{resp.Body, 80}
		}
		return resp, err
	})
	s := c.Sandbox(box.ID)
	err = s.Command(t.Context(), "/bin/sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do echo $i; sleep 0.02; done").Run()
	var e *spore.Error
	if !errors.As(err, &e) || e.Code != spore.CodeUnreachable || !strings.Contains(e.Hint, "process") {
		t.Errorf("%#v", err)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// breaking is a connection that breaks after so many bytes.
type breaking struct {
	io.ReadCloser
	left int
}

func (b *breaking) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errors.New("broken")
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

func TestFiles(t *testing.T) {
	s, _ := newSandbox(t)
	f, dir := s.Files(), t.TempDir()
	file := filepath.Join(dir, "a b", "c?d&e")
	if err := f.Write(t.Context(), file, strings.NewReader("contents")); err != nil {
		t.Fatal(err)
	}
	if got, err := f.Read(t.Context(), file); err != nil || string(got) != "contents" {
		t.Errorf("%q, %v", got, err)
	}
	info, err := f.Stat(t.Context(), file)
	if err != nil || info.Size != 8 || info.Mode != 0o644 || info.Name != "c?d&e" || info.IsDir() || info.ModTime.IsZero() {
		t.Errorf("%+v, %v", info, err)
	}
	if err := os.Symlink("c?d&e", filepath.Join(dir, "a b", "link")); err != nil {
		t.Fatal(err)
	}
	entries, err := f.List(t.Context(), dir, 2)
	if err != nil || len(entries) != 3 {
		t.Errorf("%+v, %v", entries, err)
	}
	for _, e := range entries {
		if e.Name == "link" && e.SymlinkTarget != file || e.Name == "a b" && e.Mode.Type() != fs.ModeDir {
			t.Errorf("%+v", e)
		}
	}
	if err := f.Mkdir(t.Context(), filepath.Join(dir, "x/y")); err != nil {
		t.Error(err)
	}
	if err := f.Mkdir(t.Context(), filepath.Join(dir, "x/y")); spore.CodeOf(err) != spore.CodeConflict {
		t.Errorf("%v", err)
	}
	if err := f.Rename(t.Context(), file, filepath.Join(dir, "moved")); err != nil {
		t.Error(err)
	}
	for _, gone := range []string{file, filepath.Join(dir, "none")} {
		if _, err := f.Read(t.Context(), gone); spore.CodeOf(err) != spore.CodeNotFound {
			t.Errorf("%v", err)
		}
		if _, err := f.Stat(t.Context(), gone); spore.CodeOf(err) != spore.CodeNotFound {
			t.Errorf("%v", err)
		}
	}
	if _, err := f.Read(t.Context(), dir); spore.CodeOf(err) != spore.CodeInvalid {
		t.Errorf("%v", err)
	}
	if err := f.Remove(t.Context(), filepath.Join(dir, "x")); err != nil {
		t.Error(err)
	}
	if err := f.Write(t.Context(), filepath.Join(dir, "big"), io.LimitReader(zeros{}, 20<<20)); err != nil {
		t.Error(err)
	}
	r, err := f.Open(t.Context(), filepath.Join(dir, "big"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if n, err := io.Copy(io.Discard, r); n != 20<<20 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	broken := errors.New("cannot read the source")
	if err := f.Write(t.Context(), filepath.Join(dir, "broken"), io.MultiReader(strings.NewReader("part"), failing{broken})); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "broken")); err == nil {
		t.Error("half a file is there")
	}
	if os.Geteuid() == 0 {
		if err := s.As("1000:1000").Write(t.Context(), filepath.Join(dir, "mine"), strings.NewReader("")); err != nil {
			t.Error(err)
		}
		if st, err := os.Stat(filepath.Join(dir, "mine")); err != nil || st.Sys().(*syscall.Stat_t).Gid != 1000 {
			t.Errorf("%+v, %v", st, err)
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestFullDisk(t *testing.T) {
	c, svc := newServer(t)
	svc.AddTemplate("python")
	box, err := c.CreateSandbox(t.Context(), api.CreateRequest{Template: "python"})
	if err != nil {
		t.Fatal(err)
	}
	svc.AgentTransport = gatewaytest.Guest(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		io.CopyN(io.Discard, r.Body, 1<<20)
		w.WriteHeader(http.StatusInsufficientStorage)
		io.WriteString(w, `{"code":507,"message":"the sandbox's disk is full"}`)
	}))
	for range 5 {
		err := c.Sandbox(box.ID).Files().Write(t.Context(), "/x", io.LimitReader(zeros{}, 64<<20))
		if spore.CodeOf(err) != spore.CodeNoSpace || !strings.Contains(err.Error(), "disk is full") {
			t.Fatalf("%#v", err)
		}
	}
}

func TestFollowLogs(t *testing.T) {
	s, svc := newSandbox(t)
	h := agent.New(agent.Options{Reaper: agent.NewReaper(false)}).Handler()
	svc.AgentTransport = gatewaytest.Guest(t, h)
	config := `{"entrypoint": ["/bin/sh", "-c", "echo one; echo two; sleep 0.05; echo three"]}`
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/configure", strings.NewReader(config)))
	if w.Code != http.StatusOK {
		t.Fatal(w.Code, w.Body)
	}
	var out bytes.Buffer
	if err := s.FollowLogs(t.Context(), 0, &out); err != nil {
		t.Fatal(err)
	}
	const end = "one\ntwo\nthree\n[the image's command has ended: exit status 0]\n"
	if out.String() != end {
		t.Errorf("%q", out.String())
	}
	out.Reset()
	if err := s.FollowLogs(t.Context(), 10, &out); err != nil || out.String() != end[len(end)-10:] {
		t.Errorf("%q, %v", out.String(), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	svc.AgentTransport = gatewaytest.Agent(t) // which has nothing to say, ever
	time.AfterFunc(10*time.Millisecond, cancel)
	if err := s.FollowLogs(ctx, 0, &out); spore.CodeOf(err) != spore.CodeCanceled {
		t.Error(err)
	}
}
