package center

import (
	"context"
	"errors"
	"slices"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// forgetBatch is how many rows are let go of in one transaction.
const forgetBatch = 100

// ForgetNode gives up a node that is not coming back: its sandboxes fail, what they held is released, and its replicas are
// gone. One that answers is spore.CodeConflict. With dryRun nothing changes. Forgetting that was cut off is carried on by the loops,
// or by being asked for again.
//
// Should the node report again all the same, it is a new one with nothing on it: the VMs and frozen states that it still has
// are those of no row, and go like all such.
func (c *Center) ForgetNode(ctx context.Context, id string, dryRun bool) (*Forgetting, error) {
	if err := c.silent(ctx, id); err != nil {
		return nil, err
	}
	var f *Forgetting
	err := c.store.View(ctx, func(tx store.Tx) (err error) { f, err = c.planForgetting(tx, id); return err })
	if err != nil {
		return nil, err
	}
	if f.DryRun = dryRun; dryRun {
		return f, nil
	}
	var row *spore.Node
	err = c.update(ctx, func(tx store.Tx) (err error) {
		if row, err = tx.Node(id); err != nil || row.State == spore.NodeForgotten {
			return err
		}
		if row.State != spore.NodeUnreachable {
			return answers(id)
		}
		row.State, row.StateReason, row.Draining, row.UpdatedAt = spore.NodeForgotten, "given up on request", false, c.opt.Now()
		return tx.PutNode(row)
	})
	if err != nil {
		return nil, err
	}
	c.fleet.learn(row)
	c.opt.Hook("forget:recorded")
	// Nobody is to be told that this failed: it is recorded, and the loops carry it on.
	c.insist(ctx, "forget node "+id, func(ctx context.Context) error { return c.carryOnForgetting(ctx, id) })
	c.replan()
	return f, nil
}

func answers(id string) *spore.Error {
	return spore.Errorf(spore.CodeConflict, "node %s answers", id).
		WithHint("to take it out of use: spore node drain %s; when it is gone for good, end it first", id)
}

// silent is nil when a node may be forgotten, as far as this controller can tell: it is UNREACHABLE, and does not answer now.
func (c *Center) silent(ctx context.Context, id string) error {
	row, err := c.Node(ctx, id)
	if err != nil || row.State == spore.NodeForgotten {
		return err
	}
	if n, err := c.on(id); err == nil {
		if _, err := c.ask(ctx, n); err == nil {
			return answers(id)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	if row.State == spore.NodeReady {
		return spore.Errorf(spore.CodeConflict, "node %s does not answer, but has not been silent for long", id).
			WithHint("try again when it is UNREACHABLE, %s after it last answered", c.opt.NodeTimeout)
	}
	return nil
}

// planForgetting says what goes with a node.
func (c *Center) planForgetting(tx store.Tx, id string) (*Forgetting, error) {
	f := &Forgetting{NodeID: id, Lost: []string{}, Sandboxes: []string{}}
	page := store.ReplicaFilter{NodeID: id}
	replicas, err := allPages(page.Paging, func(p store.Paging) ([]*spore.Replica, store.Page, error) {
		page.Paging = p
		return tx.ReplicaPage(page)
	})
	if err != nil {
		return nil, err
	}
	f.Replicas = len(replicas)
	for _, r := range replicas {
		if !usable(r) {
			continue
		}
		on, err := readyOn(tx, r.TemplateID)
		if err != nil {
			return nil, err
		}
		if len(on) == 1 {
			f.Lost = append(f.Lost, r.TemplateID)
		}
	}
	sandboxes, err := sandboxesOn(tx, id, spore.SandboxCreating, spore.SandboxRunning, spore.SandboxPaused)
	for _, s := range sandboxes {
		f.Sandboxes = append(f.Sandboxes, s.ID)
	}
	slices.Sort(f.Sandboxes)
	return f, err
}

func sandboxesOn(tx store.Tx, nodeID string, states ...spore.SandboxState) ([]*spore.Sandbox, error) {
	f := store.SandboxFilter{NodeID: nodeID, States: states}
	return allPages(f.Paging, func(p store.Paging) ([]*spore.Sandbox, store.Page, error) {
		f.Paging = p
		return tx.Sandboxes(f)
	})
}

// finishForgetting carries on with all nodes that were forgotten. It is also what settles what somebody wrote about one of
// them while it was being forgotten.
func (c *Center) finishForgetting(ctx context.Context) error {
	all, err := c.Nodes(ctx, true)
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range all {
		if n.State == spore.NodeForgotten {
			errs = append(errs, c.carryOnForgetting(ctx, n.ID))
		}
	}
	return errors.Join(errs...)
}

// carryOnForgetting lets go of what a forgotten node had. Each transaction stands for itself, and does nothing once the node
// has come back.
func (c *Center) carryOnForgetting(ctx context.Context, id string) error {
	for _, step := range []func(context.Context, string) error{c.forgetSandboxes, c.forgetReplicas, c.forgetPlacements, c.forgetRefs} {
		if err := step(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// updateForgotten is update for a node that is still forgotten.
func (c *Center) updateForgotten(ctx context.Context, id string, fn func(tx store.Tx) error) error {
	return c.update(ctx, func(tx store.Tx) error {
		n, err := tx.Node(id)
		if err != nil || n.State != spore.NodeForgotten {
			return ignoreNotFound(err)
		}
		return fn(tx)
	})
}

// forgetSandboxes fails the sandboxes of a node, so that a rollback can bring them back elsewhere. One that is being created,
// or that an operation is at work on, is left to that, which fails for want of the node; the next round sees.
func (c *Center) forgetSandboxes(ctx context.Context, id string) error {
	lost, err := c.allSandboxes(ctx, store.SandboxFilter{NodeID: id, States: []spore.SandboxState{spore.SandboxRunning, spore.SandboxPaused}})
	if err != nil {
		return err
	}
	for _, s := range lost {
		unlock, free := c.tryLock(ctx, s.ID)
		if !free {
			continue
		}
		err := c.updateForgotten(ctx, id, func(tx store.Tx) error {
			now, err := tx.Sandbox(s.ID)
			if err != nil || now.NodeID != id || now.State != spore.SandboxRunning && now.State != spore.SandboxPaused {
				return ignoreNotFound(err)
			}
			now.State, now.StateReason, now.FrozenID, now.UpdatedAt = spore.SandboxFailed, "its node "+id+" was given up", "", c.opt.Now()
			if err := tx.UpdateSandbox(now); err != nil {
				return err
			}
			return c.releaseAll(tx, s.ID, "its node was given up")
		})
		unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// forgetReplicas removes the replicas of a node. What follows for their templates is written along.
func (c *Center) forgetReplicas(ctx context.Context, id string) error {
	for {
		var list []*spore.Replica
		err := c.store.View(ctx, func(tx store.Tx) (err error) {
			list, _, err = tx.ReplicaPage(store.ReplicaFilter{Paging: store.Paging{Limit: forgetBatch}, NodeID: id})
			return err
		})
		if err != nil || len(list) == 0 {
			return err
		}
		still := false
		err = c.updateForgotten(ctx, id, func(tx store.Tx) error {
			still = true
			for _, r := range list {
				if err := tx.DeleteReplica(r.TemplateID, id); ignoreNotFound(err) != nil {
					return err
				}
				if err := c.resummarise(tx, r.TemplateID); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil || !still {
			return err
		}
	}
}

func (c *Center) forgetPlacements(ctx context.Context, id string) error {
	var list []spore.Placement
	err := c.store.View(ctx, func(tx store.Tx) (err error) { list, err = tx.Placements("", id); return err })
	if err != nil || len(list) == 0 {
		return err
	}
	return c.updateForgotten(ctx, id, func(tx store.Tx) error {
		for _, p := range list {
			if err := tx.DeletePlacement(p.ArtifactID, id); ignoreNotFound(err) != nil {
				return err
			}
		}
		return nil
	})
}

// forgetRefs releases what sandboxes that had failed before still held there. A reserved ref belongs to an operation that is
// under way, or is settled with it.
func (c *Center) forgetRefs(ctx context.Context, id string) error {
	var refs []*spore.RuntimeRef
	err := c.store.View(ctx, func(tx store.Tx) (err error) {
		refs, err = tx.Refs(store.RefFilter{NodeID: id, Statuses: []spore.RuntimeRefStatus{spore.RefActive}})
		return err
	})
	if err != nil {
		return err
	}
	for _, r := range refs {
		unlock, free := c.tryLock(ctx, r.SandboxID)
		if !free {
			continue
		}
		err := c.updateForgotten(ctx, id, func(tx store.Tx) error {
			s, err := tx.Sandbox(r.SandboxID)
			if ignoreNotFound(err) != nil {
				return err
			}
			if err == nil && s.NodeID == id && s.State != spore.SandboxFailed && s.State != spore.SandboxKilled {
				return nil
			}
			now, err := tx.Refs(store.RefFilter{SandboxID: r.SandboxID, NodeID: id, Statuses: []spore.RuntimeRefStatus{spore.RefActive}})
			if err != nil {
				return err
			}
			for _, held := range now {
				held.Status, held.Reason, held.ReleasedAt = spore.RefReleased, "its node was given up", c.opt.Now()
				if err := tx.PutRef(held); err != nil {
					return err
				}
			}
			return nil
		})
		unlock()
		if err != nil {
			return err
		}
	}
	return nil
}
