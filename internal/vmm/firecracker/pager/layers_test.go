package pager_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/frozen"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/firecracker/pager"
	"github.com/sporevm/spore/internal/vmm/sim"
)

// snapshots freezes a VM, and two snapshots one over the other, in a store. It answers the last one and what its memory is.
func snapshots(t *testing.T, dir string) (*frozen.Store, *frozen.Manifest, []byte) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	guests := make(chan *sim.Guest, 1)
	engine := sim.New(sim.Options{Guest: func(g *sim.Guest, _ string, conn sim.Conn) {
		guests <- g
		conn.Close()
	}})
	store, err := frozen.Open(filepath.Join(dir, "frozen"), frozen.Options{MaxLayers: 8})
	check(err)
	t.Cleanup(func() { store.Close() })
	rnd := rand.New(rand.NewPCG(5, 5))
	ram := make([]byte, 2*mib)
	cfg := vmm.Config{ID: "s1", VCPUs: 1, MemoryMiB: 2, Kernel: filepath.Join(dir, "kernel")}
	check(os.WriteFile(cfg.Kernel, []byte("kernel"), 0o600))
	scribble := func(vm vmm.VM) {
		conn, err := vm.DialPort(t.Context(), vmm.PortControl)
		check(err)
		defer conn.Close()
		g := <-guests
		for range 12 {
			off := rnd.Int64N(500) * 4096
			n := int64(1+rnd.IntN(60)) * 4096
			part := ram[off:min(off+n, 2*mib)]
			if rnd.IntN(4) == 0 {
				clear(part)
			} else {
				random(rnd, part)
			}
			_, err := g.WriteAt(part, off)
			check(err)
		}
	}
	shape := frozen.Shape{VCPUs: 1, MemoryMiB: 2, Kernel: "krn-1", Artifact: "rfs-1", Engine: frozen.Engine{Engine: "sim"}}
	draft, err := store.Begin(t.Context(), frozen.Spec{ID: "tpl-1", Kind: frozen.KindTemplate, Shape: shape})
	check(err)
	cfg.Dir, cfg.Memory = t.TempDir(), draft.BaseMemoryPath()
	vm, err := engine.Boot(t.Context(), cfg)
	check(err)
	scribble(vm)
	_, err = draft.CaptureBoot(t.Context(), vm, "")
	check(err)
	check(vm.Kill(t.Context()))
	m, err := draft.Commit(t.Context())
	check(err)
	for _, id := range []string{"snap-1", "snap-2"} {
		img, err := store.OpenImage(t.Context(), m.ID)
		check(err)
		cfg.Dir, cfg.Memory = t.TempDir(), img.BaseMemory
		vm, err := engine.Thaw(t.Context(), cfg, img.VM)
		check(err)
		check(img.Close())
		check(vm.Resume(t.Context()))
		scribble(vm)
		draft, err := store.Begin(t.Context(), frozen.Spec{ID: id, Kind: frozen.KindSnapshot, Shape: shape, Parent: m})
		check(err)
		_, err = draft.CaptureLive(t.Context(), vm, "", frozen.Resume)
		check(err)
		m, err = draft.Commit(t.Context())
		check(err)
		check(vm.Kill(t.Context()))
	}
	return store, m, ram
}

// TestLayers serves a snapshot of a snapshot from the store's own files, and then with a layer that is damaged.
func TestLayers(t *testing.T) {
	f := newFrozen(t, mib, 1)
	store, m, ram := snapshots(t, f.dir)
	if len(m.Memory.Layers) != 2 {
		t.Fatalf("memory %+v", m.Memory)
	}
	serve := func(t *testing.T) (*pager.Handle, *vmmProcess) {
		t.Helper()
		img, err := store.OpenImage(t.Context(), m.ID)
		if err != nil {
			t.Fatal(err)
		}
		defer img.Close()
		spec, err := pager.NewSpec(t.Context(), img.BaseMemory, m.Memory.Size, img.VM.Patches, f.dir)
		if err != nil {
			t.Fatal(err)
		}
		defer spec.Close()
		cfg := f.config()
		h, err := pager.Start(t.Context(), cfg, spec)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { stop(t, h) })
		return h, startVMM(t, vmmConfig{Socket: cfg.Socket, Regions: []vmmRegion{{Size: 2 * mib, Page: 4096}}})
	}
	t.Run("sound", func(t *testing.T) {
		_, v := serve(t)
		same(t, v.memory(), ram)
	})
	t.Run("damaged", func(t *testing.T) {
		h, v := serve(t)
		layer := m.Memory.Layers[1]
		if _, err := os.Stat(filepath.Join(f.dir, "frozen", "pieces", layer.ID, "data")); err != nil {
			t.Fatal(err)
		}
		file, err := os.OpenFile(filepath.Join(f.dir, "frozen", "pieces", layer.ID, "data"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		var b [1]byte
		for off := int64(64); off < layer.Size/2; off += 999 { // in the frames
			if _, err := file.ReadAt(b[:], off); err != nil {
				t.Fatal(err)
			}
			b[0] ^= 1
			if _, err := file.WriteAt(b[:], off); err != nil {
				t.Fatal(err)
			}
		}
		v.tell(command{Op: "dump", Path: filepath.Join(f.dir, "dump")})
		soon(t, h.Done(), "damage is told")
		if err := h.Err(); spore.CodeOf(err) != spore.CodeDamaged || !strings.Contains(err.Error(), layer.ID) {
			t.Errorf("damage: %v", err)
		}
		v.end()
		for v.out.Scan() {
			t.Errorf("the guest read on: %s", v.out.Text())
		}
	})
}
