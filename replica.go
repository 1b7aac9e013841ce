package spore

import "time"

// ReplicaStatus is whether a template is usable on a node.
type ReplicaStatus string

const (
	ReplicaReady  ReplicaStatus = "READY"
	ReplicaFailed ReplicaStatus = "FAILED" // not, or not yet, usable; also the value at birth
)

// ReplicaPhase is how far a replica has come.
type ReplicaPhase string

const (
	ReplicaPending      ReplicaPhase = "PENDING"      // wanted; its job waits
	ReplicaDistributing ReplicaPhase = "DISTRIBUTING" // the node builds its artifact, or fetches that and the frozen state
	ReplicaDistributed  ReplicaPhase = "DISTRIBUTED"  // that is there
	ReplicaSnapshotting ReplicaPhase = "SNAPSHOTTING" // the VM boots and is frozen, if that was not fetched; it is proven by a thaw
	ReplicaPhaseReady   ReplicaPhase = "READY"
	ReplicaPhaseFailed  ReplicaPhase = "FAILED"
	ReplicaCleaning     ReplicaPhase = "CLEANING" // its bytes are being removed
)

// ReplicaTransitions is the state machine of a replica's phases. Status is READY exactly in phase READY, and while a redo makes
// the next one beside it.
var ReplicaTransitions = Transitions[ReplicaPhase]{
	ReplicaPending:      {ReplicaDistributing, ReplicaDistributed, ReplicaSnapshotting, ReplicaPhaseReady, ReplicaPhaseFailed, ReplicaCleaning},
	ReplicaDistributing: {ReplicaPending, ReplicaDistributed, ReplicaPhaseReady, ReplicaPhaseFailed, ReplicaCleaning},
	ReplicaDistributed:  {ReplicaPending, ReplicaSnapshotting, ReplicaPhaseReady, ReplicaPhaseFailed, ReplicaCleaning},
	ReplicaSnapshotting: {ReplicaPending, ReplicaPhaseReady, ReplicaPhaseFailed, ReplicaCleaning},
	ReplicaPhaseReady:   {ReplicaPending, ReplicaDistributing, ReplicaPhaseFailed, ReplicaCleaning},
	ReplicaPhaseFailed:  {ReplicaPending, ReplicaDistributing, ReplicaPhaseReady, ReplicaCleaning},
	ReplicaCleaning:     {ReplicaPending},
}

// Replica is one template on one node, with the component versions that it was frozen with.
type Replica struct {
	TemplateID      string
	NodeID          string
	Status          ReplicaStatus
	Phase           ReplicaPhase
	ArtifactID      string
	LastJobID       string
	LastErrorPhase  ReplicaPhase
	ErrorMessage    string
	CleanupRequired bool // bytes of a failed attempt may lie on the node
	Attempts        int  // that failed, since it was last READY
	RetryAt         time.Time

	Bound           Components
	CompatStatus    CompatStatus // the last verdict; placing asks anew
	CompatPolicy    CompatPolicy
	CompatCheckedAt time.Time

	VerifiedAt time.Time // when its bytes were last found on the node
	UpdatedAt  time.Time
}

// ReplicaPolicy says where a template wants to be. The zero value: on the node that made it.
type ReplicaPolicy struct {
	Nodes    []string          // ids; empty: any that Selector matches
	Selector map[string]string // of node labels; see Node.Matches
	Min      int               // fewer READY replicas than that make the template PARTIALLY_READY
	Max      int               // 0: on every node that matches, if Min or Pinned asks for any beside the first
	Pinned   bool              // kept on all nodes that match, new ones too, before anything starts from it
}

// MaxReplicas bounds Min and Max.
const MaxReplicas = 10_000

// Validate refuses counts out of range.
func (p ReplicaPolicy) Validate() error {
	switch {
	case p.Min < 0 || p.Min > MaxReplicas:
		return Invalidf("replicas.min", "%d is out of range", p.Min).WithHint("between 0 and %d", MaxReplicas)
	case p.Max < 0 || p.Max > MaxReplicas:
		return Invalidf("replicas.max", "%d is out of range", p.Max).WithHint("between 0 and %d", MaxReplicas)
	case p.Max > 0 && p.Max < p.Min:
		return Invalidf("replicas.max", "%d is below min, %d", p.Max, p.Min)
	}
	return nil
}

// Zero says whether nothing is asked for.
func (p ReplicaPolicy) Zero() bool {
	return len(p.Selector) == 0 && p.Min == 0 && p.Max == 0 && !p.Pinned
}
