package center

import (
	"context"
	"errors"
	"slices"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// sandboxExited writes that the VM of a sandbox ended by itself. It waits for what is being done to the sandbox: only then
// is it clear which generation counts. An exit of another one is none.
func (c *Center) sandboxExited(id string, generation int, reason string) {
	unlock, err := c.lock(c.life, id)
	if err != nil {
		return // the server stops; the next one sees for itself that the VM is gone
	}
	defer unlock()
	c.log.Warn("a VM ended by itself", "sandbox", id, "generation", generation, "reason", reason)
	c.insist(c.life, "record the end of the VM of "+id, func(ctx context.Context) error {
		return c.recordExit(ctx, id, generation, reason)
	})
}

// recordExit makes a sandbox FAILED whose VM is gone, for a caller who holds its lock.
func (c *Center) recordExit(ctx context.Context, id string, generation int, reason string) error {
	return c.update(ctx, func(tx store.Tx) error {
		s, err := tx.Sandbox(id)
		if isNotFound(err) {
			return nil
		}
		if err != nil || s.Generation != generation || s.State != spore.SandboxRunning {
			return err
		}
		s.State, s.StateReason, s.UpdatedAt = spore.SandboxFailed, reason, c.opt.Now()
		return tx.UpdateSandbox(s)
	})
}

// Check looks for damage in rows and bytes, on every node that answers. It changes nothing.
func (c *Center) Check(ctx context.Context, full bool, progress Progress) (*spore.CheckReport, error) {
	all := &spore.CheckReport{Full: full, Problems: []spore.CheckProblem{}}
	for _, id := range c.fleet.ids() {
		n, err := c.on(id)
		if err != nil {
			return nil, err
		}
		report, err := n.Check(ctx, full, progress)
		if err != nil {
			return nil, err
		}
		all.Objects += report.Objects
		all.Bytes += report.Bytes
		all.Problems = append(all.Problems, report.Problems...)
		missing, err := c.missingOn(ctx, n)
		if err != nil {
			return nil, err
		}
		all.Problems = append(all.Problems, missing...)
	}
	return all, nil
}

// missingOn lists the replicas that a node should have and has not.
func (c *Center) missingOn(ctx context.Context, n Node) (problems []spore.CheckProblem, err error) {
	ids, err := n.FrozenIDs(ctx)
	if err != nil {
		return nil, err
	}
	slices.Sort(ids)
	ready, err := c.replicasIn(ctx, store.ReplicaFilter{NodeID: n.ID(), Status: spore.ReplicaReady})
	if err != nil {
		return nil, err
	}
	for _, r := range ready {
		if _, there := slices.BinarySearch(ids, r.TemplateID); !there {
			problems = append(problems, spore.CheckProblem{
				Object: r.TemplateID, Kind: "missing", Detail: "its replica on " + n.ID() + " is READY, but its frozen state is not on the disk",
				Hint: "spore template redo " + r.TemplateID + " --node " + n.ID(),
			})
		}
	}
	return problems, nil
}

// CollectGarbage removes what retention policies no longer keep and frees the bytes that nothing holds; with dryRun it
// only says which they are.
func (c *Center) CollectGarbage(ctx context.Context, dryRun bool) (*Collection, error) {
	removals, err := c.plannedRemovals(ctx)
	if err != nil {
		return nil, err
	}
	if !dryRun {
		if err := errors.Join(c.applyRetention(ctx), c.dropEphemeral(ctx), c.sweepArtifacts(ctx)); err != nil {
			return nil, err
		}
	}
	all := &Collection{Policies: removals, Garbage: spore.GarbageReport{DryRun: dryRun, Items: []spore.GarbageItem{}}}
	for _, id := range c.fleet.ids() {
		n, err := c.on(id)
		if err != nil {
			return nil, err
		}
		began := c.opt.Now()
		items, err := n.Collect(ctx, dryRun)
		if err != nil {
			return nil, err
		}
		for _, i := range items {
			all.Garbage.Bytes += i.Bytes
			if i.Kind == "artifact" && !dryRun {
				if err := c.artifactGone(ctx, i.ID, id, began); err != nil {
					return nil, err
				}
			}
		}
		all.Garbage.Items = append(all.Garbage.Items, items...)
	}
	return all, nil
}

// Explain answers what an id is, what it stands on and who holds it.
func (c *Center) Explain(ctx context.Context, id string) (*Explanation, error) {
	e := &Explanation{ID: id, StandsOn: []string{}, HeldBy: []string{}, Notes: []string{}}
	frozenID := ""
	var nodes []string
	err := c.store.View(ctx, func(tx store.Tx) error {
		t, err := tx.FindTemplate(id)
		if isNotFound(err) {
			t, err = tx.Template(id) // a tombstone still has a history to tell
		}
		if err == nil {
			frozenID = t.ID
			replicas, err := tx.Replicas(t.ID)
			if err != nil {
				return err
			}
			for _, r := range replicas {
				nodes = append(nodes, r.NodeID)
			}
			return c.explainTemplate(tx, t, e)
		}
		if !isNotFound(err) {
			return err
		}
		s, err := tx.Sandbox(id)
		if err != nil {
			if isNotFound(err) {
				return spore.Errorf(spore.CodeNotFound, "there is no template, snapshot or sandbox %q", id)
			}
			return err
		}
		frozenID = s.FrozenID
		e.Kind, e.State = "sandbox", string(s.State)
		e.StandsOn = append(e.StandsOn, s.TemplateID)
		nodes = append(nodes, s.NodeID)
		if s.StateReason != "" {
			e.Notes = append(e.Notes, s.StateReason)
		}
		return nil
	})
	if err != nil || frozenID == "" {
		return e, err
	}
	there := false
	for _, nodeID := range nodes {
		had, err := c.explainUsage(ctx, nodeID, frozenID, e)
		if err != nil {
			return nil, err
		}
		there = there || had
	}
	if !there {
		e.Notes = append(e.Notes, "no node that answers has a frozen state of it")
	}
	return e, nil
}

// explainUsage adds what a node says of a frozen state, and whether it has it.
func (c *Center) explainUsage(ctx context.Context, nodeID, frozenID string, e *Explanation) (bool, error) {
	n, err := c.on(nodeID)
	if err != nil {
		e.Notes = append(e.Notes, spore.AsError(err).Message)
		return false, nil
	}
	u, err := n.Usage(ctx, frozenID)
	if isNotFound(err) || spore.CodeOf(err) == spore.CodeUnreachable {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	e.ExclusiveBytes += u.ExclusiveBytes
	e.SharedBytes += u.SharedBytes
	e.ReclaimableBytes += u.ReclaimableBytes
	for _, id := range u.StandsOn {
		if !slices.Contains(e.StandsOn, id) {
			e.StandsOn = append(e.StandsOn, id)
		}
	}
	for _, id := range u.HeldBy { // those that it stands on share bytes with it, but do not need it
		if !slices.Contains(e.HeldBy, id) && !slices.Contains(e.StandsOn, id) {
			e.HeldBy = append(e.HeldBy, id)
		}
	}
	return true, nil
}

func (c *Center) explainTemplate(tx store.Tx, t *spore.Template, e *Explanation) error {
	e.ID, e.Kind, e.State = t.ID, string(t.Kind), string(t.Status)
	if t.ParentID != "" {
		e.StandsOn = append(e.StandsOn, t.ParentID)
	}
	refs, err := tx.Refs(store.RefFilter{TemplateID: t.ID, Statuses: held})
	if err != nil {
		return err
	}
	for _, r := range refs {
		e.HeldBy = append(e.HeldBy, r.SandboxID)
	}
	switch {
	case t.Ephemeral:
		e.Notes = append(e.Notes, "made by a fork; it goes when the last sandbox on it does")
	case t.Status == spore.TemplateDeleted:
		e.Notes = append(e.Notes, "deleted; bytes that others need stay until they are gone")
	}
	if t.LastError != "" {
		e.Notes = append(e.Notes, t.LastError)
	}
	return nil
}
