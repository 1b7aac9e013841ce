package nodetest

import (
	"errors"
	"slices"
	"testing"

	"github.com/sporevm/spore"
)

// wired is running with what a sandbox is connected to and bounded by.
func wired(s *spore.Sandbox, frozenID string) spore.Machine {
	m := running(s, frozenID)
	m.Wiring = s.Wiring()
	return m
}

// publish publishes ports of a sandbox, whose row says so from then on.
func (b *bed) publish(s *spore.Sandbox, want ...spore.PortForward) {
	b.Helper()
	ports, err := b.Node.Publish(b.Context(), s.ID, want)
	b.must(err)
	if len(ports) != len(want) {
		b.Fatalf("%d ports were published for %d", len(ports), len(want))
	}
	for i, p := range ports {
		if w := want[i].WithDefaults(); p.HostAddress != w.HostAddress || p.GuestPort != w.GuestPort || p.HostPort < 1 || w.HostPort != 0 && !w.Picked && p.HostPort != w.HostPort {
			b.Fatalf("asked for %+v, published %+v", w, p)
		}
	}
	s.Ports = ports
}

// wantTaken wants to be told which host port is taken.
func (b *bed) wantTaken(err error, port int) {
	b.Helper()
	var taken *spore.PortTaken
	if e := spore.AsError(err); e == nil || e.Code != spore.CodeConflict || e.Field != "ports.hostPort" || !errors.As(err, &taken) || taken.HostPort != port {
		b.Fatalf("a port that is taken: %+v", e)
	}
}

func testPorts(t *testing.T, fresh func(*testing.T) *bed) {
	to := func(host, guest int) spore.PortForward { return spore.PortForward{HostPort: host, GuestPort: guest} }

	t.Run("Publish", func(t *testing.T) {
		b := fresh(t)
		tpl := b.baked()
		s, other := b.started(tpl.ID), b.started(tpl.ID)
		b.publish(s, to(0, 80), to(0, 81))
		if !s.Ports[0].Picked || !s.Ports[1].Picked || s.Ports[0].HostPort == s.Ports[1].HostPort {
			t.Fatalf("published %+v", s.Ports)
		}
		b.machines(wired(s, tpl.ID), running(other, tpl.ID))
		first := s.Ports
		b.publish(s, first...) // a call that arrives twice
		b.publish(s, to(0, 80), to(0, 81))
		if !slices.Equal(s.Ports, first) {
			t.Fatalf("published anew as %+v, before as %+v", s.Ports, first)
		}
		_, err := b.Node.Publish(t.Context(), other.ID, []spore.PortForward{to(0, 7), to(first[0].HostPort, 80)})
		b.wantTaken(err, first[0].HostPort)
		b.machines(wired(s, tpl.ID), running(other, tpl.ID)) // all or none
		b.publish(s, first[1])
		b.publish(other, to(first[0].HostPort, 80)) // it is free now
		b.machines(wired(s, tpl.ID), wired(other, tpl.ID))
		if other.Ports[0].Picked {
			t.Error("a port that was asked for is said to be picked")
		}
		b.publish(s)
		b.machines(running(s, tpl.ID), wired(other, tpl.ID))
		b.publish(s, to(first[1].HostPort, 1))
		b.publish(s, to(first[1].HostPort, 2)) // the same place, for another port
		b.machines(wired(s, tpl.ID), wired(other, tpl.ID))
		for _, bad := range []spore.PortForward{to(-1, 80), to(0, 0), to(70000, 1), {HostAddress: "nowhere", GuestPort: 1}} {
			_, err := b.Node.Publish(t.Context(), s.ID, []spore.PortForward{bad})
			b.want(err, spore.CodeInvalid)
		}
		b.machines(wired(s, tpl.ID), wired(other, tpl.ID))
		b.must(b.Node.Settle(t.Context(), s.ID, 0))
		b.publish(other, to(first[1].HostPort, 80)) // they went with its last VM
		_, err = b.Node.Publish(t.Context(), s.ID, []spore.PortForward{to(0, 80)})
		b.want(err, spore.CodeConflict)
		b.machines(wired(other, tpl.ID))
	})

	t.Run("Start", func(t *testing.T) {
		b := fresh(t)
		tpl := b.baked()
		s := b.sandbox()
		s.Ports = []spore.PortForward{to(0, 80)}
		b.must(b.Node.Start(t.Context(), s, tpl.ID))
		b.publish(s, s.Ports...)
		b.machines(wired(s, tpl.ID))
		late := b.sandbox()
		late.Ports = []spore.PortForward{to(0, 80), to(s.Ports[0].HostPort, 80)}
		b.wantTaken(b.Node.Start(t.Context(), late, tpl.ID), s.Ports[0].HostPort)
		b.machines(wired(s, tpl.ID))
		b.idle()
		two := at(s, 2) // generations come and go, ports stay
		b.must(b.Node.Start(t.Context(), two, tpl.ID))
		b.machines(wired(s, tpl.ID), wired(two, tpl.ID))
		b.must(b.Node.Settle(t.Context(), s.ID, 2))
		b.machines(wired(two, tpl.ID))
		b.want(b.Node.Start(t.Context(), at(s, 3), tpl.ID+"-none"), spore.CodeNotFound)
		b.machines(wired(two, tpl.ID))
		fails := b.sandbox()
		fails.Ports = []spore.PortForward{to(0, 80)}
		b.want(b.Node.Start(t.Context(), fails, tpl.ID+"-none"), spore.CodeNotFound)
		_, err := b.Node.Publish(t.Context(), fails.ID, fails.Ports)
		b.want(err, spore.CodeConflict)
	})

	t.Run("Picked", func(t *testing.T) { // is a wish: another does as well
		b := fresh(t)
		tpl := b.baked()
		s, rival := b.started(tpl.ID), b.started(tpl.ID)
		b.publish(s, to(0, 80))
		wish := s.Ports[0]
		b.must(b.Node.Settle(t.Context(), s.ID, 0))
		b.publish(rival, to(wish.HostPort, 80))
		again := at(s, 2)
		again.Ports = []spore.PortForward{wish}
		b.must(b.Node.Start(t.Context(), again, tpl.ID))
		b.publish(again, wish)
		if p := again.Ports[0]; !p.Picked || p.HostPort == wish.HostPort {
			t.Errorf("published %+v", p)
		}
		b.machines(wired(rival, tpl.ID), wired(again, tpl.ID))
	})

	t.Run("Recover", func(t *testing.T) {
		b := fresh(t)
		b.needs(b.Restart != nil, "Restart")
		tpl := b.baked()
		s, bare := b.started(tpl.ID), b.started(tpl.ID)
		b.publish(s, to(0, 80), to(0, 81))
		b.Node = b.Restart(t)
		_, err := b.Node.Recover(t.Context(), []*spore.Sandbox{s, bare})
		b.must(err)
		b.machines(wired(s, tpl.ID), running(bare, tpl.ID))
	})

	t.Run("Adjust", func(t *testing.T) {
		b := fresh(t)
		tpl := b.baked()
		s := b.sandbox()
		s.Limits = spore.Limits{DiskMBps: 50}
		b.must(b.Node.Start(t.Context(), s, tpl.ID))
		b.machines(wired(s, tpl.ID))
		s.Limits = spore.Limits{DiskIOPS: 100}
		for range 2 {
			b.must(b.Node.Adjust(t.Context(), s))
			b.machines(wired(s, tpl.ID))
		}
		before := *s
		s.Network = spore.Network{Mode: spore.NetworkUser}
		if e := spore.AsError(b.Node.Adjust(t.Context(), s)); e == nil || e.Code != spore.CodeUnsupported || e.Field != "network.mode" {
			t.Fatalf("another network mode: %+v", e)
		}
		b.machines(wired(&before, tpl.ID))
		before.Limits = spore.Limits{}
		b.must(b.Node.Adjust(t.Context(), &before))
		b.machines(running(&before, tpl.ID))
		b.want(b.Node.Adjust(t.Context(), b.sandbox()), spore.CodeConflict)
	})

	t.Run("NoDevice", func(t *testing.T) {
		b := fresh(t)
		tpl := b.baked()
		s := b.sandbox()
		s.Network = spore.Network{Mode: spore.NetworkUser}
		if e := spore.AsError(b.Node.Start(t.Context(), s, tpl.ID)); e == nil || e.Code != spore.CodeConflict || e.Field != "network.mode" {
			t.Fatalf("a network for a VM without a device: %+v", e)
		}
		b.machines()
		b.idle()
	})
}
