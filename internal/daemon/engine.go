package daemon

import (
	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/kernel"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/qemu"
	"github.com/sporevm/spore/internal/vmm/sim"
	"github.com/sporevm/spore/internal/vmm/sim/simguest"
)

// openEngine makes the hypervisor engine that cfg names. Whether KVM really runs a guest is tried with the newest kernel
// bundle; until one is installed there is nothing to try it with.
func openEngine(cfg Config, dir string, kernels *kernel.Store) (vmm.Engine, error) {
	switch cfg.Engine {
	case "", "qemu":
		opt := qemu.Options{Accel: cfg.Accel, StateDir: dir, Logger: cfg.Logger}
		if b, err := kernels.Default(); err == nil {
			opt.Kernel, opt.Initrd = b.VmlinuzPath(), b.InitrdPath()
		} else if spore.CodeOf(err) != spore.CodeNotFound {
			return nil, err
		}
		return qemu.New(opt)
	case "sim":
		return sim.New(sim.Options{Guest: simguest.New().Serve}), nil
	}
	return nil, spore.Invalidf("engine", "%q is not known", cfg.Engine).WithHint(`"qemu" or "sim"`)
}
