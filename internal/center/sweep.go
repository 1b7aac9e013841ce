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
