package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/sporevm/spore/api/process"
)

// outcome is all that a stream of events has told.
type outcome struct {
	pid        uint32
	out, err   bytes.Buffer
	tty        bytes.Buffer
	keepalives int
	end        *process.ProcessEvent_EndEvent
	failure    error
}

type eventStream interface {
	Receive() bool
	Err() error
	Close() error
}

// collect reads a stream to its end. seen is told after each event and may end it.
func collect(s eventStream, next func() *process.ProcessEvent, seen func(*outcome) bool) *outcome {
	var o outcome
	defer s.Close()
	for s.Receive() {
		switch e := next().GetEvent().(type) {
		case *process.ProcessEvent_Start:
			o.pid = e.Start.GetPid()
		case *process.ProcessEvent_Data:
			o.out.Write(e.Data.GetStdout())
			o.err.Write(e.Data.GetStderr())
			o.tty.Write(e.Data.GetPty())
		case *process.ProcessEvent_Keepalive:
			o.keepalives++
		case *process.ProcessEvent_End:
			o.end = e.End
		}
		if seen != nil && !seen(&o) {
			return &o
		}
	}
	o.failure = s.Err()
	return &o
}

func (b *bed) start(ctx context.Context, req *process.StartRequest, header http.Header, seen func(*outcome) bool) *outcome {
	r := connect.NewRequest(req)
	for k, v := range header {
		r.Header()[k] = v
	}
	s, err := b.proc.Start(ctx, r)
	if err != nil {
		return &outcome{failure: err}
	}
	return collect(s, func() *process.ProcessEvent { return s.Msg().GetEvent() }, seen)
}

func (b *bed) connect(ctx context.Context, pid uint32, seen func(*outcome) bool) *outcome {
	s, err := b.proc.Connect(ctx, connect.NewRequest(&process.ConnectRequest{Process: byPID(pid)}))
	if err != nil {
		return &outcome{failure: err}
	}
	return collect(s, func() *process.ProcessEvent { return s.Msg().GetEvent() }, seen)
}

func byPID(pid uint32) *process.ProcessSelector {
	return &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: pid}}
}

func shell(script string) *process.StartRequest {
	return &process.StartRequest{Process: &process.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", script}}}
}

func TestStart(t *testing.T) {
	b := newBed(t)
	for _, c := range []struct {
		name, script string
		out, err     string
		code         int32
		status       string
	}{
		{"output", "echo a; echo b >&2; exit 3", "a\n", "b\n", 3, "exit status 3"},
		{"fast", "exit 0", "", "", 0, "exit status 0"},
		{"killed", "kill -9 $$", "", "", 137, "signal: killed"},
		{"a descendant keeps the pipe", "sleep 1000 & echo $!; exec 1>&-", "", "", 0, "exit status 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := b.start(t.Context(), shell(c.script), nil, nil)
			if o.failure != nil || o.end == nil || o.pid == 0 {
				t.Fatalf("%+v", o)
			}
			if c.name == "a descendant keeps the pipe" {
				var pid int
				if _, err := fmt.Sscan(o.out.String(), &pid); err != nil {
					t.Fatalf("%q", o.out.String())
				}
				if p, err := os.FindProcess(pid); err == nil {
					p.Kill()
				}
			} else if o.out.String() != c.out || o.err.String() != c.err {
				t.Errorf("%q %q", o.out.String(), o.err.String())
			}
			if o.end.GetExitCode() != c.code || o.end.GetStatus() != c.status {
				t.Errorf("%v", o.end)
			}
		})
	}
}

func TestStartErrors(t *testing.T) {
	b := newBed(t)
	script := t.TempDir() + "/script"
	for path, text := range map[string]string{script: "#!/no/such/interpreter\n", script + ".txt": "data"} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(script, 0o755); err != nil {
		t.Fatal(err)
	}
	foreign := t.TempDir() + "/foreign"
	if err := os.WriteFile(foreign, []byte("\x7fELF of another machine"), 0o755); err != nil {
		t.Fatal(err)
	}
	cwd := "/no/such/dir"
	for _, c := range []struct {
		name   string
		config *process.ProcessConfig
		code   connect.Code
		says   string
	}{
		{"missing path", &process.ProcessConfig{Cmd: "/no/such/file"}, connect.CodeNotFound, "/no/such/file"},
		{"missing name", &process.ProcessConfig{Cmd: "no-such-name"}, connect.CodeNotFound, "no-such-name"},
		{"empty", &process.ProcessConfig{}, connect.CodeInvalidArgument, "no command"},
		{"directory", &process.ProcessConfig{Cmd: "/tmp"}, connect.CodePermissionDenied, "directory"},
		{"not executable", &process.ProcessConfig{Cmd: script + ".txt"}, connect.CodePermissionDenied, "executable"},
		{"foreign", &process.ProcessConfig{Cmd: foreign}, connect.CodePermissionDenied, "not a program"},
		{"interpreter", &process.ProcessConfig{Cmd: script}, connect.CodePermissionDenied, "interpreter"},
		{"cwd", &process.ProcessConfig{Cmd: "/bin/sh", Cwd: &cwd}, connect.CodeInvalidArgument, cwd},
		{"zero byte", &process.ProcessConfig{Cmd: "/bin/sh", Args: []string{"a\x00b"}}, connect.CodeInvalidArgument, "zero"},
		{"env", &process.ProcessConfig{Cmd: "/bin/sh", Envs: map[string]string{"A=B": "x"}}, connect.CodeInvalidArgument, "A=B"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := b.start(t.Context(), &process.StartRequest{Process: c.config}, nil, nil)
			if connect.CodeOf(o.failure) != c.code || !strings.Contains(fmt.Sprint(o.failure), c.says) {
				t.Fatalf("%v", o.failure)
			}
		})
	}
	o := b.start(t.Context(), shell("true"), http.Header{"Authorization": {"Basic bm9zdWNodXNlcjo="}}, nil)
	if connect.CodeOf(o.failure) != connect.CodeInvalidArgument || !strings.Contains(o.failure.Error(), "nosuchuser") {
		t.Fatal(o.failure)
	}
}

func TestStdin(t *testing.T) {
	b := newBed(t)
	ctx := t.Context()
	sent := strings.Repeat("0123456789", 50_000)
	o := b.start(ctx, shell("cat"), nil, func(o *outcome) bool {
		if o.pid != 0 && o.out.Len() == 0 {
			go func() {
				sel := byPID(o.pid)
				if _, err := b.proc.SendInput(ctx, connect.NewRequest(&process.SendInputRequest{Process: sel,
					Input: &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: []byte(sent)}}})); err != nil {
					t.Error(err)
				}
				if _, err := b.proc.CloseStdin(ctx, connect.NewRequest(&process.CloseStdinRequest{Process: sel})); err != nil {
					t.Error(err)
				}
				_, err := b.proc.SendInput(ctx, connect.NewRequest(&process.SendInputRequest{Process: sel,
					Input: &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: []byte("late")}}}))
				if c := connect.CodeOf(err); c != connect.CodeFailedPrecondition && c != connect.CodeNotFound {
					t.Errorf("after the end of input: %v", err)
				}
			}()
		}
		return true
	})
	if o.failure != nil || o.out.String() != sent {
		t.Fatalf("%d bytes came back: %v", o.out.Len(), o.failure)
	}
	no := false
	req := shell("cat")
	req.Stdin = &no
	if o := b.start(ctx, req, nil, nil); o.failure != nil || o.end == nil {
		t.Fatalf("without input: %+v", o)
	}
}

// A command's end is told while somebody still writes to it, which only a descendant could read.
func TestEndWithFullInput(t *testing.T) {
	b := newBed(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	wrote := make(chan error, 1)
	started := false
	o := b.start(ctx, shell(`exec 3<&0; sleep 1000 <&3 >/dev/null 2>&1 & echo $!; read line`), nil, func(o *outcome) bool {
		if o.out.Len() > 0 && !started {
			started = true
			go func() {
				_, err := b.proc.SendInput(ctx, connect.NewRequest(&process.SendInputRequest{Process: byPID(o.pid),
					Input: &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: append([]byte("line\n"), make([]byte, 1<<20)...)}}}))
				wrote <- err
			}()
		}
		return true
	})
	var descendant int
	if _, err := fmt.Sscan(o.out.String(), &descendant); err != nil {
		t.Fatalf("%+v", o)
	}
	defer syscall.Kill(descendant, syscall.SIGKILL)
	if o.failure != nil || o.end.GetStatus() != "exit status 0" {
		t.Errorf("%+v", o)
	}
	if err := <-wrote; connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("the writer is told %v", err)
	}
}

func TestOneProcessWithATag(t *testing.T) {
	b := newBed(t)
	var all sync.WaitGroup
	var started atomic.Int32
	for range 8 {
		all.Go(func() {
			_, rd, err := b.agent.run(command{cmd: "sleep", args: []string{"1000"}, tag: "one"})
			if err == nil {
				rd.leave()
				started.Add(1)
			} else if connect.CodeOf(err) != connect.CodeAlreadyExists {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := started.Load(); n != 1 {
		t.Errorf("%d processes have the tag", n)
	}
}

func TestTerminal(t *testing.T) {
	b := newBed(t)
	ctx := t.Context()
	req := shell(`stty size; read line; echo "got $line"; stty size`)
	req.Pty = &process.PTY{Size: &process.PTY_Size{Cols: 80, Rows: 24}}
	sent := false
	o := b.start(ctx, req, nil, func(o *outcome) bool {
		if strings.Contains(o.tty.String(), "24 80") && !sent {
			sent = true
			if _, err := b.proc.Update(ctx, connect.NewRequest(&process.UpdateRequest{Process: byPID(o.pid),
				Pty: &process.PTY{Size: &process.PTY_Size{Cols: 100, Rows: 30}}})); err != nil {
				t.Error(err)
			}
			if _, err := b.proc.SendInput(ctx, connect.NewRequest(&process.SendInputRequest{Process: byPID(o.pid),
				Input: &process.ProcessInput{Input: &process.ProcessInput_Pty{Pty: []byte("hello\n")}}})); err != nil {
				t.Error(err)
			}
		}
		return true
	})
	for _, want := range []string{"got hello", "30 100"} {
		if !strings.Contains(o.tty.String(), want) {
			t.Errorf("no %q in %q", want, o.tty.String())
		}
	}
	if o.failure != nil || o.end == nil {
		t.Fatalf("%+v", o)
	}
}

func TestDisconnectLeavesTheProcess(t *testing.T) {
	b := newBed(t)
	ctx, cancel := context.WithCancel(t.Context())
	o := b.start(ctx, shell("while :; do echo flood; done"), nil, func(o *outcome) bool { return o.out.Len() < 1<<20 })
	cancel()
	list, err := b.proc.List(t.Context(), connect.NewRequest(&process.ListRequest{}))
	if err != nil || len(list.Msg.GetProcesses()) != 1 || list.Msg.GetProcesses()[0].GetPid() != o.pid {
		t.Fatalf("%v, %v", list, err)
	}
	again := b.connect(t.Context(), o.pid, func(o *outcome) bool { return o.out.Len() < 1<<20 })
	if again.failure != nil {
		t.Fatal(again.failure)
	}
	if _, err := b.proc.SendSignal(t.Context(), connect.NewRequest(&process.SendSignalRequest{Process: byPID(o.pid), Signal: process.Signal_SIGNAL_SIGKILL})); err != nil {
		t.Fatal(err)
	}
	late := b.connect(t.Context(), o.pid, nil) // the end is still known
	if late.failure != nil || late.end.GetExitCode() != 137 {
		t.Fatalf("%+v", late)
	}
	if _, err := b.proc.SendSignal(t.Context(), connect.NewRequest(&process.SendSignalRequest{Process: byPID(o.pid), Signal: process.Signal_SIGNAL_SIGKILL})); connect.CodeOf(err) != connect.CodeNotFound {
		t.Fatal(err)
	}
	if _, err := b.proc.CloseStdin(t.Context(), connect.NewRequest(&process.CloseStdinRequest{Process: byPID(1 << 30)})); connect.CodeOf(err) != connect.CodeNotFound {
		t.Fatal(err)
	}
}

func TestTimeLimit(t *testing.T) {
	b := newBed(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	// It ignores the polite signal, and so does its child, which holds the output open.
	o := b.start(ctx, shell("trap '' TERM; sleep 1000; sleep 1000"), nil, nil)
	if o.pid == 0 {
		t.Fatalf("its time was over before it had begun: %v", o.failure)
	}
	if connect.CodeOf(o.failure) != connect.CodeDeadlineExceeded && o.end == nil {
		t.Fatalf("%+v", o)
	}
	end := b.connect(t.Context(), o.pid, nil)
	if end.end.GetExitCode() != 137 || !strings.Contains(end.end.GetError(), "time limit") {
		t.Fatalf("%+v", end.end)
	}
}

func TestKeepalive(t *testing.T) {
	b := newBed(t)
	o := b.start(t.Context(), shell("sleep 1000"), http.Header{"Keepalive-Ping-Interval": {"1"}}, func(o *outcome) bool { return o.keepalives == 0 })
	if o.failure != nil || o.keepalives != 1 {
		t.Fatalf("%+v", o)
	}
	o = b.start(t.Context(), shell("true"), http.Header{"Keepalive-Ping-Interval": {"soon"}}, nil)
	if connect.CodeOf(o.failure) != connect.CodeInvalidArgument {
		t.Fatal(o.failure)
	}
}

func TestStreamInput(t *testing.T) {
	b := newBed(t)
	o := b.start(t.Context(), shell("head -c 6"), nil, func(o *outcome) bool {
		if o.out.Len() > 0 || o.pid == 0 || o.end != nil {
			return true
		}
		in := b.proc.StreamInput(t.Context())
		send := func(m *process.StreamInputRequest) {
			if err := in.Send(m); err != nil {
				t.Error(err)
			}
		}
		send(&process.StreamInputRequest{Event: &process.StreamInputRequest_Start{Start: &process.StreamInputRequest_StartEvent{Process: byPID(o.pid)}}})
		for _, part := range []string{"abc", "def"} {
			send(&process.StreamInputRequest{Event: &process.StreamInputRequest_Data{Data: &process.StreamInputRequest_DataEvent{
				Input: &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: []byte(part)}}}}})
		}
		if _, err := in.CloseAndReceive(); err != nil {
			t.Error(err)
		}
		return true
	})
	if o.out.String() != "abcdef" {
		t.Fatalf("%q, %v", o.out.String(), o.failure)
	}
}

func TestAnswersAreNotPacked(t *testing.T) {
	b := newBed(t)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.url+"/process.Process/List", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"Content-Type": {"application/json"}, "Accept-Encoding": {"gzip"}}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Content-Encoding"); got != "" {
		t.Errorf("an answer is packed as %s", got)
	}
	req, err = http.NewRequestWithContext(t.Context(), http.MethodPost, b.url+"/process.Process/Start", bytes.NewReader(envelope(`{"process":{"cmd":"/bin/true"}}`)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"Content-Type": {"application/connect+json"}, "Connect-Accept-Encoding": {"gzip"}}
	if resp, err = http.DefaultClient.Do(req); err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	const flagPacked = 1
	for {
		var head [5]byte
		if _, err := io.ReadFull(resp.Body, head[:]); err == io.EOF {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		if head[0]&flagPacked != 0 {
			t.Error("a message of a stream is packed")
		}
		if _, err := io.CopyN(io.Discard, resp.Body, int64(binary.BigEndian.Uint32(head[1:]))); err != nil {
			t.Fatal(err)
		}
	}
}

// envelope frames a message as streams do.
func envelope(message string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
}
