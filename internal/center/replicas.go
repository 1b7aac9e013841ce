package center

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// The leader keeps replicas where their templates want them: it fills nodes that lack one, tries those that failed again,
// removes those that are not wanted, and repairs those whose bytes are lost.

const (
	// giveUpNodeAfter is how many failures on one node make another one preferable.
	giveUpNodeAfter = 5
	// planEvery is how often all templates are looked at when no node has changed.
	planEvery = time.Minute
)

// retryDelay is how long a replica that failed so many times waits.
func retryDelay(failures int) time.Duration {
	return min(time.Hour, 10*time.Second<<min(max(failures-1, 0), 10))
}

// matching lists the nodes that new replicas may be put on, in the order of their ids.
func (c *Center) matching(p spore.ReplicaPolicy) (list []*spore.Node) {
	for _, id := range c.fleet.ids() {
		n := c.fleet.facts(id)
		if n != nil && n.Schedulable() && n.Matches(p.Selector) && (len(p.Nodes) == 0 || slices.Contains(p.Nodes, id)) {
			list = append(list, n)
		}
	}
	return list
}

// keepReplicas is one round of the loop.
func (c *Center) keepReplicas(ctx context.Context) error {
	errs := []error{c.cleanReplicas(ctx), c.retryReplicas(ctx)}
	var marks []string
	for _, n := range c.matching(spore.ReplicaPolicy{}) {
		marks = append(marks, fmt.Sprintf("%s %v", n.ID, n.Labels))
	}
	nodes := strings.Join(marks, "\n")
	now := c.opt.Now()
	c.planned.Lock()
	due := nodes != c.planned.nodes || now.Sub(c.planned.at) >= planEvery || c.planned.dirty
	if due {
		c.planned.nodes, c.planned.at, c.planned.dirty = nodes, now, false
	}
	c.planned.Unlock()
	if due {
		errs = append(errs, c.planReplicas(ctx))
	}
	return errors.Join(errs...)
}

// replan asks for all templates to be looked at in the next round.
func (c *Center) replan() {
	c.planned.Lock()
	c.planned.dirty = true
	c.planned.Unlock()
}

func (c *Center) replicasIn(ctx context.Context, f store.ReplicaFilter) (all []*spore.Replica, err error) {
	err = c.store.View(ctx, func(tx store.Tx) error {
		all, err = allPages(f.Paging, func(p store.Paging) ([]*spore.Replica, store.Page, error) {
			f.Paging = p
			return tx.ReplicaPage(f)
		})
		return err
	})
	return all, err
}

// cleanReplicas goes on with those whose removal was begun.
func (c *Center) cleanReplicas(ctx context.Context) error {
	list, err := c.replicasIn(ctx, store.ReplicaFilter{Phase: spore.ReplicaCleaning})
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range list {
		active := false
		err := c.store.View(ctx, func(tx store.Tx) error {
			j, err := tx.ActiveJob(r.TemplateID)
			active = j != nil
			return err
		})
		if err == nil && !active {
			err = c.cleanReplica(ctx, r)
		}
		if spore.CodeOf(err) != spore.CodeUnreachable {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// retryReplicas queues those that failed and whose time has come, and those whose job ended without a word.
func (c *Center) retryReplicas(ctx context.Context) error {
	var due []*spore.Replica
	for _, phase := range []spore.ReplicaPhase{spore.ReplicaPhaseFailed, spore.ReplicaPending, spore.ReplicaDistributing, spore.ReplicaDistributed, spore.ReplicaSnapshotting} {
		list, err := c.replicasIn(ctx, store.ReplicaFilter{Phase: phase})
		if err != nil {
			return err
		}
		due = append(due, list...)
	}
	var errs []error
	for _, r := range due {
		if c.opt.Now().Before(r.RetryAt) {
			continue
		}
		errs = append(errs, c.update(ctx, func(tx store.Tx) error { return c.queueReplica(tx, r.TemplateID, r.NodeID) }))
	}
	return errors.Join(errs...)
}

// queueReplica queues the making of one replica, if nothing makes it and it is still wanted.
func (c *Center) queueReplica(tx store.Tx, templateID, nodeID string) error {
	t, err := tx.Template(templateID)
	if err != nil {
		return err
	}
	if !mayReplicate(t) {
		return nil
	}
	if f := c.fleet.facts(nodeID); f == nil || !f.Schedulable() {
		return nil
	}
	if active, err := tx.ActiveJob(templateID); err != nil || active != nil {
		return err
	}
	r, err := tx.Replica(templateID, nodeID)
	switch {
	case isNotFound(err):
		r = &spore.Replica{TemplateID: templateID, NodeID: nodeID, CompatPolicy: t.Policy, CompatStatus: spore.CompatUnknown}
	case err != nil:
		return err
	case r.Phase == spore.ReplicaCleaning || r.Phase == spore.ReplicaPhaseReady && r.Status == spore.ReplicaReady:
		return nil
	default:
		last, err := tx.Job(r.LastJobID)
		if ignoreNotFound(err) != nil {
			return err
		}
		if err == nil && last.Status.Active() {
			return nil
		}
		if r.Status == spore.ReplicaReady { // a redo was ended in the middle: what serves goes on serving
			r.Phase, r.CleanupRequired, r.UpdatedAt = spore.ReplicaPhaseReady, false, c.opt.Now()
			return tx.PutReplica(r)
		}
	}
	j, err := c.newJob(spore.OpReplicate, t.Kind, t.ID, "", map[string]string{"node": nodeID})
	if err != nil {
		return err
	}
	j.Owner, j.NodeID, j.Phase, j.Nodes.Expected, j.RetryOfJobID = "", nodeID, spore.PhaseDistributing, 1, r.LastJobID
	if err := tx.InsertJob(j); err != nil {
		return err
	}
	r.Status, r.Phase, r.LastJobID, r.UpdatedAt = spore.ReplicaFailed, spore.ReplicaPending, j.ID, c.opt.Now()
	if err := tx.PutReplica(r); err != nil {
		return err
	}
	return tx.Enqueue(j.ID, 1) // the loop itself tries again, with back-off
}

// mayReplicate says whether replicas of a template may be made besides by the job that makes the template.
func mayReplicate(t *spore.Template) bool {
	switch t.Status {
	case spore.TemplateReady, spore.TemplatePartiallyReady:
		return true
	case spore.TemplateFailed:
		return t.Engine != "" // it was whole once
	}
	return false
}

// planReplicas looks at every template whose replicas may be elsewhere than they should.
func (c *Center) planReplicas(ctx context.Context) error {
	var errs []error
	for _, status := range []spore.TemplateStatus{spore.TemplateReady, spore.TemplatePartiallyReady, spore.TemplateFailed} {
		f := store.TemplateFilter{Paging: store.Paging{Limit: 200}, Status: status}
		for {
			var list []*spore.Template
			var page store.Page
			replicas := map[string][]*spore.Replica{}
			err := c.store.View(ctx, func(tx store.Tx) (err error) {
				if list, page, err = tx.Templates(f); err != nil {
					return err
				}
				for _, t := range list {
					if replicas[t.ID], err = tx.Replicas(t.ID); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return errors.Join(append(errs, err)...)
			}
			for _, t := range list {
				if mayReplicate(t) {
					errs = append(errs, c.bringInLine(ctx, t, replicas[t.ID]))
				}
			}
			if page.Next == "" {
				break
			}
			f.After = page.Next
		}
	}
	return errors.Join(errs...)
}

// bringInLine acts on the plan for one template.
func (c *Center) bringInLine(ctx context.Context, t *spore.Template, replicas []*spore.Replica) error {
	add, drop := c.planFor(t, replicas)
	if len(add)+len(drop) == 0 {
		return c.update(ctx, func(tx store.Tx) error { return c.resummarise(tx, t.ID) })
	}
	return c.update(ctx, func(tx store.Tx) error {
		for _, id := range add {
			if err := c.queueReplica(tx, t.ID, id); err != nil {
				return err
			}
		}
		for _, id := range drop {
			r, err := tx.Replica(t.ID, id)
			if ignoreNotFound(err) != nil {
				return err
			}
			if err != nil || r.Phase == spore.ReplicaCleaning {
				continue
			}
			r.Status, r.Phase, r.CleanupRequired, r.UpdatedAt = spore.ReplicaFailed, spore.ReplicaCleaning, true, c.opt.Now()
			if err := tx.PutReplica(r); err != nil {
				return err
			}
		}
		return c.resummarise(tx, t.ID)
	})
}

func (c *Center) planFor(t *spore.Template, replicas []*spore.Replica) (add, drop []string) {
	nodes := map[string]*spore.Node{}
	for _, r := range replicas {
		nodes[r.NodeID] = c.fleet.facts(r.NodeID)
	}
	for _, n := range c.matching(spore.ReplicaPolicy{}) {
		nodes[n.ID] = n
	}
	return plan(t, replicas, nodes)
}

// plan says on which nodes a template should get a replica, and from which it should go. nodes are those that are known,
// whatever their state; nil ones are gone.
func plan(t *spore.Template, replicas []*spore.Replica, nodes map[string]*spore.Node) (add, drop []string) {
	p := t.Replicas
	fits := func(n *spore.Node) bool {
		return n != nil && n.Schedulable() && n.Matches(p.Selector) && (len(p.Nodes) == 0 || slices.Contains(p.Nodes, n.ID)) &&
			(t.Engine == "" || n.Engine == t.Engine) && n.MemoryMiB >= t.Resources.MemoryMiB && n.Storage.Mode != spore.StorageReject && n.Storage.Mode != spore.StorageDeleteOnly
	}
	var eligible []*spore.Node
	for _, n := range nodes {
		if fits(n) {
			eligible = append(eligible, n)
		}
	}
	slices.SortFunc(eligible, func(a, b *spore.Node) int {
		return cmp.Or(cmp.Compare(b.MemoryMiB-b.MemoryPromisedMiB, a.MemoryMiB-a.MemoryPromisedMiB), cmp.Compare(a.ID, b.ID))
	})
	want := wanted(p)
	if p.Pinned && len(p.Nodes) == 0 {
		want = max(want, len(eligible))
	}
	if p.Max > 0 {
		want = min(want, p.Max)
	}
	has := map[string]bool{}
	var good, serving, misplaced []string
	for _, r := range replicas {
		has[r.NodeID] = true
		n := nodes[r.NodeID]
		switch {
		case r.Phase == spore.ReplicaCleaning:
		case r.Status == spore.ReplicaReady && n != nil && n.State == spore.NodeReady && !n.Draining && matches(n, p):
			good, serving = append(good, r.NodeID), append(serving, r.NodeID)
		case r.Status == spore.ReplicaReady && n != nil && n.State == spore.NodeReady:
			serving, misplaced = append(serving, r.NodeID), append(misplaced, r.NodeID)
		case r.Status == spore.ReplicaFailed && fits(n) && r.Attempts < giveUpNodeAfter:
			good = append(good, r.NodeID) // it is on its way, or is tried again
		}
	}
	if len(serving) > 0 || len(t.Image.Digest) > 0 && t.OriginSandbox == "" {
		for _, n := range eligible {
			if len(good)+len(add) < want && !has[n.ID] {
				add = append(add, n.ID)
			}
		}
	}
	ready := 0
	for _, id := range good {
		if slices.Contains(serving, id) {
			ready++
		}
	}
	if ready >= want { // enough serve where they should
		drop = misplaced
		if p.Max > 0 && ready > p.Max {
			extra := slices.Clone(serving)
			extra = slices.DeleteFunc(extra, func(id string) bool { return slices.Contains(misplaced, id) })
			slices.Sort(extra)
			drop = append(drop, extra[p.Max:]...)
		}
	}
	slices.Sort(drop)
	return add, drop
}

func matches(n *spore.Node, p spore.ReplicaPolicy) bool {
	return n.Matches(p.Selector) && (len(p.Nodes) == 0 || slices.Contains(p.Nodes, n.ID))
}

// missingNodes lists where a template that has just been made should go beside.
func (c *Center) missingNodes(ctx context.Context, id string) ([]string, error) {
	var t *spore.Template
	var replicas []*spore.Replica
	err := c.store.View(ctx, func(tx store.Tx) (err error) {
		if t, err = tx.Template(id); err != nil {
			return err
		}
		replicas, err = tx.Replicas(id)
		return err
	})
	if err != nil {
		return nil, err
	}
	add, _ := c.planFor(t, replicas)
	for _, r := range replicas { // a run of this job that was cut off had begun those
		if r.Status != spore.ReplicaReady && r.Phase != spore.ReplicaCleaning && !slices.Contains(add, r.NodeID) {
			add = append(add, r.NodeID)
		}
	}
	slices.Sort(add)
	return add, nil
}

// verifyReplicas notices replicas whose bytes are not on their node any more. One answer is not believed: the node is
// asked about each that seems to be missing.
func (c *Center) verifyReplicas(ctx context.Context, n Node) error {
	ready, err := c.replicasIn(ctx, store.ReplicaFilter{NodeID: n.ID(), Status: spore.ReplicaReady})
	if err != nil || len(ready) == 0 {
		return err
	}
	ids, err := n.FrozenIDs(ctx)
	if err != nil {
		return err
	}
	slices.Sort(ids)
	for _, r := range ready {
		if _, there := slices.BinarySearch(ids, r.TemplateID); there {
			continue
		}
		if err := n.VerifyFrozen(ctx, r.TemplateID, false); err == nil || !isNotFound(err) && spore.CodeOf(err) != spore.CodeDamaged {
			continue
		}
		if err := c.loseReplica(ctx, r, "its bytes are not on the node any more"); err != nil {
			return err
		}
	}
	return nil
}

// doubt takes a replica for lost from which nothing could start because its bytes are not there, or not what they were.
func (c *Center) doubt(ctx context.Context, templateID, nodeID string, cause error) {
	if code := spore.CodeOf(cause); code != spore.CodeNotFound && code != spore.CodeDamaged {
		return
	}
	c.insist(ctx, "note that "+templateID+" does not start on "+nodeID, func(ctx context.Context) error {
		var r *spore.Replica
		err := c.store.View(ctx, func(tx store.Tx) (err error) { r, err = tx.Replica(templateID, nodeID); return err })
		if err != nil {
			return ignoreNotFound(err)
		}
		return c.loseReplica(ctx, r, spore.AsError(cause).Message)
	})
}

// loseReplica writes that a READY replica cannot be used any more. The loop makes it again if it can.
func (c *Center) loseReplica(ctx context.Context, lost *spore.Replica, why string) error {
	c.log.Warn("a replica is lost", "template", lost.TemplateID, "node", lost.NodeID, "why", why)
	return c.update(ctx, func(tx store.Tx) error {
		r, err := tx.Replica(lost.TemplateID, lost.NodeID)
		if err != nil || r.Status != spore.ReplicaReady || !r.UpdatedAt.Equal(lost.UpdatedAt) {
			return ignoreNotFound(err)
		}
		r.Status, r.Phase, r.LastErrorPhase, r.ErrorMessage = spore.ReplicaFailed, spore.ReplicaPhaseFailed, spore.ReplicaPhaseReady, why
		r.CleanupRequired, r.Attempts, r.RetryAt, r.UpdatedAt = true, r.Attempts+1, c.opt.Now(), c.opt.Now()
		if err := tx.PutReplica(r); err != nil {
			return err
		}
		return c.resummarise(tx, r.TemplateID)
	})
}
