package spore

import "time"

// JobStatus is where a job stands.
type JobStatus string

const (
	JobPending   JobStatus = "PENDING"
	JobRunning   JobStatus = "RUNNING"
	JobReady     JobStatus = "READY"
	JobFailed    JobStatus = "FAILED"
	JobCancelled JobStatus = "CANCELLED"
)

// JobTransitions is the state machine of jobs. RUNNING may become PENDING again: the server died and the job resumes.
var JobTransitions = Transitions[JobStatus]{
	JobPending:   {JobRunning, JobFailed, JobCancelled},
	JobRunning:   {JobPending, JobReady, JobFailed, JobCancelled},
	JobReady:     {},
	JobFailed:    {},
	JobCancelled: {},
}

// Active says whether the job still counts as under way.
func (s JobStatus) Active() bool { return s == JobPending || s == JobRunning }

// Operation is what a job does.
type Operation string

const (
	OpCreate           Operation = "CREATE" // template from an image
	OpRedo             Operation = "REDO"
	OpCommit           Operation = "COMMIT"    // running sandbox to template
	OpLegacy           Operation = "LEGACY"    // read, never written
	OpDelete           Operation = "DELETE"    // remove a template
	OpReplicate        Operation = "REPLICATE" // make one replica on one node
	OpSnapshotCreate   Operation = "SNAPSHOT_CREATE"
	OpSnapshotRollback Operation = "SNAPSHOT_ROLLBACK"
	OpSnapshotDelete   Operation = "SNAPSHOT_DELETE"
	OpFork             Operation = "FORK"
	OpFlatten          Operation = "FLATTEN" // merge the layers of a long chain
)

// JobPhase is how far a job has come.
type JobPhase string

const (
	PhasePulling            JobPhase = "PULLING"
	PhaseUnpacking          JobPhase = "UNPACKING"
	PhaseBuildingExt4       JobPhase = "BUILDING_EXT4"
	PhaseGeneratingJSON     JobPhase = "GENERATING_JSON"
	PhaseDistributing       JobPhase = "DISTRIBUTING"
	PhaseCreatingTemplate   JobPhase = "CREATING_TEMPLATE" // the VM boots and becomes ready
	PhaseSnapshotting       JobPhase = "SNAPSHOTTING"
	PhaseRegistering        JobPhase = "REGISTERING"
	PhaseRollbackPreparing  JobPhase = "ROLLBACK_PREPARING"
	PhaseRollbackDriving    JobPhase = "ROLLBACK_DRIVING"
	PhaseRollbackRecovering JobPhase = "ROLLBACK_RECOVERING"
	PhaseDeleting           JobPhase = "DELETING"
	PhaseReady              JobPhase = "READY"
)

// Job is one durable run of one operation on one resource. It outlives its resource.
type Job struct {
	ID           string
	Operation    Operation
	ResourceType TemplateKind
	ResourceID   string // of the template or snapshot
	SandboxID    string
	Status       JobStatus
	RequestID    string // the idempotency key that it was asked for under
	NodeID       string // where its work is done, when that is one node
	ArtifactID   string
	Owner        string   // the controller that runs it; empty while it waits
	Redo         RedoPlan // of a REDO
	Nodes        NodeCounts
	Phase        JobPhase
	Progress     int // 0..100
	Pull         PullProgress
	AttemptNo    int
	RetryOfJobID string
	Error        *JobError
	Request      []byte // JSON of what was asked, without secrets
	Result       []byte // JSON, operation-specific
	CancelAsked  bool
	CreatedAt    time.Time
	StartedAt    time.Time
	FinishedAt   time.Time
}

// RedoMode says which replicas a redo makes again.
type RedoMode string

const (
	RedoAll         RedoMode = "ALL"          // on every node that the template wants to be on
	RedoNodes       RedoMode = "NODES"        // on the nodes named
	RedoFailedOnly  RedoMode = "FAILED_ONLY"  // those that are not READY, or must be cleaned
	RedoFailedNodes RedoMode = "FAILED_NODES" // the same, within the nodes named
)

// RedoPlan is what a redo set out to do. ResumePhase is where it begins: what lies before it is there already.
type RedoPlan struct {
	Mode        RedoMode
	Scope       []string // ids of nodes
	ResumePhase JobPhase
}

// NodeCounts says how many replicas a job is to make and how that went so far.
type NodeCounts struct{ Expected, Ready, Failed int }

// JobError is an Error as it is kept with a job.
type JobError struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	Field   string `json:"field,omitempty"`
	Hint    string `json:"hint,omitempty"`
	Reason  Reason `json:"reason,omitempty"`
}

// PullProgress counts what an image pull has moved.
type PullProgress struct {
	BytesTotal, BytesDone   int64
	LayersTotal, LayersDone int
	BytesPerSecond          int64
}

// LogLine is one line of a job's log.
type LogLine struct {
	Seq     int64 // ascending within a job
	Time    time.Time
	Level   string // "info", "warn", "error"
	Message string
}
