package firecracker

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// realEngine is an engine on the binaries that SPORE_FIRECRACKER and SPORE_JAILER name.
func realEngine(t testing.TB, edit func(*Options)) *Engine {
	t.Helper()
	binary := os.Getenv("SPORE_FIRECRACKER")
	if binary == "" {
		t.Skip("SPORE_FIRECRACKER names no Firecracker to test with")
	}
	opts := Options{Binaries: []string{binary}, Jailer: os.Getenv("SPORE_JAILER")}
	if edit != nil {
		edit(&opts)
	}
	if opts.NoJailer == false && os.Geteuid() != 0 {
		t.Skip("the jailer needs root")
	}
	if err := checkKVM(); err != nil {
		t.Skipf("this host cannot run Firecracker: %v", err)
	}
	e, err := New(opts)
	must(t, err)
	t.Cleanup(func() { must(t, e.Close()) })
	return e
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func tinyConfig(t testing.TB) vmm.Config {
	t.Helper()
	dir := t.TempDir()
	cfg := vmm.Config{
		ID: "tiny", Dir: filepath.Join(dir, "vm"), VCPUs: 1, MemoryMiB: 40, Kernel: tinyKernel(t), Memory: filepath.Join(dir, "memory"),
		Drives: []vmm.Drive{{ID: "rootfs", Path: filepath.Join(dir, "rootfs"), ReadOnly: true}, {ID: "disk", Path: filepath.Join(dir, "disk")}},
	}
	must(t, os.Mkdir(cfg.Dir, 0o700))
	for _, d := range cfg.Drives {
		must(t, os.WriteFile(d.Path, make([]byte, 1<<20), 0o600))
	}
	return cfg
}

func counter(t testing.TB, vm vmm.VM) uint64 {
	t.Helper()
	mem, err := vm.Memory()
	must(t, err)
	var b [8]byte
	_, err = mem.ReadAt(b[:], tinyCounter)
	must(t, err)
	return binary.LittleEndian.Uint64(b[:])
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s does not come true", what)
		}
	}
}

func counts(t testing.TB, vm vmm.VM) {
	t.Helper()
	before := counter(t, vm)
	eventually(t, "the guest counts", func() bool { return counter(t, vm) > before+tinyPages })
}

func save(t testing.TB, vm vmm.VM) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "state")
	must(t, err)
	must(t, vm.SaveState(t.Context(), f))
	must(t, f.Close())
	return f.Name()
}

func thaw(t testing.TB, e *Engine, cfg vmm.Config, state string, patches vmm.Patches) vmm.VM {
	t.Helper()
	f, err := os.Open(state)
	must(t, err)
	defer f.Close()
	vm, err := e.Thaw(t.Context(), cfg, vmm.Image{State: f, Patches: patches})
	if err != nil {
		t.Fatalf("Thaw: %v", err)
	}
	killAtEnd(t, vm)
	return vm
}

// killAtEnd ends a VM with the test, unless it was released.
func killAtEnd(t testing.TB, vm vmm.VM) {
	t.Cleanup(func() {
		if err := vm.Kill(context.Background()); err != nil && spore.CodeOf(err) != spore.CodeConflict {
			t.Errorf("Kill at the end: %v", err)
		}
	})
}

type patchList []patchRun

type patchRun struct {
	off  int64
	data []byte
}

func (l patchList) Each(ctx context.Context, fn func(int64, []byte) error) error {
	for _, p := range l {
		if err := fn(p.off, p.data); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// layer is what a VM holds for itself, as a template would keep it: without pages that are as in base.
func layer(t testing.TB, vm vmm.VM, base string) patchList {
	t.Helper()
	mem, err := vm.Memory()
	must(t, err)
	ranges, err := mem.Private(t.Context())
	must(t, err)
	return layerOf(t, mem, ranges, base)
}

func layerOf(t testing.TB, mem vmm.Memory, ranges []vmm.Range, base string) patchList {
	t.Helper()
	old, err := os.ReadFile(base)
	must(t, err)
	var out patchList
	page := make([]byte, vmm.PageSize)
	for _, r := range ranges {
		for off := r.Offset; off < r.End(); off += vmm.PageSize {
			_, err := mem.ReadAt(page, off)
			must(t, err)
			if !bytes.Equal(page, old[off:off+vmm.PageSize]) {
				out = append(out, patchRun{off, bytes.Clone(page)})
			}
		}
	}
	return out
}

// TestTinyGuest takes the real binary through everything that does not need a guest of any sense.
func TestTinyGuest(t *testing.T) {
	for name, edit := range map[string]func(*Options){
		"jailed":   nil,
		"unjailed": func(o *Options) { o.NoJailer = true },
	} {
		t.Run(name, func(t *testing.T) { testTinyGuest(t, realEngine(t, edit)) })
	}
}

func testTinyGuest(t *testing.T, e *Engine) {
	ctx := t.Context()
	cfg := tinyConfig(t)
	vm, err := e.Boot(ctx, cfg)
	must(t, err)
	killAtEnd(t, vm)
	eventually(t, "the guest says hello", func() bool {
		text, err := vm.Console(1000)
		must(t, err)
		return bytes.Contains(text, []byte(tinyHello))
	})
	counts(t, vm)
	must(t, vm.Pause(ctx))
	stopped := counter(t, vm)
	state := save(t, vm)
	if got := counter(t, vm); got != stopped {
		t.Errorf("a paused guest counted from %d to %d", stopped, got)
	}
	base, err := os.ReadFile(cfg.Memory)
	must(t, err)
	if got := binary.LittleEndian.Uint64(base[tinyCounter:]); got != stopped {
		t.Errorf("the memory file has %d, the guest %d", got, stopped)
	}
	must(t, vm.(vmm.Throttler).LimitDrive(ctx, "disk", vmm.DriveLimits{BytesPerSecond: 1 << 20, OpsPerSecond: 100}))
	must(t, vm.Resume(ctx))
	counts(t, vm)
	must(t, vm.Kill(ctx))

	child := cfg
	child.Dir = filepath.Join(t.TempDir(), "vm")
	must(t, os.Mkdir(child.Dir, 0o700))
	thawed := thaw(t, e, child, state, nil)
	if got := counter(t, thawed); got != stopped {
		t.Errorf("thawed at %d, frozen at %d", got, stopped)
	}
	must(t, thawed.Resume(ctx))
	counts(t, thawed)
	must(t, thawed.Pause(ctx))
	patches := layer(t, thawed, cfg.Memory)
	if len(patches) < tinyPages {
		t.Errorf("%d pages differ; the guest wrote at least %d", len(patches), tinyPages)
	}
	later := counter(t, thawed)
	state2 := save(t, thawed)
	must(t, thawed.Resume(ctx))
	counts(t, thawed)

	grandchild := cfg
	grandchild.Dir = filepath.Join(t.TempDir(), "vm")
	must(t, os.Mkdir(grandchild.Dir, 0o700))
	last := thaw(t, e, grandchild, state2, patches)
	if got := counter(t, last); got != later {
		t.Errorf("thawed at %d, frozen at %d", got, later)
	}
	must(t, last.Resume(ctx))
	counts(t, last)
	must(t, last.Release())
	adopted, err := e.Adopt(ctx, grandchild)
	must(t, err)
	killAtEnd(t, adopted)
	counts(t, adopted)
	must(t, adopted.Kill(ctx))
	if again, err := os.ReadFile(cfg.Memory); err != nil || !bytes.Equal(again, base) {
		t.Errorf("the base memory file was changed (%v)", err)
	}
}
