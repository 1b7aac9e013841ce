package frozen

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sporevm/spore/internal/vmm"
)

func TestFreezeAndThaw(t *testing.T) {
	for _, tracks := range []bool{true, false} {
		s := openStore(t, Options{})
		tpl := template(t, s, "tpl-1", 64)
		r := thaw(t, s, "tpl-1")
		r.vm.tracks = tracks
		r.vm.page(3, 33)
		r.vm.page(5, 0)
		r.vm.page(9, 0) // zero, as below: nothing to keep
		r.vm.page(1, 1) // as below: nothing to keep
		writeDisk(t, r.disk, 256, map[int64]byte{7: 0, 50: 50})
		snap := r.snapshot(t, s, "snap-1")
		r.expect(t, s, "snap-1")
		if snap.Epoch != 2 || snap.Parent != "tpl-1" || snap.Memory.Base != tpl.Memory.Base {
			t.Errorf("manifest %+v", snap)
		}
		if r.vm.State() != vmm.StateRunning {
			t.Errorf("VM is %s after the snapshot", r.vm.State())
		}
		l := openLayerOf(t, s, snap, snap.Memory.Top())
		var got [][2]int64
		for _, x := range l.runs {
			got = append(got, [2]int64{x.offset / pageSize, int64(x.codec)})
		}
		if diff := cmp.Diff([][2]int64{{3, int64(codecS2)}, {5, int64(codecZero)}}, got); diff != "" {
			t.Errorf("runs of the layer: %s", diff)
		}

		// A second generation, over a layer, with the same VM going on and with a thawed one.
		r.vm.page(40, 40)
		r.snapshot(t, s, "snap-2")
		r.expect(t, s, "snap-2")
		child := thaw(t, s, "snap-1")
		child.vm.page(3, 0)
		child.vm.page(5, 55)
		delete(child.vm.private, 60)
		child.snapshot(t, s, "snap-3")
		child.expect(t, s, "snap-3")
	}
}

func openLayerOf(t testing.TB, s *Store, m *Manifest, p Piece) *layer {
	t.Helper()
	size := m.Memory.Size
	if p.Kind == DiskLayer {
		size = m.Disk.Size
	}
	l, f, err := s.openLayer(m, p, size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return l
}
