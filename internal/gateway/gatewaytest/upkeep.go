package gatewaytest

import (
	"context"
	"slices"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
)

func (s *Service) Kernels(context.Context) ([]center.Kernel, error) {
	if err := s.enter("Kernels"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	return slices.Clone(s.kernels), nil
}

func (s *Service) InstallKernel(_ context.Context, _ center.KernelSource, progress func(string, int64, int64)) (*center.Kernel, error) {
	if err := s.enter("InstallKernel"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	progress("download", 0, 100)
	progress("download", 100, 100)
	if s.Fail != nil {
		if err := s.Fail("InstallKernel/unpack"); err != nil {
			return nil, err
		}
	}
	progress("unpack", 1, 1)
	k := center.Kernel{ID: s.id(spore.KernelPrefix, 24), KernelVersion: "6.1.0-33-cloud-amd64", AgentVersion: "0.1.0", Bytes: 21 << 20, CreatedAt: Start}
	s.kernels = append(s.kernels, k)
	return &k, nil
}

func (s *Service) RemoveKernel(_ context.Context, id string) error {
	if err := s.enter("RemoveKernel"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	for i, k := range s.kernels {
		if k.ID == id {
			s.kernels = slices.Delete(s.kernels, i, i+1)
			return nil
		}
	}
	return spore.Errorf(spore.CodeNotFound, "there is no kernel %q", id)
}

func (s *Service) Check(_ context.Context, full bool, progress func(string, int64, int64)) (*spore.CheckReport, error) {
	if err := s.enter("Check"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	progress("layers", 1, 2)
	progress("layers", 2, 2)
	r := &spore.CheckReport{Full: full, Objects: 2, Bytes: 4096}
	if s.Fail != nil && s.Fail("Check/problem") != nil {
		r.Problems = []spore.CheckProblem{{Object: "rfs-000000000000000000000001", Kind: "damaged", Detail: "frame 12 does not match its checksum", Hint: "build the template again"}}
	}
	return r, nil
}

func (s *Service) CollectGarbage(_ context.Context, dryRun bool) (*center.Collection, error) {
	if err := s.enter("CollectGarbage"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	return &center.Collection{
		Garbage:  spore.GarbageReport{DryRun: dryRun, Bytes: 1 << 20, Items: []spore.GarbageItem{{ID: "rfs-000000000000000000000009", Kind: "artifact", Bytes: 1 << 20, Reason: "no template uses it"}}},
		Policies: []center.PolicyRemoval{{TemplateID: "snap-000000000000000000000009", Name: "nightly", Kind: spore.KindSnapshot, Policy: "keep-last", Detail: "7 newer ones exist"}},
	}, nil
}

func (s *Service) Explain(_ context.Context, id string) (*center.Explanation, error) {
	if err := s.enter("Explain"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	t, err := s.template(id)
	if err != nil {
		return nil, err
	}
	return &center.Explanation{ID: t.ID, Kind: string(t.Kind), State: string(t.Status), StandsOn: []string{t.ArtifactID}, ExclusiveBytes: 25 << 20, SharedBytes: 70 << 20, ReclaimableBytes: 25 << 20}, nil
}

func (s *Service) Info(context.Context) (*center.Info, error) {
	if err := s.enter("Info"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	return &center.Info{Version: "0.1.0", NodeID: "local", DataDir: "/var/lib/spore", Engine: "qemu", EngineVersion: "7.2.22", Accel: "tcg", AccelReason: "no KVM here", Running: len(s.sandboxes), MemoryMiB: 16384, MemoryInUse: 512, DiskFreeBytes: 1 << 37}, nil
}

func (s *Service) Metrics(context.Context) (*center.Metrics, error) {
	if err := s.enter("Metrics"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	m := &center.Metrics{Jobs: map[spore.JobStatus]int{}, Nodes: map[spore.NodeState]int{}, Sandboxes: map[spore.SandboxState]int{}}
	for _, j := range s.jobs {
		m.Jobs[j.Status]++
	}
	for _, n := range s.nodes {
		m.Nodes[n.State]++
		if n.Draining {
			m.Draining++
		}
		m.Storage = append(m.Storage, center.NodeStorageStatus{NodeID: n.ID, Address: n.Address, NodeStorage: n.Storage})
	}
	for _, b := range s.sandboxes {
		m.Sandboxes[b.State]++
	}
	for _, stage := range append(slices.Clone(center.ResolveStages), center.ResolveTotal) {
		m.Resolve = append(m.Resolve, center.Histogram{Name: stage, Bounds: []float64{0.001, 0.01}, Counts: []uint64{3, 2, 1}, Sum: 0.25, Samples: 6})
	}
	return m, nil
}
