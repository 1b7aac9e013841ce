package daemon

import (
	"context"

	"github.com/sporevm/spore/internal/agent"
	"github.com/sporevm/spore/internal/center"
	"github.com/sporevm/spore/internal/gateway"
	"github.com/sporevm/spore/internal/kernel"
	"github.com/sporevm/spore/internal/kernel/initbin"
	"github.com/sporevm/spore/internal/node"
)

// service is what the gateway serves: the center, and beside it what is the machine's own business.
type service struct {
	*center.Center
	node    *node.Node
	version string
	dataDir string
	init    string
}

var _ gateway.Service = (*service)(nil)

func (s *service) Kernels(ctx context.Context) ([]center.Kernel, error) {
	bundles, err := s.node.Kernels(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]center.Kernel, len(bundles))
	for i, b := range bundles {
		list[i] = kernelView(b)
	}
	return list, nil
}

func kernelView(b node.Kernel) center.Kernel {
	return center.Kernel{
		ID: b.Bundle.ID, KernelVersion: b.Bundle.KernelVersion, AgentVersion: b.Bundle.AgentVersion, Bytes: b.Bundle.Size(),
		Default: b.Default, InUseBy: b.InUseBy, CreatedAt: b.Bundle.InstalledAt,
	}
}

func (s *service) InstallKernel(ctx context.Context, src center.KernelSource, progress func(step string, done, total int64)) (*center.Kernel, error) {
	init, err := initbin.Load(s.init)
	if err != nil {
		return nil, err
	}
	bundle, err := s.node.InstallKernel(ctx, kernel.Source{
		Package: src.Package, Kernel: src.Kernel, Modules: src.Modules, Init: init, AgentVersion: agent.Version,
	}, func(step string) { progress(step, 0, 0) })
	if err != nil {
		return nil, err
	}
	view := kernelView(node.Kernel{Bundle: bundle, Default: true})
	return &view, nil
}

func (s *service) RemoveKernel(ctx context.Context, id string) error {
	return s.node.RemoveKernel(ctx, id)
}

func (s *service) Info(ctx context.Context) (*center.Info, error) {
	u, err := s.node.Load()
	if err != nil {
		return nil, err
	}
	e, err := s.node.Engine(ctx)
	if err != nil {
		return nil, err
	}
	return &center.Info{
		Version: s.version, NodeID: s.node.ID(), DataDir: s.dataDir, Engine: e.Engine, EngineVersion: e.Version, Accel: e.Accel,
		AccelReason: e.AccelReason, Running: u.Machines, MemoryMiB: u.MemoryMiB, MemoryInUse: u.PromisedMiB,
		DiskFreeBytes: u.DiskFreeBytes, PoolReady: u.PoolReady,
	}, nil
}
