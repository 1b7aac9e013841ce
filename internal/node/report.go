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
		Components: components(info), Networks: n.reportNetworks(),
		VCPUs: n.cap.cpus, MemoryMiB: n.cap.totalMiB, MemoryPromisedMiB: n.cap.inUse(),
		Storage: n.guard.status(), SeenAt: time.Now(),
	}}
	if err := n.reportKernels(&r.Node); err != nil {
		return nil, err
	}
	versions, err := n.versions(ctx)
	if err != nil {
		return nil, err
	}
	for _, v := range versions {
		if v.StateFormat != info.StateFormat {
			r.Node.Installed = append(r.Node.Installed, v)
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

// components are what of an engine frozen states depend on.
func components(info vmm.Info) spore.Components {
	return spore.Components{Engine: info.Engine, EngineVersion: info.Version, StateFormat: info.StateFormat, CPU: info.CPUFeatures}
}

// versions is an engine of which several versions may be installed: it loads what any of them has saved. The answer need not name two
// that have one format of device state.
type versions interface {
	Versions(ctx context.Context) ([]vmm.Info, error)
}

// versions are those of the engine beside the one that starts new VMs, which may be among them.
func (n *Node) versions(ctx context.Context) (all []spore.Components, err error) {
	v, ok := n.opt.Engine.(versions)
	if !ok {
		return nil, nil
	}
	found, err := v.Versions(ctx)
	for _, info := range found {
		c := components(info)
		c.CPU = "" // one machine, one processor
		all = append(all, c)
	}
	return all, err
}

// reportNetworks says of each network mode whether this machine has it, and if not, why.
func (n *Node) reportNetworks() []spore.NodeNetwork {
	modes := []spore.NodeNetwork{{Mode: spore.NetworkNone}}
	for _, mode := range []spore.NetworkMode{spore.NetworkUser, spore.NetworkIsolated} {
		has := spore.NodeNetwork{Mode: mode}
		if n.opt.Networks[mode] == nil {
			if has.WhyNot = "the server was started without it"; n.opt.NoNetworks[mode] != nil {
				has.WhyNot = spore.AsError(n.opt.NoNetworks[mode]).Message
			}
		}
		modes = append(modes, has)
	}
	return modes
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
