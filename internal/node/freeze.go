package node

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/frozen"
	"github.com/sporevm/spore/internal/vmm"
)

// Freeze captures a running sandbox under a new frozen id while it runs on.
func (n *Node) Freeze(ctx context.Context, s *spore.Sandbox, frozenID, parent string) (*spore.Frozen, error) {
	return n.capture(ctx, s, frozenID, parent, frozen.Resume)
}

// Suspend captures a running sandbox and leaves it standing still.
func (n *Node) Suspend(ctx context.Context, s *spore.Sandbox, frozenID, parent string) (*spore.Frozen, error) {
	return n.capture(ctx, s, frozenID, parent, frozen.StayPaused)
}

func (n *Node) capture(ctx context.Context, s *spore.Sandbox, frozenID, parent string, after frozen.After) (_ *spore.Frozen, err error) {
	m, err := n.machine(s.ID, s.Generation)
	if err != nil {
		return nil, err
	}
	m.freeze.Lock()
	defer m.freeze.Unlock()
	release, err := n.reserveCapture(ctx, m, frozenID)
	if err != nil {
		return nil, err
	}
	defer release()
	if kindOf(frozenID) != frozen.KindPause {
		m.settle(ctx)
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
	defer func() {
		if err != nil && m.vm.State() == vmm.StatePaused {
			n.log.Warn("a capture failed; setting its VM going again", "vm", m.id, "err", err)
			go m.wake()
		}
	}()
	if _, err := draft.CaptureLive(ctx, m.vm, n.diskPath(m.id), after); err != nil {
		return nil, err
	}
	manifest, err := draft.Commit(ctx)
	if err != nil {
		return nil, err
	}
	f, err := n.facts(manifest)
	if err != nil {
		return nil, errors.Join(err, n.opt.Frozen.Remove(frozenID))
	}
	m.suspended.Store(after == frozen.StayPaused)
	f.Paused, f.Total = draft.Timings().Paused, time.Since(start)
	n.log.Info("captured", "frozen", frozenID, "vm", m.id, "timings", draft.Timings())
	return f, nil
}

// reserveCapture makes room for what a capture may write: what the VM holds for itself of its memory, and its disk.
func (n *Node) reserveCapture(ctx context.Context, m *machine, frozenID string) (release func(), err error) {
	memory, err := privateBytes(ctx, m.vm, int64(m.owner.Shape.MemoryMiB)*mib)
	if err != nil {
		return nil, err
	}
	disk, err := allocatedBytes(n.diskPath(m.id))
	if err != nil {
		return nil, err
	}
	purpose := toKeep
	if kindOf(frozenID) == frozen.KindPause { // it gives memory back, which a full machine needs
		purpose = toStart
	}
	return n.guard.reserve("freezing "+m.owner.Sandbox, memory+n.cloneBytes(disk), purpose)
}

// settleTimeout bounds how long a guest may take to write out what its programs have written. One that does not answer
// is captured as it is.
const settleTimeout = 5 * time.Second

// settle has the guest write its files out while it still runs: the frozen disk then holds them by itself, for those
// who read it without the memory.
func (m *machine) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	a, err := m.connect(ctx)
	if err == nil {
		err = a.Quiesce(ctx)
	}
	if err != nil {
		m.node.log.Warn("a guest did not write its files out before it was captured; its memory holds them", "vm", m.id, "err", err)
	}
}

// Wake lets a VM that Suspend held still run on. When it does not, the node goes on trying.
func (n *Node) Wake(ctx context.Context, sandboxID string, generation int) error {
	m, err := n.machine(sandboxID, generation)
	if err != nil {
		return err
	}
	m.freeze.Lock()
	defer m.freeze.Unlock()
	m.suspended.Store(false)
	if err := m.vm.Resume(ctx); err != nil {
		go m.wake()
		return err
	}
	return nil
}

// wake lets a VM run on, trying until it does, has ended, or is let go of: a sandbox that is said to run must not stand
// still.
func (m *machine) wake() {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
		err := m.wakeOnce()
		if err == nil || m.vm.State() == vmm.StateExited {
			return
		}
		m.node.log.Error("a VM cannot be set going again; trying again", "vm", m.id, "err", err)
		select {
		case <-time.After(wait):
		case <-m.vm.Done():
			return
		case <-m.held.Done():
			return
		}
	}
}

// wakeTimeout bounds one attempt at setting a VM going again.
const wakeTimeout = 30 * time.Second

func (m *machine) wakeOnce() error {
	m.freeze.Lock()
	defer m.freeze.Unlock()
	if m.suspended.Load() { // by a later capture
		return nil
	}
	ctx, cancel := context.WithTimeout(m.held, wakeTimeout)
	defer cancel()
	return m.vm.Resume(ctx)
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
	m, err := n.opt.Frozen.Flatten(ctx, frozenID, frozen.FlattenOptions{
		ToBase:  toBase,
		Reserve: func(bytes int64) (func(), error) { return n.guard.reserve("merging "+frozenID, bytes, toKeep) },
	})
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
		EngineVersion: m.Shape.Engine.Version, CPU: m.Shape.Engine.CPUFeatures,
	}, nil
}
