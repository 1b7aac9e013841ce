package simnode

import (
	"context"
	"maps"
	"slices"

	"github.com/sporevm/spore"
)

// Freeze is center.Node's.
func (h *Handle) Freeze(ctx context.Context, s *spore.Sandbox, frozenID, parent string) (*spore.Frozen, error) {
	return h.capture(ctx, "freeze", s, frozenID, parent, false)
}

// Suspend is center.Node's.
func (h *Handle) Suspend(ctx context.Context, s *spore.Sandbox, frozenID, parent string) (*spore.Frozen, error) {
	return h.capture(ctx, "suspend", s, frozenID, parent, true)
}

func (h *Handle) capture(ctx context.Context, name string, s *spore.Sandbox, frozenID, parent string, stay bool) (*spore.Frozen, error) {
	sandbox, generation := s.ID, s.Generation
	return ask(ctx, h, name, func(c *call) (*spore.Frozen, error) {
		m := c.m
		if err := c.step("begin"); err != nil {
			return nil, err
		}
		v, err := m.held(sandbox, generation)
		if err != nil {
			return nil, err
		}
		if v.capturing {
			return nil, spore.Errorf(spore.CodeBusy, "another capture of sandbox %s is under way", sandbox).WithHint("try again in a moment")
		}
		if m.manifests[frozenID] != nil {
			return nil, taken(frozenID)
		}
		base := m.parent(v, parent)
		if err := m.whole(base, false); err != nil {
			return nil, err
		}
		c.hold(base)
		use := forKeeping
		if stay {
			use = forRunning
		}
		if err := c.reserve(use, m.newBytes(over(frozenID, "", base, v.files))+deviceBytes); err != nil {
			return nil, err
		}
		before := v.paused
		v.capturing, v.paused = true, true
		c.onError(func() { v.capturing, v.paused = false, before })
		if err := c.step("paused"); err != nil {
			return nil, err
		}
		f := over(frozenID, m.newID("c"), base, v.files)
		if err := c.step("captured"); err != nil {
			return nil, err
		}
		v.paused = stay
		if err := c.step("commit"); err != nil {
			return nil, err
		}
		if m.vms[v.id] == nil || !v.running {
			return nil, errEnded
		}
		if m.manifests[frozenID] != nil {
			return nil, taken(frozenID)
		}
		c.commit(f)
		v.capturing = false
		return f.timed(), nil
	})
}

// parent is what a capture is compared with: the frozen state of that id if it stands on the memory that the VM does, or
// else what the VM was thawed from.
func (m *Machine) parent(v *vm, id string) *manifest {
	s := m.manifests[id]
	if s == nil || id == v.state.id || s.artifact != v.state.artifact || s.memory[0] != v.state.memory[0] {
		return v.state
	}
	return s
}

// Wake is center.Node's.
func (h *Handle) Wake(ctx context.Context, sandboxID string, generation int) error {
	_, err := ask(ctx, h, "wake", func(c *call) (any, error) {
		if err := c.step("resume"); err != nil {
			return nil, err
		}
		v, err := c.m.held(sandboxID, generation)
		if err != nil {
			return nil, err
		}
		if !v.capturing {
			v.paused = false
		}
		return nil, nil
	})
	return err
}

// Flatten is center.Node's.
func (h *Handle) Flatten(ctx context.Context, frozenID string, toBase bool) (*spore.Frozen, error) {
	return ask(ctx, h, "flatten", func(c *call) (*spore.Frozen, error) {
		m := c.m
		if err := c.step("begin"); err != nil {
			return nil, err
		}
		old, err := m.frozen(frozenID)
		if err != nil {
			return nil, err
		}
		if err := m.whole(old, false); err != nil {
			return nil, err
		}
		depth := len(old.memory) - 1
		if depth == 0 || depth == 1 && !toBase {
			return old.facts(), nil
		}
		c.hold(old)
		s := old.renamed(frozenID)
		s.madeAs = old.madeAs
		flat := m.newID("flat") + "-" + old.capture // its suffix still says which capture it is of
		s.memory, s.disk = merge(old.memory, flat, toBase), merge(old.disk, flat, toBase)
		if err := c.reserve(forKeeping, m.newBytes(s)); err != nil {
			return nil, err
		}
		if err := c.step("merge"); err != nil {
			return nil, err
		}
		if err := c.step("commit"); err != nil {
			return nil, err
		}
		switch m.manifests[frozenID] {
		case old:
		case nil:
			_, err := m.frozen(frozenID)
			return nil, err
		default:
			return nil, spore.Errorf(spore.CodeConflict, "%s was replaced meanwhile", frozenID)
		}
		c.commit(s)
		return s.facts(), nil
	})
}

// merge makes one layer of those of a chain, or one base of it all.
func merge(chain []*piece, name string, toBase bool) []*piece {
	var bytes int64
	for _, p := range chain[1:] {
		bytes += p.bytes
	}
	if toBase {
		return []*piece{newPiece(chain[0].kind, name, chain[0].bytes+bytes)}
	}
	return []*piece{chain[0], newPiece(chain[0].kind, name, bytes)}
}

// Frozen is center.Node's.
func (h *Handle) Frozen(ctx context.Context, frozenID string) (*spore.Frozen, error) {
	return ask(ctx, h, "frozen", func(c *call) (*spore.Frozen, error) {
		s, err := c.m.frozen(frozenID)
		if err != nil {
			return nil, err
		}
		return s.facts(), nil
	})
}

// FrozenIDs is center.Node's.
func (h *Handle) FrozenIDs(ctx context.Context) ([]string, error) {
	return ask(ctx, h, "frozenIDs", func(c *call) ([]string, error) {
		return slices.AppendSeq([]string{}, slices.Values(sortedKeys(c.m.manifests))), nil
	})
}

// Forget is center.Node's.
func (h *Handle) Forget(ctx context.Context, frozenID string) error {
	_, err := ask(ctx, h, "forget", func(c *call) (any, error) {
		if err := c.step("commit"); err != nil {
			return nil, err
		}
		if _, err := c.m.frozen(frozenID); err != nil {
			return nil, err
		}
		delete(c.m.manifests, frozenID)
		return nil, nil
	})
	return err
}

// VerifyFrozen is center.Node's.
func (h *Handle) VerifyFrozen(ctx context.Context, frozenID string, full bool) error {
	_, err := ask(ctx, h, "verify", func(c *call) (any, error) {
		if err := c.step("read"); err != nil {
			return nil, err
		}
		s, err := c.m.frozen(frozenID)
		if err != nil {
			return nil, err
		}
		return nil, c.m.whole(s, full)
	})
	return err
}

// Diff is center.Node's.
func (h *Handle) Diff(ctx context.Context, from, to string, limit int) (*spore.Diff, error) {
	return ask(ctx, h, "diff", func(c *call) (*spore.Diff, error) {
		if err := c.step("read"); err != nil {
			return nil, err
		}
		a, err := c.m.frozen(from)
		if err != nil {
			return nil, err
		}
		b, err := c.m.frozen(to)
		if err != nil {
			return nil, err
		}
		return difference(a, b, limit), nil
	})
}

func difference(a, b *manifest, limit int) *spore.Diff {
	d := &spore.Diff{From: a.id, To: b.id, MemoryTotal: int64(b.resources.MemoryMiB) * mib}
	all := maps.Clone(a.files)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, b.files)
	for _, path := range sortedKeys(all) {
		before, had := a.files[path]
		after, has := b.files[path]
		change := spore.FileChange{Path: path, Kind: spore.ChangeModified, SizeFrom: int64(len(before)), SizeTo: int64(len(after))}
		switch {
		case had && has && before == after:
			continue
		case !had:
			change.Kind = spore.ChangeAdded
		case !has:
			change.Kind = spore.ChangeRemoved
		}
		d.DiskChanged += blockBytes
		if len(d.Files) >= limit {
			d.FilesOmitted++
			continue
		}
		d.Files = append(d.Files, change)
	}
	for i := range max(len(a.memory), len(b.memory)) { // what the chains do not have in common
		for _, s := range []*manifest{a, b} {
			if i < len(s.memory) && (i >= len(a.memory) || i >= len(b.memory) || a.memory[i].id != b.memory[i].id) {
				d.MemoryChanged += s.memory[i].bytes
			}
		}
	}
	d.MemoryChanged = min(d.MemoryChanged, d.MemoryTotal)
	return d
}
