package vmmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// Run tries every sentence of the contract on the engine.
func Run(t *testing.T, h Harness) {
	t.Run("Probe", func(t *testing.T) { testProbe(t, h) })
	t.Run("BadConfig", func(t *testing.T) { testBadConfig(t, h) })
	t.Run("CanceledBoot", func(t *testing.T) { testCanceledBoot(t, h) })
	t.Run("Lifecycle", func(t *testing.T) { testLifecycle(t, h) })
	t.Run("NIC", func(t *testing.T) { testNIC(t, h) })
}

func testProbe(t *testing.T, h Harness) {
	eng := h.New(t)
	info, err := eng.Probe(t.Context())
	must(t, err)
	again, err := h.New(t).Probe(t.Context())
	must(t, err)
	if info != again {
		t.Errorf("two engines see one host differently: %+v, %+v", info, again)
	}
	if info.Engine != eng.Name() || info.Version == "" || info.Accel == "" || info.StateFormat == "" || info.CPUModel == "" {
		t.Errorf("Info is not whole: %+v", info)
	}
	if (info.Accel == "kvm") != (info.AccelReason == "") {
		t.Errorf("the reason does not fit the accelerator: %+v", info)
	}
}

func testBadConfig(t *testing.T, h Harness) {
	p := h.place(t)
	text := filepath.Join(t.TempDir(), "text")
	must(t, os.WriteFile(text, []byte("no kernel"), 0o600))
	for _, tc := range []struct {
		name string
		edit func(*vmm.Config)
		code spore.Code
	}{
		{"no CPU", func(c *vmm.Config) { c.VCPUs = 0 }, spore.CodeInvalid},
		{"thousand CPUs", func(c *vmm.Config) { c.VCPUs = 1000 }, spore.CodeInvalid},
		{"no memory", func(c *vmm.Config) { c.MemoryMiB = 0 }, spore.CodeInvalid},
		{"too much memory", func(c *vmm.Config) { c.MemoryMiB = 1 << 40 }, spore.CodeInvalid},
		{"no memory file", func(c *vmm.Config) { c.Memory = "" }, spore.CodeInvalid},
		{"memory file exists", func(c *vmm.Config) { c.Memory = text }, spore.CodeConflict},
		{"missing directory", func(c *vmm.Config) { c.Dir += "-missing" }, spore.CodeInvalid},
		{"missing kernel", func(c *vmm.Config) { c.Kernel += "-missing" }, spore.CodeNotFound},
		{"not a kernel", func(c *vmm.Config) { c.Kernel = text }, spore.CodeInvalid},
		{"missing initrd", func(c *vmm.Config) { c.Initrd += "-missing" }, spore.CodeNotFound},
		{"missing drive", func(c *vmm.Config) { c.Drives[0].Path += "-missing" }, spore.CodeNotFound},
		{"drive name with options", func(c *vmm.Config) { c.Drives[0].ID = "a,b=c" }, spore.CodeInvalid},
		{"drive twice", func(c *vmm.Config) { c.Drives[1].ID = c.Drives[0].ID }, spore.CodeInvalid},
		{"id with a slash", func(c *vmm.Config) { c.ID = "../x" }, spore.CodeInvalid},
	} {
		if h.NoKernel && tc.name == "not a kernel" {
			continue
		}
		cfg := p.cfg
		cfg.Drives = append([]vmm.Drive(nil), cfg.Drives...)
		tc.edit(&cfg)
		vm, err := p.eng.Boot(p.ctx(), cfg)
		wantCode(t, tc.name, err, tc.code)
		if err == nil {
			own(t, vm)
		}
	}
	p.wantNothingLeft()
}

// wantNothingLeft checks that the engine has left no file that the caller did not make.
func (p *place) wantNothingLeft() {
	p.t.Helper()
	if entries, err := os.ReadDir(p.cfg.Dir); err != nil || len(entries) > 0 {
		p.t.Errorf("files were left in the VM's directory: %v, %v", entries, err)
	}
	if _, err := os.Stat(p.cfg.Memory); !errors.Is(err, os.ErrNotExist) {
		p.t.Errorf("the memory file was left: %v", err)
	}
	_, err := p.eng.Adopt(p.ctx(), p.cfg)
	wantCode(p.t, "Adopt where nothing runs", err, spore.CodeNotFound)
	must(p.t, p.eng.Clean(p.ctx(), p.cfg.Dir))
}

func testCanceledBoot(t *testing.T, h Harness) {
	_, err := h.New(t).Probe(t.Context()) // what is only done once is not to be measured below
	must(t, err)
	for _, after := range []time.Duration{0, time.Millisecond, 20 * time.Millisecond} {
		p := h.place(t)
		ctx, cancel := context.WithTimeout(t.Context(), after)
		vm, err := p.eng.Boot(ctx, p.cfg)
		cancel()
		if err == nil { // it was faster
			must(t, vm.Kill(p.ctx()))
			continue
		}
		wantCode(t, "a canceled Boot", err, spore.CodeCanceled)
		p.wantNothingLeft()
	}
}

// testLifecycle boots one guest, since that is the slow part, and goes on from what it froze.
func testLifecycle(t *testing.T, h Harness) {
	base := h.place(t)
	vm := base.boot()
	g := greet(t, vm)
	t.Run("Running", func(t *testing.T) { testRunning(t, base, vm, g) })
	t.Run("Ports", func(t *testing.T) { testPorts(t, vm) })
	t.Run("Console", func(t *testing.T) { testConsole(t, vm) })
	g = greet(t, vm)
	t.Run("Pause", func(t *testing.T) { testPause(t, vm, g) })

	g.ask("fill 2048 1")
	g.ask("disk-write 512 1")
	sum, diskSum := g.ask("sum"), g.ask("disk-sum 512 0")
	must(t, vm.Pause(base.ctx()))
	t.Run("SaveTwice", func(t *testing.T) { testSaveTwice(t, base, vm) })
	template := base.freeze(vm, false)
	t.Run("SharedMemory", func(t *testing.T) { testSharedMemory(t, vm) })
	must(t, vm.Kill(base.ctx()))
	must(t, vm.Kill(base.ctx()))
	t.Run("Exited", func(t *testing.T) { testExited(t, base, vm) })
	digestBefore := digest(t, base.cfg.Memory)

	s := &frozenSuite{h: h, base: base, template: template, sum: sum, diskSum: diskSum}
	t.Run("Thaw", s.testThaw)
	t.Run("Forks", s.testForks)
	t.Run("Isolation", s.testIsolation)
	t.Run("ManyAtOnce", s.testManyAtOnce)
	t.Run("PatchErrors", s.testPatchErrors)
	t.Run("DamagedState", s.testDamagedState)
	t.Run("WrongShape", s.testWrongShape)
	t.Run("CanceledThaw", s.testCanceledThaw)
	t.Run("Adopt", s.testAdopt)
	t.Run("Throttle", s.testThrottle)
	t.Run("PowerOff", s.testPowerOff)
	t.Run("Crash", s.testCrash)
	if h.Processes {
		t.Run("Killed", s.testKilled)
		t.Run("Clean", s.testClean)
	}
	if digest(t, base.cfg.Memory) != digestBefore {
		t.Error("the base memory file was changed by VMs thawed from it")
	}
}

func testRunning(t *testing.T, p *place, vm vmm.VM, g *talk) {
	if vm.State() != vmm.StateRunning || vm.Err() != nil {
		t.Errorf("state %s, error %v", vm.State(), vm.Err())
	}
	if (vm.PID() != 0) != p.h.Processes {
		t.Errorf("PID %d", vm.PID())
	}
	_, err := p.eng.Boot(p.ctx(), p.cfg)
	wantCode(t, "a second Boot of the same VM", err, spore.CodeConflict)
	out, err := os.CreateTemp(t.TempDir(), "state")
	must(t, err)
	defer out.Close()
	wantCode(t, "SaveState of a running VM", vm.SaveState(p.ctx(), out), spore.CodeConflict)
	if a, b := g.ask("count"), g.ask("sum"); a == "" || b == "" {
		t.Error("the guest has no answer")
	}
}

func testPorts(t *testing.T, vm vmm.VM) {
	_, err := vm.DialPort(t.Context(), "spore.other")
	wantCode(t, "DialPort of an unknown port", err, spore.CodeInvalid)
	for round := range 3 {
		conn, err := vm.DialPort(t.Context(), vmm.PortData)
		must(t, err)
		must(t, conn.SetDeadline(time.Now().Add(patience)))
		want := bytes.Repeat([]byte{byte('a' + round)}, 3000)
		go conn.Write(want)
		got := make([]byte, len(want))
		if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("round %d: the guest does not echo: %v", round, err)
		}
		if round == 1 {
			continue // the next dial replaces this connection
		}
		must(t, conn.Close())
	}
	a, b := greet(t, vm), greet(t, vm)
	if _, err := a.conn.Read(make([]byte, 1)); err == nil {
		t.Error("the replaced connection lives on")
	}
	b.ask("sum")
}

func testConsole(t *testing.T, vm vmm.VM) {
	g := greet(t, vm)
	g.ask("print 600 7")
	waitConsole(t, vm, 100, "printed 7")
	text, err := vm.Console(10 << 20)
	must(t, err)
	if len(text) < 1000 || len(text) > 1<<20 {
		t.Errorf("the console holds %d bytes after 600 KiB", len(text))
	}
}

// waitConsole waits until the last bytes of the console, at most limit, show something.
func waitConsole(t *testing.T, vm vmm.VM, limit int, want string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		text, err := vm.Console(limit)
		must(t, err)
		if len(text) > limit {
			t.Fatalf("%d bytes of console, asked for %d", len(text), limit)
		}
		if strings.Contains(string(text), want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the console does not show %q but %q", want, text)
		}
	}
}

func testPause(t *testing.T, vm vmm.VM, g *talk) {
	ctx := t.Context()
	for range 2 {
		must(t, vm.Pause(ctx))
		if vm.State() != vmm.StatePaused {
			t.Fatalf("state %s after Pause", vm.State())
		}
	}
	// What the guest is sent meanwhile it answers later.
	g.tell("count")
	must(t, g.conn.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
	if line, err := g.in.ReadString('\n'); err == nil {
		t.Fatalf("a paused guest answers %q", line)
	}
	must(t, g.conn.SetReadDeadline(time.Now().Add(patience)))
	for range 2 {
		must(t, vm.Resume(ctx))
		if vm.State() != vmm.StateRunning {
			t.Fatalf("state %s after Resume", vm.State())
		}
	}
	if _, err := g.in.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			op := vm.Pause
			if i%2 == 0 {
				op = vm.Resume
			}
			if err := op(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	must(t, vm.Resume(ctx))
	g.ask("count")
}

func testSaveTwice(t *testing.T, p *place, vm vmm.VM) {
	// Two saves need not be the same bytes: a clock among the devices goes on.
	if a, b := p.saveState(vm), p.saveState(vm); fileSize(t, a) == 0 || fileSize(t, b) == 0 {
		t.Error("a saved state is empty")
	}
	// The position of the file counts: what stands before it stays.
	out, err := os.CreateTemp(t.TempDir(), "state")
	must(t, err)
	defer out.Close()
	_, err = out.WriteString("before")
	must(t, err)
	must(t, vm.SaveState(p.ctx(), out))
	got, err := os.ReadFile(out.Name())
	must(t, err)
	if rest, ok := bytes.CutPrefix(got, []byte("before")); !ok || len(rest) == 0 || bytes.HasPrefix(rest, []byte("before")) {
		t.Errorf("SaveState did not write at the position of the file: it begins with %.20q", got)
	}
	if vm.State() != vmm.StatePaused {
		t.Errorf("state %s after SaveState", vm.State())
	}
	must(t, vm.Resume(p.ctx()))
	greet(t, vm).ask("count")
	must(t, vm.Pause(p.ctx()))
	if p.h.Processes {
		testSavedOften(t, p, vm)
	}
}

// testSavedOften has a VM saved again and again: its process must have no more files open afterwards.
func testSavedOften(t *testing.T, p *place, vm vmm.VM) {
	open := func() int {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", vm.PID()))
		must(t, err)
		return len(entries)
	}
	before := open()
	for range 10 {
		p.saveState(vm)
		must(t, vm.Resume(p.ctx()))
		must(t, vm.Pause(p.ctx()))
	}
	if after := open(); after > before+2 { // a thread of its own may have opened one meanwhile
		t.Errorf("the hypervisor has %d files open before it was saved ten times, and %d afterwards", before, after)
	}
}

func testSharedMemory(t *testing.T, vm vmm.VM) {
	mem, err := vm.Memory()
	must(t, err)
	_, err = mem.Private(t.Context())
	wantCode(t, "Private of a booted VM", err, spore.CodeUnsupported)
	if n, err := mem.ReadAt(make([]byte, 2*vmm.PageSize), mem.Size()-vmm.PageSize); n != vmm.PageSize || err != io.EOF {
		t.Errorf("reading over the end of RAM: %d, %v", n, err)
	}
}

func testExited(t *testing.T, p *place, vm vmm.VM) {
	waitDone(t, vm)
	if vm.State() != vmm.StateExited || vm.Err() != nil {
		t.Errorf("after Kill: state %s, error %v", vm.State(), vm.Err())
	}
	ctx := p.ctx()
	out, err := os.CreateTemp(t.TempDir(), "state")
	must(t, err)
	defer out.Close()
	_, memErr := vm.Memory()
	_, dialErr := vm.DialPort(ctx, vmm.PortControl)
	for what, err := range map[string]error{
		"Pause": vm.Pause(ctx), "Resume": vm.Resume(ctx), "SaveState": vm.SaveState(ctx, out), "Memory": memErr,
		"DialPort": dialErr, "Shutdown": vm.Shutdown(ctx),
	} {
		wantCode(t, what+" after the end", err, spore.CodeConflict)
	}
	text, err := vm.Console(1000)
	if err != nil || len(text) == 0 {
		t.Errorf("Console after the end: %q, %v", text, err)
	}
	must(t, vm.Kill(ctx))
	_, err = p.eng.Adopt(ctx, p.cfg)
	wantCode(t, "Adopt after the end", err, spore.CodeNotFound)
	if p.h.Processes {
		if err := syscall.Kill(vm.PID(), 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d is still there: %v", vm.PID(), err)
		}
	}
}
