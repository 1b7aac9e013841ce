package center

import (
	"time"

	"github.com/sporevm/spore"
)

// TemplateUpdate changes what may change of a template. Nil fields stay as they are; Labels that are empty but not nil take
// all labels away.
type TemplateUpdate struct {
	DisplayName *string
	Labels      map[string]string
	Retain      *bool
	Policy      *spore.CompatPolicy
	Replicas    *spore.ReplicaPolicy
}

// TemplateDetails is a template or snapshot with all that belongs to it.
type TemplateDetails struct {
	Template *spore.Template
	Replicas []*spore.Replica
	Aliases  []*spore.Alias
	Artifact *spore.Artifact // nil when it has none, or none any more
	Job      *spore.Job      // the latest about it; nil when there is none
	RefCount int             // that are RESERVED or ACTIVE
	HeldBy   []string        // the first hundred sandboxes of those refs
}

// DeleteRequest says how to delete. A running sandbox that stands on the template is spore.CodeInUse
// (spore.ReasonInUse) without Force.
type DeleteRequest struct{ DryRun, Force bool }

// RedoRequest says which replicas to make again. Nodes belongs to the modes NODES and FAILED_NODES and to no other.
type RedoRequest struct {
	Mode  spore.RedoMode
	Nodes []string
	// AddNetwork gives the template a network device, which it has from the new replicas on.
	AddNetwork bool `json:",omitempty"`
}

// RefQuery selects runtime refs of a template, by id or name, or of a sandbox. Newest first.
type RefQuery struct {
	Template string
	Sandbox  string
	All      bool // released ones too
	Limit    int
}

// NodeScope says where sandboxes can start from a template right now, and where not although it is there.
type NodeScope struct {
	TemplateID string
	Ready      []string // ids of nodes
	Stale      []string // READY there, but frozen with components that the node no longer has
}

// LineageQuery asks for what a template came of, what came of it, or both.
type LineageQuery struct {
	Ancestors, Descendants bool
	Limit                  int
}

// Lineage is a template with its ancestors, nearest first, and its descendants, each after its parent. Deleted ones are there too.
type Lineage struct {
	Self        spore.LineageEntry
	Ancestors   []spore.LineageEntry
	Descendants []spore.LineageEntry
	Omitted     bool // there are more than the limit
}

// AliasRequest points an alias at a template or snapshot, given by id or name.
type AliasRequest struct{ Template, Author, Reason string }

// AliasQuery selects and pages a list of aliases.
type AliasQuery struct {
	Name      string
	Template  string // id or name
	Limit     int
	PageToken string
}

// JobDetails is a job with what has become of the things that it is about.
type JobDetails struct {
	Job            *spore.Job
	TemplateStatus spore.TemplateStatus // "" when there is no such template any more
	ArtifactStatus spore.ArtifactStatus // "" when it has none
}

// ArtifactQuery selects and pages a list of artifacts.
type ArtifactQuery struct {
	Statuses  []spore.ArtifactStatus
	Limit     int
	PageToken string
}

// ArtifactDetails is an artifact and where it lies.
type ArtifactDetails struct {
	Artifact   *spore.Artifact
	Placements []spore.Placement
	Users      int // replicas, templates and active jobs that refer to it
}

// ArtifactVerdict says what was found when the nodes that were given an artifact looked for it.
type ArtifactVerdict struct {
	ArtifactID string
	Status     spore.ArtifactStatus // that it has now
	Full       bool
	Nodes      []NodeVerdict
}

// NodeVerdict is one node's finding. Err is nil when the bytes are there and what they should be.
type NodeVerdict struct {
	NodeID string
	Err    *spore.Error
}

// CompatQuery pages the matrix of templates and nodes.
type CompatQuery struct {
	Template  string // only this one, by id or name
	Limit     int
	PageToken string
}

// CompatScan says what a scan looked at and found.
type CompatScan struct {
	Nodes    []string // that were scanned
	Replicas int      // that were judged anew
	Changed  int      // whose verdict is another one now
	Stale    int      // that are STALE now
}

// AdoptRequest blesses UNKNOWN replicas: of one template or of all, on some nodes or on all.
type AdoptRequest struct {
	Template string
	Nodes    []string
}

// NodeUpdate changes what may change of a node. Labels that are nil stay as they are.
type NodeUpdate struct{ Labels map[string]string }

// Forgetting says what forgetting a node did, or would do.
type Forgetting struct {
	NodeID    string
	DryRun    bool
	Replicas  int      // that are gone with it
	Lost      []string // templates and snapshots that were nowhere else; nothing can start from them any more
	Sandboxes []string // that ran, or were paused, there
}

// NodeStorageStatus is how full one node's disk is.
type NodeStorageStatus struct {
	NodeID  string
	Address string
	spore.NodeStorage
}

// Preview is what a create would do. Err says why it would fail; the rest is filled as far as it came.
type Preview struct {
	Request    CreateRequest // the caller's upon what the template keeps
	Template   *spore.Template
	Resources  spore.Resources
	NodeID     string // that it would run on
	Candidates []Candidate
	Stages     []StageTime
	Err        *spore.Error
}

// Candidate is one node that was considered for a sandbox.
type Candidate struct {
	NodeID  string
	Address string
	Fits    bool
	Why     string             // it fits, or does not
	Compat  spore.CompatStatus // "" when it has no replica
}

// StageTime is how long one stage of resolving a create took.
type StageTime struct {
	Stage string // one of ResolveStages
	Took  time.Duration
}

// The stages of resolving a create.
const (
	stageRequest  = "request"  // which template, and what the sandbox is to be
	stageLocality = "locality" // which nodes have it
	stageKind     = "kind"     // what follows from its being a template or a snapshot
	stageBind     = "bind"     // one node is chosen
)

// ResolveStages are the stages of resolving a create, in order.
var ResolveStages = []string{stageRequest, stageLocality, stageKind, stageBind}

// ResolveTotal is the name under which the whole of resolving a create is measured.
const ResolveTotal = "total"

// Collection is what a garbage collection did, or would do.
type Collection struct {
	Garbage  spore.GarbageReport
	Policies []PolicyRemoval
}

// PolicyRemoval is a template or snapshot that a retention policy removes.
type PolicyRemoval struct {
	TemplateID string
	Name       string
	Kind       spore.TemplateKind
	Policy     string // which one, such as "keep-last" or "max-age"
	Detail     string // why it applies
}

// Metrics are the counters of the center.
type Metrics struct {
	Resolve   []Histogram // of ResolveStages and ResolveTotal, in seconds
	Jobs      map[spore.JobStatus]int
	Nodes     map[spore.NodeState]int
	Draining  int // nodes
	Sandboxes map[spore.SandboxState]int
	Storage   []NodeStorageStatus
}

// Histogram counts measurements by size.
type Histogram struct {
	Name    string
	Bounds  []float64 // rising upper bounds
	Counts  []uint64  // one for each bound, each of what is at most that bound but above the one before; and one more for the rest
	Sum     float64
	Samples uint64
}
