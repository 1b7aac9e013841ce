package center

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// CreateSnapshot captures a running sandbox, which goes on running, and answers when the capture is on disk.
func (c *Center) CreateSnapshot(ctx context.Context, key Idempotency, sandboxID string, req SnapshotRequest) (*spore.Template, error) {
	if req.Name != "" {
		if err := spore.ValidateName("name", req.Name); err != nil {
			return nil, err
		}
	}
	if err := checkLabels(req.Labels); err != nil {
		return nil, err
	}
	if err := checkTold(req.DisplayName, req.Author, req.Reason); err != nil {
		return nil, err
	}
	ctx, cancel := c.within(ctx)
	defer cancel()
	unlock, err := c.lock(ctx, sandboxID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return c.snapshot(ctx, key, sandboxID, req, false)
}

// snapshot is CreateSnapshot for a caller who holds the sandbox's lock.
func (c *Center) snapshot(ctx context.Context, key Idempotency, sandboxID string, req SnapshotRequest, ephemeral bool) (made *spore.Template, err error) {
	t := &spore.Template{
		ID: spore.NewSnapshotID(), Name: req.Name, Kind: spore.KindSnapshot, Status: spore.TemplateCreating,
		OriginSandbox: sandboxID, Labels: req.Labels, Ephemeral: ephemeral,
		DisplayName: req.DisplayName, Author: req.Author, Reason: req.Reason, Retain: req.Retain,
	}
	j, err := c.newJob(spore.OpSnapshotCreate, spore.KindSnapshot, t.ID, sandboxID, req)
	if err != nil {
		return nil, err
	}
	c.begin(j, spore.PhaseSnapshotting)
	j.RequestID = key.Key
	if id := t.ID; ephemeral {
		c.forking.Store(id, true)
		defer func() {
			if err != nil {
				c.forking.Delete(id)
			}
		}()
	}
	t.JobID, t.CreatedAt, t.UpdatedAt = j.ID, c.opt.Now(), c.opt.Now()
	var s *spore.Sandbox
	earlier := ""
	err = c.update(ctx, func(tx store.Tx) (err error) {
		if earlier, err = replay(tx, key); err != nil {
			return err
		}
		if earlier != "" {
			t, err = tx.Template(earlier)
			return err
		}
		if s, err = liveSandbox(tx, sandboxID); err != nil {
			return err
		}
		if err := mustRun(s, "snapshotted"); err != nil {
			return err
		}
		if err := c.inherit(tx, t, s); err != nil {
			return err
		}
		if err := c.underQuota(tx, t); err != nil {
			return err
		}
		t.OriginNode, j.NodeID = s.NodeID, s.NodeID
		if err := c.freeName(tx, t.Name); err != nil {
			return err
		}
		if err := tx.InsertTemplate(t); err != nil {
			return err
		}
		if err := tx.InsertJob(j); err != nil {
			return err
		}
		return c.remember(tx, key, t.ID)
	})
	if err != nil {
		return nil, err
	}
	if earlier != "" {
		if well, err := c.ended(ctx, t.JobID); err != nil {
			return nil, err
		} else if !well { // and its key is forgotten
			return c.snapshot(ctx, key, sandboxID, req, ephemeral)
		}
		return c.templateByID(ctx, earlier)
	}
	c.opt.Hook("snapshot:recorded")
	var f *spore.Frozen
	n, err := c.on(s.NodeID)
	if err == nil {
		f, err = c.capture(ctx, n, s, t, req.hold)
	}
	if err != nil {
		return nil, c.failDirect(ctx, j.ID, err)
	}
	c.opt.Hook("snapshot:frozen")
	made, err = c.registerSnapshot(context.WithoutCancel(ctx), j.ID, t.ID, f)
	if err != nil {
		return nil, c.failDirect(ctx, j.ID, err)
	}
	return made, nil
}

// registerSnapshot writes the end of a capture that is on disk.
func (c *Center) registerSnapshot(ctx context.Context, jobID, id string, f *spore.Frozen) (t *spore.Template, err error) {
	err = c.update(ctx, func(tx store.Tx) error {
		if t, err = tx.Template(id); err != nil {
			return err
		}
		j, err := tx.Job(jobID)
		if err != nil {
			return err
		}
		if !j.Status.Active() {
			return spore.Errorf(spore.CodeCanceled, "the job was settled by another controller")
		}
		t.Status, t.LastError, t.UpdatedAt = spore.TemplateReady, "", c.opt.Now()
		t.MemoryBytes, t.DiskBytes, t.Engine = f.MemoryBytes, f.DiskBytes, f.Engine
		if err := tx.UpdateTemplate(t); err != nil {
			return err
		}
		if err := tx.PutReplica(c.readyReplica(t, j.NodeID, j.ID, f)); err != nil {
			return err
		}
		if j.Result, err = json.Marshal(map[string]any{
			"snapshotId": t.ID, "memoryBytes": f.MemoryBytes, "diskBytes": f.DiskBytes,
			"pausedMicros": f.Paused.Microseconds(), "totalMicros": f.Total.Microseconds(),
		}); err != nil {
			return err
		}
		c.finish(j, nil)
		if err := tx.UpdateJob(j); err != nil || f.ChainDepth <= flattenAboveDepth {
			return err
		}
		return c.queueFlatten(tx, t, j.NodeID)
	})
	return t, err
}

// queueFlatten asks for the layers of t to be merged in the background.
func (c *Center) queueFlatten(tx store.Tx, t *spore.Template, nodeID string) error {
	j, err := c.newJob(spore.OpFlatten, t.Kind, t.ID, "", struct{}{})
	if err != nil {
		return err
	}
	j.Phase, j.Owner, j.NodeID = spore.PhaseRegistering, "", nodeID
	if err := tx.InsertJob(j); err != nil {
		return err
	}
	return tx.Enqueue(j.ID, 2)
}

// failDirect ends a job whose caller is waiting with the error that the caller gets. The request's key is forgotten, so
// that a retry tries again, and so is what was to become of it.
func (c *Center) failDirect(ctx context.Context, jobID string, cause error) error {
	cause = c.overran(ctx, cause)
	c.insist(ctx, "record the failure of "+jobID, func(ctx context.Context) error {
		var failed *spore.Job
		err := c.update(ctx, func(tx store.Tx) error {
			failed = nil
			j, err := tx.Job(jobID)
			if err != nil || !j.Status.Active() {
				return err
			}
			c.finish(j, cause)
			if err := tx.UpdateJob(j); err != nil {
				return err
			}
			made := j.ID // what a request is remembered to have made
			if j.Operation == spore.OpSnapshotCreate {
				made = j.ResourceID
			}
			if err := tx.DropReplay(made); err != nil {
				return err
			}
			failed = j
			return c.failTemplate(tx, j)
		})
		if err == nil && failed != nil && failed.Operation == spore.OpSnapshotCreate {
			c.forget(ctx, failed.NodeID, failed.ResourceID)
		}
		return err
	})
	return cause
}

// ended waits until a job that another request began has ended, and says whether well. Its failure may be known for a while
// before it can be written down; until then nobody can be told anything.
func (c *Center) ended(ctx context.Context, jobID string) (well bool, err error) {
	err = c.await(ctx, func(tx store.Tx) (bool, error) {
		j, err := tx.Job(jobID)
		if err != nil {
			return false, err
		}
		well = j.Status == spore.JobReady
		return !j.Status.Active(), nil
	})
	return well, err
}

// Rollback brings a sandbox back to a snapshot: the new VM is made beside the old one, which goes on until the new one
// answers and the rows have switched. When anything fails the sandbox is what it was.
func (c *Center) Rollback(ctx context.Context, key Idempotency, sandboxID, snapshotRef string) (*spore.Sandbox, error) {
	ctx, cancel := c.within(ctx)
	defer cancel()
	unlock, err := c.lock(ctx, sandboxID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return c.rollback(ctx, key, sandboxID, snapshotRef)
}

// rollback is Rollback for a caller who holds the sandbox's lock.
func (c *Center) rollback(ctx context.Context, key Idempotency, sandboxID, snapshotRef string) (*spore.Sandbox, error) {
	var s *spore.Sandbox
	var j *spore.Job
	var next spore.Sandbox
	earlier := ""
	err := c.update(ctx, func(tx store.Tx) (err error) {
		if earlier, err = replay(tx, key); err != nil {
			return err
		}
		if s, err = liveSandbox(tx, sandboxID); err != nil || earlier != "" {
			return err
		}
		if s.State != spore.SandboxRunning && s.State != spore.SandboxFailed {
			return mustRun(s, "rolled back")
		}
		if err := rollsBack(s); err != nil {
			return err
		}
		t, err := tx.FindTemplate(snapshotRef)
		if err != nil {
			return err
		}
		if err := t.Startable(); err != nil {
			return err
		}
		next = *s
		next.Generation, next.TemplateID, next.Resources = s.Generation+1, t.ID, t.Resources
		next.State, next.StateReason = spore.SandboxRunning, ""
		if next.Network.Connected() {
			if err := cablePlug(t); err != nil {
				return err
			}
		}
		replicas, err := tx.Replicas(t.ID)
		if err != nil {
			return err
		}
		// On its own node if that has the snapshot; else it moves to one that has.
		if next.NodeID, _, err = c.place(tx, t, replicas, wish{preferred: s.NodeID, network: next.Network.Mode}); err != nil {
			return err
		}
		if j, err = c.newJob(spore.OpSnapshotRollback, t.Kind, t.ID, s.ID, map[string]any{"snapshot": snapshotRef, "generation": next.Generation}); err != nil {
			return err
		}
		c.begin(j, spore.PhaseRollbackPreparing)
		j.NodeID, j.RequestID = next.NodeID, key.Key
		if err := tx.InsertJob(j); err != nil {
			return err
		}
		if err := tx.PutRef(c.newRef(&next)); err != nil {
			return err
		}
		return c.remember(tx, key, j.ID)
	})
	if err != nil {
		return nil, err
	}
	if earlier != "" {
		if well, err := c.ended(ctx, earlier); err != nil {
			return nil, err
		} else if !well { // and its key is forgotten
			return c.rollback(ctx, key, sandboxID, snapshotRef)
		}
		return c.Sandbox(ctx, sandboxID)
	}
	c.opt.Hook("rollback:reserved")
	undo := func(cause error) error {
		if errors.Is(cause, store.ErrUndecided) {
			return cause
		}
		return c.dropGeneration(ctx, s, &next, c.failDirect(ctx, j.ID, cause))
	}
	if err := c.progress(ctx, j.ID, spore.PhaseRollbackDriving, 25, nil); err != nil {
		return nil, undo(err)
	}
	n, err := c.on(next.NodeID)
	if err != nil {
		return nil, undo(err)
	}
	if err := n.Start(ctx, &next, next.TemplateID); err != nil {
		c.doubt(ctx, next.TemplateID, next.NodeID, err)
		return nil, undo(err)
	}
	if next.Ports, err = c.published(ctx, n, &next); err != nil {
		return nil, undo(err)
	}
	c.opt.Hook("rollback:started")
	err = c.switchTo(ctx, &next, func(tx store.Tx) error {
		now, err := tx.Job(j.ID)
		if err != nil {
			return err
		}
		if !now.Status.Active() {
			return spore.Errorf(spore.CodeCanceled, "the job was settled by another controller")
		}
		c.finish(now, nil)
		return tx.UpdateJob(now)
	})
	if err != nil { // the node has done its part, the rows have not: the sandbox is brought back to what it was
		if note := c.progress(context.WithoutCancel(ctx), j.ID, spore.PhaseRollbackRecovering, 90, nil); note != nil {
			c.log.Error("job progress", "job", j.ID, "err", note)
		}
		return nil, undo(err)
	}
	c.opt.Hook("rollback:recorded")
	c.settle(ctx, next.NodeID, next.ID, next.Generation)
	if next.NodeID != s.NodeID {
		c.settle(ctx, s.NodeID, s.ID, 0)
	}
	c.dropIdle(ctx)
	return &next, nil
}
