package daemon

import (
	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/kernel"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/qemu"
	"github.com/sporevm/spore/internal/vmm/sim"
)

// openEngine makes the hypervisor engine that cfg names. Whether KVM really runs a guest is tried with the newest kernel
// bundle, so the verdict waits until one is installed.
func openEngine(cfg Config, dir string, kernels *kernel.Store) (vmm.Engine, error) {
	switch cfg.Engine {
	case "", "qemu":
		return qemu.New(qemu.Options{})
	case "sim":
		return sim.New(sim.Options{}), nil
	}
	return nil, spore.Invalidf("engine", "%q is not known", cfg.Engine).WithHint(`"qemu" or "sim"`)
}
