package vmmtest

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// Harness is an engine under test.
type Harness struct {
	// New returns an engine as a server that starts would make it: a second one knows nothing of the first but what is
	// on disk.
	New func(t testing.TB) vmm.Engine
	// Kernel and Initrd start the suite's guest; see Initrd.
	Kernel, Initrd string
	// MemoryMiB of each VM.
	MemoryMiB int
	// Processes says that VMs are processes of the host: the suite ends some behind the engine's back.
	Processes bool
	// NoKernel says that the engine does not look into the kernel it is given.
	NoKernel bool
	// Cables are the ways to plug in a network device that the engine takes: CableTap and CableSocket. Those that are true
	// carry frames to and from the guest, whose side cmd guest plays. An engine with no cable refuses network devices.
	Cables map[string]bool
}

// Ways to plug in a network device, by the field of vmm.NIC that says where it leads.
const (
	CableTap    = "tap"
	CableSocket = "socket"
)

// patience bounds every wait of the suite. It is no measure of speed: reaching it means that something hangs.
const patience = 3 * time.Minute

const diskKiB = 4096

var serial atomic.Int64

// place is one VM's place: its directory and its drives.
type place struct {
	t   testing.TB
	h   Harness
	eng vmm.Engine
	cfg vmm.Config
}

func (h Harness) place(t testing.TB) *place {
	t.Helper()
	dir := t.TempDir()
	p := &place{t: t, h: h, eng: h.New(t)}
	must(t, os.Mkdir(filepath.Join(dir, "vm"), 0o700))
	rootfs, disk := filepath.Join(dir, "rootfs"), filepath.Join(dir, "disk")
	must(t, os.WriteFile(rootfs, make([]byte, 1<<20), 0o600))
	must(t, os.WriteFile(disk, nil, 0o600))
	must(t, os.Truncate(disk, diskKiB<<10))
	p.cfg = vmm.Config{
		ID: fmt.Sprintf("s%020d", serial.Add(1)), Dir: filepath.Join(dir, "vm"), VCPUs: 1, MemoryMiB: h.MemoryMiB,
		Kernel: h.Kernel, Initrd: h.Initrd, Cmdline: "quiet", Memory: filepath.Join(dir, "memory"),
		Drives: []vmm.Drive{{ID: "rootfs", Path: rootfs, ReadOnly: true}, {ID: "disk", Path: disk}},
	}
	return p
}

// fork is a new place on the same memory file with a copy of the disk.
func (p *place) fork(t testing.TB) *place {
	t.Helper()
	dir := t.TempDir()
	q := *p
	q.t, q.eng = t, p.h.New(t)
	q.cfg.ID = fmt.Sprintf("s%020d", serial.Add(1))
	q.cfg.Dir = filepath.Join(dir, "vm")
	must(t, os.Mkdir(q.cfg.Dir, 0o700))
	disk, err := os.ReadFile(p.cfg.Drives[1].Path)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "disk"), disk, 0o600))
	q.cfg.Drives = []vmm.Drive{p.cfg.Drives[0], {ID: "disk", Path: filepath.Join(dir, "disk")}}
	return &q
}

func (p *place) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	p.t.Cleanup(cancel)
	return ctx
}

// own ends vm with the test.
func own(t testing.TB, vm vmm.VM) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		select {
		case <-vm.Done():
		default:
			if err := vm.Kill(ctx); err != nil && spore.CodeOf(err) != spore.CodeConflict {
				t.Errorf("Kill at the end: %v", err)
			}
		}
	})
}

func (p *place) boot() vmm.VM {
	p.t.Helper()
	vm, err := p.eng.Boot(p.ctx(), p.cfg)
	if err != nil {
		p.t.Fatalf("Boot: %v", err)
	}
	own(p.t, vm)
	return vm
}

func (p *place) thaw(f frozen) vmm.VM {
	p.t.Helper()
	vm, err := p.tryThaw(f)
	if err != nil {
		p.t.Fatalf("Thaw: %v", err)
	}
	return vm
}

func (p *place) tryThaw(f frozen) (vmm.VM, error) {
	state, err := os.Open(f.state)
	must(p.t, err)
	defer state.Close()
	vm, err := p.eng.Thaw(p.ctx(), p.cfg, vmm.Image{State: state, Patches: f.patches})
	if err == nil {
		own(p.t, vm)
	}
	return vm, err
}

// frozen is a saved VM, without its base memory.
type frozen struct {
	state   string
	patches vmm.Patches
}

// freeze saves a paused VM; of a thawed one also the pages it holds.
func (p *place) freeze(vm vmm.VM, diff bool) frozen {
	p.t.Helper()
	f := frozen{state: p.saveState(vm)}
	if !diff {
		return f
	}
	mem, err := vm.Memory()
	must(p.t, err)
	ranges, err := mem.Private(p.ctx())
	must(p.t, err)
	var runs patchList
	for _, r := range ranges {
		data := make([]byte, r.Length)
		if _, err := mem.ReadAt(data, r.Offset); err != nil {
			p.t.Fatalf("ReadAt %+v: %v", r, err)
		}
		runs = append(runs, patch{r.Offset, data})
	}
	f.patches = runs
	return f
}

func (p *place) saveState(vm vmm.VM) string {
	p.t.Helper()
	out, err := os.CreateTemp(p.t.TempDir(), "state")
	must(p.t, err)
	if err := vm.SaveState(p.ctx(), out); err != nil {
		p.t.Fatalf("SaveState: %v", err)
	}
	must(p.t, out.Close())
	return out.Name()
}

type patch struct {
	off  int64
	data []byte
}

type patchList []patch

func (l patchList) Each(ctx context.Context, fn func(int64, []byte) error) error {
	for _, p := range l {
		if err := fn(p.off, p.data); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// talk is a conversation with the guest on its control port.
type talk struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
}

// greet connects and waits until the guest answers. What a guest said to someone before is passed over: each greeting
// has a word of its own. A guest in its boot may lose what it is sent, so it is asked until it answers; one that was just thawed may
// hang up, and is dialled again.
func greet(t testing.TB, vm vmm.VM) *talk {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		g, err := greetOnce(ctx, t, vm)
		if err == nil {
			return g
		}
		select {
		case <-vm.Done():
			t.Fatalf("control port: %v (the VM's end: %v)", err, vm.Err())
		case <-ctx.Done():
			text, _ := vm.Console(2000)
			t.Fatalf("the guest does not answer: %v; console:\n%s", err, text)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// greetOnce talks on one connection until the guest answers or it ends.
func greetOnce(ctx context.Context, t testing.TB, vm vmm.VM) (*talk, error) {
	t.Helper()
	conn, err := vm.DialPort(ctx, vmm.PortControl)
	if err != nil {
		t.Fatalf("DialPort: %v", err)
	}
	t.Cleanup(func() { conn.Close() })
	g := &talk{t: t, conn: conn, in: bufio.NewReader(conn)}
	sent, line := map[string]bool{}, ""
	for ctx.Err() == nil {
		word := fmt.Sprintf("hello-%d", serial.Add(1))
		sent[word] = true
		if _, err := io.WriteString(conn, "\n"+word+"\n"); err != nil {
			return nil, err
		}
		must(t, conn.SetReadDeadline(time.Now().Add(time.Second)))
		for {
			part, err := g.in.ReadString('\n')
			line += part
			if os.IsTimeout(err) {
				break
			}
			if err != nil {
				return nil, err
			}
			said := strings.TrimSpace(line)
			line = ""
			if sent[said] { // it listens: the last word is answered too, however slow it is
				must(t, conn.SetReadDeadline(time.Now().Add(patience)))
			}
			if said == word {
				return g, nil
			}
		}
	}
	return nil, ctx.Err()
}

// ask sends a command and returns the guest's answer.
func (g *talk) ask(format string, args ...any) string {
	g.t.Helper()
	command := fmt.Sprintf(format, args...)
	if _, err := io.WriteString(g.conn, command+"\n"); err != nil {
		g.t.Fatalf("%s: %v", command, err)
	}
	line, err := g.in.ReadString('\n')
	if err != nil {
		g.t.Fatalf("%s: %v", command, err)
	}
	line = strings.TrimSpace(line)
	if strings.HasPrefix(line, "error") {
		g.t.Fatalf("%s: the guest says %s", command, line)
	}
	return line
}

// tell sends a command that the guest does not live to answer.
func (g *talk) tell(command string) {
	g.t.Helper()
	if _, err := io.WriteString(g.conn, command+"\n"); err != nil {
		g.t.Fatalf("%s: %v", command, err)
	}
}

func fileSize(t testing.TB, path string) int64 {
	t.Helper()
	fi, err := os.Stat(path)
	must(t, err)
	return fi.Size()
}

func digest(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	must(t, err)
	return hex.EncodeToString(h.Sum(nil))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantCode(t testing.TB, what string, err error, want spore.Code) {
	t.Helper()
	if got := spore.CodeOf(err); got != want {
		t.Errorf("%s: code %q, want %q: %v", what, got, want, err)
	}
}

func waitDone(t testing.TB, vm vmm.VM) {
	t.Helper()
	select {
	case <-vm.Done():
	case <-time.After(patience):
		t.Fatal("the VM does not end")
	}
}
