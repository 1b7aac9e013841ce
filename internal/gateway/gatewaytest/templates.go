package gatewaytest

import (
	"context"
	"slices"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
)

// attach gives a sandbox its ref and releases the one that it had.
func (s *Service) attach(b *spore.Sandbox, reason string) {
	s.release(b.ID, reason)
	s.refs = append(s.refs, &spore.RuntimeRef{
		ID: int64(len(s.refs) + 1), TemplateID: b.TemplateID, SandboxID: b.ID, NodeID: b.NodeID, Binding: spore.BindingMemoryBacking, SandboxGen: b.Generation,
		Status: spore.RefActive, AttachedAt: Start, LastSeenAt: Start,
	})
}

func (s *Service) release(sandbox, reason string) {
	for _, r := range s.refs {
		if r.SandboxID == sandbox && r.Status == spore.RefActive {
			r.Status, r.Reason, r.ReleasedAt = spore.RefReleased, reason, Start
		}
	}
}

func (s *Service) Refs(_ context.Context, q center.RefQuery) ([]*spore.RuntimeRef, int, error) {
	if err := s.enter("Refs"); err != nil {
		return nil, 0, err
	}
	defer s.mu.Unlock()
	template := ""
	if q.Template != "" {
		t, err := s.template(q.Template)
		if err != nil {
			return nil, 0, err
		}
		template = t.ID
	}
	if q.Sandbox != "" && !slices.ContainsFunc(s.sandboxes, func(b *spore.Sandbox) bool { return b.ID == q.Sandbox }) {
		return nil, 0, spore.Errorf(spore.CodeNotFound, "there is no sandbox %q", q.Sandbox)
	}
	var found []*spore.RuntimeRef
	for _, r := range slices.Backward(s.refs) {
		if (template == "" || r.TemplateID == template) && (q.Sandbox == "" || r.SandboxID == q.Sandbox) && (q.All || r.Status != spore.RefReleased) {
			found = append(found, clone(r))
		}
	}
	return found[:min(len(found), q.Limit)], len(found), nil
}

func (s *Service) TemplateDetails(_ context.Context, ref string) (*center.TemplateDetails, error) {
	if err := s.enter("TemplateDetails"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	t, err := s.template(ref)
	if err != nil {
		return nil, err
	}
	d := &center.TemplateDetails{Template: clone(t), Replicas: s.replicasOf(t.ID)}
	for _, a := range s.aliases {
		if a.TemplateID == t.ID {
			d.Aliases = append(d.Aliases, clone(a))
		}
	}
	if a, err := s.artifact(t.ArtifactID); err == nil {
		d.Artifact = clone(a.Artifact)
	}
	for _, j := range s.jobs {
		if j.ResourceID == t.ID {
			d.Job = clone(j)
		}
	}
	for _, r := range s.refs {
		if r.TemplateID == t.ID && r.Status != spore.RefReleased {
			d.RefCount++
			d.HeldBy = append(d.HeldBy, r.SandboxID)
		}
	}
	return d, nil
}

func (s *Service) UpdateTemplate(_ context.Context, ref string, req center.TemplateUpdate) (*spore.Template, error) {
	if err := s.enter("UpdateTemplate"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	t, err := s.template(ref)
	if err != nil {
		return nil, err
	}
	if req.Replicas != nil {
		if err := req.Replicas.Validate(); err != nil {
			return nil, err
		}
		t.Replicas = *req.Replicas
	}
	if req.DisplayName != nil {
		t.DisplayName = *req.DisplayName
	}
	if req.Labels != nil {
		t.Labels = req.Labels
	}
	if req.Retain != nil {
		t.Retain = *req.Retain
	}
	if req.Policy != nil {
		t.Policy = *req.Policy
	}
	return clone(t), nil
}

func (s *Service) DeleteTemplate(_ context.Context, key center.Idempotency, ref string, req center.DeleteRequest) (*center.Deletion, error) {
	if err := s.enter("DeleteTemplate"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	if id, err := s.once(key); err != nil || id != "" {
		return &center.Deletion{ID: id}, err
	}
	t, err := s.template(ref)
	if err != nil {
		return nil, err
	}
	d := &center.Deletion{ID: t.ID, DryRun: req.DryRun, FreesBytes: t.MemoryBytes + t.DiskBytes, Replicas: len(s.replicasOf(t.ID))}
	for _, b := range s.sandboxes {
		if b.TemplateID == t.ID && b.State != spore.SandboxKilled {
			d.HeldBy = append(d.HeldBy, b.ID)
			if b.State == spore.SandboxRunning {
				d.Running = append(d.Running, b.ID)
			}
		}
	}
	if len(d.HeldBy) > 0 {
		d.FreesBytes, d.RetainBytes = 0, d.FreesBytes
	}
	if req.DryRun {
		return d, nil
	}
	if len(d.Running) > 0 && !req.Force {
		return nil, spore.Errorf(spore.CodeInUse, "%s runs on %s", d.Running[0], t.Label()).WithHint("end it, or delete with --force").Because(spore.ReasonInUse)
	}
	op := spore.OpDelete
	if t.Kind == spore.KindSnapshot {
		op = spore.OpSnapshotDelete
	}
	j := &spore.Job{
		ID: s.id(spore.JobPrefix, 24), Operation: op, ResourceType: t.Kind, ResourceID: t.ID, RequestID: key.Key, Status: spore.JobReady, Phase: spore.PhaseReady,
		Progress: 100, AttemptNo: 1, CreatedAt: Start, StartedAt: Start, FinishedAt: Start.Add(time.Second),
	}
	s.jobs = append(s.jobs, j)
	t.Status, d.JobID = spore.TemplateDeleted, j.ID
	s.replicas = slices.DeleteFunc(s.replicas, func(r *spore.Replica) bool { return r.TemplateID == t.ID })
	s.aliases = slices.DeleteFunc(s.aliases, func(a *spore.Alias) bool { return a.TemplateID == t.ID })
	s.keep(key, t.ID)
	return d, nil
}

func (s *Service) JobDetails(_ context.Context, id string) (*center.JobDetails, error) {
	if err := s.enter("JobDetails"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	j, err := s.job(id)
	if err != nil {
		return nil, err
	}
	d := &center.JobDetails{Job: j}
	for _, t := range s.templates {
		if t.ID == j.ResourceID {
			d.TemplateStatus = t.Status
		}
	}
	if a, err := s.artifact(j.ArtifactID); err == nil {
		d.ArtifactStatus = a.Status
	}
	return d, nil
}

func (s *Service) PreviewSandbox(_ context.Context, req center.CreateRequest) (*center.Preview, error) {
	if err := s.enter("PreviewSandbox"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	p := &center.Preview{Request: req, Stages: []center.StageTime{{Stage: center.ResolveStages[0], Took: 30 * time.Microsecond}}}
	t, err := s.template(req.Template)
	if err != nil {
		p.Err = spore.AsError(err)
		return p, nil
	}
	p.Template, p.Resources = clone(t), t.Resources
	if p.Request.OnEnd == "" {
		p.Request.OnEnd = spore.EndKill
	}
	for _, n := range s.nodes {
		if n.State == spore.NodeForgotten {
			continue
		}
		c := center.Candidate{NodeID: n.ID, Address: n.Address, Why: "it has no replica"}
		for _, r := range s.replicasOf(t.ID) {
			if r.NodeID == n.ID {
				c.Fits, c.Why, c.Compat = r.Status == spore.ReplicaReady, "its replica is "+string(r.Status), r.CompatStatus
			}
		}
		if c.Fits && p.NodeID == "" && (req.PreferredNode == "" || req.PreferredNode == n.ID) {
			p.NodeID = n.ID
		}
		p.Candidates = append(p.Candidates, c)
	}
	if p.NodeID == "" {
		p.Err = spore.Errorf(spore.CodeConflict, "%s is ready on no node that may be used", t.Label()).Because(spore.ReasonNoReadyReplica)
	}
	p.Stages = append(p.Stages, center.StageTime{Stage: center.ResolveTotal, Took: 50 * time.Microsecond})
	return p, nil
}
