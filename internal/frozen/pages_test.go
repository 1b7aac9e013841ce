package frozen

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm/firecracker/pager"
)

// openPages opens the memory of a frozen VM as a page server does: with files of its own.
func openPages(t testing.TB, s *Store, id string) (pager.Source, error) {
	t.Helper()
	m := must[*Manifest](t)(s.Manifest(id))
	reopen := func(p Piece) *os.File { return must[*os.File](t)(os.Open(s.dataPath(p.ID))) }
	base := must[pager.Source](t)(pager.OpenFile(reopen(m.Memory.Base), m.Memory.Base.ID, m.Memory.Size))
	var names []string
	var files []*os.File
	for _, p := range m.Memory.Layers {
		names, files = append(names, p.ID), append(files, reopen(p))
	}
	pages, err := OpenPages(base, names, files)
	if err != nil {
		for _, c := range append([]*os.File{}, files...) {
			c.Close()
		}
		base.Close()
		return nil, err
	}
	t.Cleanup(func() { pages.Close() })
	return pages, nil
}

// readPages reads memory from off to end by runs, with a buffer of the given pages.
func readPages(src pager.Source, off, end int64, pages int) ([]byte, error) {
	out, buf := make([]byte, 0, end-off), make([]byte, pages*pageSize)
	for off < end {
		n, zero, err := src.Run(off, buf[:min(int64(len(buf)), end-off)])
		if err != nil {
			return nil, err
		}
		if n = min(n, end-off); n <= 0 || n%pageSize != 0 {
			return nil, io.ErrNoProgress
		}
		if zero {
			out = append(out, make([]byte, n)...)
		} else {
			out = append(out, buf[:n]...)
		}
		off += n
	}
	return out, nil
}

// deepSnapshot freezes a VM several times over, so that layers of all kinds of runs lie over each other.
func deepSnapshot(t testing.TB, s *Store, rt *rapid.T) *Manifest {
	template(t, s, "tpl-1", 256)
	r := thaw(t, s, "tpl-1")
	var m *Manifest
	for i := range 3 {
		for range rapid.IntRange(1, 6).Draw(rt, "writes") {
			p := rapid.Int64Range(0, 255).Draw(rt, "page")
			for n := p; n < min(256, p+rapid.Int64Range(1, 100).Draw(rt, "pages")); n++ {
				if rapid.Bool().Draw(rt, "random") {
					r.vm.put(n*pageSize, []byte(randomHex(pageSize/2)))
				} else {
					r.vm.page(n, rapid.Byte().Draw(rt, "fill")%3)
				}
			}
		}
		m = r.snapshot(t, s, []string{"snap-1", "snap-2", "snap-3"}[i])
		r = thaw(t, s, m.ID)
	}
	return m
}

// TestPages reads chains of layers as a page server does, anywhere and by any number of pages.
func TestPages(t *testing.T) {
	t.Parallel()
	root := tempDir(t)
	rapid.Check(t, func(rt *rapid.T) {
		dir := must[string](t)(os.MkdirTemp(root, "pages-"))
		defer os.RemoveAll(dir)
		s := must[*Store](t)(Open(filepath.Join(dir, "frozen"), Options{MaxLayers: 8}))
		defer s.Close()
		m := deepSnapshot(t, s, rt)
		img := must[*Image](t)(s.OpenImage(t.Context(), m.ID))
		defer img.Close()
		want := make([]byte, m.Memory.Size)
		if _, err := img.Memory().ReadAt(want, 0); err != nil && err != io.EOF {
			rt.Fatal(err)
		}
		src := must[pager.Source](t)(openPages(t, s, m.ID))
		for range 20 {
			off := rapid.Int64Range(0, 255).Draw(rt, "off") * pageSize
			end := min(off+rapid.Int64Range(1, 256).Draw(rt, "len")*pageSize, m.Memory.Size)
			got, err := readPages(src, off, end, rapid.IntRange(1, 80).Draw(rt, "buffer"))
			if err != nil {
				rt.Fatal(err)
			}
			if !bytes.Equal(got, want[off:end]) {
				rt.Fatalf("%d to %d: page %d differs", off, end, firstDifference(got, want[off:end])/pageSize)
			}
		}
		names, files := img.VM.Patches.(pager.Layered).LayerFiles()
		if len(files) != len(m.Memory.Layers) || len(names) != len(files) || names[0] != m.Memory.Layers[0].ID {
			rt.Fatalf("layers %v of %+v", names, m.Memory.Layers)
		}
	})
}

// TestPagesDamage flips bytes all over a layer: it is refused by name, when it is opened or when the frame is read.
func TestPagesDamage(t *testing.T) {
	t.Parallel()
	s := openStoreIn(t, filepath.Join(tempDir(t), "frozen"), Options{})
	template(t, s, "tpl-1", 64)
	r := thaw(t, s, "tpl-1")
	for p := int64(10); p < 14; p++ {
		r.vm.put(p*pageSize, []byte(randomHex(pageSize/2)))
	}
	r.vm.page(20, 0)
	for p := int64(30); p < 40; p++ {
		r.vm.page(p, 7)
	}
	m := r.snapshot(t, s, "snap-1")
	layer := m.Memory.Layers[0]
	path := s.dataPath(layer.ID)
	size := must[os.FileInfo](t)(os.Stat(path)).Size()
	for _, at := range slices.Sorted(slices.Values(positions(size))) {
		flip(t, path, at)
		src, err := openPages(t, s, "snap-1")
		if err == nil {
			_, err = readPages(src, 0, 64*pageSize, 8)
		}
		if spore.CodeOf(err) != spore.CodeDamaged || !strings.Contains(err.Error(), layer.ID) {
			t.Errorf("byte %d of %d flipped: %v", at, size, err)
		}
		flip(t, path, at)
	}
	src, err := openPages(t, s, "snap-1")
	if err != nil {
		t.Fatal(err)
	}
	got, err := readPages(src, 0, 64*pageSize, 8)
	if err != nil || !bytes.Equal(got, r.vm.ram) {
		t.Errorf("after all is put back: %v", err)
	}
}
