package center

import (
	"context"
	"encoding/json"
	"sync"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

const maxForks = 1000

// Fork starts sandboxes from a running sandbox (frozen once for all of them) or from a snapshot or template. Each fork
// succeeds or fails by itself; the answer has one result for each, in order.
func (c *Center) Fork(ctx context.Context, key Idempotency, ref string, req ForkRequest) ([]ForkResult, error) {
	if req.Count < 1 || req.Count > maxForks {
		return nil, spore.Invalidf("count", "%d is out of range", req.Count).WithHint("between 1 and %d", maxForks)
	}
	if err := checkLife(req.TTL, req.OnEnd, req.Env); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.opt.OperationTimeout)
	defer cancel()

	earlier := ""
	if err := c.store.View(ctx, func(tx store.Tx) (err error) { earlier, err = replay(tx, key); return err }); err != nil {
		return nil, err
	}
	if earlier != "" {
		return c.replayFork(ctx, earlier)
	}
	from, err := c.forkSource(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer c.forking.Delete(from.ID)
	c.opt.Hook("fork:frozen")
	j, err := c.newJob(spore.OpFork, from.Kind, from.ID, from.OriginSandbox, req)
	if err != nil {
		return nil, err
	}
	c.begin(j, spore.PhaseSnapshotting)
	forks := make([]*spore.Sandbox, req.Count)
	err = c.store.Update(ctx, func(tx store.Tx) error {
		ids := make([]string, req.Count)
		for i := range forks {
			forks[i] = c.newSandbox(req.TTL, req.OnEnd, req.Env, req.Labels)
			ids[i] = forks[i].ID
			if err := c.reserve(tx, forks[i], from); err != nil {
				return err
			}
		}
		var err error
		if j.Result, err = json.Marshal(forkRecord{ids}); err != nil {
			return err
		}
		if err := tx.InsertJob(j); err != nil {
			return err
		}
		return c.remember(tx, key, j.ID)
	})
	c.forking.Delete(from.ID)
	if err != nil {
		if drop := c.dropEphemeral(context.WithoutCancel(ctx)); drop != nil {
			c.log.Error("dropping the snapshot of a fork", "snapshot", from.ID, "err", drop)
		}
		return nil, err
	}
	c.opt.Hook("fork:reserved")

	results := make([]ForkResult, req.Count)
	var all sync.WaitGroup
	for i, s := range forks {
		all.Go(func() {
			started, err := c.launch(ctx, s, req.TTL)
			results[i] = ForkResult{Sandbox: started}
			if err != nil {
				if spore.CodeOf(err) == spore.CodeInternal {
					c.log.Error("fork", "sandbox", s.ID, "err", err)
				}
				results[i] = ForkResult{Err: spore.AsError(err)}
			}
		})
	}
	all.Wait()
	c.opt.Hook("fork:started")
	return results, c.finishFork(context.WithoutCancel(ctx), j.ID, results)
}

// forkRecord is the result of a FORK job.
type forkRecord struct {
	Sandboxes []string `json:"sandboxes"`
}

// forkSource answers what the forks are to stand on: a snapshot as it is, or a running sandbox frozen now.
func (c *Center) forkSource(ctx context.Context, ref string) (*spore.Template, error) {
	t, err := c.Template(ctx, ref)
	if !isNotFound(err) {
		return t, err
	}
	s, err := c.Sandbox(ctx, ref)
	if err != nil {
		if isNotFound(err) {
			return nil, spore.Errorf(spore.CodeNotFound, "there is no sandbox, snapshot or template %q", ref)
		}
		return nil, err
	}
	unlock, err := c.sandboxes.lock(ctx, s.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return c.snapshot(ctx, Idempotency{}, s.ID, SnapshotRequest{}, true) // which marks it as forking
}

func (c *Center) finishFork(ctx context.Context, jobID string, results []ForkResult) error {
	var failure error
	for _, r := range results {
		if r.Err != nil {
			failure = r.Err
		}
	}
	err := c.store.Update(ctx, func(tx store.Tx) error {
		j, err := tx.Job(jobID)
		if err != nil {
			return err
		}
		c.finish(j, failure)
		return tx.UpdateJob(j)
	})
	if err != nil || failure == nil {
		return err
	}
	return c.dropEphemeral(ctx)
}

// replayFork answers a fork that was asked for before: the sandboxes it made, as they are now.
func (c *Center) replayFork(ctx context.Context, jobID string) ([]ForkResult, error) {
	var record forkRecord
	err := c.await(ctx, func(tx store.Tx) (bool, error) {
		j, err := tx.Job(jobID)
		if err != nil {
			return false, err
		}
		return !j.Status.Active(), json.Unmarshal(j.Result, &record)
	})
	if err != nil {
		return nil, err
	}
	results := make([]ForkResult, len(record.Sandboxes))
	for i, id := range record.Sandboxes {
		s, err := c.settled(ctx, id)
		results[i] = ForkResult{Sandbox: s}
		if err != nil {
			results[i] = ForkResult{Err: spore.AsError(err)}
		}
	}
	return results, nil
}

// dropEphemeral deletes the snapshots that forks made and that nothing stands on any more.
func (c *Center) dropEphemeral(ctx context.Context) error {
	var idle []string
	err := c.store.View(ctx, func(tx store.Tx) error {
		f := store.TemplateFilter{Paging: store.Paging{Limit: 1000}, Status: spore.TemplateReady, Ephemeral: true, EphemeralOnly: true}
		list, _, err := tx.Templates(f)
		for _, t := range list {
			if unused, err := c.unused(tx, t); err != nil {
				return err
			} else if unused {
				idle = append(idle, t.ID)
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, id := range idle {
		if err := c.dropOne(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// unused says whether nothing stands on a snapshot, nor is about to.
func (c *Center) unused(tx store.Tx, t *spore.Template) (bool, error) {
	if _, busy := c.forking.Load(t.ID); busy {
		return false, nil
	}
	refs, err := tx.Refs(t.ID, "", spore.RefReserved, spore.RefActive)
	if err != nil || len(refs) > 0 {
		return false, err
	}
	active, err := tx.ActiveJob(t.ID)
	return active == nil, err
}

func (c *Center) dropOne(ctx context.Context, id string) error {
	mark := func(from, to spore.TemplateStatus, also func(tx store.Tx, t *spore.Template) (bool, error)) (ok bool, err error) {
		err = c.store.Update(ctx, func(tx store.Tx) error {
			t, err := tx.Template(id)
			if err != nil || t.Status != from {
				return err
			}
			if ok, err = also(tx, t); err != nil || !ok {
				return err
			}
			t.Status, t.UpdatedAt = to, c.opt.Now()
			return tx.UpdateTemplate(t)
		})
		return ok, err
	}
	if ok, err := mark(spore.TemplateReady, spore.TemplateDeleting, c.unused); err != nil || !ok {
		return err
	}
	if err := c.node.Forget(ctx, id); err != nil && !isNotFound(err) {
		return err
	}
	_, err := mark(spore.TemplateDeleting, spore.TemplateDeleted, func(tx store.Tx, t *spore.Template) (bool, error) {
		return true, tx.DeleteReplica(t.ID, c.node.ID())
	})
	return err
}
