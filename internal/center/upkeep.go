package center

import (
	"context"
	"slices"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// sandboxExited writes that the VM of a sandbox ended by itself. It waits for what is being done to the sandbox: only then
// is it clear which generation counts. An exit of another one is none.
func (c *Center) sandboxExited(id string, generation int, reason string) {
	unlock, err := c.sandboxes.lock(c.life, id)
	if err != nil {
		return // the server stops; the next one sees for itself that the VM is gone
	}
	defer unlock()
	c.log.Warn("a VM ended by itself", "sandbox", id, "generation", generation, "reason", reason)
	c.insist(c.life, "record the end of the VM of "+id, func(ctx context.Context) error {
		return c.store.Update(ctx, func(tx store.Tx) error {
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
	})
}

// Check looks for damage in rows and bytes. It changes nothing.
func (c *Center) Check(ctx context.Context, full bool, progress Progress) (*spore.CheckReport, error) {
	report, err := c.node.Check(ctx, full, progress)
	if err != nil {
		return nil, err
	}
	ids, err := c.node.FrozenIDs(ctx)
	if err != nil {
		return nil, err
	}
	there := map[string]bool{}
	for _, id := range ids {
		there[id] = true
	}
	f := store.TemplateFilter{Paging: store.Paging{Limit: 1000}, Status: spore.TemplateReady, Ephemeral: true}
	err = c.store.View(ctx, func(tx store.Tx) error {
		for {
			list, page, err := tx.Templates(f)
			if err != nil {
				return err
			}
			for _, t := range list {
				if !there[t.ID] {
					report.Problems = append(report.Problems, spore.CheckProblem{
						Object: t.ID, Kind: "missing", Detail: string(t.Kind) + " " + t.Label() + " is READY, but its frozen state is not on the disk",
						Hint: "remove it: spore " + string(t.Kind) + " rm " + t.ID,
					})
				}
			}
			if page.Next == "" {
				return nil
			}
			f.After = page.Next
		}
	})
	return report, err
}

// CollectGarbage frees the bytes that nothing holds; with dryRun it only says which they are.
func (c *Center) CollectGarbage(ctx context.Context, dryRun bool) (*spore.GarbageReport, error) {
	if !dryRun {
		if err := c.dropEphemeral(ctx); err != nil {
			return nil, err
		}
	}
	items, err := c.node.Collect(ctx, dryRun)
	if err != nil {
		return nil, err
	}
	report := &spore.GarbageReport{DryRun: dryRun, Items: items}
	for _, i := range items {
		report.Bytes += i.Bytes
	}
	return report, nil
}

// Explain answers what an id is, what it stands on and who holds it.
func (c *Center) Explain(ctx context.Context, id string) (*Explanation, error) {
	e := &Explanation{ID: id, StandsOn: []string{}, HeldBy: []string{}, Notes: []string{}}
	frozenID := ""
	err := c.store.View(ctx, func(tx store.Tx) error {
		t, err := tx.FindTemplate(id)
		if isNotFound(err) {
			t, err = tx.Template(id) // a tombstone still has a history to tell
		}
		if err == nil {
			frozenID = t.ID
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
		if s.StateReason != "" {
			e.Notes = append(e.Notes, s.StateReason)
		}
		return nil
	})
	if err != nil || frozenID == "" {
		return e, err
	}
	u, err := c.node.Usage(ctx, frozenID)
	if isNotFound(err) {
		e.Notes = append(e.Notes, "it has no frozen state on this node")
		return e, nil
	}
	if err != nil {
		return nil, err
	}
	e.ExclusiveBytes, e.SharedBytes, e.ReclaimableBytes = u.ExclusiveBytes, u.SharedBytes, u.ReclaimableBytes
	e.StandsOn = append(e.StandsOn, u.StandsOn...)
	for _, id := range u.HeldBy { // those that it stands on share bytes with it, but do not need it
		if !slices.Contains(e.HeldBy, id) && !slices.Contains(e.StandsOn, id) {
			e.HeldBy = append(e.HeldBy, id)
		}
	}
	return e, nil
}

func (c *Center) explainTemplate(tx store.Tx, t *spore.Template, e *Explanation) error {
	e.ID, e.Kind, e.State = t.ID, string(t.Kind), string(t.Status)
	if t.ParentID != "" {
		e.StandsOn = append(e.StandsOn, t.ParentID)
	}
	refs, err := tx.Refs(t.ID, "", spore.RefReserved, spore.RefActive)
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
