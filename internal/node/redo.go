package node

import (
	"context"
	"path/filepath"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/frozen"
)

// Rebake boots anew on the disk of the frozen state t.ID and freezes that under the id as: fresh memory for the same
// files. The result is a base that stands on nothing of the old one. Memory and device state of the old one may be
// damaged, or of a hypervisor that is gone.
func (n *Node) Rebake(ctx context.Context, t *spore.Template, as string, note func(string)) (*spore.Frozen, error) {
	if f, err := n.Frozen(ctx, as); !isNotFound(err) {
		return f, err
	}
	old, err := n.opt.Frozen.OpenDisk(ctx, t.ID)
	if err != nil {
		return nil, err
	}
	defer old.Close()
	// The files on the disk are changes to this artifact and to no other.
	artifact := old.Manifest.Shape.Artifact
	if t.ArtifactID != "" && t.ArtifactID != artifact {
		return nil, spore.Errorf(spore.CodeConflict, "the disk of %s belongs over artifact %s, not %s", t.ID, artifact, t.ArtifactID)
	}
	return n.bake(ctx, baking{
		template: t, as: as, artifact: artifact, note: note,
		diskBytes: old.DiskBytes(),
		disk:      func(ctx context.Context, path string) error { return old.CloneDisk(ctx, path) },
	})
}

// Fetch is for nodes that reach each other, which machines do not yet.
func (n *Node) Fetch(ctx context.Context, t *spore.Template, as string, from []string, note func(string)) (*spore.Frozen, error) {
	return nil, spore.Errorf(spore.CodeUnsupported, "node %s cannot fetch %s: machines are not joined by a network", n.opt.ID, t.ID).
		WithHint("make it here instead: build it from its image, or redo it on this node")
}

// Probe thaws a frozen state once, the way a sandbox starts, waits for its agent and ends it. Its VM is nobody's, so that
// one which a crash leaves is cleared away like a VM of the pool.
func (n *Node) Probe(ctx context.Context, t *spore.Template, frozenID string) error {
	m, err := n.makingRoom(ctx, n.thaw, frozenID, owner{}, nil)
	if err != nil {
		return err
	}
	return n.end(context.WithoutCancel(ctx), m)
}

// Promote gives the frozen state from the id to. VMs that are ready for what had that id before are ended.
func (n *Node) Promote(ctx context.Context, from, to string) (*spore.Frozen, error) {
	m, err := n.opt.Frozen.Promote(ctx, from, to)
	if err != nil {
		return nil, err
	}
	n.pool.drain(ctx, from)
	n.pool.drain(ctx, to)
	return n.facts(m)
}

// VerifyFrozen is nil when a frozen state is whole.
func (n *Node) VerifyFrozen(ctx context.Context, frozenID string, full bool) error {
	return n.opt.Frozen.Verify(ctx, frozenID, full)
}

// blankBytes is how much of its disk a template is taken to fill until it is ready. What goes beyond it is bounded by
// the disk's own size and by what the filesystem has.
const blankBytes = 64 * mib

// cloneBytes is what a copy of that many bytes takes up on this node's filesystem.
func (n *Node) cloneBytes(bytes int64) int64 {
	if n.reflinks {
		return 0
	}
	return bytes
}

// baking is one boot of a template: on a blank disk, or on one that was in use before.
type baking struct {
	template  *spore.Template
	as        string
	artifact  string
	disk      func(ctx context.Context, path string) error // makes the writable disk
	diskBytes int64                                        // that it takes up as it is
	note      func(string)
}

// bytes is the most that a boot writes: all of the memory, the disk and the copy that is frozen of it.
func (n *Node) bakedBytes(b baking) int64 {
	r := b.template.Resources
	fresh := min(blankBytes, int64(r.DiskMiB)*mib)
	return int64(r.MemoryMiB)*mib + fresh + n.cloneBytes(2*b.diskBytes+fresh)
}

func (n *Node) diskPath(id string) string { return filepath.Join(n.machineDir(id), diskFile) }

// spec is the draft that a boot makes. Its pieces go by the template's id, which the draft may only get later.
func (b baking) spec(shape frozen.Shape) frozen.Spec {
	return frozen.Spec{ID: b.as, For: b.template.ID, Kind: kindOf(b.template.ID), Shape: shape}
}
