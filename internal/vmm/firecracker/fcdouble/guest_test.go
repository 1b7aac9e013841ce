package fcdouble_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/guest/link"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/firecracker/fcdouble"
	"github.com/sporevm/spore/internal/vmm/procmem"
)

// talk is a connection to a guest's port, as a host makes it.
type talk struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
}

// dial connects to a port of the guest; a zero port of the answer says that nobody listens.
func dial(t testing.TB, socket string, port int) *talk {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	must(t, conn.SetDeadline(time.Now().Add(patience)))
	_, err = fmt.Fprintf(conn, "CONNECT %d\n", port)
	must(t, err)
	return &talk{t, conn, bufio.NewReader(conn)}
}

// control connects to the control port of a guest that runs.
func control(t testing.TB, socket string) *talk {
	t.Helper()
	c := dial(t, socket, fcdouble.DefaultControlPort)
	if line := c.line(); !strings.HasPrefix(line, "OK ") {
		t.Fatalf("the answer to CONNECT is %q", line)
	}
	return c
}

func (c *talk) line() string {
	c.t.Helper()
	line, err := c.in.ReadString('\n')
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.TrimSuffix(line, "\n")
}

func (c *talk) ask(format string, args ...any) string {
	c.t.Helper()
	if _, err := fmt.Fprintf(c.conn, format+"\n", args...); err != nil {
		c.t.Fatal(err)
	}
	return c.line()
}

// boot starts a VM in dir. more goes to the configuration of the machine.
func boot(t testing.TB, program, dir, more string) *process {
	t.Helper()
	furnish(t, dir)
	p := launch(t, program, dir)
	p.do("PUT", "/machine-config", `{"vcpu_count":1,"mem_size_mib":32%s}`, more)
	for _, s := range booting[1:] {
		p.do(s.method, s.path, "%s", strings.ReplaceAll(s.body, "$D", dir))
	}
	return p
}

func snapshot(p *process, dir, name, kind string) {
	p.t.Helper()
	p.do("PUT", "/snapshot/create", `{"snapshot_path":"%s/state-%s","mem_file_path":"%[1]s/memory-%[2]s","snapshot_type":"%[3]s"}`, dir, name, kind)
}

func restore(t testing.TB, program, dir, name, more string) *process {
	t.Helper()
	os.Remove(filepath.Join(dir, "v.sock"))
	p := launch(t, program, dir)
	p.do("PUT", "/snapshot/load", `{"snapshot_path":"%s/state-%s","mem_backend":{"backend_type":"File","backend_path":"%[1]s/memory-%[2]s"}%[3]s}`, dir, name, more)
	return p
}

func TestSnapshotAndLoad(t *testing.T) {
	program, dir := double(t, ""), shortDir(t)
	sock := filepath.Join(dir, "v.sock")
	p := boot(t, program, dir, `,"track_dirty_pages":true`)
	g := control(t, sock)
	g.ask("fill 512 1")
	g.ask("disk-write 64 1")
	sum, diskSum := g.ask("sum"), g.ask("disk-sum 64 0")
	p.do("PATCH", "/vm", pause)
	snapshot(p, dir, "full", "Full")
	fi, err := os.Stat(filepath.Join(dir, "memory-full"))
	if err != nil || fi.Size() != 32<<20 {
		t.Fatalf("a memory file of %v, %v", fi, err)
	}

	// The VM goes on, and a Diff holds what it wrote since.
	p.do("PATCH", "/vm", resume)
	g = control(t, sock)
	g.ask("fill 64 2")
	diffSum := g.ask("sum")
	p.do("PATCH", "/vm", pause)
	snapshot(p, dir, "diff", "Diff")
	if pages := heldPages(t, filepath.Join(dir, "memory-diff")); pages != 17 {
		t.Errorf("the Diff holds %d pages; the guest wrote 17", pages)
	}
	// Into a whole memory file a Diff is merged.
	p.do("PATCH", "/vm", resume)
	g = control(t, sock)
	g.ask("fill 64 2")
	p.do("PATCH", "/vm", pause)
	must(t, os.Link(filepath.Join(dir, "memory-full"), filepath.Join(dir, "memory-merged")))
	base, err := os.ReadFile(filepath.Join(dir, "memory-full"))
	must(t, err)
	must(t, os.Remove(filepath.Join(dir, "memory-merged")))
	write(t, filepath.Join(dir, "memory-merged"), base)
	snapshot(p, dir, "merged", "Diff")
	p.kill()

	for name, want := range map[string]string{"full": sum, "merged": diffSum} {
		p = restore(t, program, dir, name, "")
		mem, err := procmem.Open(p.cmd.Process.Pid, filepath.Join(dir, "memory-"+name), 32<<20)
		must(t, err)
		if !mem.IsPrivate() {
			t.Error("the memory file is not mapped copy-on-write")
		}
		p.do("PATCH", "/vm", resume)
		g = control(t, sock)
		if got := g.ask("sum"); got != want {
			t.Errorf("memory sum %s after the load of %s, want %s", got, name, want)
		}
		if got := g.ask("disk-sum 64 0"); got != diskSum {
			t.Errorf("disk sum %s, want %s", got, diskSum)
		}
		g.ask("fill 256 3")
		held, err := mem.Private(t.Context())
		must(t, err)
		var n int64
		for _, r := range held {
			n += r.Length
		}
		if n < 256<<10 || n > 2<<20 {
			t.Errorf("the VM holds %d bytes of its own; its guest wrote 256 KiB", n)
		}
		must(t, mem.Close())
		p.kill()
	}
	after, err := os.ReadFile(filepath.Join(dir, "memory-full"))
	must(t, err)
	if !bytes.Equal(base, after) {
		t.Error("a VM has changed the memory file that it was loaded from")
	}
}

// heldPages counts the pages of a sparse file that are there.
func heldPages(t testing.TB, path string) (n int64) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	const seekData, seekHole = 3, 4
	for at := int64(0); ; {
		from, err := f.Seek(at, seekData)
		if errors.Is(err, syscall.ENXIO) {
			return n
		}
		must(t, err)
		at, err = f.Seek(from, seekHole)
		must(t, err)
		n += (at - from) / vmm.PageSize
	}
}

func TestDiffWithoutTracking(t *testing.T) {
	for version, want := range map[string]string{"1.12.1": "Cannot get dirty bitmap", "1.13.1": ""} {
		program, dir := double(t, version), shortDir(t)
		p := boot(t, program, dir, "")
		p.do("PATCH", "/vm", pause)
		if want != "" {
			p.refuse(want, "PUT", "/snapshot/create", `{"snapshot_path":"%s/s","mem_file_path":"%[1]s/m","snapshot_type":"Diff"}`, dir)
			continue
		}
		snapshot(p, dir, "diff", "Diff")
		if heldPages(t, filepath.Join(dir, "memory-diff")) == 0 {
			t.Error("the Diff is empty")
		}
	}
}

func TestVsock(t *testing.T) {
	program, dir := double(t, ""), shortDir(t)
	sock := filepath.Join(dir, "v.sock")
	p := boot(t, program, dir, "")

	nobody := dial(t, sock, 4711)
	if n, err := nobody.in.Read(make([]byte, 1)); err == nil {
		t.Errorf("a port where nobody listens answers %d bytes", n)
	}
	data := dial(t, sock, fcdouble.DefaultDataPort)
	if line := data.line(); !strings.HasPrefix(line, "OK ") {
		t.Fatal(line)
	}
	if got := data.ask("hello"); got != "hello" {
		t.Errorf("the data port echoes %q", got)
	}
	// The newest connection to a port has it.
	first, second := control(t, sock), control(t, sock)
	if _, err := first.in.ReadByte(); err == nil {
		t.Error("the replaced connection lives on")
	}
	second.ask("hello-1")

	// Nothing moves while the VM is paused.
	p.do("PATCH", "/vm", pause)
	fmt.Fprintln(second.conn, "hello-2")
	third := dial(t, sock, fcdouble.DefaultControlPort)
	for _, c := range []*talk{second, third} {
		must(t, c.conn.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
		if _, err := c.in.ReadByte(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a paused VM answers: %v", err)
		}
		must(t, c.conn.SetReadDeadline(time.Now().Add(patience)))
	}
	p.do("PATCH", "/vm", resume)
	if line := third.line(); !strings.HasPrefix(line, "OK ") {
		t.Fatal(line)
	}

	// A snapshot resets the connections; the host sees it when it sends.
	p.do("PATCH", "/vm", pause)
	snapshot(p, dir, "x", "Full")
	p.do("PATCH", "/vm", resume)
	fmt.Fprintln(third.conn, "hello-3")
	if _, err := third.in.ReadByte(); err == nil {
		t.Error("a connection has outlived a snapshot")
	}
	control(t, sock).ask("hello-4")
}

func TestEnds(t *testing.T) {
	program := double(t, "")
	for command, want := range map[string]string{"poweroff": "reboot: Restarting system", "crash": "Kernel panic - not syncing"} {
		dir := shortDir(t)
		p := boot(t, program, dir, "")
		fmt.Fprintln(control(t, filepath.Join(dir, "v.sock")).conn, command)
		if code := p.exit(); code != 0 {
			t.Errorf("%s: exit code %d", command, code)
		}
		text, err := os.ReadFile(p.out)
		must(t, err)
		if !strings.Contains(string(text), want) || !strings.Contains(string(text), "guest ready") {
			t.Errorf("%s: the console shows %q", command, text)
		}
		for _, name := range []string{"a.sock", "v.sock"} {
			if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
				t.Errorf("%s was removed", name)
			}
		}
	}
}

// TestAgent speaks Spore's own protocol with a guest.
func TestAgent(t *testing.T) {
	program := fcdouble.Build(t, fcdouble.Options{Guest: fcdouble.GuestAgent, ControlPort: 7, DataPort: 8}).Firecracker
	dir := shortDir(t)
	sock := filepath.Join(dir, "v.sock")
	p := boot(t, program, dir, "")
	health := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		s, err := link.Open(ctx, port(t, sock, 7), port(t, sock, 8))
		must(t, err)
		defer s.Close()
		client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return s.DialHTTP(ctx) }}}
		resp, err := client.Get("http://guest/health")
		must(t, err)
		resp.Body.Close()
		if resp.StatusCode != http.StatusNoContent {
			t.Errorf("health: %s", resp.Status)
		}
	}
	health()
	health()
	p.do("PATCH", "/vm", pause)
	snapshot(p, dir, "x", "Full")
	p.do("PATCH", "/vm", resume)
	health()
	p.kill()
	restore(t, program, dir, "x", `,"resume_vm":true`)
	health()
}

// port connects to a vsock port for good.
func port(t testing.TB, socket string, number int) net.Conn {
	t.Helper()
	c := dial(t, socket, number)
	line := make([]byte, 0, 16)
	for b := make([]byte, 1); len(line) == 0 || line[len(line)-1] != '\n'; line = append(line, b[0]) {
		if _, err := io.ReadFull(c.conn, b); err != nil {
			t.Fatal(err)
		}
	}
	must(t, c.conn.SetDeadline(time.Time{}))
	return c.conn
}

// TestLimiter times a write to a drive that a limiter holds back.
func TestLimiter(t *testing.T) {
	program, dir := double(t, ""), shortDir(t)
	p := boot(t, program, dir, "")
	g := control(t, filepath.Join(dir, "v.sock"))
	write := func(limits string) time.Duration {
		t.Helper()
		p.do("PATCH", "/drives/disk", `{"drive_id":"disk","rate_limiter":%s}`, limits)
		start := time.Now()
		g.ask("disk-write 1024 1")
		return time.Since(start)
	}
	const none = `{"bandwidth":{"size":0,"refill_time":0},"ops":{"size":0,"refill_time":0}}`
	write(none)
	// 1 MiB in requests of 128 KiB. The bucket is full at first.
	if d := write(`{"bandwidth":{"size":262144,"refill_time":100}}`); d < 250*time.Millisecond {
		t.Errorf("1 MiB at 2.5 MiB/s with a bucket of 256 KiB took %s", d)
	}
	write(none)
	if d := write(`{"ops":{"size":2,"refill_time":100}}`); d < 250*time.Millisecond {
		t.Errorf("8 requests at 20/s with a bucket of 2 took %s", d)
	}
}

// TestOtherVersions loads what one version has saved under another.
func TestOtherVersions(t *testing.T) {
	saved := map[string]string{}
	versions := []string{"1.10.1", "1.13.1", "1.14.1", fcdouble.DefaultVersion}
	for _, v := range versions {
		dir := shortDir(t)
		p := boot(t, double(t, v), dir, "")
		p.do("PATCH", "/vm", pause)
		snapshot(p, dir, "x", "Full")
		p.kill()
		saved[v] = dir
	}
	compatible := map[[2]string]bool{{"1.13.1", "1.14.1"}: true, {"1.14.1", "1.13.1"}: true}
	for _, from := range versions {
		for _, by := range versions {
			dir := saved[from]
			os.Remove(filepath.Join(dir, "v.sock"))
			p := launch(t, double(t, by), dir)
			a := p.ask("PUT", "/snapshot/load", fmt.Sprintf(`{"snapshot_path":"%s/state-x","mem_backend":{"backend_type":"File","backend_path":"%[1]s/memory-x"}}`, dir))
			if want := from == by || compatible[[2]string{from, by}]; (a.status == 204) != want {
				t.Errorf("a state of %s loaded by %s: %d %s", from, by, a.status, a.body)
			}
			if a.status != 204 && p.exit() != 1 {
				t.Errorf("%s lives on after a load that failed", by)
			}
			p.kill()
		}
	}
}
