package center

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// keepUnused is how long an artifact that nothing refers to is kept for the next build of the same image.
const keepUnused = 7 * 24 * time.Hour

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

// sweepArtifacts notes which artifacts nothing refers to and removes those that have been so for long. Those whose removal was
// tried longest ago come first, so that some that cannot be removed keep no other from it.
func (c *Center) sweepArtifacts(ctx context.Context) error {
	if err := c.markArtifacts(ctx); err != nil {
		return err
	}
	due, err := c.unusedArtifacts(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range due {
		if err := c.removeArtifact(ctx, a.ID); err != nil && spore.CodeOf(err) != spore.CodeUnreachable {
			errs = append(errs, fmt.Errorf("remove %s: %w", a.ID, err))
		}
	}
	return errors.Join(errs...)
}

// markArtifacts brings UnusedAt in line with who refers to each, and orphans builds whose job is over.
func (c *Center) markArtifacts(ctx context.Context) error {
	var all []*spore.Artifact
	err := c.store.View(ctx, func(tx store.Tx) (err error) {
		f := store.ArtifactFilter{}
		all, err = allPages(f.Paging, func(p store.Paging) ([]*spore.Artifact, store.Page, error) {
			f.Paging = p
			return tx.Artifacts(f)
		})
		return err
	})
	if err != nil {
		return err
	}
	for _, a := range all {
		if err := c.update(ctx, func(tx store.Tx) error { return c.markArtifact(tx, a.ID) }); err != nil {
			return err
		}
		if a.Status == spore.ArtifactFailed && a.Digest != "" { // its bytes may have come back
			if _, err := c.VerifyArtifact(ctx, a.ID, false); err != nil && !isNotFound(err) {
				return err
			}
		}
	}
	return nil
}

func (c *Center) markArtifact(tx store.Tx, id string) error {
	a, err := tx.Artifact(id)
	if err != nil {
		return ignoreNotFound(err)
	}
	users, err := tx.ArtifactUsers(id)
	if err != nil {
		return err
	}
	before := *a
	if a.Status == spore.ArtifactBuilding {
		j, err := tx.Job(a.BuildJobID)
		if ignoreNotFound(err) != nil {
			return err
		}
		if err != nil || !j.Status.Active() {
			a.Status, a.LastError = spore.ArtifactOrphaned, "its builder ended in the middle"
		}
	}
	switch {
	case users > 0:
		a.UnusedAt = time.Time{}
		if a.Status == spore.ArtifactCleanupPending && a.Digest != "" {
			a.Status = spore.ArtifactReady
		}
	case a.UnusedAt.IsZero() && a.Status != spore.ArtifactBuilding:
		a.UnusedAt = c.opt.Now()
	}
	if a.Status == before.Status && a.UnusedAt.Equal(before.UnusedAt) {
		return nil
	}
	a.UpdatedAt = c.opt.Now()
	return tx.PutArtifact(a)
}

// unusedArtifacts lists those to remove: unused for long, or unused and worth nothing.
func (c *Center) unusedArtifacts(ctx context.Context) (due []*spore.Artifact, err error) {
	const atATime = 100
	now := c.opt.Now()
	worthless := []spore.ArtifactStatus{spore.ArtifactPending, spore.ArtifactFailed, spore.ArtifactOrphaned, spore.ArtifactCleanupPending}
	err = c.store.View(ctx, func(tx store.Tx) error {
		due, _, err = tx.Artifacts(store.ArtifactFilter{Paging: store.Paging{Limit: atATime}, Statuses: worthless, UnusedBefore: now, Fair: true})
		if err != nil {
			return err
		}
		old, _, err := tx.Artifacts(store.ArtifactFilter{
			Paging: store.Paging{Limit: atATime}, Statuses: []spore.ArtifactStatus{spore.ArtifactReady},
			UnusedBefore: now.Add(-keepUnused), Fair: true,
		})
		due = append(due, old...)
		return err
	})
	return due, err
}

// removeArtifact removes an artifact from all nodes, then its row. One that is wanted again meanwhile stays.
func (c *Center) removeArtifact(ctx context.Context, id string) error {
	var places []spore.Placement
	wanted := false
	err := c.update(ctx, func(tx store.Tx) error {
		a, err := tx.Artifact(id)
		if err != nil {
			return err
		}
		users, err := tx.ArtifactUsers(id)
		if err != nil {
			return err
		}
		if wanted = users > 0 || a.Status == spore.ArtifactBuilding; wanted {
			return nil
		}
		a.Status, a.TriedAt, a.UpdatedAt = spore.ArtifactCleanupPending, c.opt.Now(), c.opt.Now()
		if err := tx.PutArtifact(a); err != nil {
			return err
		}
		places, err = tx.Placements(id, "")
		return err
	})
	if err != nil || wanted {
		return ignoreNotFound(err)
	}
	c.opt.Hook("artifact:cleaning")
	for _, p := range places {
		if n := c.fleet.facts(p.NodeID); n == nil || n.State != spore.NodeForgotten {
			n, err := c.on(p.NodeID)
			if err == nil {
				err = n.DropArtifact(ctx, id)
			}
			if err != nil {
				return err
			}
		}
		if err := c.update(ctx, func(tx store.Tx) error { return c.dropPlacement(tx, p) }); err != nil {
			return err
		}
	}
	return c.update(ctx, func(tx store.Tx) error {
		a, err := tx.Artifact(id)
		if err != nil || a.Status != spore.ArtifactCleanupPending {
			return ignoreNotFound(err)
		}
		return tx.DeleteArtifact(id)
	})
}

// dropPlacement forgets that bytes lie on a node, unless they are being put there again.
func (c *Center) dropPlacement(tx store.Tx, p spore.Placement) error {
	a, err := tx.Artifact(p.ArtifactID)
	if err != nil {
		return ignoreNotFound(err)
	}
	now, err := tx.Placements(p.ArtifactID, p.NodeID)
	if err != nil || a.Status != spore.ArtifactCleanupPending {
		return err
	}
	if !slices.ContainsFunc(now, func(q spore.Placement) bool { return q.CreatedAt.Equal(p.CreatedAt) }) {
		return nil
	}
	return tx.DeletePlacement(p.ArtifactID, p.NodeID)
}

// artifactGone writes that a node has given up an artifact that nothing there stood on, in a collection that began then. One that
// was given to the node since is there again.
func (c *Center) artifactGone(ctx context.Context, id, nodeID string, began time.Time) error {
	return c.update(ctx, func(tx store.Tx) error {
		a, err := tx.Artifact(id)
		if err != nil || a.Status == spore.ArtifactBuilding {
			return ignoreNotFound(err)
		}
		there, err := tx.Placements(id, nodeID)
		if err != nil || len(there) == 0 || !there[0].CreatedAt.Before(began) {
			return err
		}
		if err := tx.DeletePlacement(id, nodeID); err != nil {
			return err
		}
		left, err := tx.Placements(id, "")
		if err != nil || len(left) > 0 {
			return err
		}
		users, err := tx.ArtifactUsers(id)
		if err != nil {
			return err
		}
		if a.UpdatedAt = c.opt.Now(); users > 0 {
			if a.Status == spore.ArtifactReady {
				a.Status, a.LastError = spore.ArtifactFailed, "no node has its bytes any more"
				return tx.PutArtifact(a)
			}
			return nil
		}
		if a.Status != spore.ArtifactCleanupPending {
			a.Status = spore.ArtifactCleanupPending
			if err := tx.PutArtifact(a); err != nil {
				return err
			}
		}
		return tx.DeleteArtifact(id)
	})
}
