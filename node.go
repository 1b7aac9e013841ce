package spore

import "time"

// NodeState is where a node stands.
type NodeState string

const (
	NodeReady       NodeState = "READY"
	NodeUnreachable NodeState = "UNREACHABLE" // it has not answered for a while
	NodeForgotten   NodeState = "FORGOTTEN"   // it is not coming back; a tombstone
)

// NodeTransitions is the state machine of nodes.
var NodeTransitions = Transitions[NodeState]{
	NodeReady:       {NodeUnreachable, NodeForgotten},
	NodeUnreachable: {NodeReady, NodeForgotten},
	NodeForgotten:   {NodeReady}, // it came back after all: as a new one, with nothing on it
}

// Node is a machine that holds replicas and runs sandboxes.
type Node struct {
	ID          string
	Address     string // where it can be asked; empty for the machine that the server runs on
	State       NodeState
	StateReason string
	Draining    bool // no new sandboxes and replicas; its replicas are made elsewhere
	Labels      map[string]string
	Engine      string

	Components Components // its own
	// Installed are guest images that it holds beside, each with its own agent and kernel, and formats of device state that its engine
	// loads beside, each with the engine, its version and no guest image.
	Installed []Components
	Networks  []NodeNetwork // every mode, and whether it has it; empty when it has not said

	VCPUs             int
	MemoryMiB         int
	MemoryPromisedMiB int
	Sandboxes         int
	Storage           NodeStorage

	CreatedAt time.Time
	UpdatedAt time.Time
	SeenAt    time.Time // when it last answered
}

// Schedulable says whether new sandboxes may be placed on the node.
func (n *Node) Schedulable() bool { return n.State == NodeReady && !n.Draining }

// Matches says whether the node has all the labels of a selector; an empty selector matches every node. The key "id" is the
// node's id and "engine" its engine.
func (n *Node) Matches(selector map[string]string) bool {
	for k, v := range selector {
		have, ok := n.Labels[k]
		switch k {
		case "id":
			have, ok = n.ID, true
		case "engine":
			have, ok = n.Engine, true
		}
		if !ok || have != v {
			return false
		}
	}
	return true
}

// NodeNetwork says whether a node can connect sandboxes in a mode.
type NodeNetwork struct {
	Mode   NetworkMode
	WhyNot string // a clause, such as "the server does not run as root"; empty when it can
}

// Connects says whether the node can connect a sandbox in a mode, and if not, why, as far as it has said. One that has said nothing is
// taken to be able to: it will refuse what it is not.
func (n *Node) Connects(mode NetworkMode) (can bool, whyNot string) {
	if mode == "" || mode == NetworkNone || len(n.Networks) == 0 {
		return true, ""
	}
	for _, has := range n.Networks {
		if has.Mode == mode {
			return has.WhyNot == "", has.WhyNot
		}
	}
	return false, ""
}

// Modes are the network modes that the node has said it can connect sandboxes in.
func (n *Node) Modes() (modes []NetworkMode) {
	for _, has := range n.Networks {
		if has.WhyNot == "" {
			modes = append(modes, has.Mode)
		}
	}
	return modes
}

// StorageMode says what a node's disk has room for.
type StorageMode string

const (
	StorageHealthy    StorageMode = "healthy"
	StorageWarn       StorageMode = "warn"        // still everything; time to clean up
	StorageReject     StorageMode = "reject"      // no new snapshots, templates and replicas
	StorageDeleteOnly StorageMode = "delete_only" // no new sandboxes either
	StorageUnknown    StorageMode = "unknown"     // it could not be measured
)

// StorageLimits are the percentages of a disk from which on each mode holds.
type StorageLimits struct{ Warn, Reject, DeleteOnly int }

// DefaultStorageLimits are those of a node that sets none.
var DefaultStorageLimits = StorageLimits{Warn: 70, Reject: 85, DeleteOnly: 95}

// Validate refuses limits that are not in order.
func (l StorageLimits) Validate() error {
	if l.Warn < 1 || l.Warn > l.Reject || l.Reject > l.DeleteOnly || l.DeleteOnly > 100 {
		return Invalidf("storageLimits", "%d, %d, %d are not three rising percentages", l.Warn, l.Reject, l.DeleteOnly).
			WithHint("for example %d,%d,%d", DefaultStorageLimits.Warn, DefaultStorageLimits.Reject, DefaultStorageLimits.DeleteOnly)
	}
	return nil
}

// Mode is the mode of a disk of which used bytes of total are taken, or promised.
func (l StorageLimits) Mode(used, total int64) StorageMode {
	if total <= 0 {
		return StorageUnknown
	}
	switch pct := percent(used, total); {
	case pct >= l.DeleteOnly:
		return StorageDeleteOnly
	case pct >= l.Reject:
		return StorageReject
	case pct >= l.Warn:
		return StorageWarn
	}
	return StorageHealthy
}

func percent(used, total int64) int {
	if total <= 0 {
		return 0
	}
	return int(float64(used) / float64(total) * 100)
}

// NodeStorage is how full a node's disk is. ReservedBytes are promised to operations under way and not yet written.
type NodeStorage struct {
	TotalBytes    int64
	UsedBytes     int64
	ReservedBytes int64
	Mode          StorageMode
	Limits        StorageLimits
	LastError     string
	MeasuredAt    time.Time
}

// UsagePct is used and reserved bytes in percent of the whole.
func (s NodeStorage) UsagePct() int { return percent(s.UsedBytes+s.ReservedBytes, s.TotalBytes) }

// NodeReport is what a node says of itself.
type NodeReport struct {
	Node     Node      // ID, Engine, Components, Installed, Networks, sizes and Storage; the rest is the center's to know
	Machines []Machine // every VM of a sandbox on the node
	// Recovered is whether the node has taken over, since its process began, the VMs that an earlier one left.
	Recovered bool
}

// Machine is one VM of a sandbox on a node.
type Machine struct {
	SandboxID  string
	Generation int
	FrozenID   string // that it was thawed from
	Running    bool   // false: its process has ended
	Wiring     string // Sandbox.Wiring of what it has in truth
}
