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
// errors are *spore.Error or internal. A ref is an id or a name.
type Service interface {
	// BuildTemplate starts the building of a template from an image and answers with its job at once.
	BuildTemplate(ctx context.Context, key center.Idempotency, req center.BuildRequest) (*spore.Template, *spore.Job, error)
	// CommitSandbox starts the making of a template out of a sandbox. It is done when the job is.
	CommitSandbox(ctx context.Context, key center.Idempotency, sandboxID string, req center.CommitRequest) (*spore.Template, *spore.Job, error)
	Template(ctx context.Context, ref string) (*spore.Template, error)
	Templates(ctx context.Context, f center.TemplateQuery) ([]*spore.Template, string, error)
	// DeleteTemplate deletes a template or snapshot. With dryRun nothing changes and the answer says what would happen.
	DeleteTemplate(ctx context.Context, ref string, dryRun bool) (*center.Deletion, error)

	// CreateSandbox thaws a sandbox and answers when its agent does.
	CreateSandbox(ctx context.Context, key center.Idempotency, req center.CreateRequest) (*spore.Sandbox, error)
	Sandbox(ctx context.Context, id string) (*spore.Sandbox, error)
	Sandboxes(ctx context.Context, q center.SandboxQuery) ([]*spore.Sandbox, string, error)
	KillSandbox(ctx context.Context, id string) error
	PauseSandbox(ctx context.Context, id string) (*spore.Sandbox, error)
	ResumeSandbox(ctx context.Context, id string, ttl *time.Duration) (*spore.Sandbox, error)
	// ExtendSandbox sets a sandbox's end to ttl from now (0: no end), and what happens then when onEnd is not "".
	ExtendSandbox(ctx context.Context, id string, ttl time.Duration, onEnd spore.EndAction) (*spore.Sandbox, error)
	// SandboxLogs is the output of the image's own process, or with console the guest's serial console; at most limit bytes.
	SandboxLogs(ctx context.Context, id string, console bool, limit int) ([]byte, error)
	// Agent answers a transport to the agent in a running sandbox.
	Agent(ctx context.Context, id string) (http.RoundTripper, error)

	// CreateSnapshot snapshots a running sandbox and answers when it is settled.
	CreateSnapshot(ctx context.Context, key center.Idempotency, sandboxID string, req center.SnapshotRequest) (*spore.Template, error)
	// Rollback brings a sandbox back to a snapshot and answers when it is settled.
	Rollback(ctx context.Context, key center.Idempotency, sandboxID, snapshotRef string) (*spore.Sandbox, error)
	// Fork starts count sandboxes from a running sandbox or from a snapshot. One result per fork, each a sandbox or an error.
	Fork(ctx context.Context, key center.Idempotency, ref string, req center.ForkRequest) ([]center.ForkResult, error)

	Job(ctx context.Context, id string) (*spore.Job, error)
	Jobs(ctx context.Context, q center.JobQuery) ([]*spore.Job, string, error)
	// CancelJob asks a job to end at its next safe point.
	CancelJob(ctx context.Context, id string) (*spore.Job, error)
	JobLog(ctx context.Context, id string, after int64, limit int) ([]spore.LogLine, error)
	// WatchJob calls fn with the job and the log lines that are new, at once and after every change, until the job has
	// ended (nil), ctx ends or fn fails.
	WatchJob(ctx context.Context, id string, afterLog int64, fn func(*spore.Job, []spore.LogLine) error) error

	Kernels(ctx context.Context) ([]center.Kernel, error)
	// InstallKernel installs a kernel bundle: the distribution's when src is zero, else from files on the server's machine.
	InstallKernel(ctx context.Context, src center.KernelSource, progress func(step string, done, total int64)) (*center.Kernel, error)
	RemoveKernel(ctx context.Context, id string) error

	// Check looks for damage; full reads every stored byte. It changes nothing.
	Check(ctx context.Context, full bool, progress func(step string, done, total int64)) (*spore.CheckReport, error)
	// CollectGarbage frees bytes that nothing holds; with dryRun it only says which.
	CollectGarbage(ctx context.Context, dryRun bool) (*spore.GarbageReport, error)
	// Explain says what an id is, what it stands on, who holds it and what deleting it would free.
	Explain(ctx context.Context, id string) (*center.Explanation, error)
	Info(ctx context.Context) (*center.Info, error)
}
