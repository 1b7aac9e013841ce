package node

import (
	"context"
	"slices"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// driveLimits is what the limits of a sandbox are for each of its drives.
func driveLimits(l spore.Limits) vmm.DriveLimits {
	return vmm.DriveLimits{BytesPerSecond: int64(l.DiskMBps) * 1_000_000, OpsPerSecond: int64(l.DiskIOPS)}
}

// throttle gives all drives of a VM that is about to start their limits.
func throttle(cfg *vmm.Config, l spore.Limits) {
	cfg.Drives = slices.Clone(cfg.Drives)
	for i := range cfg.Drives {
		cfg.Drives[i].Limits = driveLimits(l)
	}
}

// govern bounds the processor time of a VM that runs.
func (n *Node) govern(ctx context.Context, m *machine, cpus float64) error {
	if n.opt.Governor != nil {
		n.mu.Lock()
		m.owner.Governed = true
		n.mu.Unlock()
		var own []string
		if g, is := m.vm.(vmm.Grouped); is {
			own = g.Cgroups()
		}
		return n.opt.Governor.Govern(ctx, m.id, m.vm.PID(), own, cpus)
	}
	if cpus == 0 {
		return nil
	}
	e := spore.Errorf(spore.CodeUnsupported, "node %s cannot bound the processor time of sandboxes", n.opt.ID)
	if n.opt.NoGovernor != nil {
		e = spore.Errorf(spore.CodeUnsupported, "node %s cannot bound the processor time of sandboxes: %s", n.opt.ID, spore.AsError(n.opt.NoGovernor).Message).
			WithCause(n.opt.NoGovernor)
	}
	e.Field = "limits.cpus"
	return e
}

// Adjust brings policy and limits of a running VM in line with s.
func (n *Node) Adjust(ctx context.Context, s *spore.Sandbox) error {
	m, err := n.machine(s.ID, s.Generation)
	if err != nil {
		return err
	}
	if m.vm.State() == vmm.StateExited {
		return errDead
	}
	m.adjusting.Lock()
	defer m.adjusting.Unlock()
	n.mu.Lock()
	now := m.owner
	n.mu.Unlock()
	if now.Network.Mode != s.Network.Mode {
		e := spore.Errorf(spore.CodeUnsupported, "the network mode of a running sandbox cannot be changed")
		e.Field = "network.mode"
		return e
	}
	if now, err = n.adjust(ctx, m, now, s); err != nil {
		return err
	}
	n.mu.Lock()
	m.owner.Network, m.owner.Limits, m.owner.Config, m.owner.Governed = now.Network, now.Limits, now.Config, now.Governed
	n.mu.Unlock()
	return nil
}

// adjust brings a VM in line with s, and answers what its owner file says then. When one step fails, those before are taken back.
func (n *Node) adjust(ctx context.Context, m *machine, now owner, s *spore.Sandbox) (_ owner, err error) {
	back := context.WithoutCancel(ctx)
	var undo []func() error
	defer func() {
		if err == nil {
			return
		}
		for _, fn := range undo {
			if undone := fn(); undone != nil {
				n.log.Error("taking back a change of limits", "vm", m.id, "sandbox", s.ID, "err", undone)
			}
		}
	}()
	if from, to := driveLimits(now.Limits), driveLimits(s.Limits); from != to {
		if err := limitDrives(ctx, m.vm, now.Config.Drives, to); err != nil {
			return now, err
		}
		undo = append(undo, func() error { return limitDrives(back, m.vm, now.Config.Drives, from) })
	}
	if now.Limits.CPUs != s.Limits.CPUs {
		if err := n.govern(ctx, m, s.Limits.CPUs); err != nil {
			return now, err
		}
		undo = append(undo, func() error { return n.govern(back, m, now.Limits.CPUs) })
	}
	if s.Network.Connected() {
		nets, err := n.networks(s.Network.Mode)
		if err != nil {
			return now, err
		}
		if err := nets.Update(ctx, m.id, s.Network, s.Limits); err != nil {
			return now, err
		}
		undo = append(undo, func() error { return nets.Update(back, m.id, now.Network, now.Limits) })
	}
	next := now
	next.Network, next.Limits = s.Network, s.Limits
	next.Governed = now.Governed || now.Limits.CPUs != 0 || s.Limits.CPUs != 0
	throttle(&next.Config, s.Limits)
	return next, writeOwner(n.machineDir(m.id), next)
}

// limitDrives sets the limits of all drives of a VM.
func limitDrives(ctx context.Context, vm vmm.VM, drives []vmm.Drive, l vmm.DriveLimits) error {
	t, can := vm.(vmm.Throttler)
	if !can {
		e := spore.Errorf(spore.CodeUnsupported, "this engine cannot change the limits of disks while a sandbox runs").
			WithHint("pause the sandbox first; they hold once it is resumed")
		e.Field = "limits.diskMBps"
		return e
	}
	for _, d := range drives {
		if err := t.LimitDrive(ctx, d.ID, l); err != nil {
			return err
		}
	}
	return nil
}
