package procmem

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// Track starts to watch for writes, by clearing the soft-dirty bits of the process. It fails with
// spore.CodeUnsupported on kernels without them and for RAM that is mapped shared.
func (m *Memory) Track(ctx context.Context) error {
	if !m.private {
		return spore.Errorf(spore.CodeUnsupported, "this VM shares its RAM with its memory file: the file is the memory")
	}
	if ok, err := softDirty(); err != nil {
		return err
	} else if !ok {
		return spore.Errorf(spore.CodeUnsupported, "this kernel does not record which pages are written").
			WithHint("a kernel built with CONFIG_MEM_SOFT_DIRTY does; without it every private page counts as written")
	}
	release, err := m.hold()
	if err != nil {
		return err
	}
	defer release()
	m.mu.Lock()
	defer m.mu.Unlock()
	private, err := m.scan(ctx, false)
	if err != nil {
		return err
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", m.pid), []byte("4"), 0); err != nil {
		return m.explain("watch the writes", err)
	}
	if !m.alive() {
		return gone(m.pid, nil)
	}
	m.tracked, m.marked = private, true
	return nil
}

// Written lists the pages written since the latest Track.
func (m *Memory) Written(ctx context.Context) ([]vmm.Range, error) {
	release, err := m.hold()
	if err != nil {
		return nil, err
	}
	defer release()
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.marked {
		return nil, spore.Errorf(spore.CodeUnsupported, "writes of this VM are not being watched")
	}
	dirty, err := m.scan(ctx, true)
	if err != nil {
		return nil, err
	}
	now, err := m.scan(ctx, false)
	if err != nil {
		return nil, err
	}
	// A page that was private and is no longer has gone back to the file's bytes (MADV_DONTNEED, as a balloon does).
	// That is a change that leaves no dirty bit.
	return union(dirty, subtract(m.tracked, now)), nil
}

// softDirty tests once whether the kernel keeps soft-dirty bits: a page that was just written must carry one.
var softDirty = sync.OnceValues(func() (bool, error) {
	page, err := unix.Mmap(-1, 0, vmm.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return false, fmt.Errorf("procmem: test for soft-dirty bits: %w", err)
	}
	defer unix.Munmap(page)
	page[0] = 1
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return false, fmt.Errorf("procmem: test for soft-dirty bits: %w", err)
	}
	defer f.Close()
	entry, err := readEntry(f, page)
	if err != nil {
		return false, fmt.Errorf("procmem: test for soft-dirty bits: %w", err)
	}
	if entry&(entryPresent|entrySwapped) == 0 {
		return false, errors.New("procmem: test for soft-dirty bits: the page map hides a page that was just written")
	}
	return entry&entrySoftDirty != 0, nil
})

// union joins two ascending lists of runs.
func union(a, b []vmm.Range) []vmm.Range {
	var out []vmm.Range
	for len(a) > 0 || len(b) > 0 {
		src := &a
		if len(a) == 0 || len(b) > 0 && b[0].Offset < a[0].Offset {
			src = &b
		}
		r := (*src)[0]
		*src = (*src)[1:]
		if n := len(out); n > 0 && r.Offset <= out[n-1].End() {
			out[n-1].Length = max(out[n-1].End(), r.End()) - out[n-1].Offset
			continue
		}
		out = append(out, r)
	}
	return out
}

// subtract is what of the ascending list a is not in the ascending list b.
func subtract(a, b []vmm.Range) []vmm.Range {
	var out []vmm.Range
	for _, r := range a {
		for len(b) > 0 && b[0].End() <= r.Offset {
			b = b[1:]
		}
		off := r.Offset
		for _, cut := range b {
			if cut.Offset >= r.End() {
				break
			}
			if cut.Offset > off {
				out = append(out, vmm.Range{Offset: off, Length: cut.Offset - off})
			}
			off = max(off, cut.End())
		}
		if off < r.End() {
			out = append(out, vmm.Range{Offset: off, Length: r.End() - off})
		}
	}
	return out
}
