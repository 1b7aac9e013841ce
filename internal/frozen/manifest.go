package frozen

import (
	"encoding/json"
	"time"

	"github.com/sporevm/spore/internal/vmm"
)

// Format is the version of the manifest format that this package writes, and the newest that it reads.
const Format = 1

// Kind says what a manifest was made for.
type Kind string

const (
	KindTemplate Kind = "template" // a base that sandboxes start from
	KindSnapshot Kind = "snapshot" // a sandbox at one instant, under an id of its own
	KindPause    Kind = "pause"    // a sandbox put to sleep; the manifest has the sandbox's id
)

// Manifest is the commit record of one frozen VM: which pieces it consists of and what shape of VM they fit. It never
// changes once published, except that Flatten replaces the chains by equivalent ones and counts Revision up, and that
// Promote gives it another id.
type Manifest struct {
	Format   int       `json:"format"`
	ID       string    `json:"id"`
	MadeAs   string    `json:"madeAs,omitempty"` // the id that it had before it was promoted
	Kind     Kind      `json:"kind"`
	Parent   string    `json:"parent,omitempty"` // id of what the VM was thawed from; "" for a template boot
	Capture  string    `json:"capture"`          // 32 hex digits, random: the paused window it was taken in
	Epoch    uint64    `json:"epoch"`            // captures on the way here: 1 for a template boot, parent's + 1 otherwise
	Revision uint64    `json:"revision"`         // how often the chains were flattened
	Created  time.Time `json:"created"`
	Shape    Shape     `json:"shape"`
	State    Piece     `json:"state"`
	Memory   Chain     `json:"memory"`
	Disk     *Chain    `json:"disk,omitempty"` // nil when the VM has no writable disk
}

// Shape is the VM that the pieces fit. The store keeps it for its callers and does not look inside.
type Shape struct {
	VCPUs         int             `json:"vcpus"`
	MemoryMiB     int             `json:"memoryMiB"`
	Kernel        string          `json:"kernel"`   // kernel bundle id, krn-...
	Artifact      string          `json:"artifact"` // root file system id, rfs-...
	Cmdline       string          `json:"cmdline,omitempty"`
	Drives        []Drive         `json:"drives,omitempty"`
	NIC           bool            `json:"nic,omitempty"` // it has a network device
	Engine        Engine          `json:"engine"`
	AgentVersion  string          `json:"agentVersion,omitempty"`
	KernelVersion string          `json:"kernelVersion,omitempty"`
	Extra         json.RawMessage `json:"extra,omitempty"` // anything else the caller wants to find again; must be valid JSON
}

// Drive is one block device of the frozen VM, in the order of its vmm.Config.
type Drive struct {
	ID       string `json:"id"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// Engine is vmm.Info in the form that manifests keep; the two convert into each other: Engine(info), vmm.Info(engine).
type Engine struct {
	Engine      string `json:"engine"`
	Version     string `json:"version"`
	Accel       string `json:"accel"`
	AccelReason string `json:"accelReason,omitempty"`
	StateFormat string `json:"stateFormat"`
	CPUModel    string `json:"cpuModel,omitempty"`
	CPUFeatures string `json:"cpuFeatures,omitempty"`
}

var _ = vmm.Info(Engine{}) // the build breaks when the two drift apart

// Chain is guest memory, or a disk, as a base file and the diff layers over it, oldest first.
type Chain struct {
	Size   int64   `json:"size"` // bytes of RAM, or of the disk
	Base   Piece   `json:"base"`
	Layers []Piece `json:"layers,omitempty"`
}

// Top is the newest piece of the chain: the one written in the manifest's own capture.
func (c *Chain) Top() Piece {
	if n := len(c.Layers); n > 0 {
		return c.Layers[n-1]
	}
	return c.Base
}

func (c *Chain) pieces() []Piece {
	if c == nil {
		return nil
	}
	return append([]Piece{c.Base}, c.Layers...)
}

// Pieces lists every piece of the frozen VM: memory from the base up, disk from the base up, device state.
func (m *Manifest) Pieces() []Piece {
	all := m.Memory.pieces()
	all = append(all, m.Disk.pieces()...)
	return append(all, m.State)
}

// PieceIDs is Pieces, ids alone.
func (m *Manifest) PieceIDs() []string {
	pieces := m.Pieces()
	ids := make([]string, len(pieces))
	for i, p := range pieces {
		ids[i] = p.ID
	}
	return ids
}
