package center

import (
	"time"

	"github.com/sporevm/spore"
)

// Idempotency is the caller's key for a request that makes something; an empty Key means none.
// Digest is the SHA-256 of what the client sent, in hex.
type Idempotency struct{ Caller, Key, Digest string }

// BuildRequest asks for a template from an image. Image is a reference as package image reads it; files named by oci:,
// oci-archive: and docker-archive: are on the server's machine.
type BuildRequest struct {
	Name      string
	Image     string
	Insecure  bool // plain HTTP for a registry that is not on loopback
	Resources spore.Resources
	Process   ProcessOverride
	Readiness spore.Readiness
	EgressCA  []byte // PEM
	// Network gives the template a network device, unless its mode is none, and is what sandboxes have that ask for nothing else.
	Network  *spore.Network
	KernelID string // "" is the newest installed
	Labels   map[string]string

	DisplayName string
	Author      string
	Reason      string
	Retain      bool
	Policy      spore.CompatPolicy // "" is STRICT
	Replicas    spore.ReplicaPolicy
	Defaults    spore.CreateDefaults
}

// ProcessOverride replaces parts of the image's process; nil fields leave the image's own.
type ProcessOverride struct {
	Entrypoint, Cmd []string
	Env             []string // added
	User, WorkDir   *string
}

// CommitRequest names the template that a commit makes.
type CommitRequest struct {
	Name   string
	Labels map[string]string

	DisplayName string
	Author      string
	Reason      string
	Retain      bool
	Policy      spore.CompatPolicy // "" is STRICT
	Replicas    spore.ReplicaPolicy
}

// CreateRequest asks for a sandbox.
type CreateRequest struct {
	Template string // id or name of a template or snapshot
	TTL      time.Duration
	OnEnd    spore.EndAction // "" is kill
	Env      map[string]string
	Labels   map[string]string
	Wiring   Wiring
	Disks    []spore.Disk

	Nodes         []string // only on these, by id; empty: on any
	PreferredNode string   // there and nowhere else, when it is given
}

// SnapshotRequest asks for a snapshot.
type SnapshotRequest struct {
	Name   string
	Labels map[string]string

	DisplayName string
	Author      string
	Reason      string
	Retain      bool

	Held bool  `json:",omitempty"` // set by HoldSnapshot
	hold *hold // nil: the sandbox goes on as soon as it is captured
}

// ForkRequest asks for forks. All get the same time to live, environment and labels.
type ForkRequest struct {
	Count  int // 1 to 1000
	TTL    time.Duration
	OnEnd  spore.EndAction
	Env    map[string]string
	Labels map[string]string
	Wiring Wiring // each gets host ports of its own
}

// ForkResult is one fork: a sandbox, or why there is none.
type ForkResult struct {
	Sandbox *spore.Sandbox
	Err     *spore.Error
}

// Deletion says what a delete did, or would do. What is still stood upon stays on disk until nothing stands on it.
type Deletion struct {
	ID          string   `json:"id"`
	DryRun      bool     `json:"dryRun"`
	HeldBy      []string `json:"heldBy"`      // sandboxes and templates that keep some of its bytes
	FreesBytes  int64    `json:"freesBytes"`  // with the next garbage collection
	RetainBytes int64    `json:"retainBytes"` // kept for those in HeldBy
	Running     []string `json:"running"`     // sandboxes that run on it: without force, they are why it is refused
	Replicas    int      `json:"replicas"`    // on nodes
	JobID       string   `json:"jobId"`       // that removes them; "" for a dry run
}

// TemplateQuery selects and pages a list of templates and snapshots.
type TemplateQuery struct {
	Kind          spore.TemplateKind
	Status        spore.TemplateStatus
	Name          string
	OriginSandbox string
	ID            string
	ParentID      string
	ArtifactID    string
	Labels        map[string]string
	All           bool // deleted and ephemeral ones too
	Limit         int
	PageToken     string
}

// SandboxQuery selects and pages a list of sandboxes.
type SandboxQuery struct {
	States    []spore.SandboxState
	Template  string
	Node      string
	Labels    map[string]string
	All       bool // killed ones too
	Limit     int
	PageToken string
}

// JobQuery selects and pages a list of jobs.
type JobQuery struct {
	Statuses  []spore.JobStatus
	Operation spore.Operation
	Resource  string
	Sandbox   string
	Node      string
	Owner     string // the controller that runs them
	Limit     int
	PageToken string
}

// Kernel is one installed kernel bundle.
type Kernel struct {
	ID            string    `json:"id"`
	KernelVersion string    `json:"kernelVersion"`
	AgentVersion  string    `json:"agentVersion"`
	Bytes         int64     `json:"bytes"`
	Default       bool      `json:"default"`
	InUseBy       int       `json:"inUseBy"` // templates and snapshots frozen with it
	CreatedAt     time.Time `json:"createdAt"`
}

// KernelSource says where a kernel comes from; all paths are on the server's machine. Zero: the distribution's package.
type KernelSource struct {
	Package string // a .deb file
	Kernel  string // a bzImage, with Modules
	Modules string // a /lib/modules/VERSION tree
}

// Explanation answers "what is this and why is it still here".
type Explanation struct {
	ID               string   `json:"id"`
	Kind             string   `json:"kind"`
	State            string   `json:"state"`
	StandsOn         []string `json:"standsOn"`
	HeldBy           []string `json:"heldBy"`
	ExclusiveBytes   int64    `json:"exclusiveBytes"`
	SharedBytes      int64    `json:"sharedBytes"`
	ReclaimableBytes int64    `json:"reclaimableBytes"`
	Notes            []string `json:"notes"`
}

// Info is what the server is.
type Info struct {
	Version       string `json:"version"`
	NodeID        string `json:"nodeId"`
	DataDir       string `json:"dataDir"`
	Engine        string `json:"engine"`
	EngineVersion string `json:"engineVersion"`
	Accel         string `json:"accel"`
	AccelReason   string `json:"accelReason"`
	Running       int    `json:"running"`
	MemoryMiB     int    `json:"memoryMiB"`   // the machine's
	MemoryInUse   int    `json:"memoryInUse"` // promised to sandboxes, MiB
	DiskFreeBytes int64  `json:"diskFreeBytes"`
	PoolReady     int    `json:"poolReady"`
}
