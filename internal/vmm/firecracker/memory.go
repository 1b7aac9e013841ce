package firecracker

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"time"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/procmem"
)

// A thawed VM's RAM is its memory file, mapped privately: its own pages are the anonymous ones there, and procmem sees
// them as with any engine. Patches are put into a copy of the file first, so the pages they touched count besides. With a
// pager the RAM is no file's, and every page that was only looked at would count; there the engine asks Firecracker itself
// which pages were written, and keeps the sum of its answers. Both kinds of pages that count besides are machine.owned,
// which is on disk too, for the next server.

// openMemoryFor makes the VM's memory ready to be loaded.
func (m *machine) openMemoryFor(ctx context.Context, patches vmm.Patches) (memoryBackend, error) {
	if p := m.eng.opts.Pager; p != nil && !m.jail.binary.Version.misplaces(ramBytes(m.cfg)) && p.Wants(m.cfg.Memory, patches) {
		return m.startPager(ctx, patches)
	}
	memory := m.cfg.Memory
	if patches != nil {
		memory = m.flatPath()
		ranges, err := flatten(ctx, m.cfg.Memory, memory, patches)
		if err != nil {
			return memoryBackend{}, err
		}
		if err := m.own(ranges); err != nil {
			return memoryBackend{}, err
		}
	}
	err := m.jail.expose([]exposure{{name: nameMemory, path: memory, readOnly: true}})
	return memoryBackend{BackendType: backendFile, BackendPath: nameMemory}, err
}

// flatPath is where the memory with its patches is written down.
func (m *machine) flatPath() string { return filepath.Join(m.jail.work, nameMemory) }

func (m *machine) startPager(ctx context.Context, patches vmm.Patches) (memoryBackend, error) {
	spec := PagerSpec{
		ID: m.cfg.ID, Dir: m.jail.work, Socket: m.jail.file(namePager), UID: m.jail.uid,
		Memory: m.cfg.Memory, Size: ramBytes(m.cfg), Patches: patches,
	}
	var ranges rangeSet
	if c, ok := patches.(covering); ok {
		for _, r := range c.Covered() {
			ranges.add(r)
		}
	} else if patches != nil {
		spec.Patches = noting{patches, &ranges, ramBytes(m.cfg)}
	}
	p, err := m.eng.opts.Pager.Start(ctx, spec)
	if err != nil {
		return memoryBackend{}, err
	}
	m.watchPager(p)
	if patches != nil && len(ranges) == 0 { // it reads the patches where they lie
		if err := patches.Each(ctx, ranges.note(ramBytes(m.cfg))); err != nil {
			return memoryBackend{}, err
		}
	}
	return memoryBackend{BackendType: backendUffd, BackendPath: namePager}, m.own(ranges)
}

// covering are patches that know what they touch without being read.
type covering interface{ Covered() []vmm.Range }

// noting sees which pages patches touch as someone else reads them.
type noting struct {
	vmm.Patches
	ranges *rangeSet
	size   int64
}

func (n noting) Each(ctx context.Context, fn func(int64, []byte) error) error {
	note := n.ranges.note(n.size)
	return n.Patches.Each(ctx, func(off int64, data []byte) error {
		if err := note(off, data); err != nil {
			return err
		}
		return fn(off, data)
	})
}

// watchPager ends the VM when its pager ends: a guest whose pages nobody brings hangs.
func (m *machine) watchPager(p PagerProcess) {
	m.mu.Lock()
	m.pager = p
	m.mu.Unlock()
	go func() {
		select {
		case <-p.Done():
		case <-m.gone:
			return
		}
		cause := p.Err()
		if cause == nil { // as when it was let go of, or the VM has ended
			select {
			case <-m.jail.proc.done:
			case <-time.After(5 * time.Second):
			}
		}
		if m.jail.proc.ended() {
			return
		}
		m.mu.Lock()
		if m.broken == nil && !m.released {
			m.broken = spore.Errorf(spore.CodeConflict, "the VM %s was ended, since the process that brings it its memory has ended (%v)", m.cfg.ID, cause).
				WithCause(cause)
		}
		released := m.released
		m.mu.Unlock()
		if released {
			return
		}
		if err := m.jail.proc.kill(); err != nil {
			m.log.Error("end a VM whose pager has ended", "error", err)
		}
	}()
}

// pageServer is the VM's pager; nil when it has none.
func (m *machine) pageServer() PagerProcess {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pager
}

func (m *machine) endPager() error {
	if p := m.pageServer(); p != nil {
		return p.Kill(context.Background())
	}
	return nil
}

// memory is what a caller sees of the RAM.
type memory struct {
	*procmem.Memory
	m *machine
}

// Memory shows the RAM; see vmm.VM.
func (m *machine) Memory() (vmm.Memory, error) {
	if err := m.usable(); err != nil {
		return nil, err
	}
	mem, err := m.openMemory()
	if err != nil {
		return nil, err
	}
	return memory{mem, m}, nil
}

func (m *machine) openMemory() (*procmem.Memory, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.memory != nil {
		return m.memory, nil
	}
	var err error
	switch {
	case m.booted || m.pager != nil: // m.mu is held
		m.memory, err = procmem.OpenAnonymous(m.jail.proc.pid, layouts(ramBytes(m.cfg)))
	default:
		path := m.cfg.Memory
		if _, statErr := os.Stat(m.flatPath()); statErr == nil {
			path = m.flatPath()
		}
		m.memory, err = procmem.Open(m.jail.proc.pid, path, ramBytes(m.cfg))
	}
	return m.memory, err
}

// layouts are the ways in which versions of Firecracker split RAM around the places of devices below 4 GiB and, since
// 1.13, at 256 GiB. The parts are in the order of guest addresses.
func layouts(size int64) [][]int64 {
	var all [][]int64
	for _, gap := range []int64{3 << 30, 3328 << 20} {
		if size <= gap {
			all = append(all, []int64{size})
			continue
		}
		all = append(all, []int64{gap, size - gap})
		if below := int64(252) << 30; size-gap > below {
			all = append(all, []int64{gap, below, size - gap - below})
		}
	}
	return all
}

func (m *machine) closeMemory() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.memory == nil {
		return nil
	}
	mem := m.memory
	m.memory = nil
	return mem.Close()
}

func errOwnRAM() error {
	return spore.Errorf(spore.CodeUnsupported, "this VM was booted, not thawed: saving its state writes all of its memory to the memory file")
}

// Private lists the VM's own pages; see vmm.Memory.
func (v memory) Private(ctx context.Context) ([]vmm.Range, error) {
	switch {
	case v.m.booted:
		return nil, errOwnRAM()
	case v.m.pageServer() != nil:
		if err := v.m.askWritten(ctx); err != nil {
			return nil, err
		}
		return v.m.ownedSoFar(), nil
	}
	held, err := v.Memory.Private(ctx)
	if err != nil {
		return nil, err
	}
	set := rangeSet(v.m.ownedSoFar())
	if len(set) == 0 {
		return held, nil
	}
	for _, r := range held {
		set.add(r)
	}
	return set, nil
}

func (m *machine) ownedSoFar() []vmm.Range {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.owned)
}

// Track watches for writes; see vmm.Memory.
func (v memory) Track(ctx context.Context) error {
	switch {
	case v.m.booted:
		return errOwnRAM()
	case v.m.pageServer() != nil:
		return spore.Errorf(spore.CodeUnsupported, "writes to memory that a pager serves are not told apart")
	}
	return v.Memory.Track(ctx)
}

// Written lists the pages written since Track; see vmm.Memory.
func (v memory) Written(ctx context.Context) ([]vmm.Range, error) {
	if v.m.booted || v.m.pageServer() != nil {
		return nil, spore.Errorf(spore.CodeUnsupported, "writes of this VM are not being watched")
	}
	return v.Memory.Written(ctx)
}
