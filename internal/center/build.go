package center

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// Percentages at which the phases of a build begin.
const (
	percentPulling    = 5
	percentUnpacking  = 20
	percentExt4       = 50
	percentCreating   = 70
	percentSnapshot   = 85
	percentRegister   = 95
	progressInterval  = 250 * time.Millisecond
	flattenAboveDepth = 6 // memory layers; a thaw reads them all
)

// runBuild makes a template from an image: artifact, boot, probe, freeze; on one node first, then on the others that it
// wants to be on. Each step answers what is there already, so that a run after a crash goes on where the last one stopped.
func (c *Center) runBuild(ctx context.Context, j *spore.Job) error {
	var req BuildRequest
	if err := json.Unmarshal(j.Request, &req); err != nil {
		return err
	}
	t, err := c.templateByID(ctx, j.ResourceID)
	if err != nil {
		return err
	}
	n, err := c.buildNode(ctx, j, t)
	if err != nil {
		return err
	}
	frozen, err := c.bake(ctx, j, n, t, req, t.ID, func() error { return nil })
	if err != nil {
		return err
	}
	c.opt.Hook("build:frozen")
	if err := c.register(ctx, j.ID, t, n.ID(), frozen); err != nil {
		return err
	}
	return c.distribute(ctx, j, t.ID)
}

// buildNode answers where a job makes the first replica: where it began to, or else the node with the most room.
func (c *Center) buildNode(ctx context.Context, j *spore.Job, t *spore.Template) (Node, error) {
	if j.NodeID != "" {
		if f := c.fleet.facts(j.NodeID); f != nil && f.State == spore.NodeReady {
			return c.on(j.NodeID)
		}
	}
	nodes := c.matching(t.Replicas)
	slices.SortFunc(nodes, func(a, b *spore.Node) int {
		return cmp.Or(cmp.Compare(c.fleet.free(b), c.fleet.free(a)), cmp.Compare(a.ID, b.ID))
	})
	refusal := error(errNoNodes("no node that is ready may hold %s", t.Label()))
	for _, f := range nodes {
		n, err := c.on(f.ID)
		if err == nil {
			err = n.Admit(t.Resources)
		}
		if err != nil {
			refusal = err
			continue
		}
		return n, c.update(ctx, func(tx store.Tx) error {
			now, err := tx.Job(j.ID)
			if err != nil {
				return err
			}
			now.NodeID, j.NodeID = f.ID, f.ID
			return tx.UpdateJob(now)
		})
	}
	return nil, refusal
}

// bake builds an image's artifact on a node and freezes a template of it there under the id as. It fills t with what it learns, and
// calls built when the artifact is there.
func (c *Center) bake(ctx context.Context, j *spore.Job, n Node, t *spore.Template, req BuildRequest, as string, built func() error) (_ *spore.Frozen, err error) {
	if t.KernelID, err = n.ResolveKernel(ctx, req.KernelID); err != nil {
		return nil, err
	}
	c.note(ctx, j.ID, "info", "pulling %s on %s", req.Image, n.ID())
	art, err := c.provideArtifact(ctx, j, n, req.artifact(), c.pullReporter(ctx, j.ID))
	if err != nil {
		return nil, err
	}
	if art.Reused {
		c.note(ctx, j.ID, "info", "image %s is known: artifact %s serves as it is", art.Image.Digest, art.ID)
	} else {
		c.note(ctx, j.ID, "info", "artifact %s is built from %s", art.ID, art.Image.Digest)
	}
	c.opt.Hook("build:artifact")
	if err := built(); err != nil {
		return nil, err
	}
	if err := c.progress(ctx, j.ID, spore.PhaseGeneratingJSON, percentCreating, nil); err != nil {
		return nil, err
	}
	t.Image, t.ArtifactID, t.EgressCA, t.Process = art.Image, art.ID, art.EgressCA, merge(art.Process, req.Process)
	t.RootfsSizeBytes = art.SizeBytes + int64(t.Resources.DiskMiB)<<20
	if err := c.progress(ctx, j.ID, spore.PhaseCreatingTemplate, percentCreating, nil); err != nil {
		return nil, err
	}
	return n.Bake(ctx, t, as, func(line string) { c.note(ctx, j.ID, "info", "%s", line) })
}

// artifact is the part of a build request that decides about the artifact's bytes.
func (r BuildRequest) artifact() spore.ArtifactSpec {
	return spore.ArtifactSpec{Reference: r.Image, Insecure: r.Insecure, EgressCA: r.EgressCA}
}

// pullReporter writes pull progress into the job's row, not more often than people can see it.
func (c *Center) pullReporter(ctx context.Context, jobID string) func(spore.JobPhase, spore.PullProgress) {
	var lastTime time.Time
	var lastPhase spore.JobPhase
	var start = c.opt.Now()
	return func(phase spore.JobPhase, p spore.PullProgress) {
		now := c.opt.Now()
		if phase == lastPhase && now.Sub(lastTime) < progressInterval {
			return
		}
		if lastPhase == "" {
			start = now
		}
		lastTime, lastPhase = now, phase
		if spent := now.Sub(start).Seconds(); spent > 0 && p.BytesPerSecond == 0 {
			p.BytesPerSecond = int64(float64(p.BytesDone) / spent)
		}
		from, to := percentPulling, percentUnpacking
		switch phase {
		case spore.PhaseUnpacking:
			from, to = percentUnpacking, percentExt4
		case spore.PhaseBuildingExt4:
			from, to = percentExt4, percentCreating
		}
		percent := from
		if p.BytesTotal > 0 {
			percent += int(int64(to-from) * min(p.BytesDone, p.BytesTotal) / p.BytesTotal)
		}
		if err := c.progress(ctx, jobID, phase, percent, &p); err != nil && ctx.Err() == nil && !canceled(err) {
			c.log.Error("job progress", "job", jobID, "err", err)
		}
	}
}

// runCommit makes a template out of a running sandbox.
func (c *Center) runCommit(ctx context.Context, j *spore.Job) error {
	t, err := c.templateByID(ctx, j.ResourceID)
	if err != nil {
		return err
	}
	n, err := c.on(j.NodeID)
	if err != nil {
		return err
	}
	frozen, err := n.Frozen(ctx, t.ID)
	if isNotFound(err) {
		frozen, err = c.captureForCommit(ctx, j, n, t)
	}
	if err != nil {
		return err
	}
	c.opt.Hook("commit:frozen")
	if err := c.progress(ctx, j.ID, spore.PhaseRegistering, percentSnapshot, nil); err != nil {
		return err
	}
	c.note(ctx, j.ID, "info", "merging %d memory layers into one base", frozen.ChainDepth)
	if frozen, err = n.Flatten(ctx, t.ID, true); err != nil {
		return err
	}
	c.opt.Hook("commit:flattened")
	if err := c.register(ctx, j.ID, t, n.ID(), frozen); err != nil {
		return err
	}
	return c.distribute(ctx, j, t.ID)
}

func (c *Center) captureForCommit(ctx context.Context, j *spore.Job, n Node, t *spore.Template) (*spore.Frozen, error) {
	unlock, err := c.lock(ctx, j.SandboxID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	s, err := c.Sandbox(ctx, j.SandboxID)
	if err != nil {
		return nil, err
	}
	if err := mustRun(s, "committed"); err != nil {
		return nil, err
	}
	if s.NodeID != n.ID() {
		return nil, spore.Errorf(spore.CodeConflict, "sandbox %s has moved to another node since", s.ID).WithHint("commit it again")
	}
	if err := c.progress(ctx, j.ID, spore.PhaseSnapshotting, 10, nil); err != nil {
		return nil, err
	}
	frozen, err := n.Freeze(ctx, s, t.ID, t.ParentID)
	if err != nil {
		return nil, err
	}
	c.note(ctx, j.ID, "info", "captured; the guest stood still for %s", frozen.Paused.Round(100*time.Microsecond))
	return frozen, nil
}

// register writes that a build or commit has made its first replica.
func (c *Center) register(ctx context.Context, jobID string, t *spore.Template, nodeID string, f *spore.Frozen) error {
	return c.update(ctx, func(tx store.Tx) error {
		j, err := tx.Job(jobID)
		if err != nil {
			return err
		}
		if !j.Status.Active() {
			return errJobEnded
		}
		now, err := tx.Template(t.ID)
		if err != nil {
			return err
		}
		now.Image, now.ArtifactID, now.EgressCA, now.Process = t.Image, t.ArtifactID, t.EgressCA, t.Process
		now.KernelID, now.Engine, now.OriginNode = f.KernelID, f.Engine, nodeID
		now.RootfsSizeBytes = max(now.RootfsSizeBytes, t.RootfsSizeBytes)
		now.MemoryBytes, now.DiskBytes, now.UpdatedAt = f.MemoryBytes, f.DiskBytes, c.opt.Now()
		if err := tx.UpdateTemplate(now); err != nil {
			return err
		}
		if err := tx.PutReplica(c.readyReplica(now, nodeID, j.ID, f)); err != nil {
			return err
		}
		if j.Result, err = json.Marshal(map[string]any{
			"templateId": now.ID, "memoryBytes": f.MemoryBytes, "diskBytes": f.DiskBytes, "pausedMicros": f.Paused.Microseconds(),
		}); err != nil {
			return err
		}
		j.Phase, j.Progress, j.Nodes.Ready = spore.PhaseRegistering, max(j.Progress, percentRegister), 1
		return tx.UpdateJob(j)
	})
}

// distribute brings a template whose first replica is there to the other nodes that it wants to be on, then ends the job. A node
// that fails does not fail the job: the template is then PARTIALLY_READY, and the node is tried again by and by.
func (c *Center) distribute(ctx context.Context, j *spore.Job, id string) error {
	more, err := c.missingNodes(ctx, id)
	if err != nil {
		return err
	}
	if len(more) > 0 {
		if err := c.progress(ctx, j.ID, spore.PhaseDistributing, percentRegister, nil); err != nil {
			return err
		}
		if err := c.makeReplicas(ctx, j, id, more, makeMissing); err != nil {
			return err
		}
	}
	return c.update(ctx, func(tx store.Tx) error {
		now, err := tx.Job(j.ID)
		if err != nil {
			return err
		}
		if !now.Status.Active() {
			return errJobEnded
		}
		if err := c.serve(tx, id); err != nil {
			return err
		}
		t, err := tx.Template(id)
		if err != nil {
			return err
		}
		c.finish(now, nil)
		if err := tx.UpdateJob(now); err != nil {
			return err
		}
		return tx.AppendJobLog(j.ID, spore.LogLine{Time: c.opt.Now(), Level: "info", Message: string(t.Kind) + " " + t.Label() + " is " + string(t.Status)})
	})
}

// serve gives a template the status that its replicas amount to, also when it was still being made.
func (c *Center) serve(tx store.Tx, id string) error {
	t, err := tx.Template(id)
	if err != nil {
		return err
	}
	replicas, err := tx.Replicas(id)
	if err != nil {
		return err
	}
	status, lastError := summarise(t, replicas, wanted(t.Replicas))
	if t.Status == status && t.LastError == lastError {
		return nil
	}
	t.Status, t.LastError, t.UpdatedAt = status, lastError, c.opt.Now()
	return tx.UpdateTemplate(t)
}

func (c *Center) readyReplica(t *spore.Template, nodeID, jobID string, f *spore.Frozen) *spore.Replica {
	now := c.opt.Now()
	return &spore.Replica{
		TemplateID: t.ID, NodeID: nodeID, Status: spore.ReplicaReady, Phase: spore.ReplicaPhaseReady, ArtifactID: t.ArtifactID,
		LastJobID: jobID, Bound: f.Components(), CompatStatus: spore.CompatOK, CompatPolicy: t.Policy, CompatCheckedAt: now,
		VerifiedAt: now, UpdatedAt: now,
	}
}

// runFlatten merges the layers of a chain that has grown long. It is upkeep: what it works on may be gone by now.
func (c *Center) runFlatten(ctx context.Context, j *spore.Job) error {
	var f *spore.Frozen
	n, err := c.on(j.NodeID)
	if err == nil {
		f, err = n.Flatten(ctx, j.ResourceID, false)
	}
	if ignoreNotFound(err) != nil {
		return err
	}
	return c.update(ctx, func(tx store.Tx) error {
		now, err := tx.Job(j.ID)
		if err != nil {
			return err
		}
		if t, err := tx.Template(j.ResourceID); err == nil && f != nil && t.Status == spore.TemplateReady {
			t.MemoryBytes, t.DiskBytes = f.MemoryBytes, f.DiskBytes
			if err := tx.UpdateTemplate(t); err != nil {
				return err
			}
		}
		c.finish(now, nil)
		return tx.UpdateJob(now)
	})
}

func (c *Center) templateByID(ctx context.Context, id string) (t *spore.Template, err error) {
	err = c.store.View(ctx, func(tx store.Tx) error { t, err = tx.Template(id); return err })
	return t, err
}
