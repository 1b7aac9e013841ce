package procmem

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/testbed"
	"github.com/sporevm/spore/internal/vmm"
)

const page = vmm.PageSize

func pages(pairs ...int64) (out []vmm.Range) {
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, vmm.Range{Offset: pairs[i] * page, Length: pairs[i+1] * page})
	}
	return out
}

// ramFile makes a RAM file whose page i is filled with byte(i).
func ramFile(t *testing.T, npages int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "memory")
	buf := make([]byte, npages*page)
	for i := range buf {
		buf[i] = byte(i / page)
	}
	if err := os.WriteFile(path, buf, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, pid int, path string, size int64) *Memory {
	t.Helper()
	m, err := Open(pid, path, size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// bothScans runs fn with the ioctl and with the page map that older kernels have.
func bothScans(t *testing.T, fn func(t *testing.T)) {
	t.Run("pagemap", func(t *testing.T) {
		defer noPagemapScan.Store(noPagemapScan.Swap(true))
		fn(t)
	})
	t.Run("ioctl", func(t *testing.T) {
		fn(t)
		if noPagemapScan.Load() {
			t.Skip("this kernel has no PAGEMAP_SCAN; only the page map was tested")
		}
	})
}

func TestPrivate(t *testing.T) {
	bothScans(t, func(t *testing.T) {
		path := ramFile(t, 64)
		c := startChild(t, path)
		m := open(t, c.pid, path, 64*page)
		check := func(want []vmm.Range) {
			t.Helper()
			got, err := m.Private(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatal(diff)
			}
		}
		check(nil)
		c.do("read 0 %d 0", 64*page)
		check(nil) // file pages in memory are not the process's own
		c.do("fill %d 1 7", 3*page+17)
		c.do("fill %d %d 8", 5*page-1, 2)
		c.do("fill %d %d 0", 63*page, page)
		check(pages(3, 3, 63, 1))
		c.do("drop %d %d 0", 4*page, page)
		check(pages(3, 1, 5, 1, 63, 1))
		if !m.IsPrivate() {
			t.Error("IsPrivate is false")
		}
	})
}

func TestScatteredPagesAgreeInBothScans(t *testing.T) {
	const n = 20000 // more runs than one ioctl brings back
	path := filepath.Join(t.TempDir(), "memory")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, n*page); err != nil {
		t.Fatal(err)
	}
	c := startChild(t, path)
	m := open(t, c.pid, path, n*page)
	w := m.NewWriter()
	var want runList
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := int64(0); i < n; i++ {
		if rnd.IntN(2) == 0 {
			want.add(i*page, page)
			if err := w.Add(i*page, bytes.Repeat([]byte{1}, page)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	bothScans(t, func(t *testing.T) {
		got, err := m.Private(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want.runs, got); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestSwappedPagesAreData(t *testing.T) {
	path := ramFile(t, 64)
	c := startChild(t, path)
	m := open(t, c.pid, path, 64*page)
	testbed.Swap(t, 8)
	c.do("fill %d %d 9", 10*page, 20*page)
	c.do("pageout %d %d 0", 10*page, 20*page)
	swapped := 0
	for i := int64(10); i < 30; i++ {
		var e [8]byte
		if _, err := m.pagemap.ReadAt(e[:], int64(m.runs[0].addr)/page*8+i*8); err != nil {
			t.Fatal(err)
		}
		if e[7]&0x40 != 0 {
			swapped++
		}
	}
	if swapped == 0 {
		t.Skip("the kernel swapped nothing out, although swap is on")
	}
	t.Logf("%d of 20 pages are swapped out", swapped)
	bothScans(t, func(t *testing.T) {
		got, err := m.Private(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(pages(10, 20), got); diff != "" {
			t.Fatal(diff)
		}
	})
	buf := make([]byte, 20*page)
	if _, err := m.ReadAt(buf, 10*page); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(buf, bytes.Repeat([]byte{9}, len(buf))) {
		t.Fatal("swapped pages read back other bytes")
	}
}

func TestEntries(t *testing.T) {
	for _, tc := range []struct {
		name         string
		entry        uint64
		holds, dirty bool
	}{
		{"absent", 0, false, false},
		{"file page", entryPresent | entryFile, false, false},
		{"file page, soft-dirty", entryPresent | entryFile | entrySoftDirty, false, false},
		{"own page", entryPresent, true, false},
		{"own page, soft-dirty", entryPresent | entrySoftDirty, true, true},
		{"swapped", entrySwapped, true, false},
		{"swapped, soft-dirty", entrySwapped | entrySoftDirty, true, true},
		{"file page under migration", entrySwapped | entryFile, false, false},
	} {
		if got := holds(tc.entry, false); got != tc.holds {
			t.Errorf("%s: holds = %v", tc.name, got)
		}
		if got := holds(tc.entry, true); got != tc.dirty {
			t.Errorf("%s: dirty = %v", tc.name, got)
		}
	}
}

func TestReadAndWrite(t *testing.T) {
	path := ramFile(t, 64)
	before := digest(t, path)
	c := startChild(t, path)
	c.do("protect %d %d 0", 16*page, 16*page)
	m := open(t, c.pid, path, 64*page)

	got := make([]byte, 40*page+5)
	if n, err := m.ReadAt(got, 7*page-3); err != nil || n != len(got) {
		t.Fatal(n, err)
	}
	for i, b := range got {
		if want := byte((7*page - 3 + i) / page); b != want {
			t.Fatalf("byte %d is %d, not %d", i, b, want)
		}
	}
	if private, err := m.Private(t.Context()); err != nil || len(private) > 0 {
		t.Fatal("reading made pages private:", private, err)
	}

	if n, err := m.WriteAt(bytes.Repeat([]byte{1}, 20*page), 10*page); err != nil || n != 20*page {
		t.Fatal(n, err)
	}
	if sum := c.do("read %d %d 0", 10*page, 20*page); sum != fmt.Sprint(20*page) {
		t.Fatal("the child sees", sum)
	}
	if digest(t, path) != before {
		t.Fatal("the RAM file was changed")
	}

	if _, err := m.WriteAt(make([]byte, 2), 64*page-1); err == nil {
		t.Error("write past the end succeeded")
	}
	if n, err := m.ReadAt(make([]byte, 10), 64*page-4); n != 4 || err != io.EOF {
		t.Error("read over the end:", n, err)
	}
	if _, err := m.ReadAt(make([]byte, 10), 64*page); err != io.EOF {
		t.Error("read after the end:", err)
	}
	if _, err := m.ReadAt(make([]byte, 10), -1); err == nil || err == io.EOF {
		t.Error("read before the start:", err)
	}
}

func TestWriterKeepsOrder(t *testing.T) {
	const n = 1500
	path := ramFile(t, n)
	c := startChild(t, path)
	c.do("protect %d %d 0", 700*page, page)
	m := open(t, c.pid, path, n*page)
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	w := m.NewWriter()
	rnd := rand.New(rand.NewPCG(3, 4))
	buf := make([]byte, 400*page)
	for range 3000 {
		length := 1 + rnd.IntN(3)
		if rnd.IntN(200) == 0 {
			length = 1 + rnd.IntN(400)
		}
		off := rnd.IntN(n - length + 1)
		data := buf[:length*page]
		for i := range data {
			data[i] = byte(rnd.Uint32())
		}
		copy(want[off*page:], data)
		if err := w.Add(int64(off)*page, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, n*page)
	if _, err := m.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("guest RAM is not what was written")
	}
	if err := w.Add(n*page, []byte{1}); err == nil {
		t.Error("Add past the end succeeded")
	}
}

func TestTrack(t *testing.T) {
	path := ramFile(t, 64)
	c := startChild(t, path)
	m := open(t, c.pid, path, 64*page)
	c.do("fill 0 %d 1", 8*page)
	if _, err := m.Written(t.Context()); spore.CodeOf(err) != spore.CodeUnsupported {
		t.Fatal("Written without Track:", err)
	}
	ok, err := softDirty()
	if err != nil {
		t.Fatal(err)
	}
	err = m.Track(t.Context())
	if !ok {
		if spore.CodeOf(err) != spore.CodeUnsupported {
			t.Fatal("Track on a kernel without soft-dirty bits:", err)
		}
		t.Skip("this kernel has no soft-dirty bits")
	}
	if err != nil {
		t.Fatal(err)
	}
	c.do("fill %d 1 2", 2*page)
	c.do("fill %d 1 2", 20*page)
	c.do("drop %d %d 0", 5*page, page)
	bothScans(t, func(t *testing.T) {
		got, err := m.Written(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range pages(2, 1, 5, 1, 20, 1) {
			if len(subtract([]vmm.Range{want}, got)) > 0 {
				t.Errorf("%v is missing in %v", want, got)
			}
		}
	})
}

func TestSharedMapping(t *testing.T) {
	path := ramFile(t, 16)
	c := startChild(t, path, "PROCMEM_SHARED=1")
	m := open(t, c.pid, path, 16*page)
	if m.IsPrivate() {
		t.Error("IsPrivate is true")
	}
	if _, err := m.Private(t.Context()); spore.CodeOf(err) != spore.CodeUnsupported {
		t.Error("Private:", err)
	}
	if err := m.Track(t.Context()); spore.CodeOf(err) != spore.CodeUnsupported {
		t.Error("Track:", err)
	}
	if _, err := m.ReadAt(make([]byte, page), 0); err != nil {
		t.Error(err)
	}
}

func TestOpenRefusals(t *testing.T) {
	path, other := ramFile(t, 16), ramFile(t, 16)
	c := startChild(t, path)
	if _, err := Open(c.pid, other, 16*page); spore.CodeOf(err) != spore.CodeNotFound {
		t.Error("a file that is not mapped:", err)
	}
	if _, err := Open(c.pid, path, 17*page); err == nil {
		t.Error("a size beyond the mapping was accepted")
	}
	if _, err := Open(c.pid, path, 5); err == nil {
		t.Error("an odd size was accepted")
	}
	if _, err := Open(c.pid, path+"-missing", page); !errors.Is(err, os.ErrNotExist) {
		t.Error("a missing file:", err)
	}
}

func TestEndedProcess(t *testing.T) {
	path := ramFile(t, 16)
	c := startChild(t, path)
	m := open(t, c.pid, path, 16*page)
	w := m.NewWriter()
	if err := w.Add(0, make([]byte, page)); err != nil {
		t.Fatal(err)
	}
	c.end()
	conflict := func(what string, err error) {
		t.Helper()
		if spore.CodeOf(err) != spore.CodeConflict {
			t.Errorf("%s of an ended process: %v", what, err)
		}
	}
	bothScans(t, func(t *testing.T) {
		_, err := m.Private(t.Context())
		conflict("Private", err)
	})
	_, err := m.ReadAt(make([]byte, page), 0)
	conflict("ReadAt", err)
	_, err = m.WriteAt(make([]byte, page), 0)
	conflict("WriteAt", err)
	conflict("Flush", w.Flush())
	_, err = Open(c.pid, path, 16*page)
	conflict("Open", err)
}

func TestCanceledScan(t *testing.T) {
	path := ramFile(t, 16)
	c := startChild(t, path)
	m := open(t, c.pid, path, 16*page)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	bothScans(t, func(t *testing.T) {
		if _, err := m.Private(ctx); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func digest(t *testing.T, path string) [32]byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(b)
}

func BenchmarkPrivate2GiB(b *testing.B) {
	const size = 2 << 30
	path := filepath.Join(b.TempDir(), "memory")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		b.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		b.Fatal(err)
	}
	t := &testing.T{}
	c := startChild(t, path)
	defer c.end()
	m, err := Open(c.pid, path, size)
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	for i := range 1000 {
		c.do("fill %d 20000 1", i*(size/1000)/page*page)
	}
	for _, old := range []bool{false, true} {
		b.Run(fmt.Sprintf("pagemap=%v", old), func(b *testing.B) {
			defer noPagemapScan.Store(noPagemapScan.Swap(old))
			for b.Loop() {
				if _, err := m.Private(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
