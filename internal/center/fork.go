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
	return c.snapshot(ctx, Idempotency{}, s.ID, SnapshotRequest{}, true)
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
	var gone []*spore.Template
	err := c.store.Update(ctx, func(tx store.Tx) error {
		gone = nil
		list, _, err := tx.Templates(store.TemplateFilter{Paging: store.Paging{Limit: 1000}, Status: spore.TemplateReady, Ephemeral: true, EphemeralOnly: true})
		if err != nil {
			return err
		}
		for _, t := range list {
			refs, err := tx.Refs(t.ID, "", spore.RefReserved, spore.RefActive)
			if err != nil {
				return err
			}
			if active, err := tx.ActiveJob(t.ID); err != nil {
				return err
			} else if len(refs) > 0 || active != nil || c.opt.Now().Sub(t.CreatedAt) < forkGrace {
				continue
			}
			t.Status, t.UpdatedAt = spore.TemplateDeleting, c.opt.Now()
			if err := tx.UpdateTemplate(t); err != nil {
				return err
			}
			gone = append(gone, t)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, t := range gone {
		if err := c.node.Forget(ctx, t.ID); err != nil && !isNotFound(err) {
			return err
		}
		err := c.store.Update(ctx, func(tx store.Tx) error {
			t.Status = spore.TemplateDeleted
			if err := tx.UpdateTemplate(t); err != nil {
				return err
			}
			return tx.DeleteReplica(t.ID, c.node.ID())
		})
		if err != nil {
			return err
		}
	}
	return nil
}
