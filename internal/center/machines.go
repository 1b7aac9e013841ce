package center

import (
	"context"
	"slices"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// graceOfRows is how long a row must have stood before what a node says against it counts: the report may have been made
// before the row.
const graceOfRows = 30 * time.Second

// touchRefsAfter is how old the last sight of a ref may be before it is written anew.
const touchRefsAfter = 5 * time.Minute

// takeOver has a node adopt the VMs that its earlier process left: those that the rows say run there.
func (c *Center) takeOver(ctx context.Context, n Node) error {
	running, err := c.allSandboxes(ctx, store.SandboxFilter{NodeID: n.ID(), States: []spore.SandboxState{spore.SandboxRunning}})
	if err != nil {
		return err
	}
	failed, err := n.Recover(ctx, running)
	if err != nil {
		return err
	}
	for _, s := range running {
		if err := failed[s.ID]; err != nil {
			c.sandboxExited(s.ID, s.Generation, spore.AsError(err).Message)
		}
	}
	return nil
}

// compareMachines settles what differs between the VMs that a node reports and the rows. A row wins over a VM that it does
// not know; a VM that is gone makes its sandbox FAILED. Nothing is done by the report alone: each difference is looked at
// again while no operation is at work on its sandbox.
func (c *Center) compareMachines(ctx context.Context, n Node, report *spore.NodeReport) error {
	held, err := c.allSandboxes(ctx, store.SandboxFilter{
		NodeID: n.ID(), States: []spore.SandboxState{spore.SandboxCreating, spore.SandboxRunning, spore.SandboxPaused, spore.SandboxFailed},
	})
	if err != nil {
		return err
	}
	rows := map[string]*spore.Sandbox{}
	for _, s := range held {
		rows[s.ID] = s
	}
	there := map[string][]spore.Machine{}
	var ids []string
	for _, m := range report.Machines {
		if there[m.SandboxID] == nil {
			ids = append(ids, m.SandboxID)
		}
		there[m.SandboxID] = append(there[m.SandboxID], m)
	}
	slices.Sort(ids)
	for _, id := range ids {
		if !agree(rows[id], there[id]) {
			if err := c.settleMachines(ctx, n, id, there[id]); err != nil {
				return err
			}
		}
	}
	for _, s := range held {
		if s.State == spore.SandboxRunning && !has(there[s.ID], s.Generation) && c.opt.Now().Sub(s.UpdatedAt) > graceOfRows {
			if err := c.missMachine(ctx, n, s.ID); err != nil {
				return err
			}
		}
	}
	return c.healRefs(ctx, n.ID(), there)
}

// agree says whether the VMs of a sandbox are exactly the one that its row names.
func agree(s *spore.Sandbox, vms []spore.Machine) bool {
	return s != nil && s.State == spore.SandboxRunning && len(vms) == 1 && vms[0].Generation == s.Generation && vms[0].Wiring == s.Wiring()
}

func has(vms []spore.Machine, generation int) bool {
	return slices.ContainsFunc(vms, func(m spore.Machine) bool { return m.Generation == generation && m.Running })
}

// settleMachines ends the VMs of a sandbox on a node that its row does not speak of, and brings the one it does speak of in line
// with it. While an operation is at work on the
// sandbox it may have more than one, and that operation settles them.
func (c *Center) settleMachines(ctx context.Context, n Node, id string, reported []spore.Machine) error {
	unlock, ok := c.tryLock(ctx, id)
	if !ok {
		return nil
	}
	defer unlock()
	keep := 0
	var running *spore.Sandbox
	err := c.store.View(ctx, func(tx store.Tx) error {
		s, err := tx.Sandbox(id)
		if isNotFound(err) {
			return nil
		}
		if err == nil && s.NodeID == n.ID() && s.State == spore.SandboxRunning {
			keep, running = s.Generation, s
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := n.Settle(ctx, id, keep); err != nil {
		c.log.Error("ending VMs that no row speaks of", "node", n.ID(), "sandbox", id, "err", err)
	}
	if running == nil || !slices.ContainsFunc(reported, func(m spore.Machine) bool {
		return m.Generation == keep && m.Running && m.Wiring != running.Wiring()
	}) {
		return nil
	}
	if err := c.settleWiring(ctx, n, running); err != nil { // it is seen with the next report, and tried again
		c.log.Error("bringing ports, policy and limits in line with the row", "node", n.ID(), "sandbox", id, "err", err)
	}
	return nil
}

// missMachine makes a sandbox FAILED whose VM its node does not have, unless it has it after all.
func (c *Center) missMachine(ctx context.Context, n Node, id string) error {
	unlock, ok := c.tryLock(ctx, id)
	if !ok {
		return nil
	}
	defer unlock()
	s, err := c.Sandbox(ctx, id)
	if err != nil || s.State != spore.SandboxRunning || s.NodeID != n.ID() {
		if isNotFound(err) {
			return nil
		}
		return err
	}
	report, err := c.ask(ctx, n)
	if err != nil || !report.Recovered {
		return nil // the next visit tells
	}
	for _, m := range report.Machines {
		if m.SandboxID == id && m.Generation == s.Generation && m.Running {
			return nil
		}
	}
	return c.recordExit(ctx, id, s.Generation, "its node has no VM of it any more")
}

// healRefs brings the refs of a node in line with what it reported: those it was seen to hold are touched, and those
// whose sandbox is gone for a while are released. A ref is never released while its sandbox may use it.
func (c *Center) healRefs(ctx context.Context, nodeID string, there map[string][]spore.Machine) error {
	var refs []*spore.RuntimeRef
	err := c.store.View(ctx, func(tx store.Tx) (err error) {
		refs, err = tx.Refs(store.RefFilter{NodeID: nodeID, Statuses: held})
		return err
	})
	if err != nil {
		return err
	}
	for _, r := range refs {
		now := c.opt.Now()
		seen := has(there[r.SandboxID], r.SandboxGen)
		switch {
		case seen && (r.LastError != "" || now.Sub(r.LastSeenAt) > touchRefsAfter):
			err = c.touchRef(ctx, r, now)
		case !seen && now.Sub(r.AttachedAt) > graceOfRows && (r.Status == spore.RefActive || now.After(r.LeaseUntil)):
			err = c.settleRefs(ctx, r.SandboxID)
		default:
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *Center) touchRef(ctx context.Context, r *spore.RuntimeRef, now time.Time) error {
	return c.update(ctx, func(tx store.Tx) error {
		all, err := tx.Refs(store.RefFilter{SandboxID: r.SandboxID, Statuses: held})
		if err != nil {
			return err
		}
		for _, fresh := range all {
			if fresh.ID == r.ID {
				fresh.LastSeenAt, fresh.LastError = now, ""
				return tx.PutRef(fresh)
			}
		}
		return nil
	})
}

// settleRefs makes the refs of a sandbox say what its row says, while no operation is at work on it.
func (c *Center) settleRefs(ctx context.Context, sandboxID string) error {
	unlock, ok := c.tryLock(ctx, sandboxID)
	if !ok {
		return nil
	}
	defer unlock()
	return c.update(ctx, func(tx store.Tx) error {
		s, err := tx.Sandbox(sandboxID)
		if err != nil && !isNotFound(err) {
			return err
		}
		if err != nil || s.State == spore.SandboxKilled {
			return c.releaseAll(tx, sandboxID, "not found at its node, and its sandbox is gone")
		}
		if s.State == spore.SandboxCreating {
			return nil // it is settled as a whole
		}
		return c.moveRefs(tx, sandboxID, s.Generation, "what it was taken for did not come to pass")
	})
}

// noteOnRefs writes on the refs of a node that it could not be asked. It releases none.
func (c *Center) noteOnRefs(tx store.Tx, nodeID, why string) error {
	refs, err := tx.Refs(store.RefFilter{NodeID: nodeID, Statuses: held})
	if err != nil {
		return err
	}
	for _, r := range refs {
		if r.LastError != why {
			r.LastError = why
			if err := tx.PutRef(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// held are the statuses in which a ref holds what it names.
var held = []spore.RuntimeRefStatus{spore.RefReserved, spore.RefActive}
