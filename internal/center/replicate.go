package center

import (
	"context"
	"encoding/json"
	"errors"
	"sync"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// makeHow says what a job may take for granted when it makes a replica.
type makeHow int

const (
	makeMissing makeHow = iota // what is there already serves
	makeAgain                  // fresh, whatever is there
)

// replicasAtATime bounds how many nodes one job works on at once.
const replicasAtATime = 4

// makeReplicas makes replicas on nodes, a few at a time, and counts them in the job. It fails only when it was ended.
func (c *Center) makeReplicas(ctx context.Context, j *spore.Job, id string, nodes []string, how makeHow) error {
	var all sync.WaitGroup
	turns := make(chan struct{}, replicasAtATime)
	for _, nodeID := range nodes {
		turns <- struct{}{}
		all.Go(func() {
			defer func() { <-turns }()
			err := c.makeReplica(ctx, j, id, nodeID, how)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				c.note(ctx, j.ID, "error", "node %s: %s", nodeID, spore.AsError(err).Error())
			} else {
				c.note(ctx, j.ID, "info", "node %s is ready", nodeID)
			}
			c.count(ctx, j.ID, err)
		})
	}
	all.Wait()
	return ctx.Err()
}

func (c *Center) count(ctx context.Context, jobID string, failure error) {
	err := c.update(context.WithoutCancel(ctx), func(tx store.Tx) error {
		j, err := tx.Job(jobID)
		if err != nil || !j.Status.Active() {
			return err
		}
		if failure != nil {
			j.Nodes.Failed++
		} else {
			j.Nodes.Ready++
		}
		if done := j.Nodes.Ready + j.Nodes.Failed; j.Nodes.Expected > 0 {
			j.Progress = max(j.Progress, min(99, 100*done/j.Nodes.Expected))
		}
		return tx.UpdateJob(j)
	})
	if err != nil {
		c.log.Error("counting replicas", "job", jobID, "err", err)
	}
}

// makeReplica brings a template onto a node: beside what may serve there already, proven by thawing it once, and only then
// in its place. On failure what served goes on serving.
func (c *Center) makeReplica(ctx context.Context, j *spore.Job, id, nodeID string, how makeHow) error {
	n, err := c.on(nodeID)
	if err != nil {
		return errors.Join(c.replicaFailed(ctx, j, id, nodeID, spore.ReplicaDistributing, err), err)
	}
	phase := spore.ReplicaDistributing
	made, f, err := c.bringTo(ctx, j, n, id, how, func(p spore.ReplicaPhase) error {
		phase = p
		return c.replicaAt(ctx, j, id, nodeID, p)
	})
	if err == nil {
		err = c.replicaReady(ctx, j, made, nodeID, f)
	}
	if err != nil && ctx.Err() == nil { // else the job goes on from the draft with the next server, or was cancelled and leaves a stray
		c.forget(ctx, nodeID, draftID(id, j.ID))
		err = errors.Join(c.replicaFailed(ctx, j, id, nodeID, phase, err), err)
	}
	return err
}

// bringTo does the node's part of makeReplica. It answers the template with what was learned of it on the way.
func (c *Center) bringTo(ctx context.Context, j *spore.Job, n Node, id string, how makeHow, at func(spore.ReplicaPhase) error) (t *spore.Template, f *spore.Frozen, err error) {
	if err := at(spore.ReplicaDistributing); err != nil {
		return nil, nil, err
	}
	if t, err = c.templateByID(ctx, id); err != nil {
		return nil, nil, err
	}
	draft := draftID(id, j.ID)
	lost, err := c.wasLost(ctx, id, n.ID())
	if err != nil {
		return nil, nil, err
	}
	if how == makeMissing && n.VerifyFrozen(ctx, id, lost) == nil {
		if f, err = n.Frozen(ctx, id); err != nil { // it was there all along
			return nil, nil, err
		}
		return t, f, at(spore.ReplicaSnapshotting)
	}
	peers, err := c.peers(ctx, id, n.ID())
	if err != nil {
		return nil, nil, err
	}
	distributed := func() error {
		if err := at(spore.ReplicaDistributed); err != nil {
			return err
		}
		c.opt.Hook("replica:distributed")
		return at(spore.ReplicaSnapshotting)
	}
	if err := c.materialise(ctx, j, n, t, draft, peers, how, distributed); err != nil {
		return nil, nil, err
	}
	c.opt.Hook("replica:drafted")
	if err := n.Probe(ctx, t, draft); err != nil {
		return nil, nil, spore.Errorf(spore.CodeOf(err), "what was made does not start: %s", spore.AsError(err).Error()).WithCause(err)
	}
	c.opt.Hook("replica:proven")
	if err := at(spore.ReplicaSnapshotting); err != nil { // it may have been deleted meanwhile
		return nil, nil, err
	}
	f, err = n.Promote(ctx, draft, id)
	return t, f, err
}

// wasLost says whether a replica served until its bytes were found lost or damaged: then a cheap look at them proves nothing.
func (c *Center) wasLost(ctx context.Context, id, nodeID string) (lost bool, err error) {
	err = c.store.View(ctx, func(tx store.Tx) error {
		r, err := tx.Replica(id, nodeID)
		lost = err == nil && r.LastErrorPhase == spore.ReplicaPhaseReady
		return ignoreNotFound(err)
	})
	return lost, err
}

// materialise makes the frozen state of t on a node under the id as, by the first way that is open: from its own disk there,
// from a peer that has it, or from its image. What a build learns is written into t. distributed is called when the node has
// what the template stands on.
func (c *Center) materialise(ctx context.Context, j *spore.Job, n Node, t *spore.Template, as string, peers []string, how makeHow, distributed func() error) error {
	note := func(line string) { c.note(ctx, j.ID, "info", "%s: %s", n.ID(), line) }
	req, fromImage, err := c.buildRequest(ctx, t)
	if err != nil {
		return err
	}
	if _, err := n.Frozen(ctx, as); err == nil && !fromImage {
		return distributed() // a run of this job that was cut off had come so far
	}
	if how == makeAgain && !fromImage {
		if err := distributed(); err != nil {
			return err
		}
		_, err := c.rebake(ctx, n, t, as, note)
		if code := spore.CodeOf(err); code != spore.CodeNotFound && code != spore.CodeDamaged {
			return err
		}
		note("its own bytes are of no use: " + spore.AsError(err).Error())
	}
	if len(peers) > 0 && (how == makeMissing || !fromImage) {
		if err := c.expectArtifact(ctx, t.ArtifactID, n.ID()); err != nil {
			return err
		}
		_, err := n.Fetch(ctx, t, as, peers, note)
		if err == nil {
			return distributed()
		}
		if !fromImage || ctx.Err() != nil {
			return err
		}
		note("not fetched: " + spore.AsError(err).Error())
	}
	if _, err := n.Frozen(ctx, t.ID); err == nil && how == makeMissing && !fromImage {
		return spore.Errorf(spore.CodeDamaged, "the memory of %s is damaged, and no other node has it", t.Label()).
			WithHint("if its disk is whole, it can have fresh memory: spore template redo %s", t.Label())
	}
	if !fromImage {
		return spore.Errorf(spore.CodeNotFound, "no node has the bytes of %s any more", t.Label()).
			WithHint("it was taken from a sandbox and cannot be made from an image; remove it: spore %s rm %s", t.Kind, t.Label()).
			Because(spore.ReasonNoReadyReplica)
	}
	_, err = c.bake(ctx, j, n, t, req, as, distributed)
	return err
}

// rebake makes fresh memory for the disk of t: with the guest image that t was made with or, when the node does not have that any
// more, with its newest.
func (c *Center) rebake(ctx context.Context, n Node, t *spore.Template, as string, note func(string)) (*spore.Frozen, error) {
	fresh := *t
	kernel, err := n.ResolveKernel(ctx, t.KernelID)
	if isNotFound(err) {
		if kernel, err = n.ResolveKernel(ctx, ""); err == nil {
			note("guest image " + t.KernelID + " is not there any more: " + kernel + " takes its place")
		}
	}
	if err != nil {
		return nil, err
	}
	fresh.KernelID = kernel
	return n.Rebake(ctx, &fresh, as, note)
}

// expectArtifact notes that an artifact comes to a node along with a frozen state.
func (c *Center) expectArtifact(ctx context.Context, id, nodeID string) error {
	return c.update(ctx, func(tx store.Tx) error {
		if _, err := tx.Artifact(id); err != nil {
			return ignoreNotFound(err)
		}
		there, err := tx.Placements(id, nodeID)
		if err != nil || len(there) > 0 {
			return err
		}
		return tx.PutPlacement(spore.Placement{ArtifactID: id, NodeID: nodeID, CreatedAt: c.opt.Now()})
	})
}

// buildRequest answers what a template was built from, and whether it was built from an image at all.
func (c *Center) buildRequest(ctx context.Context, t *spore.Template) (req BuildRequest, ok bool, err error) {
	if t.Kind != spore.KindTemplate || t.OriginSandbox != "" {
		return req, false, nil
	}
	j, err := c.Job(ctx, t.JobID)
	if err != nil || j.Operation != spore.OpCreate {
		return req, false, ignoreNotFound(err)
	}
	if err := json.Unmarshal(j.Request, &req); err != nil {
		return req, false, err
	}
	return req, true, nil
}

// peers lists the nodes that have a whole replica, other than one.
func (c *Center) peers(ctx context.Context, id, but string) (list []string, err error) {
	err = c.store.View(ctx, func(tx store.Tx) error {
		list = nil
		replicas, err := tx.Replicas(id)
		for _, r := range replicas {
			n := c.fleet.facts(r.NodeID)
			if r.Status == spore.ReplicaReady && r.NodeID != but && n != nil && n.State == spore.NodeReady {
				list = append(list, r.NodeID)
			}
		}
		return err
	})
	return list, err
}

// replicaAt writes how far the making of a replica has come. It refuses when the template is not to be there any more.
func (c *Center) replicaAt(ctx context.Context, j *spore.Job, id, nodeID string, phase spore.ReplicaPhase) error {
	return c.update(ctx, func(tx store.Tx) error {
		now, err := tx.Job(j.ID)
		if err != nil {
			return err
		}
		t, err := tx.Template(id)
		if err != nil {
			return err
		}
		if !now.Status.Active() || t.Status == spore.TemplateDeleting || t.Status == spore.TemplateDeleted {
			return errJobEnded
		}
		r, err := tx.Replica(id, nodeID)
		if isNotFound(err) {
			r = &spore.Replica{TemplateID: id, NodeID: nodeID, Status: spore.ReplicaFailed, Phase: spore.ReplicaPending, CompatPolicy: t.Policy, CompatStatus: spore.CompatUnknown}
		} else if err != nil {
			return err
		}
		if r.Phase == spore.ReplicaCleaning {
			return errJobEnded
		}
		if r.Phase == phase && r.LastJobID == j.ID {
			return nil
		}
		if !spore.ReplicaTransitions.Allows(r.Phase, phase) { // a run that was cut off had come further
			r.Phase = spore.ReplicaPending
			if err := tx.PutReplica(r); err != nil {
				return err
			}
		}
		r.Phase, r.LastJobID, r.ArtifactID, r.CleanupRequired, r.UpdatedAt = phase, j.ID, t.ArtifactID, true, c.opt.Now()
		return tx.PutReplica(r)
	})
}

// replicaReady writes that a replica serves, and what was learned of its template by making it.
func (c *Center) replicaReady(ctx context.Context, j *spore.Job, made *spore.Template, nodeID string, f *spore.Frozen) error {
	id, gone := made.ID, false
	err := c.update(ctx, func(tx store.Tx) error {
		t, err := tx.Template(id)
		if err != nil {
			return err
		}
		r, err := tx.Replica(id, nodeID)
		if ignoreNotFound(err) != nil {
			return err
		}
		gone = t.Status == spore.TemplateDeleting || t.Status == spore.TemplateDeleted || err != nil || r.Phase == spore.ReplicaCleaning
		if gone {
			return nil
		}
		t.Image, t.ArtifactID, t.EgressCA, t.Process = made.Image, made.ArtifactID, made.EgressCA, made.Process
		t.RootfsSizeBytes, t.KernelID, t.Engine = made.RootfsSizeBytes, f.KernelID, f.Engine
		if t.OriginNode == "" { // the build that should have made it first did not come so far
			t.OriginNode, t.MemoryBytes, t.DiskBytes = nodeID, f.MemoryBytes, f.DiskBytes
		}
		t.UpdatedAt = c.opt.Now()
		if err := tx.UpdateTemplate(t); err != nil {
			return err
		}
		if err := tx.PutReplica(c.readyReplica(t, nodeID, j.ID, f)); err != nil {
			return err
		}
		return c.resummarise(tx, id)
	})
	if err == nil && gone { // it was deleted while the node was giving it its name
		c.forget(ctx, nodeID, id)
		return errJobEnded
	}
	return err
}

// replicaFailed writes why a replica could not be made. One that served before goes on serving.
func (c *Center) replicaFailed(ctx context.Context, j *spore.Job, id, nodeID string, at spore.ReplicaPhase, cause error) error {
	return c.update(context.WithoutCancel(ctx), func(tx store.Tx) error {
		r, err := tx.Replica(id, nodeID)
		if err != nil || r.Phase == spore.ReplicaCleaning || r.LastJobID != j.ID {
			return ignoreNotFound(err)
		}
		r.LastErrorPhase, r.ErrorMessage = at, spore.AsError(cause).Error()
		if r.Status == spore.ReplicaReady {
			r.Phase = spore.ReplicaPhaseReady
		} else {
			r.Phase, r.Attempts = spore.ReplicaPhaseFailed, r.Attempts+1
			r.RetryAt = c.opt.Now().Add(retryDelay(r.Attempts))
		}
		r.UpdatedAt = c.opt.Now()
		if err := tx.PutReplica(r); err != nil {
			return err
		}
		return c.resummarise(tx, id)
	})
}

// runReplicate makes one replica that the loop found missing.
func (c *Center) runReplicate(ctx context.Context, j *spore.Job) error {
	if err := c.makeReplica(ctx, j, j.ResourceID, j.NodeID, makeMissing); err != nil {
		return err
	}
	return c.update(ctx, func(tx store.Tx) error {
		now, err := tx.Job(j.ID)
		if err != nil || !now.Status.Active() {
			return err
		}
		now.Nodes.Ready = 1
		c.finish(now, nil)
		return tx.UpdateJob(now)
	})
}
