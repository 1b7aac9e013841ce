package simnode

import (
	"context"
	"slices"

	"github.com/sporevm/spore"
)

// firstPort is where the ports begin that a machine picks by itself.
const firstPort = 32768

// Occupy has another program on the machine listen on a port, or stop to.
func (m *Machine) Occupy(port int, yes bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.occupied[port] = yes
}

// Publish is center.Node's.
func (h *Handle) Publish(ctx context.Context, sandboxID string, ports []spore.PortForward) ([]spore.PortForward, error) {
	ports = slices.Clone(ports)
	return ask(ctx, h, "publish", func(c *call) ([]spore.PortForward, error) {
		if err := c.step("listen"); err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(c.m.sandboxes[sandboxID], func(v *vm) bool { return v.life == c.m.life }) {
			return nil, spore.Errorf(spore.CodeConflict, "sandbox %s has no VM", sandboxID)
		}
		return c.m.publish(sandboxID, ports)
	})
}

// publish makes the published ports of a sandbox exactly want.
func (m *Machine) publish(sandbox string, want []spore.PortForward) ([]spore.PortForward, error) {
	if err := spore.ValidatePorts(want); err != nil {
		return nil, err
	}
	old := slices.Clone(m.ports[sandbox])
	next := make([]spore.PortForward, len(want))
	kept := func(as func(spore.PortForward) bool) (spore.PortForward, bool) {
		at := slices.IndexFunc(old, as)
		if at < 0 {
			return spore.PortForward{}, false
		}
		p := old[at]
		old = slices.Delete(old, at, at+1)
		return p, true
	}
	done := make([]bool, len(want))
	for i, w := range want {
		w = w.WithDefaults()
		p, ok := kept(func(p spore.PortForward) bool {
			return w.HostPort != 0 && p.HostAddress == w.HostAddress && p.HostPort == w.HostPort
		})
		if ok {
			p.GuestPort, p.Picked = w.GuestPort, p.Picked && w.Picked
			next[i], done[i] = p, true
		}
	}
	for i, w := range want {
		if w = w.WithDefaults(); done[i] || w.HostPort != 0 && !w.Picked {
			continue
		}
		next[i], done[i] = kept(func(p spore.PortForward) bool {
			return p.Picked && p.HostAddress == w.HostAddress && p.GuestPort == w.GuestPort
		})
	}
	for i, w := range want {
		if done[i] {
			continue
		}
		w = w.WithDefaults()
		w.Picked = w.Picked || w.HostPort == 0
		by := m.listener(w.HostPort, next)
		for port := firstPort; w.Picked && (w.HostPort == 0 || by != ""); port++ {
			w.HostPort, by = port, m.listener(port, next)
		}
		if by != "" {
			e := spore.Errorf(spore.CodeConflict, "%w", &spore.PortTaken{HostAddress: w.HostAddress, HostPort: w.HostPort, By: by}).
				WithHint("name another host port, or 0 for any that is free")
			e.Field = "ports.hostPort"
			return nil, e
		}
		next[i] = w
	}
	if len(next) == 0 {
		delete(m.ports, sandbox)
		return nil, nil
	}
	m.ports[sandbox] = next
	return slices.Clone(next), nil
}

// listener names who listens on a port; "" is nobody. next are the ports that are about to be published.
func (m *Machine) listener(port int, next []spore.PortForward) string {
	at := func(p spore.PortForward) bool { return p.HostPort == port }
	if m.occupied[port] {
		return "another program"
	}
	if slices.ContainsFunc(next, at) {
		return "the sandbox itself"
	}
	for _, id := range sortedKeys(m.ports) {
		if slices.ContainsFunc(m.ports[id], at) {
			return "sandbox " + id
		}
	}
	return ""
}

// unpublish ends the ports of a sandbox that has no VM any more.
func (m *Machine) unpublish(sandbox string) {
	if len(m.sandboxes[sandbox]) == 0 {
		delete(m.ports, sandbox)
	}
}

// Adjust is center.Node's.
func (h *Handle) Adjust(ctx context.Context, s *spore.Sandbox) error {
	mine := *s
	_, err := ask(ctx, h, "adjust", func(c *call) (any, error) {
		if err := c.step("apply"); err != nil {
			return nil, err
		}
		v, err := c.m.held(mine.ID, mine.Generation)
		if err != nil {
			return nil, err
		}
		if v.network.Mode != mine.Network.Mode {
			e := spore.Errorf(spore.CodeUnsupported, "the network mode of a running sandbox cannot be changed")
			e.Field = "network.mode"
			return nil, e
		}
		v.network, v.limits = mine.Network, mine.Limits
		return nil, nil
	})
	return err
}

// wiring is spore.Sandbox.Wiring of what a VM has in truth.
func (m *Machine) wiring(v *vm) string {
	return (&spore.Sandbox{Network: v.network, Ports: m.ports[v.sandbox], Limits: v.limits}).Wiring()
}

// networks says of each mode whether the machine can connect sandboxes in it.
func (m *Machine) networks() []spore.NodeNetwork {
	all := []spore.NodeNetwork{{Mode: spore.NetworkNone}}
	for _, mode := range []spore.NetworkMode{spore.NetworkUser, spore.NetworkIsolated} {
		has := spore.NodeNetwork{Mode: mode}
		if m.modes != nil && !slices.Contains(m.modes, mode) {
			has.WhyNot = "the machine was made without it"
		}
		all = append(all, has)
	}
	return all
}

// SetNetworks changes the modes in which the machine connects sandboxes from now on; see Options.Networks.
func (m *Machine) SetNetworks(modes ...spore.NetworkMode) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.modes = append([]spore.NetworkMode{}, modes...)
}
