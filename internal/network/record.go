package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/sporevm/spore"
)

// record is what is known on disk of one namespace. It is there before anything else of it is made, and goes last. It need
// not survive a crash of the machine, which no namespace does; so it is replaced in one step but not synced.
type record struct {
	Slot    int           `json:"slot"`
	Outer   netip.Addr    `json:"outer"` // the host's end; the namespace's end is the next address
	ID      string        `json:"id"`    // whose it is; "" while it is nobody's
	Network spore.Network `json:"network"`
	Limits  spore.Limits  `json:"limits"`
	// Changing is set while a policy takes the place of another: flows that stood on the old one may not have been cut yet.
	Changing bool `json:"changing,omitempty"`
}

const recordSuffix = ".json"

func (m *Manager) recordPath(name string) string { return filepath.Join(m.opt.Dir, name+recordSuffix) }

func (m *Manager) writeRecord(name string, r record) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	aside := m.recordPath(name) + ".new"
	if err := os.WriteFile(aside, raw, 0o600); err != nil {
		return err
	}
	return os.Rename(aside, m.recordPath(name))
}

func (m *Manager) dropRecord(name string) error {
	for _, path := range []string{m.recordPath(name) + ".new", m.recordPath(name)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// records are all namespaces that are known on disk, by name. One whose record cannot be read is there with its error.
func (m *Manager) records() (map[string]record, map[string]error, error) {
	entries, err := os.ReadDir(m.opt.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	known, damaged := map[string]record{}, map[string]error{}
	for _, e := range entries {
		name, ok := strings.CutSuffix(strings.TrimSuffix(e.Name(), ".new"), recordSuffix)
		if !ok || !strings.HasPrefix(name, m.prefix) {
			continue
		}
		raw, err := os.ReadFile(m.recordPath(name))
		var r record
		if err == nil {
			r, err = parseRecord(raw)
		}
		if err == nil && slotName(m.prefix, r.Slot) != name {
			err = errors.New("it names another link")
		}
		if err != nil {
			damaged[name] = err
			continue
		}
		known[name] = r
	}
	return known, damaged, nil
}

func parseRecord(raw []byte) (r record, err error) {
	if err := json.Unmarshal(raw, &r); err != nil {
		return record{}, err
	}
	if r.Slot < 0 || r.Slot >= maxSlots {
		return record{}, errors.New("there is no such link")
	}
	if !r.Outer.Is4() || r.Outer.As4()[3]%2 != 0 {
		return record{}, errors.New("its address is not one of a link")
	}
	if r.ID == "" {
		return r, nil
	}
	if err := r.Network.Validate(); err != nil {
		return record{}, err
	}
	return r, r.Limits.Validate()
}

// slots hands out links, each a pair of addresses. They are handed out in turn, since packets for the last user of a pair may
// still be under way.
type slots struct {
	subnet netip.Prefix
	count  int
	next   int
	taken  map[int]bool
}

// maxSlots is how many links have a name of four digits.
const maxSlots = 1 << 16

func newSlots(subnet netip.Prefix, taken map[int]bool) slots {
	count := 1 << (31 - subnet.Bits())
	return slots{subnet: subnet, count: count, next: rand.IntN(count), taken: taken}
}

// take claims the next free slot, or says that there is none.
func (s *slots) take() (int, bool) {
	for range s.count {
		slot := s.next
		s.next = (s.next + 1) % s.count
		if !s.taken[slot] {
			s.taken[slot] = true
			return slot, true
		}
	}
	return 0, false
}

// slotName is the name of the namespace, and of the host's end of the link, at a slot. It fits into the 15 bytes of a link's name.
func slotName(prefix string, slot int) string { return fmt.Sprintf("%s%04x", prefix, slot) }

// outer is the address of the host's end of a link; the next one is that of the namespace's end.
func (s *slots) outer(slot int) netip.Addr {
	b := s.subnet.Addr().As4()
	n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	n += uint32(slot) * 2
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}
