package center

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// errServerDied is the reason of what a dead server left half done.
var errServerDied = spore.Errorf(spore.CodeUnreachable, "the server ended before this was done").WithHint("ask again")

// settleOrphans settles what dead controllers were at: sandboxes that were being made, jobs whose caller was waiting, refs
// that were reserved. Queued jobs need nothing: the queue runs them again.
func (c *Center) settleOrphans(ctx context.Context) error {
	if err := c.settleCreating(ctx); err != nil {
		return err
	}
	if err := c.settleJobs(ctx); err != nil {
		return err
	}
	return c.settleReserved(ctx)
}

func (c *Center) settleCreating(ctx context.Context) error {
	creating, err := c.allSandboxes(ctx, store.SandboxFilter{States: []spore.SandboxState{spore.SandboxCreating}})
	if err != nil {
		return err
	}
	for _, s := range creating {
		unlock, free := c.tryLock(ctx, s.ID)
		if !free {
			continue
		}
		if now, err := c.Sandbox(ctx, s.ID); err == nil && now.State == spore.SandboxCreating {
			_ = c.giveUp(ctx, now, errServerDied) // which it answers
		}
		unlock()
	}
	return nil
}

func (c *Center) settleReserved(ctx context.Context) error {
	var refs []*spore.RuntimeRef
	err := c.store.View(ctx, func(tx store.Tx) (err error) {
		refs, err = tx.Refs(store.RefFilter{Statuses: []spore.RuntimeRefStatus{spore.RefReserved}})
		return err
	})
	if err != nil {
		return err
	}
	for _, r := range refs {
		if err := c.settleRefs(ctx, r.SandboxID); err != nil {
			return err
		}
	}
	return nil
}

func (c *Center) allSandboxes(ctx context.Context, f store.SandboxFilter) (all []*spore.Sandbox, err error) {
	f.Limit = 1000
	err = c.store.View(ctx, func(tx store.Tx) error {
		all, err = allPages(f.Paging, func(p store.Paging) ([]*spore.Sandbox, store.Page, error) {
			f.Paging = p
			return tx.Sandboxes(f)
		})
		return err
	})
	return all, err
}

// allPages reads a list to its end, page by page.
func allPages[T any](p store.Paging, read func(store.Paging) ([]T, store.Page, error)) (all []T, err error) {
	p.Limit = 1000
	for {
		list, page, err := read(p)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
		if page.Next == "" {
			return all, nil
		}
		p.After = page.Next
	}
}

// settleJobs settles the jobs whose caller was waiting on a controller that is dead, by what is there: a capture that is on
// disk was done, a generation that the row names was switched to, a delete is carried on.
func (c *Center) settleJobs(ctx context.Context) error {
	var orphans []*spore.Job
	err := c.store.View(ctx, func(tx store.Tx) error {
		f := store.JobFilter{Statuses: []spore.JobStatus{spore.JobPending, spore.JobRunning}}
		active, err := allPages(f.Paging, func(p store.Paging) ([]*spore.Job, store.Page, error) {
			f.Paging = p
			return tx.Jobs(f)
		})
		if err != nil {
			return err
		}
		orphans = orphans[:0]
		for _, j := range active {
			if queued(j.Operation) || j.Owner != c.opt.Controller && fenced(tx.Guard(j.Owner)) || j.Owner == "" {
				orphans = append(orphans, j)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, j := range orphans { // what is wrong with one must not keep the server from starting
		c.insist(ctx, "settle job "+j.ID, func(ctx context.Context) error { return c.settleJob(ctx, j) })
	}
	return nil
}

func (c *Center) settleJob(ctx context.Context, j *spore.Job) error {
	switch j.Operation {
	case spore.OpSnapshotCreate:
		var req SnapshotRequest
		if err := json.Unmarshal(j.Request, &req); err != nil {
			return err
		}
		if req.Held {
			return c.settleHeld(ctx, j)
		}
		f, err := c.frozenAt(ctx, j.NodeID, j.ResourceID)
		if err == nil {
			_, err = c.registerSnapshot(ctx, j.ID, j.ResourceID, f)
			return err
		}
		if spore.CodeOf(err) == spore.CodeUnreachable {
			return err // it is known once the node answers, or is forgotten
		}
		_ = c.failDirect(ctx, j.ID, errServerDied) // which it answers
	case spore.OpSnapshotRollback:
		return c.settleRollback(ctx, j)
	case spore.OpDelete, spore.OpSnapshotDelete:
		c.finishDelete(ctx, j.ID)
	case spore.OpFork:
		return c.settleFork(ctx, j)
	case spore.OpLegacy:
		_ = c.failDirect(ctx, j.ID, errServerDied) // which it answers; what it was at nobody knows how to go on with
	default:
		if err := c.endCancelled(ctx, j.ID); err != nil {
			return err
		}
		return c.requeue(ctx, j.ID)
	}
	return nil
}

// lostAfter is how old a job must be before its place in the queue is looked for.
const lostAfter = 30 * time.Second

// requeue gives a queued job that has lost its place another: its server died after the queue was done with it and
// before that was written into its row. One that waits or runs keeps its place.
func (c *Center) requeue(ctx context.Context, jobID string) error {
	if _, runs := c.running.Load(jobID); runs {
		return nil
	}
	return c.update(ctx, func(tx store.Tx) error {
		j, err := tx.Job(jobID)
		if err != nil || !j.Status.Active() || !queued(j.Operation) || c.opt.Now().Sub(j.CreatedAt) < lostAfter {
			return err
		}
		return tx.Enqueue(jobID, 1)
	})
}

// frozenAt answers the facts of a frozen state on a node; spore.CodeNotFound also when the node is known to be gone for good.
func (c *Center) frozenAt(ctx context.Context, nodeID, frozenID string) (*spore.Frozen, error) {
	if n := c.fleet.facts(nodeID); n == nil || n.State == spore.NodeForgotten {
		return nil, spore.Errorf(spore.CodeNotFound, "node %s is gone", nodeID)
	}
	n, err := c.on(nodeID)
	if err != nil {
		return nil, err
	}
	return n.Frozen(ctx, frozenID)
}

func (c *Center) settleRollback(ctx context.Context, j *spore.Job) error {
	var req struct{ Generation int }
	if err := json.Unmarshal(j.Request, &req); err != nil {
		return err
	}
	return c.update(ctx, func(tx store.Tx) error {
		now, err := tx.Job(j.ID)
		if err != nil || !now.Status.Active() {
			return err
		}
		outcome := error(errServerDied)
		if s, err := tx.Sandbox(j.SandboxID); err == nil && s.Generation >= req.Generation {
			outcome = nil
		} else if err != nil && !isNotFound(err) {
			return err
		}
		c.finish(now, outcome)
		if err := tx.UpdateJob(now); err != nil || outcome == nil {
			return err
		}
		return tx.DropReplay(j.ID)
	})
}

// forgetStrays removes frozen states that no row speaks of, such as the capture of a pause that was not recorded, or
// whose row says that they are not to be.
func (c *Center) forgetStrays(ctx context.Context, n Node) error {
	ids, err := n.FrozenIDs(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		stray, err := c.stray(ctx, n.ID(), id)
		if err != nil {
			return err
		}
		if stray {
			c.log.Info("forgetting a frozen state that nothing names", "node", n.ID(), "id", id)
			c.forget(ctx, n.ID(), id)
		}
	}
	return nil
}

// stray says whether nothing speaks of a frozen state, nor is about to.
func (c *Center) stray(ctx context.Context, nodeID, id string) (stray bool, err error) {
	err = c.store.View(ctx, func(tx store.Tx) error {
		stray, err = c.strayIn(tx, nodeID, id)
		return err
	})
	return stray, err
}

func (c *Center) strayIn(tx store.Tx, nodeID, id string) (bool, error) {
	if sandbox, ok := pausedBy(id); ok {
		if busy, err := c.atWork(tx, sandbox); err != nil || busy {
			return false, err
		}
		s, err := tx.Sandbox(sandbox)
		if isNotFound(err) {
			return true, nil
		}
		return err == nil && (s.State != spore.SandboxPaused || s.FrozenID != id || s.NodeID != nodeID), err
	}
	if _, job, ok := strings.Cut(id, draftMark); ok {
		j, err := tx.Job(job)
		if isNotFound(err) {
			return true, nil
		}
		return err == nil && !j.Status.Active(), err
	}
	t, err := tx.Template(id)
	if isNotFound(err) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	switch t.Status {
	case spore.TemplateDeleting, spore.TemplateDeleted:
		return true, nil
	case spore.TemplatePending, spore.TemplateCreating:
		return false, nil
	}
	_, err = tx.Replica(id, nodeID)
	return isNotFound(err), ignoreNotFound(err)
}

// draftMark stands in the id of a frozen state that a job makes, between the id that it is to have and the job's.
const draftMark = "+"

// draftID is the id under which a job makes a frozen state that is to replace one.
func draftID(id, jobID string) string { return id + draftMark + jobID }

const pausePrefix = "pause-"

// pausedBy answers the sandbox that a frozen state is the pause of.
func pausedBy(frozenID string) (sandbox string, ok bool) {
	rest, ok := strings.CutPrefix(frozenID, pausePrefix)
	if !ok {
		return "", false
	}
	sandbox, _, ok = strings.Cut(rest, "-")
	return sandbox, ok
}

func ignoreNotFound(err error) error {
	if isNotFound(err) {
		return nil
	}
	return err
}
