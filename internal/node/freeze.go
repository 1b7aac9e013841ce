package node

import (
	"context"
	"strings"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/frozen"
)

// Freeze captures a running sandbox under a new frozen id while it runs on.
func (n *Node) Freeze(ctx context.Context, s *spore.Sandbox, frozenID, parent string) (*spore.Frozen, error) {
	return n.capture(ctx, s, frozenID, parent, frozen.Resume)
}

// Suspend captures a running sandbox and leaves it standing still.
func (n *Node) Suspend(ctx context.Context, s *spore.Sandbox, frozenID, parent string) (*spore.Frozen, error) {
	return n.capture(ctx, s, frozenID, parent, frozen.StayPaused)
}

func (n *Node) capture(ctx context.Context, s *spore.Sandbox, frozenID, parent string, after frozen.After) (*spore.Frozen, error) {
	m, err := n.machine(s.ID, s.Generation)
	if err != nil {
		return nil, err
	}
	m.freeze.Lock()
	defer m.freeze.Unlock()
	if err := n.cap.roomForFreeze(); err != nil {
		return nil, err
	}
	base, err := n.parent(m, parent)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	draft, err := n.opt.Frozen.Begin(ctx, frozen.Spec{ID: frozenID, Kind: kindOf(frozenID), Shape: m.owner.Shape, Parent: base})
	if err != nil {
		return nil, err
	}
	defer draft.Discard()
	if _, err := draft.CaptureLive(ctx, m.vm, n.path("vms", m.id, diskFile), after); err != nil {
		return nil, err
	}
	manifest, err := draft.Commit(ctx)
	if err != nil {
		if after == frozen.StayPaused {
			if wake := m.vm.Resume(context.WithoutCancel(ctx)); wake != nil {
				n.log.Error("waking a VM whose capture failed", "vm", m.id, "err", wake)
			}
		}
		return nil, err
	}
	f, err := n.facts(manifest)
	if err != nil {
		return nil, err
	}
	f.Paused, f.Total = draft.Timings().Paused, time.Since(start)
	n.log.Info("captured", "frozen", frozenID, "vm", m.id, "timings", draft.Timings())
	return f, nil
}

// parent is what a capture is compared with: the frozen state of that id, or else what the VM was thawed from, which is
// pinned and so is there even when its name is not.
func (n *Node) parent(m *machine, id string) (*frozen.Manifest, error) {
	pinned, err := n.opt.Frozen.Pinned(m.id)
	if err != nil || id == "" || id == m.owner.FrozenID {
		return pinned, err
	}
	// A page that the VM holds no copy of reads as the base that it maps: only what stands on that base will do.
	manifest, err := n.opt.Frozen.Manifest(id)
	if err == nil && manifest.Shape.Artifact == m.owner.Shape.Artifact && manifest.Memory.Base == pinned.Memory.Base {
		return manifest, nil
	}
	return pinned, nil
}

func kindOf(id string) frozen.Kind {
	switch {
	case strings.HasPrefix(id, spore.TemplatePrefix):
		return frozen.KindTemplate
	case strings.HasPrefix(id, spore.SnapshotPrefix):
		return frozen.KindSnapshot
	}
	return frozen.KindPause
}

// Flatten merges the layers of a frozen state.
func (n *Node) Flatten(ctx context.Context, frozenID string, toBase bool) (*spore.Frozen, error) {
	m, err := n.opt.Frozen.Flatten(ctx, frozenID, frozen.FlattenOptions{ToBase: toBase})
	if err != nil {
		return nil, err
	}
	return n.facts(m)
}

// Frozen answers the facts of a frozen state.
func (n *Node) Frozen(ctx context.Context, frozenID string) (*spore.Frozen, error) {
	m, err := n.opt.Frozen.Manifest(frozenID)
	if err != nil {
		return nil, err
	}
	return n.facts(m)
}

// FrozenIDs lists the ids of all frozen states, the damaged ones too.
func (n *Node) FrozenIDs(ctx context.Context) ([]string, error) {
	entries, err := n.opt.Frozen.List(ctx)
	ids := make([]string, len(entries))
	for i, e := range entries {
		ids[i] = e.ID
	}
	return ids, err
}

// Forget removes a frozen state's name.
func (n *Node) Forget(ctx context.Context, frozenID string) error {
	n.pool.drain(ctx, frozenID)
	return n.opt.Frozen.Remove(frozenID)
}

func (n *Node) facts(m *frozen.Manifest) (*spore.Frozen, error) {
	memory, disk, err := n.opt.Frozen.Kept(m)
	if err != nil {
		return nil, err
	}
	return &spore.Frozen{
		ID: m.ID, MemoryBytes: memory, DiskBytes: disk, ChainDepth: len(m.Memory.Layers),
		KernelID: m.Shape.Kernel, KernelVersion: m.Shape.KernelVersion, AgentVersion: m.Shape.AgentVersion,
		Engine: m.Shape.Engine.Engine, StateFormat: m.Shape.Engine.StateFormat,
	}, nil
}
