package center

import (
	"context"
	"net/http"

	"github.com/sporevm/spore"
)

// Node is what the center asks of a machine. A sandbox's VMs are numbered by generation: the center decides which
// generation counts by writing it into the sandbox's row, and the node drops the others when told. So whatever dies in
// between, the row says which VM is the sandbox.
type Node interface {
	ID() string

	// BuildArtifact turns an image into a root filesystem on the node; nothing is done for one that is there already.
	BuildArtifact(ctx context.Context, spec spore.ArtifactSpec, progress func(spore.JobPhase, spore.PullProgress)) (*spore.Artifact, error)
	// Bake boots t, waits until it is ready and freezes it under t.ID. A frozen state that exists already is answered as it
	// is, so that a job can be run again. note takes one line for people at each step.
	Bake(ctx context.Context, t *spore.Template, note func(string)) (*spore.Frozen, error)
	// ResolveKernel answers the id of a kernel bundle; "" asks for the newest.
	ResolveKernel(ctx context.Context, id string) (string, error)
	// Admit says whether a VM of this size could run here at all; spore.CodeInvalid names the field that is too large.
	Admit(r spore.Resources) error

	// Start brings up generation s.Generation of a sandbox from a frozen state, identity and all. It does not touch other
	// generations. On error nothing of this generation is left.
	Start(ctx context.Context, s *spore.Sandbox, frozenID string) error
	// Settle ends every generation of a sandbox but keep; 0 keeps none. It is idempotent and does not fail for what is gone.
	Settle(ctx context.Context, sandboxID string, keep int) error
	// Freeze captures a running sandbox under a new frozen id while it runs on. What equals the frozen state parent (an
	// ancestor of the sandbox's state, or what it was started from when parent is gone) is not kept twice.
	Freeze(ctx context.Context, s *spore.Sandbox, frozenID, parent string) (*spore.Frozen, error)
	// Suspend is Freeze, but the VM stays still, so that nothing can happen after the capture. Follow it by Settle, or by
	// Wake when the suspension is not to be.
	Suspend(ctx context.Context, s *spore.Sandbox, frozenID, parent string) (*spore.Frozen, error)
	Wake(ctx context.Context, sandboxID string, generation int) error
	// Flatten merges the layers of a frozen state; toBase makes a base of its own of it.
	Flatten(ctx context.Context, frozenID string, toBase bool) (*spore.Frozen, error)

	// Frozen answers the facts of a frozen state; spore.CodeNotFound when the node has none under that id.
	Frozen(ctx context.Context, frozenID string) (*spore.Frozen, error)
	// FrozenIDs lists the ids of all frozen states on the node, the damaged ones too.
	FrozenIDs(ctx context.Context) ([]string, error)
	// Forget removes a frozen state's name. Its bytes go at the next collection, if nothing else stands on them.
	Forget(ctx context.Context, frozenID string) error

	// Recover takes over the VMs that an earlier server left running. Each VM of a sandbox in want at its
	// generation is adopted; every other is ended. The answer says, for each in want that could not be adopted, why.
	Recover(ctx context.Context, want []*spore.Sandbox) (map[string]error, error)
	// OnExit registers what to call when a VM of a sandbox ended by itself.
	OnExit(fn func(sandboxID string, generation int, reason string))

	// Agent answers a transport to the agent of a running sandbox.
	Agent(ctx context.Context, sandboxID string, generation int) (http.RoundTripper, error)
	Logs(ctx context.Context, sandboxID string, generation int, console bool, limit int) ([]byte, error)

	// Check looks for damage in what the node stores; full reads every byte. It changes nothing.
	Check(ctx context.Context, full bool, progress Progress) (*spore.CheckReport, error)
	// Collect frees what nothing holds: frozen pieces, artifacts that no frozen state and no build uses, image layers.
	Collect(ctx context.Context, dryRun bool) ([]spore.GarbageItem, error)
	// Usage answers what a frozen state keeps on disk and who else holds parts of it.
	Usage(ctx context.Context, frozenID string) (*spore.Usage, error)
}

// Progress is told how far a long operation has come; total is 0 while it is unknown.
type Progress = func(step string, done, total int64)
