package center

import (
	"context"
	"slices"
	"unicode/utf8"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

const (
	maxDisplayName = 256 // bytes
	shownHolders   = 100
)

// TemplateDetails answers a template or snapshot with all that belongs to it.
func (c *Center) TemplateDetails(ctx context.Context, ref string) (d *TemplateDetails, err error) {
	err = c.store.View(ctx, func(tx store.Tx) error {
		t, err := tx.FindTemplate(ref)
		if err != nil {
			return err
		}
		d = &TemplateDetails{Template: t, HeldBy: []string{}}
		if d.Replicas, err = tx.Replicas(t.ID); err != nil {
			return err
		}
		if d.Aliases, err = aliasesOf(tx, t.ID); err != nil {
			return err
		}
		if t.ArtifactID != "" {
			if d.Artifact, err = tx.Artifact(t.ArtifactID); ignoreNotFound(err) != nil {
				return err
			}
		}
		jobs, _, err := tx.Jobs(store.JobFilter{Paging: store.Paging{Limit: 1}, ResourceID: t.ID})
		if err != nil {
			return err
		}
		if len(jobs) > 0 {
			d.Job = jobs[0]
		}
		f := store.RefFilter{TemplateID: t.ID, Statuses: held}
		if d.RefCount, err = tx.CountRefs(f); err != nil {
			return err
		}
		f.Limit = shownHolders
		refs, err := tx.Refs(f)
		for _, r := range refs {
			if !slices.Contains(d.HeldBy, r.SandboxID) {
				d.HeldBy = append(d.HeldBy, r.SandboxID)
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return d, nil
}

// JobDetails answers a job with what has become of the things that it is about, which it may outlive.
func (c *Center) JobDetails(ctx context.Context, id string) (d *JobDetails, err error) {
	err = c.store.View(ctx, func(tx store.Tx) error {
		j, err := tx.Job(id)
		if err != nil {
			return err
		}
		d = &JobDetails{Job: j}
		artifact := j.ArtifactID
		switch t, err := tx.Template(j.ResourceID); {
		case err == nil:
			d.TemplateStatus = t.Status
			if artifact == "" {
				artifact = t.ArtifactID
			}
		case !isNotFound(err):
			return err
		}
		if artifact == "" {
			return nil
		}
		a, err := tx.Artifact(artifact)
		if err == nil {
			d.ArtifactStatus = a.Status
		}
		return ignoreNotFound(err)
	})
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Refs lists runtime refs, newest first, and counts all that match. A template that was deleted is found by its id.
func (c *Center) Refs(ctx context.Context, q RefQuery) (refs []*spore.RuntimeRef, total int, err error) {
	err = c.store.View(ctx, func(tx store.Tx) error {
		f := store.RefFilter{SandboxID: q.Sandbox}
		if q.Template != "" {
			t, err := anyTemplate(tx, q.Template)
			if err != nil {
				return err
			}
			f.TemplateID = t.ID
		}
		if q.Sandbox != "" {
			if _, err := tx.Sandbox(q.Sandbox); err != nil {
				return err
			}
		}
		if !q.All {
			f.Statuses = held
		}
		if refs, err = tx.Refs(f); err != nil {
			return err
		}
		total = len(refs)
		slices.Reverse(refs)
		if q.Limit > 0 {
			refs = refs[:min(len(refs), q.Limit)]
		}
		return nil
	})
	return refs, total, err
}

// ReadyNodes answers where sandboxes can start from a template right now. None is an error that says why.
func (c *Center) ReadyNodes(ctx context.Context, ref string) (scope *NodeScope, err error) {
	err = c.store.View(ctx, func(tx store.Tx) error {
		t, err := startable(tx, ref)
		if err != nil {
			return err
		}
		replicas, err := tx.Replicas(t.ID)
		if err != nil {
			return err
		}
		spots := c.spots(t, replicas, wish{})
		scope = &NodeScope{TemplateID: t.ID, Ready: []string{}, Stale: []string{}}
		for i, s := range spots {
			switch {
			case s.whyNot == "":
				scope.Ready = append(scope.Ready, s.nodeID)
			case usable(replicas[i]) && s.compat == spore.CompatStale:
				scope.Stale = append(scope.Stale, s.nodeID)
			}
		}
		if len(scope.Ready) == 0 {
			_, err = choose(t, spots, wish{})
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return scope, nil
}

// Replicas lists the replicas of a template in the order of node ids; of one that was deleted, those that are still there.
func (c *Center) Replicas(ctx context.Context, ref string) (list []*spore.Replica, err error) {
	err = c.store.View(ctx, func(tx store.Tx) error {
		t, err := anyTemplate(tx, ref)
		if err != nil {
			return err
		}
		list, err = tx.Replicas(t.ID)
		return err
	})
	return list, err
}

// UpdateTemplate changes what may change of a template. A new policy of replicas is acted upon soon; a new rule of what must
// agree holds for the replicas that there are, at once.
func (c *Center) UpdateTemplate(ctx context.Context, ref string, req TemplateUpdate) (t *spore.Template, err error) {
	if err := c.checkUpdate(&req); err != nil {
		return nil, err
	}
	err = c.update(ctx, func(tx store.Tx) error {
		if t, err = tx.FindTemplate(ref); err != nil {
			return err
		}
		changed := *t
		if req.DisplayName != nil {
			changed.DisplayName = *req.DisplayName
		}
		if req.Labels != nil {
			changed.Labels = req.Labels
		}
		if req.Retain != nil {
			changed.Retain = *req.Retain
		}
		if req.Policy != nil {
			changed.Policy = *req.Policy
		}
		if req.Replicas != nil {
			changed.Replicas = *req.Replicas
		}
		changed.UpdatedAt = c.opt.Now()
		if err := tx.UpdateTemplate(&changed); err != nil {
			return err
		}
		if req.Policy != nil {
			if err := c.applyPolicy(tx, t.ID, *req.Policy); err != nil {
				return err
			}
		}
		if err := c.resummarise(tx, t.ID); err != nil {
			return err
		}
		t, err = tx.Template(t.ID)
		return err
	})
	if err != nil {
		return nil, err
	}
	if req.Replicas != nil {
		c.replan()
	}
	return t, nil
}

func (c *Center) checkUpdate(req *TemplateUpdate) error {
	if n := req.DisplayName; n != nil {
		if err := checkDisplayName(*n); err != nil {
			return err
		}
	}
	if err := checkLabels(req.Labels); err != nil {
		return err
	}
	policy := spore.CompatPolicy("")
	if req.Policy != nil {
		var err error
		if policy, err = spore.ParseCompatPolicy("compatPolicy", string(*req.Policy)); err != nil {
			return err
		}
		req.Policy = &policy
	}
	if req.Replicas == nil {
		return nil
	}
	return c.checkPlacement(policy, *req.Replicas)
}

// checkDisplayName refuses a name for people that cannot be shown.
func checkDisplayName(s string) error {
	if len(s) > maxDisplayName || !utf8.ValidString(s) || slices.ContainsFunc([]rune(s), func(r rune) bool { return r < ' ' }) {
		return spore.Invalidf("displayName", "it is too long, or no line of text").WithHint("at most %d bytes of UTF-8", maxDisplayName)
	}
	return nil
}

// applyPolicy has the replicas of a template judged by another rule from now on.
func (c *Center) applyPolicy(tx store.Tx, templateID string, p spore.CompatPolicy) error {
	replicas, err := tx.Replicas(templateID)
	if err != nil {
		return err
	}
	for _, r := range replicas {
		if r.CompatPolicy == p {
			continue
		}
		r.CompatPolicy = p
		if usable(r) {
			n, err := tx.Node(r.NodeID)
			if ignoreNotFound(err) != nil {
				return err
			}
			r.CompatStatus, r.CompatCheckedAt = verdict(r, n), c.opt.Now()
		}
		if err := tx.PutReplica(r); err != nil {
			return err
		}
	}
	return nil
}
