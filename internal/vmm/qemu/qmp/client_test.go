package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func pair(t *testing.T) (*net.UnixConn, *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		conn, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		out[i] = conn.(*net.UnixConn)
	}
	return out[0], out[1]
}

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}` + "\r\n"

// serve answers every command with what reply returns.
func serve(t *testing.T, conn net.Conn, reply func(command string) string) {
	go func() {
		io.WriteString(conn, greeting)
		in := bufio.NewScanner(conn)
		for in.Scan() {
			var cmd struct{ Execute, ID string }
			if err := json.Unmarshal(in.Bytes(), &cmd); err != nil {
				t.Errorf("client sent %q: %v", in.Text(), err)
				return
			}
			text := reply(cmd.Execute)
			if text == "" {
				conn.Close()
				return
			}
			io.WriteString(conn, strings.ReplaceAll(text, "ID", cmd.ID)+"\r\n")
		}
	}()
}

func TestClient(t *testing.T) {
	host, far := pair(t)
	events := make(chan Event, 10)
	serve(t, far, func(command string) string {
		switch command {
		case "qmp_capabilities":
			return `{"return": {}, "id": "ID"}`
		case "query-status":
			return `{"event": "STOP", "data": {"x": 1}, "timestamp": {}}` + "\r\n" + `{"news": 1}` + "\r\n" + `{"return": {"status": "paused"}, "id": "ID"}`
		case "crash":
			return ""
		}
		return `{"error": {"class": "CommandNotFound", "desc": "no such thing"}, "id": "ID"}`
	})
	c := New(host, func(e Event) { events <- e })
	defer c.Close()
	ctx := t.Context()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	var status struct{ Status string }
	if err := c.Do(ctx, "query-status", nil, &status); err != nil || status.Status != "paused" {
		t.Fatal(status, err)
	}
	if e := <-events; e.Name != "STOP" || string(e.Data) != `{"x": 1}` {
		t.Fatalf("%+v", e)
	}
	err := c.Do(ctx, "dance", nil, nil)
	var refusal *Error
	if !errors.As(err, &refusal) || refusal.Class != "CommandNotFound" || refusal.Command != "dance" {
		t.Fatal(err)
	}
	if err := c.Do(ctx, "query-status", nil, new(int)); err == nil {
		t.Fatal("an answer of the wrong type was accepted")
	}
	if err := c.Do(ctx, "crash", nil, nil); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	if err := c.Do(ctx, "query-status", nil, nil); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
}

func TestManyAtOnce(t *testing.T) {
	host, far := pair(t)
	serve(t, far, func(command string) string { return fmt.Sprintf(`{"return": %q, "id": "ID"}`, command) })
	c := New(host, nil)
	defer c.Close()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			want, got := fmt.Sprint("command", i), ""
			if err := c.Do(t.Context(), want, nil, &got); err != nil || got != want {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	wg.Wait()
}

func TestCanceled(t *testing.T) {
	host, _ := pair(t)
	c := New(host, nil)
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Start(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := c.Do(ctx, "x", nil, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestHostilePeer(t *testing.T) {
	for name, text := range map[string]string{
		"not json":  "hello\n",
		"endless":   strings.Repeat("x", maxMessage+1),
		"cut short": `{"QMP": {`,
	} {
		t.Run(name, func(t *testing.T) {
			host, far := pair(t)
			c := New(host, nil)
			defer c.Close()
			go func() {
				io.WriteString(far, text)
				far.CloseWrite()
			}()
			if err := c.Start(t.Context()); !errors.Is(err, ErrClosed) {
				t.Fatal(err)
			}
		})
	}
}

func TestSendFile(t *testing.T) {
	host, far := pair(t)
	c := New(host, nil)
	defer c.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := c.Send("getfd", map[string]string{"fdname": "x"}, w); err != nil {
		t.Fatal(err)
	}
	w.Close()
	buf, oob := make([]byte, 1000), make([]byte, 1000)
	n, oobn, _, _, err := far.ReadMsgUnix(buf, oob)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"execute":"getfd","arguments":{"fdname":"x"},"id":"1"}` + "\n"; string(buf[:n]) != want {
		t.Fatalf("%q", buf[:n])
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		t.Fatal(fds, err)
	}
	got := os.NewFile(uintptr(fds[0]), "pipe")
	io.WriteString(got, "through")
	got.Close()
	if text, err := io.ReadAll(r); err != nil || string(text) != "through" {
		t.Fatalf("%q, %v", text, err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(greeting))
	f.Add([]byte(`{"event": "RESET", "data": null}` + "\n\n" + `{"return": {}, "id": "1"}` + "\n"))
	f.Add([]byte(`{"error": {"class": 1}}` + "\n"))
	f.Add([]byte(`{"QMP": null, "return": [], "id": 7}` + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c := &Client{pending: map[string]*Call{}, greeted: make(chan struct{}), onEvent: func(e Event) {
			if e.Name == "" {
				t.Error("event without a name")
			}
		}}
		call := &Call{client: c, command: "x", answer: make(chan message, 1)}
		c.pending["1"] = call
		if err := c.readMessages(bufio.NewReader(strings.NewReader(string(text)))); err == nil {
			t.Error("reading ended without an error")
		}
	})
}
