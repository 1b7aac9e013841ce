package daemon

import (
	"context"
	"errors"
	"hash/fnv"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/cgroup"
	"github.com/sporevm/spore/internal/network"
	"github.com/sporevm/spore/internal/network/usernet"
	"github.com/sporevm/spore/internal/node"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/firecracker"
)

// NetworkCommand is the word on the command line that makes this program the network stack of one sandbox.
const NetworkCommand = usernet.Command

// NetworkStack is the network of one sandbox in mode user, in the process that was made for it. It answers the exit code.
func NetworkStack(args []string) int { return usernet.Main(args) }

// networks are the ways in which this machine can connect sandboxes, and why it lacks others.
type networks struct {
	by       map[spore.NetworkMode]node.Networks
	no       map[spore.NetworkMode]error
	isolated *network.Manager
}

func openNetworks(cfg Config, dir *dataDir) (*networks, error) {
	n := &networks{
		by: map[spore.NetworkMode]node.Networks{spore.NetworkUser: userNetworks{vms: dir.join("vms")}},
		no: map[spore.NetworkMode]error{},
	}
	m, err := network.New(network.Options{Dir: dir.join("networks"), Log: cfg.Logger, PoolSize: cfg.NetworkPool, PoolLater: true})
	switch {
	case err == nil:
		n.isolated, n.by[spore.NetworkIsolated] = m, isolatedNetworks{m}
	case spore.CodeOf(err) == spore.CodeUnsupported:
		n.no[spore.NetworkIsolated] = err
	default:
		return nil, err
	}
	return n, nil
}

// fit suits the ways of connecting to an engine, and leaves out those that it cannot use here.
func (n *networks) fit(engine, vms string) error {
	if engine != EngineFirecracker {
		return nil
	}
	err := usernet.ProbeTap()
	switch {
	case err == nil:
		n.by[spore.NetworkUser] = userNetworks{vms: vms, tap: true}
		return nil
	case spore.CodeOf(err) != spore.CodeUnsupported:
		return err
	}
	delete(n.by, spore.NetworkUser)
	n.no[spore.NetworkUser] = spore.Errorf(spore.CodeUnsupported, "Firecracker takes traffic from TAP devices only: %s", spore.AsError(err).Message).
		WithHint("%s", spore.AsError(err).Hint).WithCause(err)
	return nil
}

func (n *networks) Close() error {
	if n.isolated == nil {
		return nil
	}
	return n.isolated.Close()
}

var _ node.Carrier = userNetworks{}

// userNetworks connect VMs through a process of their own each, which belongs to the VM rather than to the server.
type userNetworks struct {
	vms string
	tap bool // VMs take traffic from TAP devices only
}

// stackUIDs are the users that network stacks become when the server is root: as many as VMs have, and none of theirs.
const stackUIDs = firecracker.DefaultUIDBase + 1<<20 // QEMU's are below

func (u userNetworks) Attach(ctx context.Context, vm, dir string, n spore.Network, l spore.Limits) (node.Link, error) {
	return u.attach(ctx, node.Attached{VM: vm, Dir: dir, Network: n, Limits: l}, 0)
}

// Restore puts a process in the place of the one that a VM has lost, with the same policy.
func (u userNetworks) Restore(ctx context.Context, a node.Attached, pid int) (node.Link, error) {
	if err := usernet.Clean(ctx, a.Dir); err != nil {
		return node.Link{}, err
	}
	return u.attach(ctx, a, pid)
}

// Watch waits for the end of a VM's network process.
func (u userNetworks) Watch(ctx context.Context, vm string) error {
	link, err := usernet.Open(filepath.Join(u.vms, vm))
	if err != nil {
		return err
	}
	return link.Watch(ctx)
}

// attach starts the network process of a VM that is about to start, or that runs as the process pid and has lost its own.
func (u userNetworks) attach(ctx context.Context, a node.Attached, pid int) (node.Link, error) {
	spec := usernet.Spec{ID: a.VM, Egress: a.Network.Egress, Rates: usernet.RatesOf(a.Limits), Tap: u.tap}
	if os.Geteuid() == 0 {
		h := fnv.New32a()
		h.Write([]byte(a.VM))
		spec.UID = stackUIDs + int(h.Sum32()%(1<<20))
	}
	link, err := usernet.Start(a.Dir, spec, usernet.Options{VM: pid})
	if err != nil {
		return node.Link{}, err
	}
	if err := link.Ready(ctx); err != nil {
		return node.Link{}, errors.Join(err, link.Stop(context.WithoutCancel(ctx)))
	}
	nic := vmm.NIC{Socket: link.Socket()}
	if u.tap {
		if nic.NetNS, err = link.NetNS(); err != nil {
			return node.Link{}, errors.Join(err, link.Stop(context.WithoutCancel(ctx)))
		}
		nic.Socket, nic.Tap = "", usernet.TapName
	}
	return node.Link{
		NIC: nic, Address: netip.PrefixFrom(usernet.GuestAddress, network.GuestAddress.Bits()),
		Gateway: usernet.GatewayAddress, Nameservers: []netip.Addr{usernet.GatewayAddress},
	}, nil
}

func (u userNetworks) Update(ctx context.Context, vm string, n spore.Network, l spore.Limits) error {
	link, err := usernet.Open(filepath.Join(u.vms, vm))
	if err != nil {
		return err
	}
	return link.Update(ctx, n.Egress, usernet.RatesOf(l))
}

func (u userNetworks) Detach(ctx context.Context, vm string) error {
	return usernet.Clean(ctx, filepath.Join(u.vms, vm))
}

// Recover finds the network stacks of VMs that go on. Those of others end with their VMs.
func (u userNetworks) Recover(ctx context.Context, keep []node.Attached) (map[string]error, error) {
	lost := map[string]error{}
	for _, a := range keep {
		link, err := usernet.Open(a.Dir)
		var now usernet.Stats
		if err == nil {
			now, err = link.Stats(ctx)
		}
		if err == nil && !now.Connected {
			err = spore.Errorf(spore.CodeNotFound, "the VM is not connected to its network process")
		}
		if err != nil {
			lost[a.VM] = err
		}
	}
	return lost, ctx.Err()
}

// isolatedNetworks connect VMs through namespaces.
type isolatedNetworks struct{ *network.Manager }

func (i isolatedNetworks) Attach(ctx context.Context, vm, _ string, n spore.Network, l spore.Limits) (node.Link, error) {
	link, err := i.Manager.Attach(ctx, vm, n, l)
	if err != nil {
		return node.Link{}, err
	}
	return node.Link{
		NIC: vmm.NIC{NetNS: link.NetNS, Tap: link.Tap}, Address: link.Address, Gateway: link.Gateway, Nameservers: []netip.Addr{link.Nameserver},
	}, nil
}

func (i isolatedNetworks) Recover(ctx context.Context, keep []node.Attached) (map[string]error, error) {
	ids := make([]string, len(keep))
	for j, a := range keep {
		ids[j] = a.VM
	}
	return i.Manager.Recover(ctx, ids)
}

// openGovernor opens what bounds processor time; none, and the reason, where that cannot be done.
func openGovernor(ctx context.Context, dir *dataDir) (node.Governor, error, error) {
	owner, err := cgroup.Fingerprint(dir.path)
	if err != nil {
		return nil, nil, err
	}
	c, err := cgroup.Open(ctx, cgroup.Options{Owner: owner})
	switch {
	case err == nil:
		return c, nil, nil
	case spore.CodeOf(err) == spore.CodeUnsupported:
		return nil, err, nil
	}
	return nil, nil, err
}
