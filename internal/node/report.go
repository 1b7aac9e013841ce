package node

import (
	"context"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// Report answers what the node is, how full it is and which VMs of sandboxes it has.
func (n *Node) Report(ctx context.Context) (*spore.NodeReport, error) {
	info, err := n.Engine(ctx)
	if err != nil {
		return nil, err
	}
	r := &spore.NodeReport{Node: spore.Node{
		ID: n.opt.ID, State: spore.NodeReady, Engine: info.Engine,
		Components: spore.Components{Engine: info.Engine, StateFormat: info.StateFormat, CPU: info.CPUFeatures},
		VCPUs:      n.cap.cpus, MemoryMiB: n.cap.totalMiB, MemoryPromisedMiB: n.cap.inUse(),
		Storage: n.guard.status(), SeenAt: time.Now(),
	}}
	if err := n.reportKernels(&r.Node); err != nil {
		return nil, err
	}
	formats, err := n.stateFormats(ctx, info)
	if err != nil {
		return nil, err
	}
	for _, format := range formats {
		if format != info.StateFormat {
			r.Node.Installed = append(r.Node.Installed, spore.Components{Engine: info.Engine, StateFormat: format})
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	r.Recovered = n.recovered
	for _, m := range n.machines {
		if m.owner.Sandbox == "" {
			continue
		}
		running := m.vm.State() != vmm.StateExited
		if running {
			r.Node.Sandboxes++
		}
		r.Machines = append(r.Machines, spore.Machine{
			SandboxID: m.owner.Sandbox, Generation: m.owner.Generation, FrozenID: m.owner.FrozenID, Running: running,
			Wiring: (&spore.Sandbox{Network: m.owner.Network, Ports: n.ports.of(m.owner.Sandbox), Limits: m.owner.Limits}).Wiring(),
		})
	}
	return r, nil
}

// versions is an engine of which several versions may be installed: it loads device state of the formats of all of them.
type versions interface {
	StateFormats(ctx context.Context) ([]string, error)
}

// stateFormats are the formats of device state that can be thawed here.
func (n *Node) stateFormats(ctx context.Context, now vmm.Info) ([]string, error) {
	v, ok := n.opt.Engine.(versions)
	if !ok {
		return []string{now.StateFormat}, nil
	}
	return v.StateFormats(ctx)
}

// reportKernels fills in the guest images. One that is damaged is left out: nothing can be thawed with it.
func (n *Node) reportKernels(to *spore.Node) error {
	bundles, err := n.opt.Kernels.List()
	if err != nil {
		n.log.Error("a kernel bundle cannot be used", "err", err)
	}
	for _, b := range bundles {
		to.Installed = append(to.Installed, spore.Components{GuestImage: b.ID, Agent: b.AgentVersion, Kernel: b.KernelVersion})
	}
	newest, err := n.opt.Kernels.Default()
	if isNotFound(err) || spore.CodeOf(err) == spore.CodeDamaged {
		return nil // unknown, until one is installed
	}
	if err != nil {
		return err
	}
	c := &to.Components
	c.GuestImage, c.Agent, c.Kernel = newest.ID, newest.AgentVersion, newest.KernelVersion
	return nil
}
