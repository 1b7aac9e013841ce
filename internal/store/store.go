// Package store keeps Spore's rows: templates, sandboxes, jobs and their logs, runtime refs, replicas and idempotency
// keys, behind one contract that hides which database is underneath.
//
// Rows change in transactions (Store.Update) that see and do everything or nothing, including the enqueueing of work:
// a job row and its place in the queue appear together. State changes are compare-and-set against the root package's
// transition tables, so that what the tables refuse the database refuses too.
package store

import (
	"context"
	"errors"
	"time"

	"github.com/sporevm/spore"
)

// ErrUndecided is in the error of an Update that may have been committed or not: the database went away as it was told to commit,
// and could not be asked before the caller left or the store was closed. What such a change was to record must be neither undone nor
// done again before the rows have been read.
var ErrUndecided = errors.New("undecided")

// Store is a database of rows and the queue of work that belongs to them.
type Store interface {
	// View runs fn on a consistent picture of the rows. fn must not keep tx.
	View(ctx context.Context, fn func(tx Tx) error) error
	// Update runs fn in one write transaction, committed when fn returns nil. Such transactions are as if one came after the
	// other, whichever Stores they go through: what one has read is still so when it commits. fn may be run again when the
	// database asks for it, so it must have no effect outside the transaction. fn must be short: it holds the writer's lock. It
	// must not call Update, Work or CancelWork, which would wait for it. When fn panics, nothing is kept. An error means that nothing
	// was stored, but for ErrUndecided.
	Update(ctx context.Context, fn func(tx Tx) error) error

	// Work begins to take enqueued jobs and returns; it calls run for each, at most workers at a time, until Stop is called
	// or ctx ends, which also cancels the runs under way. run gets a context that CancelWork cancels.
	//
	// A run that returns nil is done with, whatever became of the job; one that returns an error, or panics, is tried again
	// with back-off (at most attempts in all), and run is told which attempt it is, counted from 1. A run that fails
	// because the store stops keeps its attempt. One whose process died is run again at the next Work as the next
	// attempt, even when it was the last: an attempt beyond attempts says that the job has killed the server as often,
	// and run had better settle the job than try it again.
	Work(ctx context.Context, workers int, run func(ctx context.Context, jobID string, attempt int, last bool) error) error
	// CancelWork ends the run of a job: its context is cancelled if it runs here, and it is not started again. It may be called
	// at any time, and twice; it is spore.CodeNotFound only when there is no such job.
	CancelWork(ctx context.Context, jobID string) error
	// Stop stops taking work and waits for the runs under way until ctx ends; then it cancels them and waits for them to
	// return, for ten seconds at most. It may be called when nothing works.
	Stop(ctx context.Context) error

	// Changes tells of committed changes: the returned channel is closed at the next commit of an Update made through this
	// Store. It lets watchers wait without polling.
	Changes() <-chan struct{}

	// Close stops work at once and lets go of the database.
	Close() error
}

// Tx is one transaction, for one goroutine. Getters and updates answer spore.CodeNotFound for unknown ids, and so does a row that
// refers to a template, sandbox or job that does not exist: what is referred to is inserted first. Values handed out are
// copies, with times in UTC; a map that is empty comes back nil.
type Tx interface {
	TemplateRows
	AliasRows
	ReplicaRows
	ArtifactRows
	SandboxRows
	RefRows
	JobRows
	ReplayRows
	NodeRows
	ControllerRows
}

// TemplateRows are templates and snapshots.
type TemplateRows interface {
	// InsertTemplate adds a row; spore.CodeConflict (ReasonDuplicate) when the id is taken, or the live name by another
	// template or by an alias.
	InsertTemplate(t *spore.Template) error
	Template(id string) (*spore.Template, error)
	// FindTemplate looks a live template or snapshot up by id, by name, or by alias: name or name:tag. A template's own name
	// comes before an alias.
	FindTemplate(ref string) (*spore.Template, error)
	// UpdateTemplate writes every field of t; refused with spore.CodeConflict when the transition table forbids the change of
	// status from what the row holds now. A deleted row gives its name free, and its aliases are gone.
	UpdateTemplate(t *spore.Template) error
	Templates(f TemplateFilter) ([]*spore.Template, Page, error)
	// CountTemplates counts what Templates would list, all pages together, up to limit.
	CountTemplates(f TemplateFilter, limit int) (int, error)
}

// AliasRows are names that can be pointed elsewhere, and their history.
type AliasRows interface {
	// PutAlias points a name:tag at a live template, and adds that to its history. spore.CodeConflict when a live template
	// has the bare name as its own.
	PutAlias(a spore.Alias) error
	// Alias is spore.CodeNotFound when there is none.
	Alias(name, tag string) (*spore.Alias, error)
	// DeleteAlias removes one and adds that to its history.
	DeleteAlias(a spore.Alias) error
	// Aliases lists them in the order of name and tag.
	Aliases(f AliasFilter) ([]*spore.Alias, Page, error)
	// AliasHistory answers the changes of a name (tag "": of all its tags), newest first, at most limit.
	AliasHistory(name, tag string, limit int) ([]spore.AliasChange, error)
}

// ReplicaRows say on which nodes templates are.
type ReplicaRows interface {
	// PutReplica inserts or writes a row, as a whole; spore.CodeConflict when the transition table forbids the change of phase.
	PutReplica(r *spore.Replica) error
	Replica(templateID, nodeID string) (*spore.Replica, error)
	// Replicas lists all of a template, in the order of node ids.
	Replicas(templateID string) ([]*spore.Replica, error)
	// ReplicaPage lists replicas in the order of template and node ids.
	ReplicaPage(f ReplicaFilter) ([]*spore.Replica, Page, error)
	DeleteReplica(templateID, nodeID string) error
}

// ArtifactRows are root filesystems, and the nodes that were given them.
type ArtifactRows interface {
	// PutArtifact inserts a row or writes every field of it; refused with spore.CodeConflict when the transition table
	// forbids the change of status.
	PutArtifact(a *spore.Artifact) error
	Artifact(id string) (*spore.Artifact, error)
	Artifacts(f ArtifactFilter) ([]*spore.Artifact, Page, error)
	// DeleteArtifact removes a row that is CLEANUP_PENDING and has no placement; spore.CodeConflict otherwise.
	DeleteArtifact(id string) error
	// ArtifactUsers counts what refers to an artifact: replicas, templates that are not deleted, active jobs.
	ArtifactUsers(id string) (int, error)

	PutPlacement(p spore.Placement) error
	// Placements lists those of an artifact and/or of a node; "" matches any.
	Placements(artifactID, nodeID string) ([]spore.Placement, error)
	DeletePlacement(artifactID, nodeID string) error
}

// SandboxRows are sandboxes.
type SandboxRows interface {
	// InsertSandbox adds a row; its template must exist.
	InsertSandbox(s *spore.Sandbox) error
	Sandbox(id string) (*spore.Sandbox, error)
	UpdateSandbox(s *spore.Sandbox) error
	Sandboxes(f SandboxFilter) ([]*spore.Sandbox, Page, error)
	// PurgeSandboxes removes rows KILLED and not updated since the given time, with their released refs, and answers how many.
	// Rows with refs that are not released stay.
	PurgeSandboxes(before time.Time) (int, error)
}

// RefRows are runtime refs.
type RefRows interface {
	// PutRef inserts a ref (ID 0) and sets its ID, or updates one, checked against the transition table. Its sandbox must
	// exist, and has at most one ref that is RESERVED or ACTIVE per generation: spore.CodeConflict.
	PutRef(r *spore.RuntimeRef) error
	// Refs lists all that match, in the order of their ids.
	Refs(f RefFilter) ([]*spore.RuntimeRef, error)
	// CountRefs counts them.
	CountRefs(f RefFilter) (int, error)
}

// JobRows are jobs, their logs and their places in the queue.
type JobRows interface {
	// InsertJob adds a row; spore.CodeBusy (ReasonInProgress) when another job is active on the same resource.
	InsertJob(j *spore.Job) error
	Job(id string) (*spore.Job, error)
	UpdateJob(j *spore.Job) error
	Jobs(f JobFilter) ([]*spore.Job, Page, error)
	// ActiveJob is the job that is changing a resource, nil when there is none: there is at most one. FORK and
	// SNAPSHOT_ROLLBACK only read their resource, and REPLICATE changes one replica of it; they do not count, and any number
	// may be active.
	ActiveJob(resourceID string) (*spore.Job, error)
	// AppendJobLog adds a line to a job's log, as the next in order: line.Seq is not looked at.
	AppendJobLog(jobID string, line spore.LogLine) error
	// JobLog reads the lines after the one with that number, at most limit of them (0: 1000, the most there can be).
	JobLog(jobID string, after int64, limit int) ([]spore.LogLine, error)
	// Enqueue puts a job in the queue, to be run after this transaction commits. A job that waits or runs already stays where
	// it is.
	Enqueue(jobID string, attempts int) error
}

// ReplayRows are remembered requests.
type ReplayRows interface {
	// Replay looks an idempotency key up: nil when it is new. The caller compares digests.
	Replay(caller, key string) (*Replay, error)
	// PutReplay stores a key together with what the work made; spore.CodeConflict when it is there already.
	PutReplay(r Replay) error
	// DropReplay forgets a key whose work came to nothing because the server died, so that a retry starts afresh.
	DropReplay(resourceID string) error
	PurgeReplays(before time.Time) (int, error)
}

// NodeRows are machines.
type NodeRows interface {
	// PutNode inserts or writes a row, as a whole; spore.CodeConflict when the transition table forbids the change of state.
	PutNode(n *spore.Node) error
	Node(id string) (*spore.Node, error)
	// Nodes lists all, in the order of their ids; forgotten ones only when asked for.
	Nodes(forgotten bool) ([]*spore.Node, error)
}

// ControllerRows are the servers that share the rows, and what each of them has taken for itself.
type ControllerRows interface {
	// Beat says that a controller lives, and makes its row at the first time; spore.CodeConflict (ReasonFenced) once it was fenced.
	Beat(id string, now time.Time) error
	Controllers() ([]Controller, error)
	// Fence declares a controller dead, for good: it cannot write any more (see Guard), and its leases are gone.
	Fence(id string) error
	// Guard is spore.CodeConflict (ReasonFenced) when the controller was fenced, or is not known. A controller asks it in each
	// transaction that goes on with something begun earlier.
	Guard(id string) error
	// PurgeControllers removes fenced rows that have not beaten since.
	PurgeControllers(before time.Time) (int, error)

	// TakeLease takes or renews a lease for a holder until the given time; false when another holder of a controller that
	// is not fenced has it and it has not run out by now.
	TakeLease(l Lease, now time.Time) (bool, error)
	// RenewLeases moves the end of all leases of a controller.
	RenewLeases(controller string, until time.Time) error
	// DropLease gives a lease back, if that holder has it.
	DropLease(name, holder string) error
	// Leases lists those of a controller; "" lists all.
	Leases(controller string) ([]Lease, error)
}

// Controller is one server that shares the rows.
type Controller struct {
	ID        string
	StartedAt time.Time
	SeenAt    time.Time
	Fenced    bool
}

// Lease is something that one holder at a time may do.
type Lease struct {
	Name       string // of what: "sandbox/ID", "leader"
	Holder     string // who: unique for each operation
	Controller string // where the holder runs
	Until      time.Time
}

// Replay is one remembered request: what the client sent (as a digest) and what came of it.
type Replay struct {
	Caller, Key string
	Digest      string // SHA-256 of what the client sent
	ResourceID  string // the sandbox, template, snapshot or job that the request made
	CreatedAt   time.Time
}

// Page says how to go on with a list; Next is empty at its end. It is opaque to clients.
type Page struct{ Next string }

// Paging asks for one page. Limit 0 is 100; 1000 at most, or it is spore.CodeInvalid on field "limit". After is a Page.Next
// of the same kind of list; a malformed one is spore.CodeInvalid on field "pageToken".
type Paging struct {
	Limit int
	After string
}

// TemplateFilter selects templates; zero fields match anything. Deleting and deleted ones only with Deleted.
// Order: newest first.
type TemplateFilter struct {
	Paging
	ID            string
	Kind          spore.TemplateKind
	Status        spore.TemplateStatus
	Name          string // its own name, its display name, or an alias
	OriginSandbox string
	ParentID      string
	ArtifactID    string
	Labels        map[string]string // all must match
	CreatedBefore time.Time
	Ephemeral     bool // include ephemeral ones
	EphemeralOnly bool // only those
	Deleted       bool
}

// AliasFilter selects aliases; zero fields match anything.
type AliasFilter struct {
	Paging
	Name       string
	TemplateID string
}

// ReplicaFilter selects replicas; zero fields match anything.
type ReplicaFilter struct {
	Paging
	NodeID string
	Status spore.ReplicaStatus
	Phase  spore.ReplicaPhase
	Compat spore.CompatStatus
}

// ArtifactFilter selects artifacts; zero fields match anything. Order: newest first; with Fair, those whose removal was
// tried longest ago first, and no pages: the first Limit.
type ArtifactFilter struct {
	Paging
	Statuses     []spore.ArtifactStatus
	UnusedBefore time.Time // unused since before that
	Fair         bool
}

// SandboxFilter selects sandboxes; zero fields match anything. Killed ones only with Killed. Order: newest first.
type SandboxFilter struct {
	Paging
	States     []spore.SandboxState
	TemplateID string
	NodeID     string
	Labels     map[string]string
	EndsBefore time.Time // those whose time is up at this instant
	Killed     bool
}

// RefFilter selects refs; zero fields match anything.
type RefFilter struct {
	TemplateID string
	SandboxID  string
	NodeID     string
	Statuses   []spore.RuntimeRefStatus
	Limit      int // 0: all
}

// JobFilter selects jobs; zero fields match anything. Order: newest first.
type JobFilter struct {
	Paging
	Statuses   []spore.JobStatus
	Operation  spore.Operation
	ResourceID string
	SandboxID  string
	NodeID     string
	Owner      string
}
