package spore

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"
)

// SandboxState is where a sandbox stands.
type SandboxState string

const (
	SandboxCreating SandboxState = "CREATING" // being thawed; not to be used yet
	SandboxRunning  SandboxState = "RUNNING"
	SandboxPaused   SandboxState = "PAUSED" // frozen to disk, holding no memory; resume brings it back
	SandboxFailed   SandboxState = "FAILED" // its VM is gone; StateReason says how
	SandboxKilled   SandboxState = "KILLED" // a tombstone, hidden from lists
)

// SandboxTransitions is the state machine of sandboxes.
var SandboxTransitions = Transitions[SandboxState]{
	SandboxCreating: {SandboxRunning, SandboxFailed, SandboxKilled},
	SandboxRunning:  {SandboxPaused, SandboxFailed, SandboxKilled},
	SandboxPaused:   {SandboxRunning, SandboxFailed, SandboxKilled},
	SandboxFailed:   {SandboxRunning, SandboxKilled}, // a rollback can bring a failed sandbox back
	SandboxKilled:   {},
}

// EndAction says what happens when a sandbox's time is up.
type EndAction string

const (
	EndKill  EndAction = "kill"
	EndPause EndAction = "pause"
)

// Sandbox is one microVM and its life.
type Sandbox struct {
	ID          string
	State       SandboxState
	StateReason string // why it is FAILED
	TemplateID  string // the template or snapshot that it stands on now; a rollback changes it
	NodeID      string
	Generation  int // counts the VMs that this sandbox has had: each resume and rollback makes the next
	Resources   Resources
	Labels      map[string]string
	Env         map[string]string // added for every process in it
	Cold        bool              // booted rather than thawed

	Network Network
	Ports   []PortForward // published while it has a VM; host ports are filled in once it runs
	Limits  Limits
	Disks   []Disk

	Origin string // id of the job that made it, when one did

	FrozenID string // of the frozen state that resume thaws, while PAUSED

	CreatedAt time.Time
	UpdatedAt time.Time
	EndsAt    time.Time // zero: never
	OnEnd     EndAction
}

// Expired says whether the sandbox's time is up.
func (s *Sandbox) Expired(now time.Time) bool { return !s.EndsAt.IsZero() && !now.Before(s.EndsAt) }

// Wiring names what of network, ports and limits a sandbox has: two that have the same have the same wiring. It is "" for one
// with none of it.
func (s *Sandbox) Wiring() string {
	if !s.Network.Connected() && len(s.Ports) == 0 && s.Limits == (Limits{}) {
		return ""
	}
	network := s.Network
	if !network.Connected() {
		network = Network{} // a policy for a cable that is not there
	}
	raw, err := json.Marshal(struct {
		Network Network       `json:"network,omitzero"`
		Ports   []PortForward `json:"ports,omitempty"`
		Limits  Limits        `json:"limits,omitzero"`
	}{network, s.Ports, s.Limits})
	if err != nil { // only a number that is none, which Validate refuses
		return err.Error()
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:8])
}

// RuntimeRefStatus is where a runtime ref stands.
type RuntimeRefStatus string

const (
	RefReserved RuntimeRefStatus = "RESERVED" // taken before the thaw begins
	RefActive   RuntimeRefStatus = "ACTIVE"   // the sandbox stands on it
	RefReleased RuntimeRefStatus = "RELEASED" // history
)

// RuntimeRefTransitions is the state machine of runtime refs.
var RuntimeRefTransitions = Transitions[RuntimeRefStatus]{
	RefReserved: {RefActive, RefReleased},
	RefActive:   {RefReleased},
	RefReleased: {},
}

// BindingMemoryBacking is the one kind of binding: the sandbox's RAM is mapped from the template's memory.
const BindingMemoryBacking = "memory_backing"

// RuntimeRef says that one sandbox stands on one template or snapshot.
type RuntimeRef struct {
	ID         int64
	TemplateID string
	SandboxID  string
	NodeID     string
	Binding    string
	SandboxGen int
	Status     RuntimeRefStatus
	Reason     string // why it was released
	AttachedAt time.Time
	ReleasedAt time.Time
	LeaseUntil time.Time // a RESERVED ref that is not confirmed by then is settled by looking at the node
	LastSeenAt time.Time // when the node last reported the VM that it is about
	LastError  string    // why the node could not be asked
}
