package center

import (
	"context"
	"errors"
	"slices"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// Wiring is what a sandbox is asked to be connected to and bounded by. What is left out it has from its template.
type Wiring struct {
	Mode   spore.NetworkMode
	Egress *spore.Egress       // as a whole
	Ports  []spore.PortForward // beside the template's, before which they go where they are in each other's way
	Limits spore.Limits        // each for itself
}

func (w Wiring) validate() error {
	network := spore.Network{Mode: w.Mode}
	if w.Egress != nil {
		network.Egress = *w.Egress
	}
	if err := network.Validate(); err != nil {
		return err
	}
	if err := spore.ValidatePorts(w.Ports); err != nil {
		return err
	}
	return w.Limits.Validate()
}

// over lays what a caller asks for over what a template keeps.
func (w Wiring) over(d spore.CreateDefaults) Wiring {
	if d.Network != nil {
		if w.Mode == "" {
			w.Mode = d.Network.Mode
		}
		if w.Egress == nil {
			w.Egress = &d.Network.Egress
		}
	}
	w.Ports = spore.MergePorts(d.Ports, w.Ports)
	if d.Limits != nil {
		asked := w.Limits
		w.Limits = *d.Limits
		for _, f := range []struct{ to, from *int }{
			{&w.Limits.DiskMBps, &asked.DiskMBps}, {&w.Limits.DiskIOPS, &asked.DiskIOPS},
			{&w.Limits.NetworkInMbps, &asked.NetworkInMbps}, {&w.Limits.NetworkOutMbps, &asked.NetworkOutMbps},
		} {
			if *f.from != 0 {
				*f.to = *f.from
			}
		}
		if asked.CPUs != 0 {
			w.Limits.CPUs = asked.CPUs
		}
	}
	return w
}

// Network is the whole of what is asked for; policy and bandwidth of a cable that is not there are left out.
func (w Wiring) Network() spore.Network {
	n := spore.Network{Mode: w.Mode}
	if n.Connected() && w.Egress != nil {
		n.Egress = *w.Egress
	}
	return n
}

// fits refuses a wiring that sandboxes of a template cannot have. asked is the caller's part of it.
func (w Wiring) fits(asked Wiring, t *spore.Template) error {
	if err := spore.ValidatePorts(w.Ports); err != nil { // the two lists may be in each other's way
		return err
	}
	if w.Network().Connected() {
		return cablePlug(t)
	}
	return needsNetwork(asked.Egress != nil && !asked.Egress.IsZero(), asked.Limits)
}

// checkNetwork refuses a build whose sandboxes could not be as it says.
func checkNetwork(req *BuildRequest) error {
	d := &req.Defaults
	if d.Network != nil {
		return spore.Invalidf("defaults.network", "the network of sandboxes is the template's own").WithHint("say it as network")
	}
	w := Wiring{Ports: d.Ports}
	if req.Network != nil {
		w.Mode, w.Egress = req.Network.Mode, &req.Network.Egress
	}
	if d.Limits != nil {
		w.Limits = *d.Limits
	}
	if err := w.validate(); err != nil {
		return err
	}
	return w.fits(w, &spore.Template{NIC: w.Network().Connected()})
}

// cablePlug refuses a network for sandboxes of a template without a network device.
func cablePlug(t *spore.Template) error {
	if t.NIC {
		return nil
	}
	e := spore.Errorf(spore.CodeConflict, "%s %s was made without a network device", t.Kind, t.Label()).
		WithHint("give it one: spore %s redo %s --network", t.Kind, t.Label())
	e.Field = "network.mode"
	return e
}

// needsNetwork refuses what has no effect on a sandbox without a network.
func needsNetwork(egress bool, l spore.Limits) error {
	const hint = "connect it: network mode user or isolated"
	switch {
	case egress:
		return spore.Invalidf("network.egress", "it has no effect without a network").WithHint(hint)
	case l.NetworkInMbps != 0:
		return spore.Invalidf("limits.networkInMbps", "it has no effect without a network").WithHint(hint)
	case l.NetworkOutMbps != 0:
		return spore.Invalidf("limits.networkOutMbps", "it has no effect without a network").WithHint(hint)
	}
	return nil
}

// wire gives a new sandbox what it is asked to have.
func wire(s *spore.Sandbox, w Wiring) {
	s.Network, s.Ports, s.Limits = w.Network(), w.Ports, w.Limits
	if !s.Network.Connected() {
		s.Limits.NetworkInMbps, s.Limits.NetworkOutMbps = 0, 0
	}
}

// forkPorts are the ports of one of so many forks: no two sandboxes can have the same place on the host, so those of the original are
// published at any, and those that are asked for too unless there is only one fork.
func forkPorts(ports, asked []spore.PortForward, count int) []spore.PortForward {
	ports = slices.Clone(ports)
	for i, p := range ports {
		wished := slices.ContainsFunc(asked, func(a spore.PortForward) bool { return a.WithDefaults() == p })
		if count > 1 || !wished {
			ports[i].HostPort = 0
		}
	}
	return ports
}

// keptWiring is what a template or snapshot of a sandbox keeps for those that start from it.
func keptWiring(s *spore.Sandbox, d *spore.CreateDefaults) {
	if !s.Network.IsZero() {
		d.Network = &s.Network
	}
	if s.Limits != (spore.Limits{}) {
		d.Limits = &s.Limits
	}
	d.Disks = s.Disks
	d.Ports = slices.Clone(s.Ports)
	for i, p := range d.Ports {
		if p.Picked { // any other would have done
			d.Ports[i].HostPort, d.Ports[i].Picked = 0, false
		}
	}
}

// fitDisks says whether a sandbox with these disks is booted rather than thawed from a template, of which kept is what it keeps. A
// guest that was frozen with disks knows what is on them, so they must be named again.
func fitDisks(t *spore.Template, kept, asked []spore.Disk) (cold bool, err error) {
	if len(kept) == 0 {
		return len(asked) > 0, nil
	}
	if slices.EqualFunc(kept, asked, func(a, b spore.Disk) bool { return a.ReadOnly == b.ReadOnly }) {
		return false, nil
	}
	e := spore.Errorf(spore.CodeConflict, "%s %s was made with %d disks of the caller's, whose content it does not hold", t.Kind, t.Label(), len(kept)).
		WithHint("name them again, in order, with what was on them then: --disk PATH")
	e.Field = "disks"
	return false, e
}

// rollsBack refuses to bring a sandbox back in time that writes to disks of the caller's: those would not go back with it.
func rollsBack(s *spore.Sandbox) error {
	for _, d := range s.Disks {
		if !d.ReadOnly {
			return spore.Errorf(spore.CodeConflict, "sandbox %s writes to %s, which would not go back with it", s.ID, d.Path).
				WithHint("end it, restore the disk, and start another from the snapshot")
		}
	}
	return nil
}

// published answers the ports of a sandbox that has just been started, with the host ports that its node has picked.
func (c *Center) published(ctx context.Context, n Node, s *spore.Sandbox) ([]spore.PortForward, error) {
	if len(s.Ports) == 0 {
		return nil, nil
	}
	return n.Publish(ctx, s.ID, s.Ports)
}

// PublishPorts publishes more ports of a sandbox. One that is published already as it is asked for stays as it is. Those of a
// paused sandbox are published when it is resumed.
func (c *Center) PublishPorts(ctx context.Context, id string, add []spore.PortForward) (*spore.Sandbox, error) {
	if len(add) == 0 {
		return nil, spore.Invalidf("ports", "no port is named")
	}
	if err := spore.ValidatePorts(add); err != nil {
		return nil, err
	}
	return c.setPorts(ctx, id, func(s *spore.Sandbox) ([]spore.PortForward, error) {
		all := slices.Clone(s.Ports)
		for _, p := range add {
			p = p.WithDefaults()
			same := func(q spore.PortForward) bool {
				return q.HostAddress == p.HostAddress && q.HostPort == p.HostPort && q.GuestPort == p.GuestPort
			}
			if p.HostPort == 0 || !slices.ContainsFunc(all, same) {
				all = append(all, p)
			}
		}
		return all, spore.ValidatePorts(all)
	})
}

// PortPlace is where on the host a port is published; Address "" is every address that it is published at.
type PortPlace struct {
	Address string
	Port    int
}

// UnpublishPorts ends forwards of a sandbox, with the connections that go through them. One that is not there is spore.CodeNotFound.
func (c *Center) UnpublishPorts(ctx context.Context, id string, places []PortPlace) (*spore.Sandbox, error) {
	return c.setPorts(ctx, id, func(s *spore.Sandbox) ([]spore.PortForward, error) {
		left := slices.Clone(s.Ports)
		for _, at := range places {
			before := len(left)
			left = slices.DeleteFunc(left, func(p spore.PortForward) bool {
				return p.HostPort == at.Port && (at.Address == "" || p.HostAddress == at.Address)
			})
			if len(left) == before {
				return nil, spore.Errorf(spore.CodeNotFound, "sandbox %s publishes nothing on port %d of the host", id, at.Port).
					WithHint("see: spore port ls %s", id)
			}
		}
		return left, nil
	})
}

// setPorts makes the published ports of a sandbox what change says: the row first, then the node, then the row with what the
// node has picked. When the node cannot, the row is what it was.
func (c *Center) setPorts(ctx context.Context, id string, change func(*spore.Sandbox) ([]spore.PortForward, error)) (*spore.Sandbox, error) {
	return c.rewire(ctx, id, "given other ports", func(s *spore.Sandbox) (err error) {
		s.Ports, err = change(s)
		return err
	}, func(n Node, s *spore.Sandbox) (err error) {
		s.Ports, err = n.Publish(ctx, s.ID, s.Ports)
		return err
	})
}

// SandboxUpdate changes what may change of a sandbox while it lives. Nil fields stay as they are; Labels that are empty but not
// nil take all labels away.
type SandboxUpdate struct {
	Labels map[string]string
	Egress EgressUpdate
	Limits LimitsUpdate
}

// EgressUpdate changes parts of a policy. A list that is empty but not nil takes all of its entries away.
type EgressUpdate struct {
	Internet                            *bool
	AllowCIDRs, DenyCIDRs, AllowDomains []string
	Proxy                               *string
}

func (u EgressUpdate) some() bool {
	return u.Internet != nil || u.AllowCIDRs != nil || u.DenyCIDRs != nil || u.AllowDomains != nil || u.Proxy != nil
}

// Apply answers e with the changes. With names to allow, and nothing said of the internet, that is no longer on.
func (u EgressUpdate) Apply(e spore.Egress) spore.Egress {
	if u.Internet != nil {
		e.Internet = u.Internet
	}
	for _, l := range []struct{ to, from *[]string }{
		{&e.AllowCIDRs, &u.AllowCIDRs}, {&e.DenyCIDRs, &u.DenyCIDRs}, {&e.AllowDomains, &u.AllowDomains},
	} {
		if *l.from != nil {
			*l.to = slices.Clone(*l.from)
		}
	}
	if u.Proxy != nil {
		e.Proxy = *u.Proxy
	}
	return e
}

// LimitsUpdate changes limits; 0 lifts one.
type LimitsUpdate struct {
	CPUs                                              *float64
	DiskMBps, DiskIOPS, NetworkInMbps, NetworkOutMbps *int
}

// Apply answers l with the changes.
func (u LimitsUpdate) Apply(l spore.Limits) spore.Limits {
	if u.CPUs != nil {
		l.CPUs = *u.CPUs
	}
	for _, f := range []struct{ to, from *int }{
		{&l.DiskMBps, u.DiskMBps}, {&l.DiskIOPS, u.DiskIOPS}, {&l.NetworkInMbps, u.NetworkInMbps}, {&l.NetworkOutMbps, u.NetworkOutMbps},
	} {
		if f.from != nil {
			*f.to = *f.from
		}
	}
	return l
}

// UpdateSandbox changes labels, policy and limits of a sandbox. Those of a running one hold from now on; those of a paused one
// from when it is resumed.
func (c *Center) UpdateSandbox(ctx context.Context, id string, req SandboxUpdate) (*spore.Sandbox, error) {
	if err := checkLabels(req.Labels); err != nil {
		return nil, err
	}
	return c.rewire(ctx, id, "changed", func(s *spore.Sandbox) error {
		if req.Labels != nil {
			s.Labels = req.Labels
		}
		s.Limits = req.Limits.Apply(s.Limits)
		if err := s.Limits.Validate(); err != nil {
			return err
		}
		if !s.Network.Connected() {
			return needsNetwork(req.Egress.some(), s.Limits)
		}
		s.Network.Egress = req.Egress.Apply(s.Network.Egress)
		return s.Network.Validate()
	}, func(n Node, s *spore.Sandbox) error { return n.Adjust(ctx, s) })
}

// rewire changes the wiring of a sandbox: the row first, then its VM, then the row with what came of it. When the VM cannot be
// changed, the row is what it was, and what of the VM was changed all the same is seen to with the node's next report.
func (c *Center) rewire(ctx context.Context, id, done string, change func(*spore.Sandbox) error, act func(Node, *spore.Sandbox) error) (*spore.Sandbox, error) {
	ctx, cancel := c.within(ctx)
	defer cancel()
	unlock, err := c.lock(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	var before, s spore.Sandbox
	err = c.update(ctx, func(tx store.Tx) error {
		now, err := liveSandbox(tx, id)
		if err != nil {
			return err
		}
		if now.State != spore.SandboxPaused {
			if err := mustRun(now, done); err != nil {
				return err
			}
		}
		before, s = *now, *now
		if err := change(&s); err != nil {
			return err
		}
		s.UpdatedAt = c.opt.Now()
		return tx.UpdateSandbox(&s)
	})
	if err != nil || s.State == spore.SandboxPaused || s.Wiring() == before.Wiring() {
		return &s, err
	}
	written := s.Wiring() // before the node says which ports it picked
	c.opt.Hook("rewire:recorded")
	n, err := c.on(s.NodeID)
	if err == nil {
		err = act(n, &s)
	}
	if err != nil {
		locked := true // the first time
		c.insist(ctx, "record that "+id+" was not "+done, func(ctx context.Context) error {
			defer func() { locked = false }()
			return c.writeWiring(ctx, &before, func(now *spore.Sandbox) bool {
				// That others have changed it to the same since shows only in the time of the row, which other things move too.
				return now.Wiring() == written && (locked || now.UpdatedAt.Equal(s.UpdatedAt))
			})
		})
		return nil, c.overran(ctx, err)
	}
	c.opt.Hook("rewire:done")
	return &s, c.writeWiring(context.WithoutCancel(ctx), &s, nil)
}

// writeWiring writes the wiring of a sandbox, and its labels, into its row, if that is still as it is said to be.
func (c *Center) writeWiring(ctx context.Context, s *spore.Sandbox, still func(now *spore.Sandbox) bool) error {
	return c.update(ctx, func(tx store.Tx) error {
		now, err := tx.Sandbox(s.ID)
		if isNotFound(err) || err == nil && now.State == spore.SandboxKilled {
			return nil
		}
		if err != nil {
			return err
		}
		if now.Wiring() == s.Wiring() || still != nil && !still(now) {
			return nil
		}
		now.Network, now.Ports, now.Limits, now.Labels, now.UpdatedAt = s.Network, s.Ports, s.Limits, s.Labels, c.opt.Now()
		return tx.UpdateSandbox(now)
	})
}

// settleWiring makes the VM of a running sandbox have what its row says, for a caller who holds the sandbox's lock. A place on the
// host that somebody else has by now is given up: a controller may have died before it published there, or the server before it
// listened again, and a row that goes on to name it would be wrong for good.
func (c *Center) settleWiring(ctx context.Context, n Node, s *spore.Sandbox) error {
	ports, err := n.Publish(ctx, s.ID, s.Ports)
	for taken := (*spore.PortTaken)(nil); errors.As(err, &taken); {
		left := slices.DeleteFunc(slices.Clone(s.Ports), func(p spore.PortForward) bool {
			return p.HostPort == taken.HostPort && p.WithDefaults().HostAddress == taken.HostAddress
		})
		if len(left) == len(s.Ports) {
			break
		}
		c.log.Warn("a published port is given up: it is somebody else's", "node", n.ID(), "sandbox", s.ID, "port", taken.HostPort, "by", taken.By)
		s.Ports = left
		ports, err = n.Publish(ctx, s.ID, left)
	}
	if err == nil {
		err = n.Adjust(ctx, s)
	}
	if err != nil {
		return err
	}
	s.Ports = ports
	return c.writeWiring(ctx, s, nil)
}
