package center

import (
	"context"
	"io"
	"net/http"

	"github.com/sporevm/spore"
)

// Node is what the center asks of a machine. A sandbox's VMs are numbered by generation: the center decides which
// generation counts by writing it into the sandbox's row, and the node drops the others when told. So whatever dies in
// between, the row says which VM is the sandbox.
type Node interface {
	ID() string

	// Report answers what the node is, how full it is and which VMs it has.
	Report(ctx context.Context) (*spore.NodeReport, error)

	// ResolveArtifact says which artifact an image would become on this node: its ID, Image, Process and EgressCA. Nothing is built.
	ResolveArtifact(ctx context.Context, spec spore.ArtifactSpec) (*spore.Artifact, error)
	// BuildArtifact turns an image into a root filesystem on the node; nothing is done for one that is there already.
	BuildArtifact(ctx context.Context, spec spore.ArtifactSpec, progress func(spore.JobPhase, spore.PullProgress)) (*spore.Artifact, error)
	// VerifyArtifact is nil when the artifact is on the node and what it should be; spore.CodeNotFound or spore.CodeDamaged
	// otherwise. full reads every byte, else only what is cheap is looked at.
	VerifyArtifact(ctx context.Context, id string, full bool) error
	// DropArtifact removes an artifact; spore.CodeInUse while a frozen state or a VM stands on it, nil when it is not there.
	DropArtifact(ctx context.Context, id string) error
	// OpenArtifact opens an artifact's filesystem image for reading. The caller closes it.
	OpenArtifact(ctx context.Context, id string) (ArtifactFile, error)

	// Bake boots t, waits until it is ready and freezes it under the id as. A frozen state that exists already is answered as it
	// is, so that a job can be run again. note takes one line for people at each step. All that makes bytes (Bake, Rebake,
	// Fetch, Freeze, Suspend, Flatten, BuildArtifact) first reserves room on the disk: spore.CodeNoSpace says how much is missing.
	Bake(ctx context.Context, t *spore.Template, as string, note func(string)) (*spore.Frozen, error)
	// Rebake is Bake on the disk of the frozen state t.ID instead of a blank one: fresh memory for the same files.
	Rebake(ctx context.Context, t *spore.Template, as string, note func(string)) (*spore.Frozen, error)
	// Fetch brings the frozen state t.ID from one of the nodes in from, and keeps it under the id as. spore.CodeUnsupported when
	// this node cannot be reached by others, or cannot reach them.
	Fetch(ctx context.Context, t *spore.Template, as string, from []string, note func(string)) (*spore.Frozen, error)
	// Probe thaws a frozen state once, waits for its agent and ends it. An error says why no sandbox can start from it.
	Probe(ctx context.Context, t *spore.Template, frozenID string) error
	// Promote gives the frozen state from the id to, in one step, in place of what has it now. What stands on that goes on.
	// When from is gone and to is there it has happened already.
	Promote(ctx context.Context, from, to string) (*spore.Frozen, error)
	// VerifyFrozen is nil when a frozen state is whole; spore.CodeNotFound or spore.CodeDamaged otherwise.
	VerifyFrozen(ctx context.Context, frozenID string, full bool) error
	// Diff says what differs between two frozen states: at most limit files.
	Diff(ctx context.Context, from, to string, limit int) (*spore.Diff, error)
	// ResolveKernel answers the id of a kernel bundle; "" asks for the newest.
	ResolveKernel(ctx context.Context, id string) (string, error)
	// Admit says whether a VM of this size could run here at all; spore.CodeInvalid names the field that is too large.
	Admit(r spore.Resources) error

	// Start brings up generation s.Generation of a sandbox from a frozen state, identity, ports, network, limits and all. It does not
	// touch other generations. On error nothing of this generation is left.
	Start(ctx context.Context, s *spore.Sandbox, frozenID string) error
	// Publish makes the set of published ports of a sandbox that has a VM exactly this, all or none, and answers them with the
	// host ports that were picked. Those that were published before, and are to be, are not interrupted; a port that was picked
	// may become another when it is not to be had. spore.CodeConflict with the field ports.hostPort says that one is taken, and
	// its cause, a *spore.PortTaken, which; spore.CodeUnsupported that the node may not have it. Ports belong to the sandbox: they stay as its generations come and
	// go, lead to the oldest that runs, and go with the last.
	Publish(ctx context.Context, sandboxID string, ports []spore.PortForward) ([]spore.PortForward, error)
	// Adjust brings policy and limits of generation s.Generation, which runs, in line with s. spore.CodeUnsupported names the
	// field that cannot be changed while it runs, and nothing is changed then.
	Adjust(ctx context.Context, s *spore.Sandbox) error
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

	// Recover takes over the VMs that an earlier process of the node left running. Each VM of a sandbox in want at its
	// generation is adopted, with the ports that the sandbox has; every other is ended. The answer says, for each in want that could not be adopted, why. It is asked for
	// when Report says that the node is not Recovered, and before anything is started there.
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

// ArtifactFile is an artifact's filesystem image.
type ArtifactFile = interface {
	io.ReadSeekCloser
	Size() int64
	Digest() string // "sha256:..."
}

// Progress is told how far a long operation has come; total is 0 while it is unknown.
type Progress = func(step string, done, total int64)
