package center

import (
	"context"
	"slices"
	"strings"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// BuildTemplate records a template to be built from an image and queues the building of it.
func (c *Center) BuildTemplate(ctx context.Context, key Idempotency, req BuildRequest) (*spore.Template, *spore.Job, error) {
	if err := c.checkBuild(&req); err != nil {
		return nil, nil, err
	}
	t := &spore.Template{
		ID: spore.NewTemplateID(), Name: req.Name, Kind: spore.KindTemplate, Status: spore.TemplatePending,
		Image: spore.Image{Reference: req.Image}, KernelID: req.KernelID, Resources: req.Resources,
		Readiness: req.Readiness, Labels: req.Labels,
	}
	j, err := c.newJob(spore.OpCreate, spore.KindTemplate, t.ID, "", req)
	if err != nil {
		return nil, nil, err
	}
	j.Phase = spore.PhasePulling
	return c.submit(ctx, key, t, j, nil)
}

func (c *Center) checkBuild(req *BuildRequest) error {
	if err := spore.ValidateName("name", req.Name); err != nil {
		return err
	}
	switch {
	case req.Image == "":
		return spore.Invalidf("image", "no image given").WithHint("give a registry reference, oci:DIR, oci-archive:FILE or docker-archive:FILE")
	case strings.HasPrefix(req.Image, "-"):
		return spore.Invalidf("image", "%q begins with a dash", req.Image)
	}
	req.Resources = req.Resources.WithDefaults()
	if err := req.Resources.Validate(); err != nil {
		return err
	}
	if err := c.node.Admit(req.Resources); err != nil {
		return err
	}
	if err := checkEnv("process.env", req.Process.Env); err != nil {
		return err
	}
	if err := checkLabels(req.Labels); err != nil {
		return err
	}
	return req.Readiness.Validate()
}

func checkEnv(field string, env []string) error {
	size := 0
	for _, kv := range env {
		name, _, ok := strings.Cut(kv, "=")
		if !ok || name == "" || strings.ContainsRune(kv, 0) {
			return spore.Invalidf(field, "%.60q is not the name of a variable, or its value holds a zero byte", name) // values may be secret
		}
		size += len(kv)
	}
	if len(env) > maxEnv || size > maxEnvBytes {
		return spore.Invalidf(field, "%d variables of %d bytes in all are too many", len(env), size).
			WithHint("at most %d, of %d bytes", maxEnv, maxEnvBytes)
	}
	return nil
}

// CommitSandbox records a template to be made of a running sandbox and queues the making of it.
func (c *Center) CommitSandbox(ctx context.Context, key Idempotency, sandboxID string, req CommitRequest) (*spore.Template, *spore.Job, error) {
	if err := spore.ValidateName("name", req.Name); err != nil {
		return nil, nil, err
	}
	if err := checkLabels(req.Labels); err != nil {
		return nil, nil, err
	}
	t := &spore.Template{
		ID: spore.NewTemplateID(), Name: req.Name, Kind: spore.KindTemplate, Status: spore.TemplatePending,
		OriginSandbox: sandboxID, OriginNode: c.node.ID(), Labels: req.Labels,
	}
	j, err := c.newJob(spore.OpCommit, spore.KindTemplate, t.ID, sandboxID, req)
	if err != nil {
		return nil, nil, err
	}
	j.Phase = spore.PhaseSnapshotting
	return c.submit(ctx, key, t, j, func(tx store.Tx) error {
		s, err := tx.Sandbox(sandboxID)
		if err != nil {
			return err
		}
		if err := mustRun(s, "committed"); err != nil {
			return err
		}
		return c.inherit(tx, t, s)
	})
}

// inherit fills a template that is captured from a sandbox with what it has of its origin.
func (c *Center) inherit(tx store.Tx, t *spore.Template, s *spore.Sandbox) error {
	head, err := c.head(tx, s)
	if err != nil {
		return err
	}
	t.ParentID, t.Image, t.ArtifactID, t.KernelID = head.ID, head.Image, head.ArtifactID, head.KernelID
	t.EgressCA, t.Resources, t.Process, t.Readiness = head.EgressCA, head.Resources, head.Process, head.Readiness
	return nil
}

// head is the newest point of a sandbox's line: its latest snapshot since it was started or rolled back, or else what
// it stands on.
func (c *Center) head(tx store.Tx, s *spore.Sandbox) (*spore.Template, error) {
	base, err := tx.Template(s.TemplateID)
	if err != nil {
		return nil, err
	}
	refs, err := tx.Refs(s.TemplateID, s.ID, spore.RefActive)
	if err != nil || len(refs) == 0 {
		return base, err
	}
	snaps, _, err := tx.Templates(store.TemplateFilter{Paging: store.Paging{Limit: 1}, OriginSandbox: s.ID, Status: spore.TemplateReady, Ephemeral: true})
	if err != nil || len(snaps) == 0 || snaps[0].CreatedAt.Before(refs[0].AttachedAt) {
		return base, err
	}
	return snaps[0], nil
}

// submit stores a new template with its job and puts the job in the queue, or answers what an earlier request under the
// same key made.
func (c *Center) submit(ctx context.Context, key Idempotency, t *spore.Template, j *spore.Job, also func(store.Tx) error) (*spore.Template, *spore.Job, error) {
	t.JobID, t.CreatedAt, t.UpdatedAt = j.ID, c.opt.Now(), c.opt.Now()
	err := c.store.Update(ctx, func(tx store.Tx) error {
		earlier, err := replay(tx, key)
		if err != nil {
			return err
		}
		if earlier != "" {
			if t, err = tx.Template(earlier); err != nil {
				return err
			}
			j, err = tx.Job(t.JobID)
			return err
		}
		if also != nil {
			if err := also(tx); err != nil {
				return err
			}
		}
		if err := c.freeName(tx, t.Name); err != nil {
			return err
		}
		if err := tx.InsertTemplate(t); err != nil {
			return err
		}
		if err := tx.InsertJob(j); err != nil {
			return err
		}
		if err := c.remember(tx, key, t.ID); err != nil {
			return err
		}
		return tx.Enqueue(j.ID, 3)
	})
	if err != nil {
		return nil, nil, err
	}
	return t, j, nil
}

// freeName takes a name away from a template that failed, so that a build can simply be tried again. A name that serves
// is refused.
func (c *Center) freeName(tx store.Tx, name string) error {
	if name == "" {
		return nil
	}
	old, err := tx.FindTemplate(name)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if old.Status != spore.TemplateFailed {
		return spore.Errorf(spore.CodeConflict, "the name %q is taken by %s %s", name, old.Kind, old.ID).
			WithHint("choose another name, or remove it first: spore %s rm %s", old.Kind, name)
	}
	old.Name, old.UpdatedAt = "", c.opt.Now()
	return tx.UpdateTemplate(old)
}

// Template answers a template or snapshot by id or name.
func (c *Center) Template(ctx context.Context, ref string) (t *spore.Template, err error) {
	err = c.store.View(ctx, func(tx store.Tx) error { t, err = tx.FindTemplate(ref); return err })
	return t, err
}

// Templates lists templates and snapshots, newest first.
func (c *Center) Templates(ctx context.Context, q TemplateQuery) (list []*spore.Template, next string, err error) {
	err = c.store.View(ctx, func(tx store.Tx) error {
		var page store.Page
		list, page, err = tx.Templates(store.TemplateFilter{
			Paging: store.Paging{Limit: q.Limit, After: q.PageToken}, Kind: q.Kind, Status: q.Status, Name: q.Name,
			OriginSandbox: q.OriginSandbox, Labels: q.Labels, Ephemeral: q.All, Deleted: q.All,
		})
		next = page.Next
		return err
	})
	return list, next, err
}

// DeleteTemplate deletes a template or snapshot. It does not break what stands on it: the bytes that running sandboxes
// and other templates need stay until they are gone, and HeldBy says who they are. Once it is recorded it is deleted for
// everybody; when the node cannot drop it right away, its job goes on.
func (c *Center) DeleteTemplate(ctx context.Context, ref string, dryRun bool) (*Deletion, error) {
	t, err := c.Template(ctx, ref)
	if err != nil {
		return nil, err
	}
	d := &Deletion{ID: t.ID, DryRun: dryRun, HeldBy: []string{}}
	if u, err := c.node.Usage(ctx, t.ID); err == nil {
		d.FreesBytes = u.ReclaimableBytes
		for _, id := range u.HeldBy { // what it stands on itself keeps its own bytes, whatever becomes of t
			if id != t.ParentID {
				d.HeldBy = append(d.HeldBy, id)
			}
		}
		if len(d.HeldBy) > 0 {
			d.RetainBytes = u.ExclusiveBytes + u.SharedBytes - u.ReclaimableBytes
		}
	} else if !isNotFound(err) && spore.CodeOf(err) != spore.CodeDamaged {
		return nil, err
	}
	if dryRun {
		return d, nil
	}
	op := spore.OpDelete
	if t.Kind == spore.KindSnapshot {
		op = spore.OpSnapshotDelete
	}
	if active, err := c.activeJob(ctx, t.ID); err != nil {
		return nil, err
	} else if active != nil && queued(active.Operation) {
		if _, err := c.CancelJob(ctx, active.ID); err != nil {
			return nil, err
		}
	}
	j, err := c.newJob(op, t.Kind, t.ID, "", map[string]string{"ref": ref})
	if err != nil {
		return nil, err
	}
	err = c.store.Update(ctx, func(tx store.Tx) error {
		now, err := tx.Template(t.ID)
		if err != nil {
			return err
		}
		if now.Status == spore.TemplateDeleted || now.Status == spore.TemplateDeleting {
			return spore.Errorf(spore.CodeNotFound, "%s was deleted already", ref)
		}
		if active, err := tx.ActiveJob(t.ID); err != nil {
			return err
		} else if active != nil {
			return spore.Errorf(spore.CodeBusy, "job %s (%s) is still at work on %s", active.ID, active.Operation, t.Label()).
				WithHint("wait for it: spore job watch %s", active.ID)
		}
		now.Status, now.UpdatedAt = spore.TemplateDeleting, c.opt.Now()
		if err := tx.UpdateTemplate(now); err != nil {
			return err
		}
		c.begin(j, spore.PhaseDeleting)
		return tx.InsertJob(j)
	})
	if err != nil {
		return nil, err
	}
	c.opt.Hook("delete:recorded")
	c.finishDelete(ctx, j.ID)
	return d, nil
}

// finishDelete carries a recorded delete to its end.
func (c *Center) finishDelete(ctx context.Context, jobID string) {
	c.insist(ctx, "finish the delete "+jobID, func(ctx context.Context) error { return c.finishDeleteOnce(ctx, jobID) })
}

func (c *Center) finishDeleteOnce(ctx context.Context, jobID string) error {
	j, err := c.Job(ctx, jobID)
	if err != nil || !j.Status.Active() {
		return err
	}
	if err := c.node.Forget(ctx, j.ResourceID); err != nil && !isNotFound(err) {
		return err
	}
	c.opt.Hook("delete:forgotten")
	return c.store.Update(ctx, func(tx store.Tx) error {
		t, err := tx.Template(j.ResourceID)
		if err != nil {
			return err
		}
		t.Status, t.UpdatedAt = spore.TemplateDeleted, c.opt.Now()
		if err := tx.UpdateTemplate(t); err != nil {
			return err
		}
		if err := tx.DeleteReplica(t.ID, c.node.ID()); err != nil {
			return err
		}
		if j, err = tx.Job(jobID); err != nil {
			return err
		}
		c.finish(j, nil)
		return tx.UpdateJob(j)
	})
}

func (c *Center) activeJob(ctx context.Context, resourceID string) (j *spore.Job, err error) {
	err = c.store.View(ctx, func(tx store.Tx) error { j, err = tx.ActiveJob(resourceID); return err })
	return j, err
}

// merge lays a caller's process over the image's own. As with containers, a new entrypoint drops the image's command.
func merge(image spore.Process, over ProcessOverride) spore.Process {
	p := image
	if over.Entrypoint != nil {
		p.Entrypoint, p.Cmd = over.Entrypoint, nil
	}
	if over.Cmd != nil {
		p.Cmd = over.Cmd
	}
	p.Env = slices.Concat(image.Env, over.Env)
	if over.User != nil {
		p.User = *over.User
	}
	if over.WorkDir != nil {
		p.WorkDir = *over.WorkDir
	}
	return p
}
