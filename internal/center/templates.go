package center

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

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
		Readiness: req.Readiness, Labels: req.Labels, DisplayName: req.DisplayName, Author: req.Author, Reason: req.Reason,
		Retain: req.Retain, Policy: req.Policy, Replicas: req.Replicas,
	}
	if req.Network != nil {
		t.NIC, req.Defaults.Network = req.Network.Connected(), req.Network
	}
	if err := stamp(t, req.Defaults); err != nil {
		return nil, nil, err
	}
	j, err := c.newJob(spore.OpCreate, spore.KindTemplate, t.ID, "", req)
	if err != nil {
		return nil, nil, err
	}
	j.Phase, j.Nodes.Expected = spore.PhasePulling, wanted(t.Replicas)
	return c.submit(ctx, key, t, j, nil)
}

// stamp writes what every new template has.
func stamp(t *spore.Template, d spore.CreateDefaults) (err error) {
	t.Version, t.StorageBackend = spore.DefaultTemplateVersion, spore.StorageBackendLayers
	if t.Policy == "" {
		t.Policy = spore.PolicyStrict
	}
	t.Request, err = json.Marshal(d)
	return err
}

// wanted is how many replicas make a template READY.
func wanted(p spore.ReplicaPolicy) int { return max(1, p.Min, len(p.Nodes)) }

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
	if err := c.admit(req.Resources); err != nil {
		return err
	}
	if err := c.checkPlacement(req.Policy, req.Replicas); err != nil {
		return err
	}
	if err := checkLife(time.Duration(req.Defaults.TTLSeconds)*time.Second, req.Defaults.OnEnd, req.Defaults.Env); err != nil {
		return err
	}
	if err := checkLabels(req.Defaults.Labels); err != nil {
		return err
	}
	if err := checkNetwork(req); err != nil {
		return err
	}
	if err := checkTold(req.DisplayName, req.Author, req.Reason); err != nil {
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

// checkTold refuses what cannot be shown to people.
func checkTold(displayName, author, reason string) error {
	if err := checkDisplayName(displayName); err != nil {
		return err
	}
	return checkWords(author, reason)
}

// checkPlacement refuses policies that cannot be, and scopes that name a node that does not exist.
func (c *Center) checkPlacement(policy spore.CompatPolicy, p spore.ReplicaPolicy) error {
	if _, err := spore.ParseCompatPolicy("compatPolicy", string(policy)); err != nil {
		return err
	}
	if err := p.Validate(); err != nil {
		return err
	}
	if err := c.knownNodes("replicas.nodes", p.Nodes...); err != nil {
		return err
	}
	if len(c.matching(p)) == 0 {
		return errNoNodes("no node that is ready has the labels of the selector")
	}
	return nil
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
	if err := c.checkPlacement(req.Policy, req.Replicas); err != nil {
		return nil, nil, err
	}
	if err := checkTold(req.DisplayName, req.Author, req.Reason); err != nil {
		return nil, nil, err
	}
	t := &spore.Template{
		ID: spore.NewTemplateID(), Name: req.Name, Kind: spore.KindTemplate, Status: spore.TemplatePending,
		OriginSandbox: sandboxID, Labels: req.Labels, DisplayName: req.DisplayName, Author: req.Author, Reason: req.Reason,
		Retain: req.Retain, Policy: req.Policy, Replicas: req.Replicas,
	}
	j, err := c.newJob(spore.OpCommit, spore.KindTemplate, t.ID, sandboxID, req)
	if err != nil {
		return nil, nil, err
	}
	j.Phase, j.Nodes.Expected = spore.PhaseSnapshotting, wanted(t.Replicas)
	return c.submit(ctx, key, t, j, func(tx store.Tx) error {
		s, err := tx.Sandbox(sandboxID)
		if err != nil {
			return err
		}
		if err := mustRun(s, "committed"); err != nil {
			return err
		}
		t.OriginNode, j.NodeID = s.NodeID, s.NodeID
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
	t.Engine, t.Version, t.StorageBackend = head.Engine, spore.DefaultTemplateVersion, head.StorageBackend // Request is of today's form
	if t.Policy == "" {
		t.Policy = head.Policy
	}
	t.NIC = head.NIC
	kept := spore.CreateDefaults{Env: s.Env, Labels: s.Labels}
	keptWiring(s, &kept)
	t.Request, err = json.Marshal(kept)
	return err
}

// head is the newest point of a sandbox's line: its latest snapshot since it was started or rolled back, or else what
// it stands on.
func (c *Center) head(tx store.Tx, s *spore.Sandbox) (*spore.Template, error) {
	base, err := tx.Template(s.TemplateID)
	if err != nil {
		return nil, err
	}
	refs, err := tx.Refs(store.RefFilter{TemplateID: s.TemplateID, SandboxID: s.ID, Statuses: []spore.RuntimeRefStatus{spore.RefActive}})
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
	j.RequestID, j.Owner = key.Key, ""
	err := c.update(ctx, func(tx store.Tx) error {
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
		if err := c.underQuota(tx, t); err != nil {
			return err
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
			WithHint("choose another name, or remove it first: spore %s rm %s", old.Kind, name).Because(spore.ReasonDuplicate)
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
			OriginSandbox: q.OriginSandbox, ID: q.ID, ParentID: q.ParentID, ArtifactID: q.ArtifactID, Labels: q.Labels,
			Ephemeral: q.All, Deleted: q.All,
		})
		next = page.Next
		return err
	})
	return list, next, err
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
