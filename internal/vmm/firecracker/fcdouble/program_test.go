package fcdouble_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/vmm/firecracker/fcdouble"
)

// patience bounds every wait. It is no measure of speed: reaching it means that something hangs.
const patience = 2 * time.Minute

// shortDir is a directory whose path is short, for sockets, and as long as that of any other.
func shortDir(t testing.TB) string {
	t.Helper()
	dir := filepath.Join("/tmp", fmt.Sprintf("fcd-%08x", rand.Uint32()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// process is a VMM that was started.
type process struct {
	t    testing.TB
	cmd  *exec.Cmd
	sock string
	out  string // file of standard output
	http http.Client
	done chan error
}

// launch starts a VMM in dir and waits for its socket.
func launch(t testing.TB, program, dir string, args ...string) *process {
	t.Helper()
	p := &process{t: t, sock: filepath.Join(dir, "a.sock"), out: filepath.Join(dir, "out"), done: make(chan error, 1)}
	os.Remove(p.sock)
	out, err := os.OpenFile(p.out, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	log := filepath.Join(dir, "log")
	write(t, log, nil) // before version 1.14 it had to be there
	p.cmd = exec.Command(program, append([]string{"--api-sock", p.sock, "--id", "x1", "--log-path", log}, args...)...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.wait()
	return p
}

// wait waits until the API answers, and sees to it that the process ends with the test.
func (p *process) wait() {
	p.t.Helper()
	go func() { p.done <- p.cmd.Wait() }()
	p.t.Cleanup(p.kill)
	p.http.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", p.sock)
	}}
	for deadline := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		c, err := net.Dial("unix", p.sock)
		if err == nil {
			c.Close()
			return
		}
		select {
		case err := <-p.done:
			p.done <- err
			text, _ := os.ReadFile(p.out)
			p.t.Fatalf("the VMM ended: %v\n%s", err, text)
		default:
		}
		if time.Now().After(deadline) {
			p.t.Fatal("the VMM does not listen")
		}
	}
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	p.exit()
}

// exit waits for the end of the process and returns its code, -1 for a signal.
func (p *process) exit() int {
	p.t.Helper()
	select {
	case err := <-p.done:
		p.done <- err
		var status *exec.ExitError
		switch {
		case err == nil:
			return 0
		case errors.As(err, &status):
			return status.ExitCode()
		}
		p.t.Fatal(err)
	case <-time.After(patience):
		p.t.Fatal("the VMM does not end")
	}
	return 0
}

// answer is what a request brought.
type answer struct {
	status     int
	body       string
	deprecated bool
}

// ask sends a request.
func (p *process) ask(method, path, body string) answer {
	p.t.Helper()
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	req, err := http.NewRequest(method, "http://localhost"+path, in)
	if err != nil {
		p.t.Fatal(err)
	}
	resp, err := p.http.Do(req)
	if err != nil {
		p.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return answer{resp.StatusCode, string(text), resp.Header.Get("Deprecation") != ""}
}

// do sends a request that must succeed.
func (p *process) do(method, path, format string, args ...any) answer {
	p.t.Helper()
	body := fmt.Sprintf(format, args...)
	a := p.ask(method, path, body)
	if a.status >= 300 {
		p.t.Fatalf("%s %s %s: %d %s", method, path, body, a.status, a.body)
	}
	return a
}

// refuse sends a request that must fail with a message that contains want.
func (p *process) refuse(want, method, path, format string, args ...any) {
	p.t.Helper()
	a := p.ask(method, path, fmt.Sprintf(format, args...))
	var fault struct {
		Message string `json:"fault_message"`
	}
	if err := json.Unmarshal([]byte(a.body), &fault); err != nil || a.status != 400 || !strings.Contains(fault.Message, want) {
		p.t.Errorf("%s %s: %d %s; want a fault with %q", method, path, a.status, a.body, want)
	}
}

// tinyKernel is an ELF kernel that halts for ever.
func tinyKernel() []byte {
	var b bytes.Buffer
	code := []byte{0xf4, 0xeb, 0xfd} // hlt; jmp -3
	word := func(n int, v uint64) {
		for range n {
			b.WriteByte(byte(v))
			v >>= 8
		}
	}
	b.WriteString("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	word(2, 2)        // an executable
	word(2, 62)       // for x86-64
	word(4, 1)        // version
	word(8, 0x100000) // entry
	word(8, 64)       // program headers
	word(8, 0)
	word(4, 0)
	for _, v := range []uint64{64, 56, 1, 0, 0, 0} {
		word(2, v)
	}
	word(4, 1) // to be loaded
	word(4, 5)
	for _, v := range []uint64{120, 0x100000, 0x100000, uint64(len(code)), uint64(len(code)), 0x1000} {
		word(8, v)
	}
	b.Write(code)
	return b.Bytes()
}

// furnish puts into dir what a VM needs.
func furnish(t testing.TB, dir string) {
	t.Helper()
	write(t, filepath.Join(dir, "kernel"), tinyKernel())
	write(t, filepath.Join(dir, "text"), []byte("this is no kernel\n"))
	write(t, filepath.Join(dir, "rootfs"), make([]byte, 1<<20))
	write(t, filepath.Join(dir, "disk"), make([]byte, 4<<20))
}

func write(t testing.TB, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// double is the stand-in for a version.
func double(t testing.TB, version string) string {
	t.Helper()
	return fcdouble.Build(t, fcdouble.Options{Version: version}).Firecracker
}
