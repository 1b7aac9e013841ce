package simnode

import (
	"context"
	"slices"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
)

// Check is center.Node's.
func (h *Handle) Check(ctx context.Context, full bool, progress center.Progress) (*spore.CheckReport, error) {
	return ask(ctx, h, "check", func(c *call) (*spore.CheckReport, error) {
		m := c.m
		if err := c.step("begin"); err != nil {
			return nil, err
		}
		if progress != nil && !c.unheard {
			c.aside(func() { progress("frozen states", 0, 0) })
		}
		r := &spore.CheckReport{Full: full, Objects: len(m.manifests) + len(m.pieces) + len(m.artifacts), Problems: []spore.CheckProblem{}}
		for _, id := range sortedKeys(m.manifests) {
			if err := m.whole(m.manifests[id], full); err != nil {
				r.Problems = append(r.Problems, problem(id, err))
			}
		}
		for _, id := range sortedKeys(m.artifacts) {
			if err := m.verifyArtifact(id, full); err != nil {
				r.Problems = append(r.Problems, problem(id, err))
			}
			if full {
				r.Bytes += m.artifacts[id].bytes
			}
		}
		if full {
			for _, p := range m.pieces {
				r.Bytes += p.bytes
			}
		}
		return r, nil
	})
}

func problem(object string, err error) spore.CheckProblem {
	e := spore.AsError(err)
	return spore.CheckProblem{Object: object, Kind: "damaged", Detail: e.Message, Hint: e.Hint}
}

// Collect is center.Node's.
func (h *Handle) Collect(ctx context.Context, dryRun bool) ([]spore.GarbageItem, error) {
	return ask(ctx, h, "collect", func(c *call) ([]spore.GarbageItem, error) {
		if err := c.step("plan"); err != nil {
			return nil, err
		}
		items := c.m.garbage()
		if dryRun {
			return items, nil
		}
		for _, item := range items {
			if err := c.step("remove"); err != nil {
				return nil, err
			}
			c.m.discard(item)
		}
		return items, nil
	})
}

// garbage lists what nothing holds.
func (m *Machine) garbage() []spore.GarbageItem {
	items := []spore.GarbageItem{}
	needed := m.reach()
	for _, id := range sortedKeys(m.pieces) {
		if len(needed[id]) == 0 {
			items = append(items, spore.GarbageItem{ID: id, Kind: m.pieces[id].kind, Bytes: m.pieces[id].bytes, Reason: "no frozen state and no VM needs it"})
		}
	}
	for _, id := range sortedKeys(m.artifacts) {
		if a := m.artifacts[id]; !m.awaited(a) && len(m.artifactUsers(id)) == 0 {
			items = append(items, spore.GarbageItem{ID: id, Kind: "artifact", Bytes: a.bytes, Reason: "no frozen state stands on it"})
		}
	}
	for _, digest := range sortedKeys(m.blobs) {
		items = append(items, spore.GarbageItem{ID: digest, Kind: "layer", Bytes: m.blobs[digest], Reason: "cached; a build that needs it downloads it again"})
	}
	return items
}

// discard removes one thing if it is still true that nothing holds it.
func (m *Machine) discard(item spore.GarbageItem) {
	switch item.Kind {
	case "artifact":
		if a := m.artifacts[item.ID]; a != nil && !m.awaited(a) && len(m.artifactUsers(item.ID)) == 0 {
			m.removeArtifact(item.ID)
		}
	case "layer":
		m.used -= m.blobs[item.ID]
		delete(m.blobs, item.ID)
	default:
		if m.pieces[item.ID] != nil && len(m.reach()[item.ID]) == 0 {
			m.removePiece(item.ID)
		}
	}
}

// Usage is center.Node's.
func (h *Handle) Usage(ctx context.Context, frozenID string) (*spore.Usage, error) {
	return ask(ctx, h, "usage", func(c *call) (*spore.Usage, error) {
		m := c.m
		s, err := m.frozen(frozenID)
		if err != nil {
			return nil, err
		}
		u := &spore.Usage{StandsOn: []string{s.artifact, s.bound.GuestImage}}
		needed := m.reach()
		for _, p := range s.pieces() {
			there := m.pieces[p.id]
			if there == nil {
				continue // lost
			}
			others, shared := 0, false
			for _, who := range needed[p.id] {
				if who == frozenID {
					continue
				}
				others++
				shared = shared || m.manifests[who] != nil
				if !slices.Contains(u.HeldBy, who) {
					u.HeldBy = append(u.HeldBy, who)
				}
			}
			if shared {
				u.SharedBytes += there.bytes
			} else {
				u.ExclusiveBytes += there.bytes
			}
			if others == 0 {
				u.ReclaimableBytes += there.bytes
			}
		}
		slices.Sort(u.HeldBy)
		return u, nil
	})
}
