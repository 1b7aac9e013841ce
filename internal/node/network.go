package node

import (
	"context"
	"maps"
	"net/netip"
	"slices"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/agent"
	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/vmm"
)

// GuestMAC is the hardware address of the network device of every guest. Clones of one frozen state have the same one, and the
// same inner address, and never see one another.
const GuestMAC = "02:53:50:00:00:01"

// guestInterface is what guests call their network device.
const guestInterface = "eth0"

// Networks is one way of connecting VMs. What belongs to a VM is named by the VM's id.
type Networks interface {
	// Attach makes the connection of a VM that is about to start; dir is the VM's directory. On error nothing of it is left.
	Attach(ctx context.Context, vm, dir string, n spore.Network, l spore.Limits) (Link, error)
	// Update brings a connection in line with another policy and other limits, while it is used.
	Update(ctx context.Context, vm string, n spore.Network, l spore.Limits) error
	// Detach ends a connection and removes all that belonged to it. It is idempotent.
	Detach(ctx context.Context, vm string) error
	// Recover takes over the connections that an earlier process of the server made: those of keep go on, every other is
	// removed. The answer says, for each of keep that cannot go on, why.
	Recover(ctx context.Context, keep []Attached) (map[string]error, error)
}

// Attached is a connection as it should be.
type Attached struct {
	VM, Dir string
	Network spore.Network
	Limits  spore.Limits
}

// Link is what a connection is to the hypervisor and to the guest.
type Link struct {
	NIC         vmm.NIC // without its MAC
	Address     netip.Prefix
	Gateway     netip.Addr
	Nameservers []netip.Addr
	MTU         int // 0 is the usual one
}

// Governor bounds the processor time of VMs.
type Governor interface {
	// Govern bounds the process of a VM to so many processors' worth of time; 0 lifts the bound. own are the control groups that its
	// engine has put it into, whose limits go on to hold. spore.CodeUnsupported says why the server cannot.
	Govern(ctx context.Context, vm string, pid int, own []string, cpus float64) error
	// Release removes what Govern made for a VM whose process has ended. It is idempotent.
	Release(ctx context.Context, vm string) error
	// Recover removes what was made for VMs other than these.
	Recover(ctx context.Context, keep []string) error
}

// networks answers what makes a VM's network of a mode.
func (n *Node) networks(mode spore.NetworkMode) (Networks, error) {
	if nets := n.opt.Networks[mode]; nets != nil {
		return nets, nil
	}
	e := spore.Errorf(spore.CodeUnsupported, "node %s cannot connect sandboxes in mode %s", n.opt.ID, mode)
	if why := n.opt.NoNetworks[mode]; why != nil {
		e = spore.Errorf(spore.CodeUnsupported, "node %s cannot connect sandboxes in mode %s: %s", n.opt.ID, mode, spore.AsError(why).Message).WithCause(why)
		e.Hint = spore.AsError(why).Hint
	}
	if can := slices.Sorted(maps.Keys(n.opt.Networks)); len(can) > 0 {
		e.Hint = "it can do mode " + string(can[0])
	}
	e.Field = "network.mode"
	return nil, e
}

// plug gives a VM that is about to start its network device, and connects it as s says; nil is a VM of nobody.
func (n *Node) plug(ctx context.Context, o *owner, s *spore.Sandbox) (*Link, error) {
	if !o.Shape.NIC {
		if s != nil && s.Network.Connected() {
			e := spore.Errorf(spore.CodeConflict, "%s was frozen without a network device", o.FrozenID).
				WithHint("give its template one: spore template redo --network")
			e.Field = "network.mode"
			return nil, e
		}
		return nil, nil
	}
	o.Config.NIC = &vmm.NIC{MAC: GuestMAC}
	if s == nil || !s.Network.Connected() {
		return nil, nil
	}
	nets, err := n.networks(s.Network.Mode)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	n.links[o.Config.ID] = Attached{VM: o.Config.ID, Dir: o.Config.Dir, Network: s.Network, Limits: s.Limits}
	n.mu.Unlock()
	link, err := nets.Attach(ctx, o.Config.ID, o.Config.Dir, s.Network, s.Limits)
	if err != nil {
		return nil, err
	}
	link.NIC.MAC = GuestMAC
	o.Config.NIC = &link.NIC
	return &link, nil
}

// unplug removes what connected a VM that has ended, and what bounded it.
func (n *Node) unplug(ctx context.Context, id string, o owner) error {
	if o.Network.Connected() {
		if nets, err := n.networks(o.Network.Mode); err == nil {
			if err := nets.Detach(ctx, id); err != nil {
				return err
			}
		}
		n.mu.Lock()
		delete(n.links, id)
		n.mu.Unlock()
	}
	if (o.Governed || o.Limits.CPUs != 0) && n.opt.Governor != nil {
		return n.opt.Governor.Release(ctx, id)
	}
	return nil
}

// unplugEnded is unplug of a VM that nobody is about to connect anew.
func (n *Node) unplugEnded(ctx context.Context, m *machine) error {
	m.adjusting.Lock()
	defer m.adjusting.Unlock()
	n.mu.Lock()
	o := m.owner
	n.mu.Unlock()
	return n.unplug(ctx, m.id, o)
}

// addresses is what the guest is told of its connection.
func (l *Link) addresses(id *guest.Identity) {
	if l == nil {
		return
	}
	id.Addresses = []agent.Address{{Interface: guestInterface, CIDR: l.Address.String(), Gateway: l.Gateway.String(), MTU: l.MTU}}
	for _, s := range l.Nameservers {
		id.Nameservers = append(id.Nameservers, s.String())
	}
}

// proxied adds the variables by which programs find an egress proxy, unless the sandbox sets them itself.
func proxied(env map[string]string, proxy string) map[string]string {
	if proxy == "" {
		return env
	}
	all := map[string]string{}
	for _, name := range []string{"http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"} {
		all[name] = proxy
	}
	for _, name := range []string{"no_proxy", "NO_PROXY"} {
		all[name] = "localhost,127.0.0.1,::1"
	}
	maps.Copy(all, env)
	return all
}
