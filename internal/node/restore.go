package node

import (
	"context"
	"errors"
	"maps"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// Carrier is a way of connecting VMs in which each connection hangs on a process of its own, which may end before its VM does.
type Carrier interface {
	Networks
	// Watch waits until the process of a VM's connection has ended, and says how, with spore.CodeNotFound; with spore.CodeDamaged it is
	// not known any more which one it is. It fails otherwise when ctx ends first, or the process cannot be watched.
	Watch(ctx context.Context, vm string) error
	// Restore makes the connection of a running VM anew; pid is the hypervisor's process. What is left of the old one is removed, be
	// it whole or not. The VM still has to be plugged in where the answer says. On error nothing of the new one is left.
	Restore(ctx context.Context, a Attached, pid int) (Link, error)
}

const (
	// restoreTimeout bounds how long a sandbox may be without its network before it counts as lost.
	restoreTimeout = 30 * time.Second
	// partingTime is how long an end of the network that comes with the end of the VM may be ahead of it.
	partingTime = 50 * time.Millisecond
	// A network that is lost so often in so short a time is lost again as soon as it is restored.
	mostLosses = 5
	lossesSpan = time.Minute
)

// carrier answers what the connection of a VM hangs on; nil when that is no process.
func (n *Node) carrier(m *machine) Carrier {
	n.mu.Lock()
	mode := m.owner.Network.Mode
	n.mu.Unlock()
	c, _ := n.opt.Networks[mode].(Carrier)
	return c
}

// watchNetwork keeps a VM connected for as long as it lives: a network that is lost is restored. Where that fails the sandbox does,
// since one that goes on without a network would not be what it says.
func (n *Node) watchNetwork(m *machine) {
	c := n.carrier(m)
	if c == nil {
		return
	}
	var losses []time.Time
	for {
		why := c.Watch(m.held, m.id)
		if m.parting() {
			return
		}
		if code := spore.CodeOf(why); code != spore.CodeNotFound && code != spore.CodeDamaged {
			n.log.Error("the network of a sandbox cannot be watched; trying again", "vm", m.id, "err", why)
			select {
			case <-m.held.Done():
			case <-time.After(time.Second):
			}
			continue
		}
		n.log.Warn("a sandbox has lost its network; it is made anew", "vm", m.id, "err", why)
		losses = append(losses, time.Now())
		if k := len(losses) - mostLosses; k >= 0 && time.Since(losses[k]) < lossesSpan {
			n.fail(m, spore.Errorf(spore.CodeConflict, "its network was lost %d times within %s; the last time: %w", mostLosses, lossesSpan, why))
			return
		}
		if err := n.restore(m, why); err != nil {
			if !m.parting() {
				n.fail(m, err)
			}
			return
		}
		n.log.Info("a sandbox has its network again; connections that were open are lost", "vm", m.id)
	}
}

// parting says whether a VM has ended, is about to, or is not this server's any more.
func (m *machine) parting() bool {
	select {
	case <-m.vm.Done():
		return true
	case <-m.held.Done():
		return true
	case <-time.After(partingTime):
		return m.vm.State() == vmm.StateExited
	}
}

// restore makes a network anew that was lost because of why, under the policy that holds now. The error says that it cannot go on.
func (n *Node) restore(m *machine, why error) (err error) {
	m.adjusting.Lock()
	defer m.adjusting.Unlock()
	if m.held.Err() != nil {
		return errDead
	}
	ctx, cancel := context.WithTimeout(m.held, restoreTimeout)
	defer cancel()
	n.mu.Lock()
	o := m.owner
	n.mu.Unlock()
	defer func() {
		if err != nil {
			err = spore.Errorf(spore.CodeConflict, "its network was lost (%w) and cannot be restored: %w", why, err)
		}
	}()
	c, is := n.opt.Networks[o.Network.Mode].(Carrier)
	if !is {
		return spore.Errorf(spore.CodeUnsupported, "in mode %s there is nothing to do it with", o.Network.Mode)
	}
	o.Cut = true // if this server ends in the middle, the next one begins again
	if err := writeOwner(n.machineDir(m.id), o); err != nil {
		return err
	}
	link, err := c.Restore(ctx, Attached{VM: m.id, Dir: n.machineDir(m.id), Network: o.Network, Limits: o.Limits}, m.vm.PID())
	if err != nil {
		return err
	}
	link.NIC.MAC = GuestMAC
	o.Config.NIC, o.Cut = &link.NIC, false
	if err = replug(ctx, m.vm, link.NIC); err == nil {
		err = writeOwner(n.machineDir(m.id), o)
	}
	if err != nil {
		if m.held.Err() == nil { // else whoever ends the VM does it, or the next server goes on with it
			err = errors.Join(err, c.Detach(context.WithoutCancel(ctx), m.id))
		}
		return err
	}
	n.mu.Lock()
	m.owner.Config, m.owner.Cut = o.Config, false
	n.mu.Unlock()
	return nil
}

// replug leads a VM's cable to a connection that was made anew. A TAP device is the VM's all along.
func replug(ctx context.Context, vm vmm.VM, nic vmm.NIC) error {
	if nic.Socket == "" {
		return nil
	}
	r, can := vm.(vmm.Replugger)
	if !can {
		return spore.Errorf(spore.CodeUnsupported, "this engine cannot lead the cable of a running VM elsewhere")
	}
	return r.Replug(ctx, nic)
}

// fail ends the VM of a sandbox that cannot go on because of why, which is what the sandbox has failed of then.
func (n *Node) fail(m *machine, why error) {
	reason := spore.AsError(why).Message
	m.failed.Store(&reason)
	n.log.Error("a sandbox cannot go on", "vm", m.id, "err", why)
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		ctx, cancel := context.WithTimeout(m.held, killTimeout)
		err := m.vm.Kill(ctx)
		cancel()
		if err == nil || m.held.Err() != nil {
			return
		}
		n.log.Error("a VM does not end; trying again", "vm", m.id, "err", err)
		select {
		case <-m.held.Done():
			return
		case <-time.After(wait):
		}
	}
}

// links has those who connect and bound VMs take over what belongs to VMs that are there, and remove the rest. Networks that were
// lost meanwhile are restored; sandboxes whose network cannot be have failed.
func (r *recovery) links(ctx context.Context) error {
	n := r.node
	n.mu.Lock()
	keep := map[spore.NetworkMode][]Attached{}
	for _, l := range n.links {
		keep[l.Network.Mode] = append(keep[l.Network.Mode], l)
	}
	known := maps.Clone(n.machines) // of others a connection may be in the making
	n.mu.Unlock()
	lost := map[string]error{}
	for mode, nets := range n.opt.Networks {
		gone, err := nets.Recover(ctx, keep[mode])
		if err != nil {
			return err
		}
		maps.Copy(lost, gone)
	}
	var g errgroup.Group
	g.SetLimit(adoptions)
	for _, m := range r.adopted {
		why := lost[m.id]
		delete(lost, m.id)
		g.Go(func() error {
			r.connect(m, why)
			return nil
		})
	}
	for vm, why := range lost {
		if m := known[vm]; m != nil {
			n.bereave(m, why)
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if n.opt.Governor == nil {
		return nil
	}
	return n.opt.Governor.Recover(ctx, n.cap.ids())
}

// bereave ends a VM that ran under this server while it lost its network, where nobody watches for that.
func (n *Node) bereave(m *machine, why error) {
	if n.carrier(m) == nil && !m.ending.Load() && !m.parting() {
		go n.fail(m, spore.Errorf(spore.CodeConflict, "its network was lost: %w", why))
	}
}

// connect sees to the network of a VM that was taken over; why says how it was lost, if it was.
func (r *recovery) connect(m *machine, why error) {
	n := r.node
	if why == nil && m.owner.Cut {
		why = errors.New("it was lost before, and not restored by the server that began to")
	}
	if why != nil {
		n.log.Warn("a sandbox has lost its network; it is made anew", "vm", m.id, "err", why)
		if err := n.restore(m, why); err != nil {
			r.mu.Lock()
			r.failed[m.owner.Sandbox] = err
			r.mu.Unlock()
			m.ending.Store(true) // it is known that it has failed
			go n.fail(m, err)
			return
		}
	}
	go n.watchNetwork(m)
}
