package network

import (
	"net/netip"
	"testing"

	"github.com/sporevm/spore"
)

func TestTwoSandboxes(t *testing.T) {
	w := newWorld(t)
	before := w.traces()
	m := w.serving()
	a, b := mustAttach(t, m, "a", spore.Egress{}), mustAttach(t, m, "b", spore.Egress{})
	if a.NetNS == b.NetNS {
		t.Fatal("two sandboxes are in one namespace")
	}
	ga, gb := w.plug(a), w.plug(b)
	for name, g := range map[string]*guest{"a": ga, "b": gb} {
		if err := g.ping(publicA, patience); err != nil {
			t.Errorf("%s pings the world: %v", name, err)
		}
		for _, network := range []string{"tcp", "udp"} {
			if err := g.reach(network, netip.AddrPortFrom(publicB, echoPort), patience); err != nil {
				t.Errorf("%s reaches the world by %s: %v", name, network, err)
			}
		}
		if err := g.ping(a.Gateway, patience); err != nil {
			t.Errorf("%s pings its gateway: %v", name, err)
		}
	}
	sa, sb := m.find("a"), m.find("b")
	for _, to := range []netip.Addr{private, metadata, hostAddr, sb.inner, sb.outer, sa.outer, netip.MustParseAddr("127.0.0.1")} {
		if err := ga.ping(to, unanswered); err == nil && to != netip.MustParseAddr("127.0.0.1") {
			t.Errorf("a pings %s", to)
		}
		for _, network := range []string{"tcp", "udp"} {
			if err := ga.reach(network, netip.AddrPortFrom(to, echoPort), unanswered); err == nil {
				t.Errorf("a reaches %s by %s", to, network)
			}
		}
	}
	for _, id := range []string{"a", "b"} {
		if err := m.Detach(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if after := w.traces(); after != before {
		t.Errorf("left behind:\n%s\nthere was:\n%s", after, before)
	}
}
