package gatewaytest

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
)

func (s *Service) template(ref string) (*spore.Template, error) {
	for _, t := range s.templates {
		if (t.ID == ref || ref != "" && t.Name == ref) && t.Status != spore.TemplateDeleted {
			return t, nil
		}
	}
	if name, tag, err := spore.ParseAlias("template", ref); err == nil {
		if a := s.alias(name, tag); a != nil {
			return s.template(a.TemplateID)
		}
	}
	if ref == "" {
		return nil, spore.Invalidf("template", "no template given").Because(spore.ReasonTemplateIDRequired)
	}
	e := spore.Errorf(spore.CodeNotFound, "there is no template or snapshot %q", ref).WithHint("spore template ls")
	return nil, e.Because(spore.ReasonTemplateNotFound)
}

func (s *Service) addTemplate(t *spore.Template, op spore.Operation) (*spore.Template, *spore.Job, error) {
	if t.Name != "" {
		if err := spore.ValidateName("name", t.Name); err != nil {
			return nil, nil, err
		}
		if _, err := s.template(t.Name); err == nil {
			return nil, nil, spore.Errorf(spore.CodeConflict, "the name %s is taken", t.Name).Because(spore.ReasonDuplicate)
		}
	}
	if t.Kind == spore.KindSnapshot {
		t.ID, t.Status = s.id(spore.SnapshotPrefix, 24), spore.TemplateReady
	} else {
		t.ID, t.Status = s.id(spore.TemplatePrefix, 24), spore.TemplatePending
	}
	t.Resources = t.Resources.WithDefaults()
	t.Version, t.Engine, t.StorageBackend, t.RootfsSizeBytes = spore.DefaultTemplateVersion, "qemu", spore.StorageBackendLayers, 70<<20
	if t.Request == nil {
		t.Request = []byte("{}")
	}
	t.MemoryBytes, t.DiskBytes, t.CreatedAt, t.UpdatedAt = 24<<20, 1<<20, Start, Start
	j := &spore.Job{ID: s.id(spore.JobPrefix, 24), Operation: op, ResourceType: t.Kind, ResourceID: t.ID, SandboxID: t.OriginSandbox, Status: spore.JobRunning, Phase: spore.PhasePulling, AttemptNo: 1, CreatedAt: Start, StartedAt: Start}
	t.JobID = j.ID
	s.templates = append(s.templates, t)
	s.jobs = append(s.jobs, j)
	s.logs[j.ID] = []spore.LogLine{{Seq: 1, Time: Start, Level: "info", Message: "begun"}}
	if s.AutoFinish || t.Kind == spore.KindSnapshot {
		s.end(j, nil)
	}
	return clone(t), clone(j), nil
}

// AddTemplate adds a template that is READY.
func (s *Service) AddTemplate(name string) *spore.Template {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, j, err := s.addTemplate(&spore.Template{
		Name: name, Kind: spore.KindTemplate, Image: spore.Image{Reference: "example.test/" + name + ":1", Digest: "sha256:00", Platform: "linux/amd64"},
		ArtifactID: s.addArtifact("root filesystem of " + name).ID, KernelID: "krn-000000000000000000000001",
		Process: spore.Process{Entrypoint: []string{"/bin/serve"}, Cmd: []string{"--all"}, Env: []string{"A=1"}, User: "app", WorkDir: "/srv"},
		Labels:  map[string]string{"team": "red"},
	}, spore.OpCreate)
	if err != nil {
		panic(err)
	}
	for _, job := range s.jobs {
		if job.ID == j.ID && job.Status.Active() {
			s.end(job, nil)
		}
	}
	t.Status = spore.TemplateReady
	return t
}

func (s *Service) BuildTemplate(_ context.Context, key center.Idempotency, req center.BuildRequest) (*spore.Template, *spore.Job, error) {
	if err := s.enter("BuildTemplate"); err != nil {
		return nil, nil, err
	}
	defer s.mu.Unlock()
	if id, err := s.once(key); err != nil || id != "" {
		t, _ := s.template(id)
		if t == nil {
			return nil, nil, err
		}
		j, err := s.job(t.JobID)
		return clone(t), j, err
	}
	res := req.Resources.WithDefaults()
	if err := res.Validate(); err != nil {
		return nil, nil, err
	}
	if err := req.Readiness.Validate(); err != nil {
		return nil, nil, err
	}
	if req.Image == "" {
		return nil, nil, spore.Invalidf("image", "is empty")
	}
	if err := req.Replicas.Validate(); err != nil {
		return nil, nil, err
	}
	defaults, err := json.Marshal(req.Defaults)
	if err != nil {
		return nil, nil, err
	}
	proc := spore.Process{Entrypoint: req.Process.Entrypoint, Cmd: req.Process.Cmd, Env: req.Process.Env}
	if req.Process.User != nil {
		proc.User = *req.Process.User
	}
	if req.Process.WorkDir != nil {
		proc.WorkDir = *req.Process.WorkDir
	}
	t, j, err := s.addTemplate(&spore.Template{
		Name: req.Name, Kind: spore.KindTemplate, Image: spore.Image{Reference: req.Image}, Resources: res, Readiness: req.Readiness,
		Process: proc, Labels: req.Labels, KernelID: req.KernelID, EgressCA: spore.EgressCA{Baked: len(req.EgressCA) > 0},
		DisplayName: req.DisplayName, Author: req.Author, Reason: req.Reason, Retain: req.Retain, Policy: req.Policy, Replicas: req.Replicas,
		Request: defaults, NIC: req.Network != nil && req.Network.Connected(),
	}, spore.OpCreate)
	if err == nil {
		s.keep(key, t.ID)
	}
	return t, j, err
}

func (s *Service) CommitSandbox(_ context.Context, key center.Idempotency, id string, req center.CommitRequest) (*spore.Template, *spore.Job, error) {
	if err := s.enter("CommitSandbox"); err != nil {
		return nil, nil, err
	}
	defer s.mu.Unlock()
	b, err := s.running(id)
	if err != nil {
		return nil, nil, err
	}
	return s.addTemplate(&spore.Template{
		Name: req.Name, Kind: spore.KindTemplate, ParentID: b.TemplateID, OriginSandbox: id, Labels: req.Labels,
		DisplayName: req.DisplayName, Author: req.Author, Reason: req.Reason, Retain: req.Retain, Policy: req.Policy, Replicas: req.Replicas,
	}, spore.OpCommit)
}

func (s *Service) Template(_ context.Context, ref string) (*spore.Template, error) {
	if err := s.enter("Template"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	t, err := s.template(ref)
	if err != nil {
		return nil, err
	}
	return clone(t), nil
}

func (s *Service) Templates(_ context.Context, q center.TemplateQuery) ([]*spore.Template, string, error) {
	if err := s.enter("Templates"); err != nil {
		return nil, "", err
	}
	defer s.mu.Unlock()
	var found []*spore.Template
	for _, t := range s.templates {
		hidden := t.Ephemeral || t.Status == spore.TemplateDeleted || t.Status == spore.TemplateDeleting
		if q.ID != "" && t.ID != q.ID || q.ParentID != "" && t.ParentID != q.ParentID || q.ArtifactID != "" && t.ArtifactID != q.ArtifactID {
			continue
		}
		if hidden && !q.All || q.Kind != "" && t.Kind != q.Kind || q.Status != "" && t.Status != q.Status || q.Name != "" && t.Name != q.Name ||
			q.OriginSandbox != "" && t.OriginSandbox != q.OriginSandbox || !hasLabels(t.Labels, q.Labels) {
			continue
		}
		found = append(found, clone(t))
	}
	return page(found, q.Limit, q.PageToken)
}

func (s *Service) CreateSandbox(ctx context.Context, key center.Idempotency, req center.CreateRequest) (*spore.Sandbox, error) {
	if s.Wait != nil {
		s.Wait(ctx)
	}
	if err := s.enter("CreateSandbox"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if id, err := s.once(key); err != nil || id != "" {
		if err != nil {
			return nil, err
		}
		return s.sandbox(id)
	}
	t, err := s.template(req.Template)
	if err != nil {
		return nil, err
	}
	if err := t.Startable(); err != nil {
		return nil, err
	}
	if node := req.PreferredNode; node != "" && node != "local" {
		return nil, spore.Errorf(spore.CodeConflict, "%s is not ready on %s", t.ID, node).Because(spore.ReasonNoReadyReplica)
	}
	b := s.addSandbox(t.ID, req.TTL, req.OnEnd, req.Env, req.Labels)
	b.Network, b.Ports, b.Limits, b.Disks = req.Wiring.Network(), pick(req.Wiring.Ports), req.Wiring.Limits, req.Disks
	s.keep(key, b.ID)
	return clone(b), nil
}

func (s *Service) addSandbox(template string, ttl time.Duration, onEnd spore.EndAction, env, labels map[string]string) *spore.Sandbox {
	b := &spore.Sandbox{
		ID: s.id("s", 20), State: spore.SandboxRunning, TemplateID: template, NodeID: "local", Generation: 1, Resources: spore.Resources{}.WithDefaults(),
		Labels: labels, Env: env, CreatedAt: Start, UpdatedAt: Start, OnEnd: cmp.Or(onEnd, spore.EndKill),
	}
	if ttl > 0 {
		b.EndsAt = Start.Add(ttl)
	}
	s.sandboxes = append(s.sandboxes, b)
	s.attach(b, "")
	return b
}

func (s *Service) find(id string) (*spore.Sandbox, error) {
	for _, b := range s.sandboxes {
		if b.ID == id && b.State != spore.SandboxKilled {
			return b, nil
		}
	}
	return nil, spore.Errorf(spore.CodeNotFound, "there is no sandbox %q", id).WithHint("spore sandbox ls")
}

func (s *Service) sandbox(id string) (*spore.Sandbox, error) {
	b, err := s.find(id)
	if err != nil {
		return nil, err
	}
	return clone(b), nil
}

func (s *Service) running(id string) (*spore.Sandbox, error) {
	b, err := s.find(id)
	if err == nil && b.State != spore.SandboxRunning {
		return nil, spore.Errorf(spore.CodeConflict, "sandbox %s is %s", id, b.State).WithHint("spore sandbox resume %s", id)
	}
	return b, err
}

func (s *Service) Sandbox(_ context.Context, id string) (*spore.Sandbox, error) {
	if err := s.enter("Sandbox"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	return s.sandbox(id)
}

func (s *Service) Sandboxes(_ context.Context, q center.SandboxQuery) ([]*spore.Sandbox, string, error) {
	if err := s.enter("Sandboxes"); err != nil {
		return nil, "", err
	}
	defer s.mu.Unlock()
	states := map[spore.SandboxState]bool{}
	for _, st := range q.States {
		states[st] = true
	}
	var found []*spore.Sandbox
	for _, b := range s.sandboxes {
		if q.Node != "" && b.NodeID != q.Node {
			continue
		}
		if b.State == spore.SandboxKilled && !q.All || len(states) > 0 && !states[b.State] || q.Template != "" && b.TemplateID != q.Template || !hasLabels(b.Labels, q.Labels) {
			continue
		}
		found = append(found, clone(b))
	}
	return page(found, q.Limit, q.PageToken)
}

// Agent answers AgentTransport for a sandbox that runs.
func (s *Service) Agent(_ context.Context, id string) (http.RoundTripper, error) {
	if err := s.enter("Agent"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	if _, err := s.running(id); err != nil {
		return nil, err
	}
	if s.AgentTransport == nil {
		return nil, spore.Errorf(spore.CodeUnreachable, "the agent of %s does not answer", id)
	}
	return s.AgentTransport, nil
}
