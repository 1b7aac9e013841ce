package center

import (
	"context"
	"encoding/json"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// errServerDied is the reason of what a dead server left half done.
var errServerDied = spore.Errorf(spore.CodeUnreachable, "the server ended before this was done").WithHint("ask again")

// recover settles what an earlier server left: sandboxes that were being made, VMs that still run, jobs whose caller
// was waiting. Queued jobs need nothing: the queue runs them again.
func (c *Center) recover(ctx context.Context) error {
	if err := c.recoverSandboxes(ctx); err != nil {
		return err
	}
	if err := c.recoverJobs(ctx); err != nil {
		return err
	}
	return c.forgetStrays(ctx)
}

func (c *Center) recoverSandboxes(ctx context.Context) error {
	creating, err := c.allSandboxes(ctx, spore.SandboxCreating)
	if err != nil {
		return err
	}
	for _, s := range creating {
		_ = c.giveUp(ctx, s.ID, errServerDied) // which it answers
	}
	running, err := c.allSandboxes(ctx, spore.SandboxRunning)
	if err != nil {
		return err
	}
	failed, err := c.node.Recover(ctx, running)
	if err != nil {
		return err
	}
	for _, s := range running {
		if err := failed[s.ID]; err != nil {
			c.sandboxExited(s.ID, s.Generation, spore.AsError(err).Message)
		}
	}
	held, err := c.allSandboxes(ctx, spore.SandboxRunning, spore.SandboxPaused, spore.SandboxFailed)
	if err != nil {
		return err
	}
	return c.store.Update(ctx, func(tx store.Tx) error {
		for _, s := range held {
			if err := c.moveRefs(tx, s.ID, s.Generation, "the server ended before this was done"); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *Center) allSandboxes(ctx context.Context, states ...spore.SandboxState) (all []*spore.Sandbox, err error) {
	f := store.SandboxFilter{Paging: store.Paging{Limit: 1000}, States: states}
	err = c.store.View(ctx, func(tx store.Tx) error {
		for {
			list, page, err := tx.Sandboxes(f)
			if err != nil {
				return err
			}
			all = append(all, list...)
			if page.Next == "" {
				return nil
			}
			f.After = page.Next
		}
	})
	return all, err
}

// recoverJobs settles the jobs whose caller was waiting, by what is there: a capture that is on disk was done, a
// generation that the row names was switched to, a delete is carried on.
func (c *Center) recoverJobs(ctx context.Context) error {
	var active []*spore.Job
	err := c.store.View(ctx, func(tx store.Tx) error {
		f := store.JobFilter{Paging: store.Paging{Limit: 1000}, Statuses: []spore.JobStatus{spore.JobPending, spore.JobRunning}}
		for {
			list, page, err := tx.Jobs(f)
			if err != nil {
				return err
			}
			active = append(active, list...)
			if page.Next == "" {
				return nil
			}
			f.After = page.Next
		}
	})
	if err != nil {
		return err
	}
	for _, j := range active { // what is wrong with one must not keep the server from starting
		c.insist(ctx, "settle job "+j.ID, func(ctx context.Context) error { return c.recoverJob(ctx, j) })
	}
	return nil
}

func (c *Center) recoverJob(ctx context.Context, j *spore.Job) error {
	switch j.Operation {
	case spore.OpSnapshotCreate:
		f, err := c.node.Frozen(ctx, j.ResourceID)
		if err == nil {
			_, err = c.registerSnapshot(ctx, j.ID, j.ResourceID, f)
			return err
		}
		_ = c.failDirect(ctx, j.ID, errServerDied) // which it answers
	case spore.OpSnapshotRollback:
		return c.recoverRollback(ctx, j)
	case spore.OpDelete, spore.OpSnapshotDelete:
		c.finishDelete(ctx, j.ID)
	case spore.OpFork:
		return c.recoverFork(ctx, j)
	default:
		return c.endCancelled(ctx, j.ID)
	}
	return nil
}

func (c *Center) recoverRollback(ctx context.Context, j *spore.Job) error {
	var req struct{ Generation int }
	if err := json.Unmarshal(j.Request, &req); err != nil {
		return err
	}
	return c.store.Update(ctx, func(tx store.Tx) error {
		now, err := tx.Job(j.ID)
		if err != nil {
			return err
		}
		outcome := error(errServerDied)
		if s, err := tx.Sandbox(j.SandboxID); err == nil && s.Generation >= req.Generation {
			outcome = nil
		} else if err != nil && !isNotFound(err) {
			return err
		}
		c.finish(now, outcome)
		if err := tx.UpdateJob(now); err != nil || outcome == nil {
			return err
		}
		return tx.DropReplay(j.ID)
	})
}

// forgetStrays removes frozen states that no row speaks of, such as the capture of a pause that was not recorded, or
// whose row says that they are not to be.
func (c *Center) forgetStrays(ctx context.Context) error {
	ids, err := c.node.FrozenIDs(ctx)
	if err != nil {
		return err
	}
	paused, err := c.allSandboxes(ctx, spore.SandboxPaused)
	if err != nil {
		return err
	}
	wanted := map[string]bool{}
	for _, s := range paused {
		wanted[s.FrozenID] = true
	}
	for _, id := range ids {
		if wanted[id] {
			continue
		}
		t, err := c.templateByID(ctx, id)
		if err != nil && !isNotFound(err) {
			return err
		}
		if err == nil && t.Status != spore.TemplateDeleting && t.Status != spore.TemplateDeleted && t.Status != spore.TemplateFailed {
			continue
		}
		c.log.Info("forgetting a frozen state that nothing names", "id", id)
		c.forget(ctx, id)
	}
	return nil
}
