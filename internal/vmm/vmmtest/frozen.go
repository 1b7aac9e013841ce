package vmmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

// frozenSuite is what is tried on VMs thawed from one frozen VM.
type frozenSuite struct {
	h            Harness
	base         *place
	template     frozen
	sum, diskSum string // of what the guest held when it was frozen
}

func (s *frozenSuite) testThaw(t *testing.T) {
	p := s.base.fork(t)
	vm := p.thaw(s.template)
	if vm.State() != vmm.StatePaused {
		t.Fatalf("state %s after Thaw", vm.State())
	}
	if held := p.private(vm); size(held) > 4<<20 {
		t.Errorf("a VM that has not run since its thaw holds %d bytes of its own", size(held))
	}
	must(t, vm.Resume(p.ctx()))
	g := greet(t, vm)
	if got := g.ask("sum"); got != s.sum {
		t.Errorf("memory sum %s, want %s", got, s.sum)
	}
	if got := g.ask("disk-sum 512 0"); got != s.diskSum {
		t.Errorf("disk sum %s, want %s", got, s.diskSum)
	}
}

// private lists the VM's own pages and checks the list's form.
func (p *place) private(vm vmm.VM) []vmm.Range {
	p.t.Helper()
	mem, err := vm.Memory()
	must(p.t, err)
	if mem.Size() != int64(p.cfg.MemoryMiB)<<20 {
		p.t.Fatalf("memory of %d bytes", mem.Size())
	}
	held, err := mem.Private(p.ctx())
	must(p.t, err)
	end := int64(-1)
	for _, r := range held {
		if r.Offset <= end || r.Offset%vmm.PageSize != 0 || r.Length <= 0 || r.Length%vmm.PageSize != 0 || r.End() > mem.Size() {
			p.t.Fatalf("run %+v after one that ends at %d", r, end)
		}
		end = r.End()
	}
	return held
}

func size(ranges []vmm.Range) (n int64) {
	for _, r := range ranges {
		n += r.Length
	}
	return n
}

// testForks freezes a thawed VM that has changed, thaws it twice from the diff, and a diff of a diff.
func (s *frozenSuite) testForks(t *testing.T) {
	parent := s.base.fork(t)
	vm := parent.thaw(s.template)
	must(t, vm.Resume(parent.ctx()))
	g := greet(t, vm)
	g.ask("fill 8192 2")
	g.ask("disk-write 1024 2")
	sum, diskSum := g.ask("sum"), g.ask("disk-sum 1024 0")
	must(t, vm.Pause(parent.ctx()))
	checkWritten(t, parent, vm)
	diff := parent.freeze(vm, true)
	if n := len(diff.patches.(patchList)); n == 0 {
		t.Fatal("a guest that wrote 8 MiB holds no page of its own")
	}

	check := func(p *place, vm vmm.VM) {
		t.Helper()
		// Patches count as written: the diff of a diff is whole.
		if got, want := size(p.private(vm)), int64(8<<20); got < want {
			t.Errorf("the fork holds %d bytes, the guest wrote %d", got, want)
		}
		must(t, vm.Resume(p.ctx()))
		g := greet(t, vm)
		if got := g.ask("sum"); got != sum {
			t.Errorf("memory sum %s, want %s", got, sum)
		}
		if got := g.ask("disk-sum 1024 0"); got != diskSum {
			t.Errorf("disk sum %s, want %s", got, diskSum)
		}
	}
	one := parent.fork(t)
	vm1 := one.thaw(diff)
	check(one, vm1)
	must(t, vm1.Pause(one.ctx()))
	grandchild := one.fork(t)
	check(grandchild, grandchild.thaw(one.freeze(vm1, true)))

	must(t, vm.Resume(parent.ctx()))
	if got := greet(t, vm).ask("sum"); got != sum {
		t.Errorf("the parent's memory sum became %s", got)
	}
}

// checkWritten tries write tracking where the host has it: what Written names must hold every page that changed.
func checkWritten(t *testing.T, p *place, vm vmm.VM) {
	t.Helper()
	mem, err := vm.Memory()
	must(t, err)
	switch err := mem.Track(p.ctx()); spore.CodeOf(err) {
	case "":
	case spore.CodeUnsupported:
		_, err := mem.Written(p.ctx())
		wantCode(t, "Written without Track", err, spore.CodeUnsupported)
		return
	default:
		t.Fatal(err)
	}
	before := make([]byte, mem.Size())
	_, err = mem.ReadAt(before, 0)
	must(t, err)
	must(t, vm.Resume(p.ctx()))
	greet(t, vm).ask("disk-sum 64 0")
	must(t, vm.Pause(p.ctx()))
	after := make([]byte, mem.Size())
	_, err = mem.ReadAt(after, 0)
	must(t, err)
	written, err := mem.Written(p.ctx())
	must(t, err)
	for off := int64(0); off < mem.Size(); off += vmm.PageSize {
		for len(written) > 0 && written[0].End() <= off {
			written = written[1:]
		}
		named := len(written) > 0 && written[0].Offset <= off
		if !named && !bytes.Equal(before[off:off+vmm.PageSize], after[off:off+vmm.PageSize]) {
			t.Fatalf("the page at %d changed and Written does not name it", off)
		}
	}
}

// testIsolation lets two forks change the same memory and looks whether either sees the other.
func (s *frozenSuite) testIsolation(t *testing.T) {
	a, b := s.base.fork(t), s.base.fork(t)
	vmA, vmB := a.thaw(s.template), b.thaw(s.template)
	must(t, vmA.Resume(a.ctx()))
	must(t, vmB.Resume(b.ctx()))
	gA, gB := greet(t, vmA), greet(t, vmB)
	gA.ask("fill 2048 11")
	gB.ask("fill 2048 12")
	sumA, sumB := gA.ask("sum"), gB.ask("sum")
	if sumA == sumB || sumA == s.sum {
		t.Errorf("sums %s and %s", sumA, sumB)
	}
	if again := gA.ask("sum"); again != sumA {
		t.Errorf("one fork's memory changed under it: %s, then %s", sumA, again)
	}
}

func (s *frozenSuite) testManyAtOnce(t *testing.T) {
	const n = 10
	var wg sync.WaitGroup
	for range n {
		p := s.base.fork(t)
		wg.Go(func() {
			vm, err := p.tryThaw(s.template)
			if err != nil {
				t.Errorf("Thaw: %v", err)
				return
			}
			if err := vm.Resume(p.ctx()); err != nil {
				t.Errorf("Resume: %v", err)
			}
		})
	}
	wg.Wait()
}

// failingPatches ends with an error after some patches, as a damaged layer does.
type failingPatches struct{ err error }

func (f failingPatches) Each(ctx context.Context, fn func(int64, []byte) error) error {
	if err := fn(0, make([]byte, vmm.PageSize)); err != nil {
		return err
	}
	return f.err
}

func (s *frozenSuite) testPatchErrors(t *testing.T) {
	p := s.base.fork(t)
	cause := spore.Errorf(spore.CodeDamaged, "layer 3 is damaged")
	_, err := p.tryThaw(frozen{state: s.template.state, patches: failingPatches{cause}})
	if !errors.Is(err, cause) {
		t.Errorf("Thaw with a damaged layer: %v", err)
	}
	outside := patchList{{int64(p.cfg.MemoryMiB) << 20, make([]byte, vmm.PageSize)}}
	if _, err := p.tryThaw(frozen{state: s.template.state, patches: outside}); err == nil {
		t.Error("a patch outside of RAM was accepted")
	}
	if entries, err := os.ReadDir(p.cfg.Dir); err != nil || len(entries) > 0 {
		t.Errorf("files were left: %v, %v", entries, err)
	}
	must(t, p.thaw(s.template).Kill(p.ctx())) // the place is as good as new
}

func (s *frozenSuite) testDamagedState(t *testing.T) {
	good, err := os.ReadFile(s.template.state)
	must(t, err)
	flip := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 0x40
		return b
	}
	for name, bad := range map[string][]byte{
		"empty": {}, "cut short": good[:len(good)*2/3], "one byte short": good[:len(good)-1],
		"first byte": flip(0), "middle": flip(len(good) / 2), "last byte": flip(len(good) - 1),
		"noise": bytes.Repeat([]byte{0xa5, '\n'}, 4000),
	} {
		p := s.base.fork(t)
		path := filepath.Join(t.TempDir(), "state")
		must(t, os.WriteFile(path, bad, 0o600))
		_, err := p.tryThaw(frozen{state: path})
		wantCode(t, name, err, spore.CodeDamaged)
		if entries, err := os.ReadDir(p.cfg.Dir); err != nil || len(entries) > 0 {
			t.Errorf("%s: files were left: %v, %v", name, entries, err)
		}
	}
}

func (s *frozenSuite) testWrongShape(t *testing.T) {
	for name, edit := range map[string]func(*vmm.Config){
		"CPUs":           func(c *vmm.Config) { c.VCPUs++ },
		"memory":         func(c *vmm.Config) { c.MemoryMiB *= 2 },
		"no drives":      func(c *vmm.Config) { c.Drives = nil },
		"swapped drives": func(c *vmm.Config) { c.Drives[0], c.Drives[1] = c.Drives[1], c.Drives[0] },
		"drive's name":   func(c *vmm.Config) { c.Drives[1].ID = "other" },
		"drive's size":   func(c *vmm.Config) { must(t, os.Truncate(c.Drives[1].Path, diskKiB<<9)) },
	} {
		p := s.base.fork(t)
		edit(&p.cfg)
		_, err := p.tryThaw(s.template)
		wantCode(t, name, err, spore.CodeConflict)
	}
	p := s.base.fork(t)
	p.cfg.Memory += "-missing"
	_, err := p.tryThaw(s.template)
	wantCode(t, "missing base memory", err, spore.CodeNotFound)
}

func (s *frozenSuite) testCanceledThaw(t *testing.T) {
	for _, after := range []time.Duration{0, 5 * time.Millisecond, 30 * time.Millisecond, 60 * time.Millisecond} {
		p := s.base.fork(t)
		state, err := os.Open(s.template.state)
		must(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), after)
		vm, err := p.eng.Thaw(ctx, p.cfg, vmm.Image{State: state})
		cancel()
		state.Close()
		if err == nil {
			must(t, vm.Kill(p.ctx()))
			continue
		}
		wantCode(t, fmt.Sprintf("a Thaw canceled after %s", after), err, spore.CodeCanceled)
		if entries, err := os.ReadDir(p.cfg.Dir); err != nil || len(entries) > 0 {
			t.Errorf("files were left: %v, %v", entries, err)
		}
	}
}

func (s *frozenSuite) testAdopt(t *testing.T) {
	p := s.base.fork(t)
	vm := p.thaw(s.template)
	must(t, vm.Resume(p.ctx()))
	g := greet(t, vm)
	g.ask("fill 1024 5")
	sum := g.ask("sum")
	pid := vm.PID()
	must(t, vm.Release())
	must(t, vm.Release())
	wantCode(t, "Pause after Release", vm.Pause(p.ctx()), spore.CodeConflict)

	second := *p
	second.eng = p.h.New(t)
	other := second.cfg
	other.VCPUs++
	_, err := second.eng.Adopt(p.ctx(), other)
	wantCode(t, "Adopt with another shape", err, spore.CodeConflict)
	adopted, err := second.eng.Adopt(p.ctx(), second.cfg)
	must(t, err)
	own(t, adopted)
	if adopted.PID() != pid || adopted.State() != vmm.StateRunning {
		t.Errorf("adopted process %d in state %s; process %d was released", adopted.PID(), adopted.State(), pid)
	}
	if got := greet(t, adopted).ask("sum"); got != sum {
		t.Errorf("memory sum %s, want %s", got, sum)
	}
	must(t, adopted.Pause(p.ctx()))
	second.saveState(adopted)
	if got := size(second.private(adopted)); got < 1<<20 {
		t.Errorf("the adopted VM holds %d bytes", got)
	}
	must(t, adopted.Release())
	adopted, err = p.h.New(t).Adopt(p.ctx(), second.cfg)
	must(t, err)
	if adopted.State() != vmm.StatePaused {
		t.Errorf("a paused VM was adopted as %s", adopted.State())
	}
	must(t, adopted.Kill(p.ctx()))
	if adopted.Err() != nil {
		t.Error(adopted.Err())
	}
	waitDone(t, vm) // the first owner learns of the end too
	_, err = p.h.New(t).Adopt(p.ctx(), second.cfg)
	wantCode(t, "Adopt after Kill", err, spore.CodeNotFound)
}

func (s *frozenSuite) testPowerOff(t *testing.T) {
	p := s.base.fork(t)
	vm := p.thaw(s.template)
	must(t, vm.Resume(p.ctx()))
	g := greet(t, vm)
	must(t, vm.Pause(p.ctx())) // what the guest is told waits until Shutdown sets it going
	g.tell("poweroff")
	must(t, vm.Shutdown(p.ctx()))
	waitDone(t, vm)
	if vm.Err() != nil {
		t.Errorf("an orderly end is reported as %v", vm.Err())
	}

	p = s.base.fork(t)
	vm = p.thaw(s.template)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := vm.Shutdown(ctx) // this guest does not listen
	if code := spore.CodeOf(err); err == nil || code != spore.CodeUnreachable && code != spore.CodeCanceled {
		t.Errorf("Shutdown of a guest that does not listen: %v", err)
	}
}

func (s *frozenSuite) testCrash(t *testing.T) {
	p := s.base.fork(t)
	vm := p.thaw(s.template)
	must(t, vm.Resume(p.ctx()))
	g := greet(t, vm)
	g.ask("print 1 4711")
	waitConsole(t, vm, 1000, "printed 4711")
	g.tell("crash")
	waitDone(t, vm)
	if vm.Err() == nil {
		t.Error("a crash of the guest is reported as an orderly end")
	}
	if text, err := vm.Console(1 << 20); err != nil || !strings.Contains(string(text), "printed 4711") {
		t.Errorf("the console has lost what the guest said before its crash: %q, %v", text, err)
	}
}

// testKilled ends the process behind the engine's back.
func (s *frozenSuite) testKilled(t *testing.T) {
	p := s.base.fork(t)
	vm := p.thaw(s.template)
	must(t, syscall.Kill(vm.PID(), syscall.SIGKILL))
	waitDone(t, vm)
	if vm.State() != vmm.StateExited || vm.Err() == nil {
		t.Errorf("state %s, error %v", vm.State(), vm.Err())
	}
	wantCode(t, "Resume", vm.Resume(p.ctx()), spore.CodeConflict)
	_, err := p.eng.Adopt(p.ctx(), p.cfg)
	wantCode(t, "Adopt", err, spore.CodeNotFound)

	// While an operation waits for the process: it stands still, and then it is gone.
	p = s.base.fork(t)
	vm = p.thaw(s.template)
	must(t, syscall.Kill(vm.PID(), syscall.SIGSTOP))
	waitStopped(t, vm.PID())
	failed := make(chan error, 1)
	go func() { failed <- vm.Resume(p.ctx()) }()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := vm.Pause(ctx); spore.CodeOf(err) != spore.CodeCanceled {
		t.Errorf("Pause of a process that stands still: %v", err)
	}
	must(t, syscall.Kill(vm.PID(), syscall.SIGKILL))
	wantCode(t, "an operation cut short by the end", <-failed, spore.CodeConflict)
}

// waitStopped waits until every thread of a process has taken notice of its signal to stop.
func waitStopped(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		must(t, err)
		running := 0
		for _, path := range tasks {
			text, err := os.ReadFile(path)
			if err != nil {
				continue // the thread has ended
			}
			if _, rest, _ := bytes.Cut(text, []byte(") ")); len(rest) > 0 && rest[0] != 'T' && rest[0] != 'D' {
				running++
			}
		}
		if len(tasks) > 0 && running == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d does not stop", pid)
		}
	}
}

func (s *frozenSuite) testClean(t *testing.T) {
	p := s.base.fork(t)
	vm := p.thaw(s.template)
	must(t, vm.Release())
	must(t, p.h.New(t).Clean(p.ctx(), p.cfg.Dir))
	waitDone(t, vm)
	must(t, p.h.New(t).Clean(p.ctx(), p.cfg.Dir))
	must(t, p.eng.Clean(p.ctx(), p.cfg.Dir+"-missing"))
}
