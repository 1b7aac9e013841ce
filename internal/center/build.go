package center

import (
	"context"
	"encoding/json"
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

// runBuild makes a template from an image: artifact, boot, probe, freeze. Each step answers what is there already, so
// that a run after a crash goes on where the last one stopped.
func (c *Center) runBuild(ctx context.Context, j *spore.Job) error {
	var req BuildRequest
	if err := json.Unmarshal(j.Request, &req); err != nil {
		return err
	}
	t, err := c.templateByID(ctx, j.ResourceID)
	if err != nil {
		return err
	}
	if t.KernelID, err = c.node.ResolveKernel(ctx, req.KernelID); err != nil {
		return err
	}
	c.note(ctx, j.ID, "info", "pulling %s", req.Image)
	art, err := c.node.BuildArtifact(ctx, spore.ArtifactSpec{Reference: req.Image, Insecure: req.Insecure, EgressCA: req.EgressCA}, c.pullReporter(ctx, j.ID))
	if err != nil {
		return err
	}
	if art.Reused {
		c.note(ctx, j.ID, "info", "image %s is known: artifact %s serves as it is", art.Image.Digest, art.ID)
	} else {
		c.note(ctx, j.ID, "info", "artifact %s is built from %s", art.ID, art.Image.Digest)
	}
	c.opt.Hook("build:artifact")
	if err := c.progress(ctx, j.ID, spore.PhaseCreatingTemplate, percentCreating, nil); err != nil {
		return err
	}
	t.Image, t.ArtifactID, t.EgressCA, t.Process = art.Image, art.ID, art.EgressCA, merge(art.Process, req.Process)
	frozen, err := c.node.Bake(ctx, t, func(line string) { c.note(ctx, j.ID, "info", "%s", line) })
	if err != nil {
		return err
	}
	c.opt.Hook("build:frozen")
	return c.register(ctx, j.ID, t, frozen)
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
	frozen, err := c.node.Frozen(ctx, t.ID)
	if isNotFound(err) {
		frozen, err = c.captureForCommit(ctx, j, t)
	}
	if err != nil {
		return err
	}
	c.opt.Hook("commit:frozen")
	if err := c.progress(ctx, j.ID, spore.PhaseRegistering, percentSnapshot, nil); err != nil {
		return err
	}
	c.note(ctx, j.ID, "info", "merging %d memory layers into one base", frozen.ChainDepth)
	if frozen, err = c.node.Flatten(ctx, t.ID, true); err != nil {
		return err
	}
	c.opt.Hook("commit:flattened")
	return c.register(ctx, j.ID, t, frozen)
}

func (c *Center) captureForCommit(ctx context.Context, j *spore.Job, t *spore.Template) (*spore.Frozen, error) {
	unlock, err := c.sandboxes.lock(ctx, j.SandboxID)
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
	if err := c.progress(ctx, j.ID, spore.PhaseSnapshotting, 10, nil); err != nil {
		return nil, err
	}
	frozen, err := c.node.Freeze(ctx, s, t.ID, t.ParentID)
	if err != nil {
		return nil, err
	}
	c.note(ctx, j.ID, "info", "captured; the guest stood still for %s", frozen.Paused.Round(100*time.Microsecond))
	return frozen, nil
}

// register writes the end of a build or commit: the template serves, its replica is there, the job is done.
func (c *Center) register(ctx context.Context, jobID string, t *spore.Template, f *spore.Frozen) error {
	return c.store.Update(ctx, func(tx store.Tx) error {
		j, err := tx.Job(jobID)
		if err != nil {
			return err
		}
		now, err := tx.Template(t.ID)
		if err != nil {
			return err
		}
		now.Image, now.ArtifactID, now.EgressCA, now.Process = t.Image, t.ArtifactID, t.EgressCA, t.Process
		now.KernelID = f.KernelID
		now.Status, now.LastError = spore.TemplateReady, ""
		now.MemoryBytes, now.DiskBytes, now.UpdatedAt = f.MemoryBytes, f.DiskBytes, c.opt.Now()
		if err := tx.UpdateTemplate(now); err != nil {
			return err
		}
		if err := tx.PutReplica(c.replica(now, j.ID, f)); err != nil {
			return err
		}
		if j.Result, err = json.Marshal(map[string]any{
			"templateId": now.ID, "memoryBytes": f.MemoryBytes, "diskBytes": f.DiskBytes, "pausedMicros": f.Paused.Microseconds(),
		}); err != nil {
			return err
		}
		c.finish(j, nil)
		if err := tx.UpdateJob(j); err != nil {
			return err
		}
		return tx.AppendJobLog(j.ID, spore.LogLine{Time: c.opt.Now(), Level: "info", Message: string(now.Kind) + " " + now.Label() + " is ready"})
	})
}

func (c *Center) replica(t *spore.Template, jobID string, f *spore.Frozen) *spore.Replica {
	return &spore.Replica{
		TemplateID: t.ID, NodeID: c.node.ID(), Status: spore.ReplicaReady, Phase: "READY", ArtifactID: t.ArtifactID, LastJobID: jobID,
		GuestImageVersion: f.KernelID, AgentVersion: f.AgentVersion, KernelVersion: f.KernelVersion,
		Engine: f.Engine, StateFormat: f.StateFormat, UpdatedAt: c.opt.Now(),
	}
}

// runFlatten merges the layers of a chain that has grown long. It is upkeep: what it works on may be gone by now.
func (c *Center) runFlatten(ctx context.Context, j *spore.Job) error {
	f, err := c.node.Flatten(ctx, j.ResourceID, false)
	if err != nil && !isNotFound(err) {
		return err
	}
	return c.store.Update(ctx, func(tx store.Tx) error {
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
