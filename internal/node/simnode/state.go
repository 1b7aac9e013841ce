package simnode

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sporevm/spore"
)

// Sizes of what a model has instead of bytes.
const (
	mib         = 1 << 20
	deviceBytes = 80 << 10  // the saved state of a VM's devices
	layerBytes  = mib       // memory that a guest changes by merely running
	diskBytes   = 64 << 10  // the disk of a VM, and the whole image of one
	blockBytes  = 4 << 10   // a file on it, beside its content
	bootDelay   = 4_000     // milliseconds that a boot is said to have taken
	baseShare   = 8         // one part in so many of a booted guest's memory is not zero
	settleBytes = 200 * mib // bytes a second at which frozen states are said to reach the disk
)

// piece is one immutable part of frozen states. Its id names its content: machines that have a piece of one id have the
// same piece.
type piece struct {
	id      string
	kind    string // "memory", "disk", "state"
	bytes   int64
	damaged bool
	rotten  bool // damaged, but only reading every byte shows it
}

// manifest is one frozen state. It never changes; what replaces it is another.
type manifest struct {
	id        string
	madeAs    string // the id that it had before it was promoted
	capture   string // that its topmost pieces are of
	resources spore.Resources
	nic       bool
	artifact  string
	bound     spore.Components
	memory    []*piece // the base first
	disk      []*piece
	device    *piece
	files     map[string]string // on its disk; never changed
}

func (s *manifest) pieces() []*piece {
	if s.device == nil { // of a VM that booted: it stands on none
		return nil
	}
	return append(append(slices.Clone(s.memory), s.disk...), s.device)
}

// renamed is the same state under another id.
func (s *manifest) renamed(id string) *manifest {
	c := *s
	c.id, c.madeAs = id, ""
	return &c
}

func (s *manifest) facts() *spore.Frozen {
	f := &spore.Frozen{
		ID: s.id, ChainDepth: len(s.memory) - 1, KernelID: s.bound.GuestImage, KernelVersion: s.bound.Kernel, AgentVersion: s.bound.Agent,
		Engine: s.bound.Engine, EngineVersion: s.bound.EngineVersion, StateFormat: s.bound.StateFormat, CPU: s.bound.CPU,
	}
	if top := s.memory[len(s.memory)-1]; strings.HasSuffix(top.id, s.capture) {
		f.MemoryBytes = top.bytes
	}
	if top := s.disk[len(s.disk)-1]; strings.HasSuffix(top.id, s.capture) {
		f.DiskBytes = top.bytes
	}
	return f
}

// timed is facts of a state that was just captured.
func (s *manifest) timed() *spore.Frozen {
	f := s.facts()
	f.Paused = 6*time.Millisecond + time.Duration(f.MemoryBytes/mib)*100*time.Microsecond
	f.Total = f.Paused + time.Duration((f.MemoryBytes+f.DiskBytes)*1000/settleBytes)*time.Millisecond
	return f
}

// newPiece makes a part of a capture.
func newPiece(kind, capture string, bytes int64) *piece {
	return &piece{id: kind + "-" + capture, kind: kind, bytes: bytes}
}

// booted is the state of a guest that was booted, with these files on its disk.
func booted(id, capture string, r spore.Resources, artifact string, bound spore.Components, files map[string]string) *manifest {
	return &manifest{
		id: id, capture: capture, resources: r, artifact: artifact, bound: bound, files: files,
		memory: []*piece{newPiece("memory", capture, int64(r.MemoryMiB)*mib/baseShare)},
		disk:   []*piece{newPiece("disk", capture, diskBytes+differing(nil, files))},
		device: newPiece("state", capture, deviceBytes),
	}
}

// over is the state of a guest that was thawed, as a layer above parent.
func over(id, capture string, parent *manifest, files map[string]string) *manifest {
	s := parent.renamed(id)
	s.capture, s.files = capture, maps.Clone(files)
	changed := differing(parent.files, files)
	s.memory = append(slices.Clone(parent.memory), newPiece("memory", capture, layerBytes+changed))
	s.disk = append(slices.Clone(parent.disk), newPiece("disk", capture, blockBytes+changed))
	s.device = newPiece("state", capture, deviceBytes)
	return s
}

// differing is how many bytes files have come to take up that are not as they were before.
func differing(before, now map[string]string) (bytes int64) {
	for path, content := range now {
		if old, ok := before[path]; !ok || old != content {
			bytes += blockBytes + int64(len(content))
		}
	}
	return bytes
}

// newBytes is what a state takes up beyond what is on the machine.
func (m *Machine) newBytes(s *manifest) (bytes int64) {
	for _, p := range s.pieces() {
		if m.pieces[p.id] == nil {
			bytes += p.bytes
		}
	}
	return bytes
}

// commit puts a frozen state and its new pieces on the machine.
func (c *call) commit(s *manifest) {
	for _, p := range s.pieces() {
		if c.m.pieces[p.id] == nil {
			c.m.pieces[p.id] = p
			c.grow(p.bytes)
		}
	}
	c.m.manifests[s.id] = s
	for _, p := range s.pieces() {
		if c.m.pieces[p.id] != p {
			c.m.violation("%s was committed on a piece %s that had been replaced", s.id, p.id)
		}
	}
}

// frozen answers a frozen state.
func (m *Machine) frozen(id string) (*manifest, error) {
	if s := m.manifests[id]; s != nil {
		return s, nil
	}
	return nil, spore.Errorf(spore.CodeNotFound, "there is no frozen state %s on node %s", id, m.id)
}

// whole says whether all that a frozen state needs is on the machine, and what it should be.
func (m *Machine) whole(s *manifest, full bool) error { return m.intact(s, s.pieces(), full) }

// intact says whether some pieces of a frozen state are.
func (m *Machine) intact(s *manifest, pieces []*piece, full bool) error {
	for _, p := range pieces {
		switch there := m.pieces[p.id]; {
		case there == nil:
			return spore.Errorf(spore.CodeDamaged, "%s of the frozen state %s is missing", p.id, s.id).WithHint("make it again: spore template redo")
		case there.damaged || full && there.rotten:
			return spore.Errorf(spore.CodeDamaged, "%s of the frozen state %s is not what was written", p.id, s.id).WithHint("make it again: spore template redo")
		}
	}
	return nil
}

// reach answers who needs each piece, in order: frozen states, VMs, and calls under way.
func (m *Machine) reach() map[string][]string {
	by := map[string][]string{}
	add := func(s *manifest, who string) {
		for _, p := range s.pieces() {
			by[p.id] = append(by[p.id], who)
		}
	}
	for _, id := range sortedKeys(m.manifests) {
		add(m.manifests[id], id)
	}
	for _, id := range sortedKeys(m.vms) {
		add(m.vms[id].state, m.vms[id].label())
	}
	for c := range m.calls {
		for _, s := range c.states {
			add(s, c.label())
		}
	}
	return by
}

func (c *call) label() string { return "a call: " + c.name }

// callsOn names the calls under way that need something, in order.
func (m *Machine) callsOn(needs func(*call) bool) (names []string) {
	for c := range m.calls {
		if needs(c) {
			names = append(names, c.label())
		}
	}
	slices.Sort(names)
	return names
}

// removePiece removes a piece. It is a violation, kept for Audit, when something needs it.
func (m *Machine) removePiece(id string) {
	if by := m.reach()[id]; len(by) > 0 {
		m.violation("piece %s was removed while %s needed it", id, strings.Join(by, ", "))
	}
	m.used -= m.pieces[id].bytes
	delete(m.pieces, id)
}
