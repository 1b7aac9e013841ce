package qemu

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/testbed"
	"github.com/sporevm/spore/internal/vmm"
)

func TestReclaim(t *testing.T) {
	e := harness(t).New(t)
	vm, cfg := bootOne(t, e)
	ask(t, vm, "count")
	must(t, vm.Pause(t.Context()))
	state := filepath.Join(t.TempDir(), "state")
	out, err := os.Create(state)
	must(t, err)
	must(t, vm.SaveState(t.Context(), out))
	must(t, out.Close())
	testbed.Swap(t, 64)
	if _, err := vm.(vmm.Reclaimer).Reclaim(t.Context()); spore.CodeOf(err) != spore.CodeUnsupported {
		t.Errorf("of a booted VM, whose RAM is its file: %v", err)
	}
	must(t, vm.Kill(t.Context()))

	cfg.ID, cfg.Dir = "idle", filepath.Join(t.TempDir(), "vm")
	must(t, os.Mkdir(cfg.Dir, 0o700))
	in, err := os.Open(state)
	must(t, err)
	defer in.Close()
	vm, err = e.Thaw(t.Context(), cfg, vmm.Image{State: in})
	must(t, err)
	t.Cleanup(func() { must(t, vm.Kill(context.Background())) })
	must(t, vm.Resume(t.Context()))
	ask(t, vm, "fill 24576 3")
	sum := ask(t, vm, "sum")
	before := pss(t, vm.PID())
	began := time.Now()
	n, err := vm.(vmm.Reclaimer).Reclaim(t.Context())
	must(t, err)
	took, after := time.Since(began), pss(t, vm.PID())
	if n == 0 {
		t.Skip("the kernel swapped nothing out, although swap is on")
	}
	began = time.Now()
	if got := ask(t, vm, "sum"); got != sum {
		t.Errorf("the guest's memory became %s, was %s", got, sum)
	}
	t.Logf("%.1f MiB went to swap in %s; the process takes %.1f MiB after %.1f; the first answer took %s", float64(n)/(1<<20), took, after, before, time.Since(began))
	if n > 16<<20 && after > before-8 {
		t.Errorf("%d bytes were taken back and the process takes %.1f MiB after %.1f", n, after, before)
	}
	must(t, vm.Kill(t.Context()))
	if _, err := vm.(vmm.Reclaimer).Reclaim(t.Context()); spore.CodeOf(err) != spore.CodeConflict {
		t.Errorf("after the end: %v", err)
	}
}
