// Package gateway is the HTTP edge: the native API, the way to each sandbox's agent, and who may use them.
package gateway

import (
	"context"
	"net/http"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
)

// Service is what the HTTP edge needs of the rest of the server. Every method may be called from many goroutines;
// errors are *spore.Error or internal. A ref is an id, a name or an alias. Limits are in range when they come here.
type Service interface {
	TemplateService
	LineageService
	AliasService
	SandboxService
	SnapshotService
	JobService
	ArtifactService
	CompatService
	NodeService
	KernelService
	UpkeepService
}

// TemplateService is about templates; where nothing else is said, about snapshots as well.
type TemplateService interface {
	// BuildTemplate starts the building of a template from an image and answers with its job at once.
	BuildTemplate(ctx context.Context, key center.Idempotency, req center.BuildRequest) (*spore.Template, *spore.Job, error)
	// CommitSandbox starts the making of a template out of a sandbox. It is done when the job is.
	CommitSandbox(ctx context.Context, key center.Idempotency, sandboxID string, req center.CommitRequest) (*spore.Template, *spore.Job, error)
	// RedoTemplate starts to make replicas again. What serves goes on serving until the new ones are proven.
	RedoTemplate(ctx context.Context, key center.Idempotency, ref string, req center.RedoRequest) (*spore.Job, error)
	Template(ctx context.Context, ref string) (*spore.Template, error)
	TemplateDetails(ctx context.Context, ref string) (*center.TemplateDetails, error)
	Templates(ctx context.Context, q center.TemplateQuery) ([]*spore.Template, string, error)
	UpdateTemplate(ctx context.Context, ref string, req center.TemplateUpdate) (*spore.Template, error)
	// DeleteTemplate deletes a template or snapshot and answers when that is settled. With DryRun nothing changes and the
	// answer says what would happen, also where Force would be needed.
	DeleteTemplate(ctx context.Context, key center.Idempotency, ref string, req center.DeleteRequest) (*center.Deletion, error)
	// Replicas lists the replicas of a template in the order of node ids.
	Replicas(ctx context.Context, ref string) ([]*spore.Replica, error)
	// ReadyNodes answers where sandboxes can start from a template right now; none is spore.ReasonNoReadyReplica, or
	// spore.ReasonStaleNeedsRedo.
	ReadyNodes(ctx context.Context, ref string) (*center.NodeScope, error)
	// Refs lists runtime refs, and counts all that match.
	Refs(ctx context.Context, q center.RefQuery) (refs []*spore.RuntimeRef, total int, err error)
}

// LineageService tells histories.
type LineageService interface {
	// Lineage tells what a template came of and what came of it, deleted ones too.
	Lineage(ctx context.Context, ref string, q center.LineageQuery) (*center.Lineage, error)
	// Diff says what differs between two templates or snapshots; at most limit files.
	Diff(ctx context.Context, from, to string, limit int) (*spore.Diff, error)
}

// AliasService is about names that can be pointed elsewhere.
type AliasService interface {
	// PutAlias points name:tag at a template in one step.
	PutAlias(ctx context.Context, name, tag string, req center.AliasRequest) (*spore.Alias, error)
	Alias(ctx context.Context, name, tag string) (*spore.Alias, error)
	// DeleteAlias removes name:tag; its history stays. author and reason are for the history.
	DeleteAlias(ctx context.Context, name, tag, author, reason string) error
	Aliases(ctx context.Context, q center.AliasQuery) ([]*spore.Alias, string, error)
	// AliasHistory answers the changes of name:tag, or with tag "" of all tags of name, newest first.
	AliasHistory(ctx context.Context, name, tag string, limit int) ([]spore.AliasChange, error)
}

// SandboxService is about running and paused microVMs.
type SandboxService interface {
	// CreateSandbox thaws a sandbox and answers when its agent does.
	CreateSandbox(ctx context.Context, key center.Idempotency, req center.CreateRequest) (*spore.Sandbox, error)
	// PreviewSandbox says what CreateSandbox would do and makes nothing. What would fail a create is in the answer; an error
	// is for what cannot be previewed.
	PreviewSandbox(ctx context.Context, req center.CreateRequest) (*center.Preview, error)
	Sandbox(ctx context.Context, id string) (*spore.Sandbox, error)
	Sandboxes(ctx context.Context, q center.SandboxQuery) ([]*spore.Sandbox, string, error)
	KillSandbox(ctx context.Context, id string) error
	PauseSandbox(ctx context.Context, id string) (*spore.Sandbox, error)
	ResumeSandbox(ctx context.Context, id string, ttl *time.Duration) (*spore.Sandbox, error)
	// ExtendSandbox sets a sandbox's end to ttl from now (0: no end), and what happens then when onEnd is not "".
	ExtendSandbox(ctx context.Context, id string, ttl time.Duration, onEnd spore.EndAction) (*spore.Sandbox, error)
	// UpdateSandbox changes labels, policy and limits; all of it or nothing.
	UpdateSandbox(ctx context.Context, id string, req center.SandboxUpdate) (*spore.Sandbox, error)
	// PublishPorts publishes more ports on the host, and UnpublishPorts fewer; all of them or none.
	PublishPorts(ctx context.Context, id string, add []spore.PortForward) (*spore.Sandbox, error)
	UnpublishPorts(ctx context.Context, id string, places []center.PortPlace) (*spore.Sandbox, error)
	// SandboxLogs is the output of the image's own process, or with console the guest's serial console; at most limit bytes.
	SandboxLogs(ctx context.Context, id string, console bool, limit int) ([]byte, error)
	// Agent answers a transport to the agent in a running sandbox.
	Agent(ctx context.Context, id string) (http.RoundTripper, error)
}

// SnapshotService is about points in a running sandbox's life.
type SnapshotService interface {
	// CreateSnapshot snapshots a running sandbox and answers when it is settled.
	CreateSnapshot(ctx context.Context, key center.Idempotency, sandboxID string, req center.SnapshotRequest) (*spore.Template, error)
	// HoldSnapshot is CreateSnapshot that answers while the sandbox stands still, which it does until ReleaseSnapshot or the limit.
	// Asked for again under its key it answers when that is over.
	HoldSnapshot(ctx context.Context, key center.Idempotency, sandboxID string, req center.SnapshotRequest, limit time.Duration) (*spore.Template, error)
	// ReleaseSnapshot lets the sandbox of a held snapshot go on, and answers when the snapshot is settled; keep false makes none.
	ReleaseSnapshot(ctx context.Context, id string, keep bool) (*spore.Template, error)
	// Rollback brings a sandbox back to a snapshot and answers when it is settled.
	Rollback(ctx context.Context, key center.Idempotency, sandboxID, snapshotRef string) (*spore.Sandbox, error)
	// Fork starts count sandboxes from a running sandbox or from a snapshot. One result per fork, each a sandbox or an error.
	Fork(ctx context.Context, key center.Idempotency, ref string, req center.ForkRequest) ([]center.ForkResult, error)
}

// JobService is about durable runs of operations.
type JobService interface {
	Job(ctx context.Context, id string) (*spore.Job, error)
	JobDetails(ctx context.Context, id string) (*center.JobDetails, error)
	Jobs(ctx context.Context, q center.JobQuery) ([]*spore.Job, string, error)
	// CancelJob asks a job to end at its next safe point.
	CancelJob(ctx context.Context, id string) (*spore.Job, error)
	JobLog(ctx context.Context, id string, after int64, limit int) ([]spore.LogLine, error)
	// WatchJob calls fn with the job and the log lines that are new, at once and after every change, until the job has
	// ended (nil), ctx ends or fn fails.
	WatchJob(ctx context.Context, id string, afterLog int64, fn func(*spore.Job, []spore.LogLine) error) error
}

// ArtifactService is about root filesystems.
type ArtifactService interface {
	Artifact(ctx context.Context, id string) (*center.ArtifactDetails, error)
	Artifacts(ctx context.Context, q center.ArtifactQuery) ([]*spore.Artifact, string, error)
	// OpenArtifact opens the bytes of an artifact, wherever they are. The caller closes it. One that is READY and has lost its
	// bytes is spore.CodeNotFound, and FAILED from then on.
	OpenArtifact(ctx context.Context, id string) (center.ArtifactFile, error)
	// VerifyArtifact has every node that was given an artifact look for it, with full reading every byte, and writes down
	// what was found.
	VerifyArtifact(ctx context.Context, id string, full bool) (*center.ArtifactVerdict, error)
}

// CompatService says which templates fit which nodes.
type CompatService interface {
	CompatMatrix(ctx context.Context, q center.CompatQuery) (*spore.CompatMatrix, error)
	// ScanCompat judges the replicas on some nodes anew; no nodes means all.
	ScanCompat(ctx context.Context, nodes []string) (*center.CompatScan, error)
	// AdoptBaseline declares that UNKNOWN replicas were frozen with what their nodes have now, and answers how many.
	AdoptBaseline(ctx context.Context, req center.AdoptRequest) (int, error)
}

// NodeService is about machines.
type NodeService interface {
	Node(ctx context.Context, id string) (*spore.Node, error)
	// Nodes lists all nodes, the forgotten ones only when asked for.
	Nodes(ctx context.Context, forgotten bool) ([]*spore.Node, error)
	UpdateNode(ctx context.Context, id string, req center.NodeUpdate) (*spore.Node, error)
	// DrainNode gives a node no new sandboxes and replicas and has its replicas made elsewhere; with drain false, it is used again.
	DrainNode(ctx context.Context, id string, drain bool) (*spore.Node, error)
	// ForgetNode gives up a node that is not coming back; one that answers is spore.CodeConflict.
	ForgetNode(ctx context.Context, id string, dryRun bool) (*center.Forgetting, error)
	// NodeStorage answers how full each node's disk is; refresh asks the nodes instead of remembering. A node that does not
	// answer says so in LastError.
	NodeStorage(ctx context.Context, refresh bool) ([]center.NodeStorageStatus, error)
}

// KernelService is about guest kernels.
type KernelService interface {
	Kernels(ctx context.Context) ([]center.Kernel, error)
	// InstallKernel installs a kernel bundle: the distribution's when src is zero, else from files on the server's machine.
	InstallKernel(ctx context.Context, src center.KernelSource, progress func(step string, done, total int64)) (*center.Kernel, error)
	RemoveKernel(ctx context.Context, id string) error
}

// UpkeepService is about the server itself and the bytes that it keeps.
type UpkeepService interface {
	// Check looks for damage; full reads every stored byte. It changes nothing.
	Check(ctx context.Context, full bool, progress func(step string, done, total int64)) (*spore.CheckReport, error)
	// CollectGarbage removes what retention policies no longer keep and frees bytes that nothing holds; with dryRun it only
	// says which.
	CollectGarbage(ctx context.Context, dryRun bool) (*center.Collection, error)
	// Explain says what an id is, what it stands on, who holds it and what deleting it would free.
	Explain(ctx context.Context, id string) (*center.Explanation, error)
	Info(ctx context.Context) (*center.Info, error)
	Metrics(ctx context.Context) (*center.Metrics, error)
}
