package center

import (
	"context"
	"errors"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// provideArtifact sees to it that a node has the artifact of an image, and answers it. However many jobs want an artifact
// that is not there yet, one builds it and the others wait for that one.
func (c *Center) provideArtifact(ctx context.Context, j *spore.Job, n Node, spec spore.ArtifactSpec, progress func(spore.JobPhase, spore.PullProgress)) (*spore.Artifact, error) {
	plan, err := n.ResolveArtifact(ctx, spec)
	if err != nil {
		return nil, err
	}
	for {
		changed := c.store.Changes()
		claim, err := c.claimArtifact(ctx, j, plan)
		if err != nil {
			return nil, err
		}
		switch claim {
		case claimNoted:
			c.opt.Hook("artifact:noted")
			continue
		case claimMine, claimReady:
			return c.buildArtifact(ctx, j, n, spec, plan.ID, claim == claimMine, progress)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// claim is what became of the wish to build an artifact.
type claim int

const (
	claimMine   claim = iota // this job builds it
	claimReady               // it was built before; the node may still lack it
	claimTheirs              // another job is building it
	claimNoted               // nobody had asked for it before; now the rows say that it is wanted
)

func (c *Center) claimArtifact(ctx context.Context, j *spore.Job, plan *spore.Artifact) (got claim, err error) {
	err = c.update(ctx, func(tx store.Tx) error {
		now := c.opt.Now()
		job, err := tx.Job(j.ID)
		if err != nil {
			return err
		}
		if !job.Status.Active() {
			return errJobEnded
		}
		noted := job.ArtifactID == plan.ID
		if !noted {
			job.ArtifactID = plan.ID
			if err := tx.UpdateJob(job); err != nil {
				return err
			}
		}
		a, err := tx.Artifact(plan.ID)
		if isNotFound(err) {
			fresh := *plan
			fresh.Status, fresh.CreatedAt, fresh.UpdatedAt = spore.ArtifactPending, now, now
			got = claimNoted
			return tx.PutArtifact(&fresh)
		}
		if err != nil {
			return err
		}
		switch a.Status {
		case spore.ArtifactReady:
			got = claimReady
			return nil
		case spore.ArtifactBuilding:
			if a.BuildJobID == j.ID {
				got = claimMine
				return nil
			}
			builder, err := tx.Job(a.BuildJobID)
			if err == nil && builder.Status.Active() {
				if got = claimTheirs; noted {
					return errUnchanged
				}
				return nil
			}
			if ignoreNotFound(err) != nil {
				return err
			}
			a.Status = spore.ArtifactOrphaned // its builder died
			if err := tx.PutArtifact(a); err != nil {
				return err
			}
		}
		a.Status, a.BuildJobID, a.LastError, a.UnusedAt, a.UpdatedAt = spore.ArtifactBuilding, j.ID, "", time.Time{}, now
		got = claimMine
		return tx.PutArtifact(a)
	})
	if errors.Is(err, errUnchanged) {
		err = nil
	}
	return got, err
}

var errJobEnded = spore.Errorf(spore.CodeCanceled, "the job was ended")

func (c *Center) buildArtifact(ctx context.Context, j *spore.Job, n Node, spec spore.ArtifactSpec, id string, mine bool, progress func(spore.JobPhase, spore.PullProgress)) (*spore.Artifact, error) {
	// The placement comes first: should the node be lost in the middle, it is known that bytes may lie there.
	err := c.update(ctx, func(tx store.Tx) error {
		return tx.PutPlacement(spore.Placement{ArtifactID: id, NodeID: n.ID(), CreatedAt: c.opt.Now()})
	})
	if err != nil {
		return nil, err
	}
	c.opt.Hook("artifact:claimed")
	built, err := n.BuildArtifact(ctx, spec, progress)
	if err == nil && built.ID != id {
		err = spore.Errorf(spore.CodeBusy, "the image changed while it was being pulled").WithHint("the job tries again")
	}
	if err != nil {
		if mine {
			c.insist(ctx, "record that "+id+" was not built", func(ctx context.Context) error { return c.artifactFailed(ctx, id, j.ID, err) })
		}
		return nil, err
	}
	c.opt.Hook("artifact:built")
	err = c.update(ctx, func(tx store.Tx) error {
		now := c.opt.Now()
		a, err := tx.Artifact(id)
		if err != nil {
			return err
		}
		if a.Digest != "" && built.Digest != "" && a.Digest != built.Digest {
			return spore.Errorf(spore.CodeDamaged, "node %s built other bytes for %s than were built before", n.ID(), id).
				WithHint("spore artifact verify %s --full", id)
		}
		mine := a.Status == spore.ArtifactBuilding && a.BuildJobID == j.ID
		if a.Status != spore.ArtifactReady && !mine {
			return spore.Errorf(spore.CodeBusy, "artifact %s is %s", id, a.Status)
		}
		a.Status, a.Image, a.Process, a.EgressCA = spore.ArtifactReady, built.Image, built.Process, built.EgressCA
		a.Digest, a.SizeBytes, a.LastError, a.UpdatedAt = built.Digest, built.SizeBytes, "", now
		if err := tx.PutArtifact(a); err != nil {
			return err
		}
		return tx.PutPlacement(spore.Placement{ArtifactID: id, NodeID: n.ID(), CreatedAt: now, VerifiedAt: now})
	})
	return built, err
}

func (c *Center) artifactFailed(ctx context.Context, id, jobID string, cause error) error {
	return c.update(ctx, func(tx store.Tx) error {
		a, err := tx.Artifact(id)
		if err != nil || a.Status != spore.ArtifactBuilding || a.BuildJobID != jobID {
			return ignoreNotFound(err)
		}
		a.Status, a.LastError, a.UpdatedAt = spore.ArtifactFailed, spore.AsError(cause).Message, c.opt.Now()
		return tx.PutArtifact(a)
	})
}

// Artifact answers an artifact and where it lies.
func (c *Center) Artifact(ctx context.Context, id string) (d *ArtifactDetails, err error) {
	err = c.store.View(ctx, func(tx store.Tx) error {
		d = &ArtifactDetails{}
		if d.Artifact, err = tx.Artifact(id); err != nil {
			return err
		}
		if d.Placements, err = tx.Placements(id, ""); err != nil {
			return err
		}
		d.Users, err = tx.ArtifactUsers(id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Artifacts lists artifacts, newest first.
func (c *Center) Artifacts(ctx context.Context, q ArtifactQuery) (list []*spore.Artifact, next string, err error) {
	err = c.store.View(ctx, func(tx store.Tx) error {
		var page store.Page
		list, page, err = tx.Artifacts(store.ArtifactFilter{Paging: store.Paging{Limit: q.Limit, After: q.PageToken}, Statuses: q.Statuses})
		next = page.Next
		return err
	})
	return list, next, err
}

// OpenArtifact opens the bytes of an artifact at the first node that has them whole. A READY one that none has any more
// is made FAILED, so that the next build makes it anew.
func (c *Center) OpenArtifact(ctx context.Context, id string) (ArtifactFile, error) {
	d, err := c.Artifact(ctx, id)
	if err != nil {
		return nil, err
	}
	if d.Artifact.Status != spore.ArtifactReady {
		return nil, spore.Errorf(spore.CodeConflict, "artifact %s is %s", id, d.Artifact.Status).WithHint("spore artifact info %s", id)
	}
	var unreachable error
	for _, p := range d.Placements {
		f, err := c.openAt(ctx, p.NodeID, id)
		if err == nil {
			return f, nil
		}
		if code := spore.CodeOf(err); code != spore.CodeNotFound && code != spore.CodeDamaged {
			unreachable = err
		}
	}
	if unreachable != nil {
		return nil, unreachable
	}
	if _, err := c.VerifyArtifact(ctx, id, false); err != nil {
		return nil, err
	}
	return nil, spore.Errorf(spore.CodeNotFound, "the bytes of artifact %s are gone", id).
		WithHint("build its template again: spore template redo")
}

func (c *Center) openAt(ctx context.Context, nodeID, id string) (ArtifactFile, error) {
	n, err := c.on(nodeID)
	if err != nil {
		return nil, err
	}
	if err := n.VerifyArtifact(ctx, id, false); err != nil {
		return nil, err
	}
	return n.OpenArtifact(ctx, id)
}

// VerifyArtifact has every node that was given an artifact look for it, and writes down what was found. READY becomes
// FAILED only when every node was asked and none has it; FAILED becomes READY when one has.
func (c *Center) VerifyArtifact(ctx context.Context, id string, full bool) (*ArtifactVerdict, error) {
	d, err := c.Artifact(ctx, id)
	if err != nil {
		return nil, err
	}
	v := &ArtifactVerdict{ArtifactID: id, Full: full}
	whole, asked := 0, 0
	for _, p := range d.Placements {
		n, err := c.on(p.NodeID)
		if err == nil {
			err = n.VerifyArtifact(ctx, id, full)
		}
		if err == nil {
			whole++
			p.VerifiedAt = c.opt.Now()
			err = c.update(ctx, func(tx store.Tx) error { return tx.PutPlacement(p) })
			if err != nil {
				return nil, err
			}
		}
		if code := spore.CodeOf(err); code == "" || code == spore.CodeNotFound || code == spore.CodeDamaged {
			asked++
		}
		verdict := NodeVerdict{NodeID: p.NodeID}
		if err != nil {
			verdict.Err = spore.AsError(err)
		}
		v.Nodes = append(v.Nodes, verdict)
	}
	err = c.update(ctx, func(tx store.Tx) error {
		a, err := tx.Artifact(id)
		if err != nil {
			return err
		}
		switch {
		case a.Status == spore.ArtifactReady && whole == 0 && asked == len(d.Placements):
			a.Status, a.LastError = spore.ArtifactFailed, "no node has its bytes any more"
		case a.Status == spore.ArtifactFailed && whole > 0 && a.Digest != "":
			a.Status, a.LastError = spore.ArtifactReady, ""
		}
		a.UpdatedAt = c.opt.Now()
		v.Status = a.Status
		return tx.PutArtifact(a)
	})
	if err != nil {
		return nil, err
	}
	return v, nil
}
