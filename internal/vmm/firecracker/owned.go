package firecracker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// rangeSet is an ascending list of runs that do not touch.
type rangeSet []vmm.Range

// note returns a function that adds what a patch touches and refuses what is outside of RAM.
func (s *rangeSet) note(size int64) func(off int64, data []byte) error {
	return func(off int64, data []byte) error {
		n := int64(len(data))
		if off < 0 || off > size || n > size-off || off%vmm.PageSize != 0 || n%vmm.PageSize != 0 {
			return spore.Errorf(spore.CodeDamaged, "a memory patch of %d bytes at %d does not fit memory of %d bytes", n, off, size)
		}
		s.add(vmm.Range{Offset: off, Length: n})
		return nil
	}
}

// add joins a run into the set.
func (s *rangeSet) add(r vmm.Range) {
	if r.Length <= 0 {
		return
	}
	list := *s
	i, _ := slices.BinarySearchFunc(list, r.Offset, func(a vmm.Range, off int64) int {
		if a.End() < off {
			return -1
		}
		return 1
	})
	k := i
	for k < len(list) && list[k].Offset <= r.End() {
		end := max(r.End(), list[k].End())
		r.Offset = min(r.Offset, list[k].Offset)
		r.Length = end - r.Offset
		k++
	}
	*s = slices.Replace(list, i, k, r)
}

// own counts pages as the VM's own from now on, and writes down which.
func (m *machine) own(ranges []vmm.Range) error {
	m.mu.Lock()
	set := rangeSet(slices.Clone(m.owned))
	for _, r := range ranges {
		set.add(r)
	}
	m.owned = set
	m.mu.Unlock()
	text := make([]byte, 0, 16*len(set))
	for _, r := range set {
		text = binary.LittleEndian.AppendUint64(text, uint64(r.Offset))
		text = binary.LittleEndian.AppendUint64(text, uint64(r.Length))
	}
	return writeAside(filepath.Join(m.jail.work, workWritten), text)
}

// readOwned reads what own wrote; size is that of the memory.
func readOwned(work string, size int64) ([]vmm.Range, error) {
	text, err := os.ReadFile(filepath.Join(work, workWritten))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("firecracker: %w", err)
	}
	return parseOwned(text, size)
}

func parseOwned(text []byte, size int64) ([]vmm.Range, error) {
	damaged := spore.Errorf(spore.CodeDamaged, "the list of the VM's own pages is damaged")
	if len(text)%16 != 0 {
		return nil, damaged
	}
	var list []vmm.Range
	end := int64(-1)
	for ; len(text) > 0; text = text[16:] {
		off, n := binary.LittleEndian.Uint64(text), binary.LittleEndian.Uint64(text[8:])
		if off > uint64(size) || n == 0 || n > uint64(size)-off || off%vmm.PageSize != 0 || n%vmm.PageSize != 0 || int64(off) <= end {
			return nil, damaged
		}
		list = append(list, vmm.Range{Offset: int64(off), Length: int64(n)})
		end = int64(off + n)
	}
	return list, nil
}
