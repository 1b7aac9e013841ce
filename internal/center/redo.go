package center

import (
	"context"
	"slices"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// RedoTemplate queues the making again of replicas. Each new one is made beside the old, proven, and only then put in its
// place: what serves goes on serving, also when the redo fails.
func (c *Center) RedoTemplate(ctx context.Context, key Idempotency, ref string, req RedoRequest) (*spore.Job, error) {
	if req.Mode == "" {
		req.Mode = spore.RedoAll
		if len(req.Nodes) > 0 {
			req.Mode = spore.RedoNodes
		}
	}
	if err := checkRedo(req); err != nil {
		return nil, err
	}
	j, err := c.newJob(spore.OpRedo, spore.KindTemplate, "", "", req)
	if err != nil {
		return nil, err
	}
	j.Owner, j.RequestID = "", key.Key
	err = c.update(ctx, func(tx store.Tx) error {
		earlier, err := replay(tx, key)
		if err != nil {
			return err
		}
		if earlier != "" {
			j, err = tx.Job(earlier)
			return err
		}
		t, err := tx.FindTemplate(ref)
		if err != nil {
			return err
		}
		if active, err := tx.ActiveJob(t.ID); err != nil {
			return err
		} else if active != nil {
			return spore.Errorf(spore.CodeBusy, "job %s (%s) is still at work on %s", active.ID, active.Operation, t.Label()).
				WithHint("wait for it: spore job watch %s", active.ID).Because(spore.ReasonInProgress)
		}
		nodes, resume, err := c.redoNodes(tx, t, req)
		if err != nil {
			return err
		}
		last, _, err := tx.Jobs(store.JobFilter{Paging: store.Paging{Limit: 1}, ResourceID: t.ID})
		if err != nil {
			return err
		}
		if len(last) > 0 {
			j.RetryOfJobID = last[0].ID
		}
		j.ResourceType, j.ResourceID, j.ArtifactID, j.Phase = t.Kind, t.ID, t.ArtifactID, resume
		j.Redo = spore.RedoPlan{Mode: req.Mode, Scope: nodes, ResumePhase: resume}
		j.Nodes.Expected = len(nodes)
		if req.AddNetwork && !t.NIC {
			t.NIC, t.UpdatedAt = true, c.opt.Now()
			if err := tx.UpdateTemplate(t); err != nil {
				return err
			}
		}
		if err := tx.InsertJob(j); err != nil {
			return err
		}
		if err := c.remember(tx, key, j.ID); err != nil {
			return err
		}
		return tx.Enqueue(j.ID, 3)
	})
	if err != nil {
		return nil, err
	}
	return j, nil
}

func checkRedo(req RedoRequest) error {
	named := len(req.Nodes) > 0
	switch req.Mode {
	case spore.RedoNodes, spore.RedoFailedNodes:
		if !named {
			return spore.Invalidf("nodes", "mode %s needs nodes", req.Mode).WithHint("name them, or use ALL or FAILED_ONLY")
		}
	case spore.RedoAll, spore.RedoFailedOnly:
		if named {
			return spore.Invalidf("nodes", "mode %s takes no nodes", req.Mode).WithHint("use NODES or FAILED_NODES")
		}
	default:
		return spore.Invalidf("mode", "%q is not a mode", req.Mode).WithHint("ALL, NODES, FAILED_ONLY or FAILED_NODES")
	}
	return nil
}

// redoNodes says which replicas are to be made again, and where the last attempt at them broke.
func (c *Center) redoNodes(tx store.Tx, t *spore.Template, req RedoRequest) ([]string, spore.JobPhase, error) {
	replicas, err := tx.Replicas(t.ID)
	if err != nil {
		return nil, "", err
	}
	resume := spore.PhaseSnapshotting
	failed := map[string]bool{}
	have := map[string]bool{}
	for _, r := range replicas {
		have[r.NodeID] = true
		if r.Status != spore.ReplicaReady || r.CleanupRequired && r.Phase == spore.ReplicaPhaseFailed {
			failed[r.NodeID] = true
			if r.LastErrorPhase == spore.ReplicaDistributing {
				resume = spore.PhaseDistributing
			}
		}
	}
	for _, id := range req.Nodes {
		n := c.fleet.facts(id)
		if n == nil || n.State == spore.NodeForgotten {
			return nil, "", spore.Invalidf("nodes", "there is no node %q", id).WithHint("spore node ls").Because(spore.ReasonNoNodes)
		}
		if n.State != spore.NodeReady {
			return nil, "", spore.Errorf(spore.CodeUnreachable, "node %s is %s", id, n.State).WithHint("spore node info %s", id).Because(spore.ReasonNoNodes)
		}
	}
	var nodes []string
	switch req.Mode {
	case spore.RedoNodes:
		nodes = slices.Clone(req.Nodes)
	case spore.RedoFailedOnly, spore.RedoFailedNodes:
		for id := range failed {
			if req.Mode == spore.RedoFailedOnly || slices.Contains(req.Nodes, id) {
				nodes = append(nodes, id)
			}
		}
		if len(replicas) == 0 && t.Status == spore.TemplateFailed && req.Mode == spore.RedoFailedOnly { // the build never came so far
			nodes = c.firstNodes(t)
		}
		if len(nodes) == 0 {
			return nil, "", spore.Errorf(spore.CodeInvalid, "%s has no replica that failed", t.Label()).
				WithHint("redo all: spore template redo %s", t.Label()).Because(spore.ReasonNothingFailed)
		}
	default:
		for id := range have {
			if n := c.fleet.facts(id); n != nil && n.State == spore.NodeReady {
				nodes = append(nodes, id)
			}
		}
		add, _ := c.planFor(t, replicas)
		nodes = append(nodes, add...)
		if len(replicas) == 0 && len(nodes) == 0 {
			nodes = c.firstNodes(t)
		}
	}
	slices.Sort(nodes)
	nodes = slices.Compact(nodes)
	if len(nodes) == 0 {
		return nil, "", errNoNodes("no node that is ready may hold %s", t.Label())
	}
	if len(replicas) == 0 {
		if t.OriginSandbox != "" {
			return nil, "", spore.Errorf(spore.CodeConflict, "%s %s was never captured: there is nothing to make it again from", t.Kind, t.Label()).
				WithHint("take another of sandbox %s", t.OriginSandbox)
		}
		resume = spore.PhaseBuildingExt4
		if t.ArtifactID == "" {
			resume = spore.PhasePulling
		}
	}
	return nodes, resume, nil
}

// firstNodes is where a template that is nowhere would go.
func (c *Center) firstNodes(t *spore.Template) (ids []string) {
	for _, n := range c.matching(t.Replicas) {
		if len(ids) < wanted(t.Replicas) {
			ids = append(ids, n.ID)
		}
	}
	return ids
}

// runRedo makes the replicas of its plan again.
func (c *Center) runRedo(ctx context.Context, j *spore.Job) error {
	left, err := c.redoLeft(ctx, j)
	if err != nil {
		return err
	}
	if err := c.makeReplicas(ctx, j, j.ResourceID, left, makeAgain); err != nil {
		return err
	}
	var failure error
	err = c.update(ctx, func(tx store.Tx) error {
		failure = nil
		now, err := tx.Job(j.ID)
		if err != nil || !now.Status.Active() {
			return err
		}
		if err := c.serve(tx, j.ResourceID); err != nil {
			return err
		}
		now.Nodes.Ready, now.Nodes.Failed = 0, 0
		for _, id := range now.Redo.Scope {
			r, err := tx.Replica(j.ResourceID, id)
			if ignoreNotFound(err) != nil {
				return err
			}
			if err == nil && r.LastJobID == j.ID && r.Status == spore.ReplicaReady && r.ErrorMessage == "" {
				now.Nodes.Ready++
				continue
			}
			now.Nodes.Failed++
			if failure == nil {
				failure = spore.Errorf(spore.CodeConflict, "node %s: %s", id, reasonOf(r)).WithHint("spore job log %s", j.ID)
			}
		}
		c.finish(now, failure)
		return tx.UpdateJob(now)
	})
	return err
}

func reasonOf(r *spore.Replica) string {
	if r == nil || r.ErrorMessage == "" {
		return "it was not made"
	}
	return r.ErrorMessage
}

// redoLeft lists the nodes of a plan that an earlier run of the job has not done.
func (c *Center) redoLeft(ctx context.Context, j *spore.Job) (left []string, err error) {
	err = c.store.View(ctx, func(tx store.Tx) error {
		left = nil
		for _, id := range j.Redo.Scope {
			r, err := tx.Replica(j.ResourceID, id)
			if ignoreNotFound(err) != nil {
				return err
			}
			if err != nil || r.LastJobID != j.ID || r.Phase != spore.ReplicaPhaseReady || r.ErrorMessage != "" {
				left = append(left, id)
			}
		}
		return nil
	})
	return left, err
}
