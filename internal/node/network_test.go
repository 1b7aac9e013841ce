package node

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/testbed"
	"github.com/sporevm/spore/internal/vmm/sim"
	"github.com/sporevm/spore/internal/vmm/sim/simguest"
)

// cables remembers who is connected and bounded, and does neither.
type cables struct {
	mu       sync.Mutex
	attached map[string]Attached
	governed map[string]float64
	fail     error // of whatever is asked next

	torn     map[string]chan struct{} // closed when a connection is torn; whoever attaches or restores makes a new one
	restored map[string]int
	noMore   map[string]error // why a connection cannot be restored
}

func newCables() *cables {
	return &cables{
		attached: map[string]Attached{}, governed: map[string]float64{},
		torn: map[string]chan struct{}{}, restored: map[string]int{}, noMore: map[string]error{},
	}
}

var errTorn = spore.Errorf(spore.CodeNotFound, "torn by the test")

func (c *cables) Watch(ctx context.Context, vm string) error {
	c.mu.Lock()
	torn := c.torn[vm]
	c.mu.Unlock()
	select {
	case <-torn:
		return errTorn
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *cables) Restore(_ context.Context, a Attached, pid int) (Link, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.noMore[a.VM]; err != nil {
		return Link{}, err
	}
	c.restored[a.VM]++
	c.attached[a.VM], c.torn[a.VM] = a, make(chan struct{})
	return Link{}, nil
}

// tear ends the process that a connection hangs on.
func (c *cables) tear(vm string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.torn[vm])
}

func (c *cables) restorals(vm string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.restored[vm]
}

func (c *cables) failure() error {
	err := c.fail
	c.fail = nil
	return err
}

func (c *cables) Attach(_ context.Context, vm, dir string, n spore.Network, l spore.Limits) (Link, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.failure(); err != nil {
		return Link{}, err
	}
	c.attached[vm], c.torn[vm] = Attached{VM: vm, Dir: dir, Network: n, Limits: l}, make(chan struct{})
	gateway := netip.MustParseAddr("10.254.254.1")
	return Link{Address: netip.MustParsePrefix("10.254.254.2/30"), Gateway: gateway, Nameservers: []netip.Addr{gateway}}, nil
}

func (c *cables) Update(_ context.Context, vm string, n spore.Network, l spore.Limits) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, ok := c.attached[vm]
	if err := c.failure(); err != nil || !ok {
		return errors.Join(err, spore.Errorf(spore.CodeNotFound, "%s is not connected", vm))
	}
	a.Network, a.Limits = n, l
	c.attached[vm] = a
	return nil
}

func (c *cables) Detach(_ context.Context, vm string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.attached, vm)
	return nil
}

func (c *cables) Recover(_ context.Context, keep []Attached) (map[string]error, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.attached, func(vm string, _ Attached) bool {
		return !slices.ContainsFunc(keep, func(a Attached) bool { return a.VM == vm })
	})
	lost := map[string]error{}
	for _, a := range keep {
		select {
		case <-c.torn[a.VM]:
			lost[a.VM] = errTorn
		default:
		}
	}
	return lost, nil
}

// governor is what cables do about processor time.
type governor struct{ c *cables }

func (g governor) Govern(_ context.Context, vm string, _ int, _ []string, cpus float64) error {
	g.c.mu.Lock()
	defer g.c.mu.Unlock()
	g.c.governed[vm] = cpus
	return nil
}

func (g governor) Release(_ context.Context, vm string) error {
	g.c.mu.Lock()
	defer g.c.mu.Unlock()
	delete(g.c.governed, vm)
	return nil
}

func (g governor) Recover(_ context.Context, keep []string) error {
	g.c.mu.Lock()
	defer g.c.mu.Unlock()
	maps.DeleteFunc(g.c.governed, func(vm string, _ float64) bool { return !slices.Contains(keep, vm) })
	return nil
}

// cabled is a rig with networks, and a template with a network device.
func cabled(t *testing.T, pool int) (*rig, *spore.Template) {
	t.Helper()
	r := newRig(t, sim.New(sim.Options{Guest: simguest.New().Serve}), pool)
	must(t, r.Close(context.WithoutCancel(t.Context())))
	must(t, r.opt.Frozen.Close())
	r.cables = newCables()
	r.open(t)
	_, err := r.Recover(t.Context(), nil)
	must(t, err)
	tpl := r.template(t, testbed.Ref(testbed.Image(t, testbed.Static)), small)
	tpl.NIC = true
	_, err = r.Bake(t.Context(), tpl, tpl.ID, func(string) {})
	must(t, err)
	return r, tpl
}

// wants wants the VM of a sandbox to be connected and bounded as the sandbox says, and nothing else to be.
func (c *cables) wants(t *testing.T, r *rig, boxes ...*spore.Sandbox) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	connected, bounded := 0, 0
	for _, s := range boxes {
		m, err := r.machine(s.ID, s.Generation)
		must(t, err)
		if s.Network.Connected() {
			connected++
			if a := c.attached[m.id]; a.Network.Egress.Proxy != s.Network.Egress.Proxy || a.Limits != s.Limits || a.Dir != r.machineDir(m.id) {
				t.Errorf("%s is connected as %+v", s.ID, a)
			}
		}
		if cpus, ok := c.governed[m.id]; ok {
			bounded++
			if cpus != s.Limits.CPUs {
				t.Errorf("%s has %v processors, not %v", s.ID, cpus, s.Limits.CPUs)
			}
		} else if s.Limits.CPUs != 0 {
			t.Errorf("%s is not bounded", s.ID)
		}
	}
	if len(c.attached) != connected || len(c.governed) != bounded {
		t.Errorf("connected are %v, bounded %v", c.attached, c.governed)
	}
}

func TestConnected(t *testing.T) {
	r, tpl := cabled(t, 0)
	c, ctx := r.cables, t.Context()
	s := &spore.Sandbox{
		ID: spore.NewSandboxID(), Generation: 1, TemplateID: tpl.ID, Network: spore.Network{Mode: spore.NetworkUser}, Limits: spore.Limits{CPUs: 0.5, NetworkInMbps: 7},
	}
	must(t, r.Start(ctx, s, tpl.ID))
	unplugged := r.start(t, tpl.ID)
	c.wants(t, r, s, unplugged)

	wrong := *s
	wrong.ID, wrong.Network.Mode = spore.NewSandboxID(), spore.NetworkIsolated
	if e := spore.AsError(r.Start(ctx, &wrong, tpl.ID)); e == nil || e.Code != spore.CodeUnsupported || e.Field != "network.mode" {
		t.Errorf("a mode that the node does not have: %+v", e)
	}
	c.fail = spore.Errorf(spore.CodeNoSpace, "no room")
	wrong.Network.Mode = spore.NetworkUser
	wantCode(t, r.Start(ctx, &wrong, tpl.ID), spore.CodeNoSpace)
	c.wants(t, r, s, unplugged)

	// A change that fails in the middle is taken back.
	before := *s
	s.Limits, s.Network.Egress.Proxy = spore.Limits{CPUs: 2, DiskIOPS: 10}, "http://10.1.2.3:3128"
	c.fail = spore.Errorf(spore.CodeUnreachable, "gone")
	wantCode(t, r.Adjust(ctx, s), spore.CodeUnreachable)
	c.wants(t, r, &before, unplugged)
	must(t, r.Adjust(ctx, s))
	c.wants(t, r, s, unplugged)

	two := *s
	two.Generation = 2
	must(t, r.Start(ctx, &two, tpl.ID))
	c.wants(t, r, s, &two, unplugged)
	must(t, r.Settle(ctx, s.ID, 2))
	c.wants(t, r, &two, unplugged)
	two.Limits.CPUs = 0 // lifted: what held it is still there, and goes with the VM
	must(t, r.Adjust(ctx, &two))

	must(t, r.Close(context.WithoutCancel(ctx)))
	must(t, r.opt.Frozen.Close())
	r.open(t)
	_, err := r.Recover(ctx, []*spore.Sandbox{&two})
	must(t, err)
	c.wants(t, r, &two)
	must(t, r.Settle(ctx, two.ID, 0))
	c.wants(t, r)
}

// TestPoolIsUnplugged has VMs of the pool serve those sandboxes that need no cable, with limits all the same.
func TestPoolIsUnplugged(t *testing.T) {
	r, tpl := cabled(t, 1)
	r.start(t, tpl.ID)
	ready := func() bool { return r.Node.pool.count() == 1 }
	eventually(t, "a VM is ready", ready)
	s := &spore.Sandbox{ID: spore.NewSandboxID(), Generation: 1, TemplateID: tpl.ID, Limits: spore.Limits{CPUs: 0.5, DiskMBps: 3}}
	must(t, r.Start(t.Context(), s, tpl.ID))
	m, err := r.machine(s.ID, 1)
	must(t, err)
	if o, err := readOwner(r.machineDir(m.id)); err != nil || o.Limits != s.Limits || o.Config.Drives[1].Limits.BytesPerSecond != 3_000_000 {
		t.Errorf("its owner file says %+v, %v", o, err)
	}
	eventually(t, "another is ready", ready)
	cable := &spore.Sandbox{ID: spore.NewSandboxID(), Generation: 1, TemplateID: tpl.ID, Network: spore.Network{Mode: spore.NetworkUser}}
	must(t, r.Start(t.Context(), cable, tpl.ID))
	if !ready() {
		t.Error("a VM of the pool was taken for a sandbox with a network")
	}
	r.cables.wants(t, r, s, cable)
}
