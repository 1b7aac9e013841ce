package gatewaytest

import (
	"context"
	"slices"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
)

func newNode(id, address string) *spore.Node {
	current := spore.Components{GuestImage: "krn-000000000000000000000001", Agent: "0.1.0", Kernel: "6.1.0-32-cloud-amd64", Engine: "qemu", EngineVersion: "7.2.22", StateFormat: "qemu-7.2/q35/tcg/0"}
	return &spore.Node{
		ID: id, Address: address, State: spore.NodeReady, Engine: "qemu", Labels: map[string]string{"zone": "a"}, Components: current,
		Networks: []spore.NodeNetwork{
			{Mode: spore.NetworkNone}, {Mode: spore.NetworkUser}, {Mode: spore.NetworkIsolated, WhyNot: "network namespaces need root"},
		},
		VCPUs: 8, MemoryMiB: 16384, MemoryPromisedMiB: 512,
		Storage: spore.NodeStorage{
			TotalBytes: 100 << 30, UsedBytes: 40 << 30, ReservedBytes: 1 << 30, Mode: spore.StorageHealthy, Limits: spore.DefaultStorageLimits, MeasuredAt: Start,
		},
		CreatedAt: Start, UpdatedAt: Start, SeenAt: Start,
	}
}

// SetNode adds a node, or puts it in place of the one with its id.
func (s *Service) SetNode(n *spore.Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, old := range s.nodes {
		if old.ID == n.ID {
			s.nodes[i] = clone(n)
			return
		}
	}
	s.nodes = append(s.nodes, clone(n))
}

func (s *Service) node(id string) (*spore.Node, error) {
	for _, n := range s.nodes {
		if n.ID == id && n.State != spore.NodeForgotten {
			return n, nil
		}
	}
	return nil, spore.Errorf(spore.CodeNotFound, "there is no node %q", id).WithHint("spore node ls")
}

func (s *Service) knownNodes(ids []string) error {
	for _, id := range ids {
		if _, err := s.node(id); err != nil {
			return spore.Invalidf("nodes", "there is no node %q", id).WithHint("spore node ls").Because(spore.ReasonNoNodes)
		}
	}
	return nil
}

func (s *Service) Nodes(_ context.Context, forgotten bool) ([]*spore.Node, error) {
	if err := s.enter("Nodes"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	var found []*spore.Node
	for _, n := range s.nodes {
		if n.State != spore.NodeForgotten || forgotten {
			found = append(found, clone(n))
		}
	}
	return found, nil
}

func (s *Service) Node(_ context.Context, id string) (*spore.Node, error) {
	return s.changeNode("Node", id, func(*spore.Node) {})
}

func (s *Service) UpdateNode(_ context.Context, id string, req center.NodeUpdate) (*spore.Node, error) {
	return s.changeNode("UpdateNode", id, func(n *spore.Node) { n.Labels = req.Labels })
}

func (s *Service) DrainNode(_ context.Context, id string, drain bool) (*spore.Node, error) {
	return s.changeNode("DrainNode", id, func(n *spore.Node) { n.Draining = drain })
}

func (s *Service) changeNode(method, id string, f func(*spore.Node)) (*spore.Node, error) {
	if err := s.enter(method); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	n, err := s.node(id)
	if err != nil {
		return nil, err
	}
	f(n)
	return clone(n), nil
}

func (s *Service) ForgetNode(_ context.Context, id string, dryRun bool) (*center.Forgetting, error) {
	if err := s.enter("ForgetNode"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	n, err := s.node(id)
	if err != nil {
		return nil, err
	}
	if n.State == spore.NodeReady {
		return nil, spore.Errorf(spore.CodeConflict, "node %s is there", id).WithHint("spore node drain %s", id)
	}
	f := &center.Forgetting{NodeID: id, DryRun: dryRun}
	for _, r := range s.replicas {
		if r.NodeID == id {
			f.Replicas++
			f.Lost = append(f.Lost, r.TemplateID)
		}
	}
	for _, b := range s.sandboxes {
		if b.NodeID == id && b.State != spore.SandboxKilled {
			f.Sandboxes = append(f.Sandboxes, b.ID)
		}
	}
	if !dryRun {
		n.State = spore.NodeForgotten
		s.replicas = slices.DeleteFunc(s.replicas, func(r *spore.Replica) bool { return r.NodeID == id })
	}
	return f, nil
}

func (s *Service) NodeStorage(_ context.Context, refresh bool) ([]center.NodeStorageStatus, error) {
	if err := s.enter("NodeStorage"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	var out []center.NodeStorageStatus
	for _, n := range s.nodes {
		storage := n.Storage
		if n.State != spore.NodeReady && refresh {
			storage.Mode, storage.LastError = spore.StorageUnknown, "node "+n.ID+" does not answer"
		}
		out = append(out, center.NodeStorageStatus{NodeID: n.ID, Address: n.Address, NodeStorage: storage})
	}
	return out, nil
}

// placed writes how the making of a template's replica on the first node ended.
func (s *Service) placed(t *spore.Template, j *spore.Job, err error) {
	n := s.nodes[0]
	r := &spore.Replica{
		TemplateID: t.ID, NodeID: n.ID, Status: spore.ReplicaReady, Phase: spore.ReplicaPhaseReady, ArtifactID: t.ArtifactID, LastJobID: j.ID,
		Bound: n.Components, CompatStatus: spore.CompatOK, CompatPolicy: spore.PolicyStrict, CompatCheckedAt: Start, VerifiedAt: Start, UpdatedAt: Start,
	}
	if err != nil {
		r.Status, r.Phase, r.LastErrorPhase, r.ErrorMessage, r.Attempts = spore.ReplicaFailed, spore.ReplicaPhaseFailed, spore.ReplicaSnapshotting, err.Error(), 1
	}
	s.setReplica(r)
}

func (s *Service) setReplica(r *spore.Replica) {
	for i, old := range s.replicas {
		if old.TemplateID == r.TemplateID && old.NodeID == r.NodeID {
			s.replicas[i] = r
			return
		}
	}
	s.replicas = append(s.replicas, r)
}

// SetReplica adds a replica, or puts it in place of the one of its template on its node.
func (s *Service) SetReplica(r *spore.Replica) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setReplica(clone(r))
}

func (s *Service) replicasOf(template string) []*spore.Replica {
	var found []*spore.Replica
	for _, r := range s.replicas {
		if r.TemplateID == template {
			found = append(found, clone(r))
		}
	}
	return found
}

func (s *Service) Replicas(_ context.Context, ref string) ([]*spore.Replica, error) {
	if err := s.enter("Replicas"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	t, err := s.template(ref)
	if err != nil {
		return nil, err
	}
	return s.replicasOf(t.ID), nil
}

func (s *Service) ReadyNodes(_ context.Context, ref string) (*center.NodeScope, error) {
	if err := s.enter("ReadyNodes"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	t, err := s.template(ref)
	if err != nil {
		return nil, err
	}
	return s.scope(t)
}

func (s *Service) scope(t *spore.Template) (*center.NodeScope, error) {
	out := &center.NodeScope{TemplateID: t.ID}
	for _, r := range s.replicasOf(t.ID) {
		switch {
		case r.Status == spore.ReplicaReady && r.CompatStatus == spore.CompatStale:
			out.Stale = append(out.Stale, r.NodeID)
		case r.Status == spore.ReplicaReady:
			out.Ready = append(out.Ready, r.NodeID)
		}
	}
	switch {
	case len(out.Ready) > 0:
		return out, nil
	case len(out.Stale) > 0:
		gaps := map[string]spore.Gap{}
		for _, id := range out.Stale {
			gaps[id] = spore.Gap{Why: "it was frozen with other components"}
		}
		return nil, spore.StaleNeedsRedo(t.ID, gaps)
	}
	return nil, spore.Errorf(spore.CodeConflict, "%s is ready on no node", t.Label()).Because(spore.ReasonNoReadyReplica)
}

func (s *Service) RedoTemplate(_ context.Context, key center.Idempotency, ref string, req center.RedoRequest) (*spore.Job, error) {
	if err := s.enter("RedoTemplate"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	if id, err := s.once(key); err != nil || id != "" {
		if err != nil {
			return nil, err
		}
		return s.job(id)
	}
	t, err := s.template(ref)
	if err != nil {
		return nil, err
	}
	if err := s.knownNodes(req.Nodes); err != nil {
		return nil, err
	}
	failed := slices.ContainsFunc(s.replicasOf(t.ID), func(r *spore.Replica) bool { return r.Status != spore.ReplicaReady })
	if (req.Mode == spore.RedoFailedOnly || req.Mode == spore.RedoFailedNodes) && !failed {
		return nil, spore.Errorf(spore.CodeInvalid, "no replica of %s has failed", t.Label()).Because(spore.ReasonNothingFailed)
	}
	for _, j := range s.jobs {
		if j.ResourceID == t.ID && j.Status.Active() {
			return nil, spore.Errorf(spore.CodeBusy, "job %s is at work on %s", j.ID, t.Label()).Because(spore.ReasonInProgress)
		}
	}
	j := &spore.Job{
		ID: s.id(spore.JobPrefix, 24), Operation: spore.OpRedo, ResourceType: t.Kind, ResourceID: t.ID, Status: spore.JobRunning, Phase: spore.PhaseSnapshotting,
		Owner: "controller-1", RequestID: key.Key, AttemptNo: 2, RetryOfJobID: t.JobID, Nodes: spore.NodeCounts{Expected: max(1, len(req.Nodes))}, ArtifactID: t.ArtifactID,
		Redo: spore.RedoPlan{Mode: req.Mode, Scope: req.Nodes, ResumePhase: spore.PhaseSnapshotting}, CreatedAt: Start, StartedAt: Start,
	}
	s.jobs = append(s.jobs, j)
	s.keep(key, j.ID)
	if s.AutoFinish {
		s.end(j, nil)
	}
	return clone(j), nil
}

func (s *Service) CompatMatrix(_ context.Context, q center.CompatQuery) (*spore.CompatMatrix, error) {
	if err := s.enter("CompatMatrix"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	m := &spore.CompatMatrix{}
	only := ""
	if q.Template != "" {
		t, err := s.template(q.Template)
		if err != nil {
			return nil, err
		}
		only = t.ID
	}
	var rows []spore.CompatRow
	affected := map[string]bool{}
	for _, t := range s.templates {
		row := spore.CompatRow{TemplateID: t.ID, Name: t.Name, Kind: t.Kind, Engine: t.Engine, Overall: spore.CompatOK}
		for _, r := range s.replicasOf(t.ID) {
			n, err := s.node(r.NodeID)
			if err != nil {
				return nil, err
			}
			switch r.CompatStatus {
			case spore.CompatStale:
				m.Summary.StaleReplicas++
				affected[n.ID] = true
				row.Overall = spore.CompatStale
			case spore.CompatUnknown:
				m.Summary.UnknownReplicas++
				if row.Overall == spore.CompatOK {
					row.Overall = spore.CompatUnknown
				}
			}
			row.Nodes = append(row.Nodes, spore.NodeCompat{NodeID: n.ID, NodeAddress: n.Address, Status: r.CompatStatus, Policy: r.CompatPolicy, Bound: r.Bound, Current: n.Components, CheckedAt: r.CompatCheckedAt})
			row.Nodes[len(row.Nodes)-1].Gap = r.CompatPolicy.Gap(r.Bound, n.Components, n.Installed)
		}
		if row.Overall == spore.CompatStale {
			m.Summary.StaleTemplates++
		}
		if t.Status != spore.TemplateDeleted && (only == "" || only == t.ID) {
			rows = append(rows, row)
		}
	}
	m.Summary.AffectedNodes = len(affected)
	var err error
	m.Templates, m.Next, err = page(rows, q.Limit, q.PageToken)
	return m, err
}

func (s *Service) ScanCompat(_ context.Context, nodes []string) (*center.CompatScan, error) {
	if err := s.enter("ScanCompat"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	if err := s.knownNodes(nodes); err != nil {
		return nil, err
	}
	out := &center.CompatScan{Nodes: nodes}
	for _, n := range s.nodes {
		if len(nodes) == 0 {
			out.Nodes = append(out.Nodes, n.ID)
		}
		if len(nodes) > 0 && !slices.Contains(nodes, n.ID) {
			continue
		}
		for _, r := range s.replicas {
			if r.NodeID != n.ID {
				continue
			}
			out.Replicas++
			now := r.CompatPolicy.Serves(r.Bound, n.Components, n.Installed)
			if now != r.CompatStatus {
				out.Changed++
			}
			if r.CompatStatus = now; now == spore.CompatStale {
				out.Stale++
			}
		}
	}
	return out, nil
}

func (s *Service) AdoptBaseline(_ context.Context, req center.AdoptRequest) (int, error) {
	if err := s.enter("AdoptBaseline"); err != nil {
		return 0, err
	}
	defer s.mu.Unlock()
	if err := s.knownNodes(req.Nodes); err != nil {
		return 0, err
	}
	only := ""
	if req.Template != "" {
		t, err := s.template(req.Template)
		if err != nil {
			return 0, err
		}
		only = t.ID
	}
	adopted := 0
	for _, r := range s.replicas {
		if r.CompatStatus == spore.CompatUnknown && (only == "" || r.TemplateID == only) && (len(req.Nodes) == 0 || slices.Contains(req.Nodes, r.NodeID)) {
			r.CompatStatus = spore.CompatOK
			adopted++
		}
	}
	return adopted, nil
}
