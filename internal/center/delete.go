package center

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// DeleteTemplate deletes a template or snapshot. It does not break what stands on it: the bytes that sandboxes and other
// templates need stay until they are gone, and HeldBy says who they are. A sandbox that runs on it is in the way unless
// Force; it goes on running either way. Once the delete is recorded it is deleted for everybody; nodes that cannot drop it right away do so later.
func (c *Center) DeleteTemplate(ctx context.Context, key Idempotency, ref string, req DeleteRequest) (*Deletion, error) {
	earlier := ""
	if err := c.store.View(ctx, func(tx store.Tx) (err error) { earlier, err = replay(tx, key); return err }); err != nil {
		return nil, err
	}
	if earlier != "" {
		return c.replayDelete(ctx, earlier)
	}
	if ref == "" {
		return nil, spore.Invalidf("template", "no template given").Because(spore.ReasonTemplateIDRequired)
	}
	t, err := c.Template(ctx, ref)
	if isNotFound(err) {
		return nil, c.missingTemplate(ctx, ref, err)
	}
	if err != nil {
		return nil, err
	}
	d, err := c.planDelete(ctx, t)
	if err != nil {
		return nil, err
	}
	if d.DryRun = req.DryRun; d.DryRun {
		return d, nil
	}
	if active, err := c.activeJob(ctx, t.ID); err != nil {
		return nil, err
	} else if active != nil && queued(active.Operation) && (len(d.Running) == 0 || req.Force) {
		if _, err := c.CancelJob(ctx, active.ID); err != nil {
			return nil, err
		}
	}
	op := spore.OpDelete
	if t.Kind == spore.KindSnapshot {
		op = spore.OpSnapshotDelete
	}
	j, err := c.newJob(op, t.Kind, t.ID, "", map[string]string{"ref": ref})
	if err != nil {
		return nil, err
	}
	j.RequestID, d.JobID = key.Key, j.ID
	if j.Result, err = json.Marshal(d); err != nil {
		return nil, err
	}
	err = c.update(ctx, func(tx store.Tx) error {
		if earlier, err = replay(tx, key); err != nil || earlier != "" {
			return err
		}
		if err := c.recordDelete(tx, t.ID, ref, req.Force, j); err != nil {
			return err
		}
		return c.remember(tx, key, j.ID)
	})
	if err != nil {
		return nil, err
	}
	if earlier != "" {
		return c.replayDelete(ctx, earlier)
	}
	c.opt.Hook("delete:recorded")
	c.finishDelete(ctx, j.ID)
	return d, nil
}

// replayDelete answers what an earlier delete under the same key was told.
func (c *Center) replayDelete(ctx context.Context, jobID string) (*Deletion, error) {
	j, err := c.Job(ctx, jobID)
	if err != nil {
		return nil, err
	}
	var d Deletion
	if err := json.Unmarshal(j.Result, &d); err != nil {
		return nil, err
	}
	return &d, nil
}

// planDelete says what deleting t would do. What nodes that do not answer hold is not counted.
func (c *Center) planDelete(ctx context.Context, t *spore.Template) (*Deletion, error) {
	d := &Deletion{ID: t.ID, HeldBy: []string{}, Running: []string{}}
	var replicas []*spore.Replica
	err := c.store.View(ctx, func(tx store.Tx) (err error) {
		if d.Running, err = c.runningOn(tx, t.ID); err != nil {
			return err
		}
		replicas, err = tx.Replicas(t.ID)
		return err
	})
	if err != nil {
		return nil, err
	}
	d.Replicas = len(replicas)
	for _, r := range replicas {
		n, err := c.on(r.NodeID)
		if err != nil {
			continue
		}
		u, err := n.Usage(ctx, t.ID)
		switch spore.CodeOf(err) {
		case "":
		case spore.CodeNotFound, spore.CodeDamaged, spore.CodeUnreachable:
			continue
		default:
			return nil, err
		}
		d.FreesBytes += u.ReclaimableBytes
		for _, id := range u.HeldBy { // what it stands on itself keeps its own bytes, whatever becomes of t
			if id != t.ParentID && !slices.Contains(d.HeldBy, id) {
				d.HeldBy = append(d.HeldBy, id)
			}
		}
		if len(d.HeldBy) > 0 {
			d.RetainBytes += u.ExclusiveBytes + u.SharedBytes - u.ReclaimableBytes
		}
	}
	return d, nil
}

// missingTemplate is why there is nothing to delete under ref. Of a template that was deleted bytes may still lie where nobody
// can look: on a node that had it, or was to have it, and was forgotten.
func (c *Center) missingTemplate(ctx context.Context, ref string, missing error) error {
	var t *spore.Template
	var lost []string
	err := c.store.View(ctx, func(tx store.Tx) (err error) {
		if t, err = anyTemplate(tx, ref); err != nil {
			return ignoreNotFound(err)
		}
		lost, err = c.lostNodes(tx, t)
		return err
	})
	if err != nil || len(lost) == 0 {
		return cmp.Or(err, missing)
	}
	return spore.Errorf(spore.CodeNotFound, "%s %s was deleted already; bytes of it may lie on %s still, which was forgotten", t.Kind, t.ID, some(lost)).
		WithHint("they are removed should the node report again; if it never does, wipe its disk").Because(spore.ReasonLocatorMissing)
}

// lostNodes lists the nodes that a template was made on, as far as its jobs tell, and that are not known any more.
func (c *Center) lostNodes(tx store.Tx, t *spore.Template) (lost []string, err error) {
	jobs, _, err := tx.Jobs(store.JobFilter{Paging: store.Paging{Limit: 100}, ResourceID: t.ID})
	if err != nil {
		return nil, err
	}
	named := []string{t.OriginNode}
	for _, j := range jobs {
		if makes(j.Operation) || j.Operation == spore.OpRedo || j.Operation == spore.OpReplicate {
			named = append(append(named, j.NodeID), j.Redo.Scope...)
		}
	}
	for _, id := range named {
		if n := c.fleet.facts(id); id != "" && (n == nil || n.State == spore.NodeForgotten) && !slices.Contains(lost, id) {
			lost = append(lost, id)
		}
	}
	slices.Sort(lost)
	return lost, nil
}

// runningOn lists the sandboxes that run on a template, or are about to.
func (c *Center) runningOn(tx store.Tx, templateID string) ([]string, error) {
	refs, err := tx.Refs(store.RefFilter{TemplateID: templateID, Statuses: held})
	if err != nil {
		return nil, err
	}
	ids := []string{}
	for _, r := range refs {
		s, err := tx.Sandbox(r.SandboxID)
		if err != nil {
			return nil, err
		}
		if (s.State == spore.SandboxRunning || s.State == spore.SandboxCreating) && !slices.Contains(ids, s.ID) {
			ids = append(ids, s.ID)
		}
	}
	return ids, nil
}

// recordDelete makes t a tombstone in the making, with the job that finishes it.
func (c *Center) recordDelete(tx store.Tx, id, ref string, force bool, j *spore.Job) error {
	t, err := tx.Template(id)
	if err != nil {
		return err
	}
	if t.Status == spore.TemplateDeleted || t.Status == spore.TemplateDeleting {
		return spore.Errorf(spore.CodeNotFound, "%s was deleted already", ref).Because(notFoundReason(t.Kind))
	}
	if active, err := tx.ActiveJob(t.ID); err != nil {
		return err
	} else if active != nil {
		return spore.Errorf(spore.CodeBusy, "job %s (%s) is still at work on %s", active.ID, active.Operation, t.Label()).
			WithHint("wait for it: spore job watch %s", active.ID).Because(spore.ReasonInProgress)
	}
	running, err := c.runningOn(tx, t.ID)
	if err != nil {
		return err
	}
	if len(running) > 0 && !force {
		return spore.Errorf(spore.CodeInUse, "%s %s is in use by %s", t.Kind, t.Label(), some(running)).
			WithHint("end them first, or delete it all the same with --force: they go on, and its bytes go when they end").
			Because(spore.ReasonInUse)
	}
	t.Status, t.UpdatedAt = spore.TemplateDeleting, c.opt.Now()
	if err := tx.UpdateTemplate(t); err != nil {
		return err
	}
	if err := c.cleaning(tx, t.ID); err != nil {
		return err
	}
	c.begin(j, spore.PhaseDeleting)
	return tx.InsertJob(j)
}

// cleaning marks all replicas of a template as to be removed.
func (c *Center) cleaning(tx store.Tx, id string) error {
	replicas, err := tx.Replicas(id)
	if err != nil {
		return err
	}
	for _, r := range replicas {
		r.Status, r.Phase, r.CleanupRequired, r.UpdatedAt = spore.ReplicaFailed, spore.ReplicaCleaning, true, c.opt.Now()
		if err := tx.PutReplica(r); err != nil {
			return err
		}
	}
	return nil
}

// some lists the first few of many.
func some(ids []string) string {
	const few = 5
	if len(ids) <= few {
		return strings.Join(ids, ", ")
	}
	return strings.Join(ids[:few], ", ") + " and " + strconv.Itoa(len(ids)-few) + " more"
}

func notFoundReason(k spore.TemplateKind) spore.Reason {
	if k == spore.KindSnapshot {
		return spore.ReasonSnapshotNotFound
	}
	return spore.ReasonTemplateNotFound
}

// finishDelete carries a recorded delete to its end.
func (c *Center) finishDelete(ctx context.Context, jobID string) {
	c.insist(ctx, "finish the delete "+jobID, func(ctx context.Context) error { return c.finishDeleteOnce(ctx, jobID) })
}

func (c *Center) finishDeleteOnce(ctx context.Context, jobID string) error {
	j, err := c.Job(ctx, jobID)
	if err != nil || !j.Status.Active() {
		return err
	}
	if err := c.clean(ctx, j.ResourceID); err != nil {
		return err
	}
	c.opt.Hook("delete:forgotten")
	return c.bury(ctx, j.ResourceID, j)
}

// clean removes a deleted template from the nodes that have it. Nodes that do not answer keep a replica in phase CLEANING, and
// are asked again until they do or are forgotten.
func (c *Center) clean(ctx context.Context, id string) error {
	var replicas []*spore.Replica
	err := c.store.View(ctx, func(tx store.Tx) (err error) { replicas, err = tx.Replicas(id); return err })
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range replicas {
		if err := c.cleanReplica(ctx, r); spore.CodeOf(err) != spore.CodeUnreachable {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// cleanReplica removes one replica's bytes, then its row.
func (c *Center) cleanReplica(ctx context.Context, r *spore.Replica) error {
	if n := c.fleet.facts(r.NodeID); n == nil || n.State != spore.NodeForgotten {
		n, err := c.on(r.NodeID)
		if err != nil {
			return err
		}
		if err := n.Forget(ctx, r.TemplateID); ignoreNotFound(err) != nil {
			return err
		}
	}
	return c.update(ctx, func(tx store.Tx) error {
		now, err := tx.Replica(r.TemplateID, r.NodeID)
		if err != nil {
			return ignoreNotFound(err)
		}
		if now.Phase != spore.ReplicaCleaning {
			return nil // it is wanted again
		}
		return tx.DeleteReplica(r.TemplateID, r.NodeID)
	})
}

// bury makes the tombstone and ends the job, if there is one.
func (c *Center) bury(ctx context.Context, id string, j *spore.Job) error {
	return c.update(ctx, func(tx store.Tx) error {
		t, err := tx.Template(id)
		if err != nil {
			return err
		}
		t.Status, t.UpdatedAt = spore.TemplateDeleted, c.opt.Now()
		if err := tx.UpdateTemplate(t); err != nil {
			return err
		}
		if j == nil {
			return nil
		}
		now, err := tx.Job(j.ID)
		if err != nil || !now.Status.Active() {
			return err
		}
		c.finish(now, nil)
		return tx.UpdateJob(now)
	})
}
