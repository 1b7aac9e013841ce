package center

import (
	"context"
	"encoding/json"
	"errors"
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
	if err := checkLabels(req.Labels); err != nil {
		return nil, err
	}
	if err := req.Wiring.validate(); err != nil {
		return nil, err
	}
	ctx, cancel := c.within(ctx)
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
	defer c.forking.Delete(from.ID) // if nothing stands on it by then, it is dropped
	c.opt.Hook("fork:frozen")
	j, err := c.newJob(spore.OpFork, from.Kind, from.ID, from.OriginSandbox, req)
	if err != nil {
		return nil, err
	}
	c.begin(j, spore.PhaseSnapshotting)
	forks, refs := make([]*spore.Sandbox, req.Count), make([]*spore.RuntimeRef, req.Count)
	ids := make([]string, req.Count)
	for i := range ids {
		ids[i] = spore.NewSandboxID()
		unlock, err := c.sandboxes.lock(ctx, ids[i])
		if err != nil {
			return nil, err
		}
		defer unlock()
	}
	err = c.update(ctx, func(tx store.Tx) error {
		// The same request may have come in twice at once, and what is forked may have been deleted since.
		if earlier, err = replay(tx, key); err != nil || earlier != "" {
			return err
		}
		t, err := tx.Template(from.ID)
		if err != nil {
			return err
		}
		placed := map[string]int{}
		for i := range forks {
			r, err := c.resolve(tx, CreateRequest{Template: from.ID, TTL: req.TTL, OnEnd: req.OnEnd, Env: req.Env, Labels: req.Labels, Wiring: req.Wiring})
			if err != nil {
				return err
			}
			r.request.Wiring.Ports = forkPorts(r.request.Wiring.Ports, req.Wiring.Ports, req.Count)
			forks[i] = c.newSandbox(ids[i], r.request)
			forks[i].NodeID = c.spread(r, placed)
			if refs[i], err = c.reserve(tx, forks[i], t); err != nil {
				return err
			}
		}
		if j.Result, err = json.Marshal(forkRecord{ids}); err != nil {
			return err
		}
		if err := tx.InsertJob(j); err != nil {
			return err
		}
		return c.remember(tx, key, j.ID)
	})
	if err != nil {
		return nil, err
	}
	if earlier != "" {
		return c.replayFork(ctx, earlier)
	}
	c.opt.Hook("fork:reserved")

	results := make([]ForkResult, req.Count)
	var all sync.WaitGroup
	for i, s := range forks {
		all.Go(func() {
			started, err := c.launch(ctx, s, refs[i], s.EndsAt.Sub(s.CreatedAt))
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
	c.finishFork(ctx, j.ID, results)
	return results, nil
}

// spread is where the next of many sandboxes goes: the nodes that fit take turns by how much memory they have left.
func (c *Center) spread(r *resolution, placed map[string]int) string {
	best, room := r.nodeID, 0
	for _, s := range r.spots {
		if left := s.freeMiB - placed[s.nodeID]; s.whyNot == "" && (room == 0 || left > room) {
			best, room = s.nodeID, left
		}
	}
	placed[best] += r.template.Resources.MemoryMiB
	return best
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
	if len(s.Disks) > 0 {
		return nil, spore.Errorf(spore.CodeConflict, "sandbox %s has disks of the machine's, which its forks cannot share", s.ID).
			WithHint("snapshot it, copy the disks meanwhile, and start from the snapshot with the copies")
	}
	unlock, err := c.lock(ctx, s.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return c.snapshot(ctx, Idempotency{}, s.ID, SnapshotRequest{}, true) // which marks it as forking
}

func (c *Center) finishFork(ctx context.Context, jobID string, results []ForkResult) {
	var failure error
	failed := 0
	for _, r := range results {
		if r.Err != nil {
			failure = r.Err
			failed++
		}
	}
	c.endFork(ctx, jobID, failure, failed < len(results))
	if failed > 0 {
		c.dropIdle(ctx)
	}
}

// endFork writes the end of a fork. The request is remembered if it made anything: a retry is then told of it.
func (c *Center) endFork(ctx context.Context, jobID string, failure error, remember bool) {
	c.insist(ctx, "record the end of "+jobID, func(ctx context.Context) error {
		return c.update(ctx, func(tx store.Tx) error {
			j, err := tx.Job(jobID)
			if err != nil || !j.Status.Active() {
				return err
			}
			c.finish(j, failure)
			if err := tx.UpdateJob(j); err != nil || remember {
				return err
			}
			return tx.DropReplay(jobID)
		})
	})
}

// settleFork ends the fork of a server that died: the forks that had started by then are all there will be.
func (c *Center) settleFork(ctx context.Context, j *spore.Job) error {
	var record forkRecord
	if err := json.Unmarshal(j.Result, &record); err != nil {
		return err
	}
	started := 0
	err := c.store.View(ctx, func(tx store.Tx) error {
		for _, id := range record.Sandboxes {
			s, err := tx.Sandbox(id)
			if err != nil && !isNotFound(err) {
				return err
			}
			if err == nil && (s.State != spore.SandboxKilled || s.StateReason == "") {
				started++
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	var failure error
	if started < len(record.Sandboxes) {
		failure = errServerDied
	}
	c.endFork(ctx, j.ID, failure, started > 0)
	return nil
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

// dropEphemeral deletes the snapshots that forks made, or failed to make, and that nothing stands on any more. It goes on
// with those whose deletion was begun.
func (c *Center) dropEphemeral(ctx context.Context) error {
	var idle []string
	err := c.store.View(ctx, func(tx store.Tx) error {
		idle = nil
		for _, status := range []spore.TemplateStatus{spore.TemplateReady, spore.TemplateFailed, spore.TemplateDeleting} {
			f := store.TemplateFilter{Paging: store.Paging{Limit: 1000}, Status: status, Ephemeral: true, EphemeralOnly: true, Deleted: true}
			for {
				list, page, err := tx.Templates(f)
				if err != nil {
					return err
				}
				for _, t := range list {
					if unused, err := c.unused(tx, t); err != nil {
						return err
					} else if unused {
						idle = append(idle, t.ID)
					}
				}
				if page.Next == "" {
					break
				}
				f.After = page.Next
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range idle {
		errs = append(errs, c.dropOne(ctx, id))
	}
	return errors.Join(errs...)
}

// unused says whether nothing stands on a snapshot, nor is about to.
func (c *Center) unused(tx store.Tx, t *spore.Template) (bool, error) {
	if _, busy := c.forking.Load(t.ID); busy {
		return false, nil
	}
	// What another controller has just made stands alone for a moment, until its forks are reserved.
	if !c.opt.Alone && t.Status == spore.TemplateReady && c.opt.Now().Sub(t.UpdatedAt) < graceOfRows {
		return false, nil
	}
	refs, err := tx.Refs(store.RefFilter{TemplateID: t.ID, Statuses: held, Limit: 1})
	if err != nil || len(refs) > 0 {
		return false, err
	}
	active, err := tx.ActiveJob(t.ID)
	return active == nil, err
}

// dropIdle is dropEphemeral after something was let go of. A failure is no failure of that: it is tried again in a second.
func (c *Center) dropIdle(ctx context.Context) {
	if err := c.dropEphemeral(context.WithoutCancel(ctx)); err != nil {
		c.log.Error("dropping snapshots of forks", "err", err)
	}
}

// dropOne deletes one such snapshot, if it is still unused.
func (c *Center) dropOne(ctx context.Context, id string) error {
	dropping := false
	err := c.update(ctx, func(tx store.Tx) error {
		dropping = false
		t, err := tx.Template(id)
		if err != nil || t.Status == spore.TemplateDeleted {
			return err
		}
		if dropping, err = c.unused(tx, t); err != nil || !dropping {
			return err
		}
		t.Status, t.UpdatedAt = spore.TemplateDeleting, c.opt.Now()
		if err := tx.UpdateTemplate(t); err != nil {
			return err
		}
		return c.cleaning(tx, t.ID)
	})
	if err != nil || !dropping {
		return err
	}
	if err := c.clean(ctx, id); err != nil {
		return err
	}
	return c.bury(ctx, id, nil)
}
