package procmem

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
)

// OpenAnonymous finds in process pid guest RAM that is no file's. Each layout is one way in which the RAM may be split, as
// the lengths of its parts in the order of guest addresses; the process must have, for one layout, exactly one private
// anonymous mapping of each length. Pages that the process has touched, if only to read, are private. It fails as Open
// does.
func OpenAnonymous(pid int, layouts [][]int64) (*Memory, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, gone(pid, err)
	}
	m := &Memory{pid: pid, pidfd: pidfd, private: true}
	if err := m.attachAnonymous(layouts); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func (m *Memory) attachAnonymous(layouts [][]int64) error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", m.pid))
	if err != nil {
		return m.explain("read the memory map", err)
	}
	mappings, err := ParseMaps(text)
	if err != nil {
		return err
	}
	var ok bool
	if m.runs, m.size, ok = locateAnonymous(mappings, layouts); !ok {
		if !m.alive() {
			return gone(m.pid, nil)
		}
		return spore.Errorf(spore.CodeNotFound, "the process has no mapping that must be its guest's RAM")
	}
	return m.open()
}

// locateAnonymous picks the mappings of the first layout of which every part is there once.
func locateAnonymous(all []Mapping, layouts [][]int64) (runs []segment, size int64, ok bool) {
	byLength := map[int64][]Mapping{}
	for _, mp := range all {
		if mp.Private && mp.Writable && mp.Inode == 0 && (mp.Path == "" || mp.Path == "[anon]") {
			byLength[int64(mp.End-mp.Start)] = append(byLength[int64(mp.End-mp.Start)], mp)
		}
	}
	for _, layout := range layouts {
		runs, size, ok = nil, 0, len(layout) > 0
		taken := map[int64]bool{}
		for _, n := range layout {
			if len(byLength[n]) != 1 || taken[n] {
				ok = false
				break
			}
			taken[n] = true
			runs = append(runs, segment{off: size, len: n, addr: byLength[n][0].Start})
			size += n
		}
		if ok {
			return runs, size, true
		}
	}
	return nil, 0, false
}
