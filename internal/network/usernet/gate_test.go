package usernet

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	spore "github.com/sporevm/spore"
)

func TestPins(t *testing.T) {
	g := newGate()
	must(t, g.set(spore.Egress{AllowDomains: []string{"good.example"}}))
	server, other := netip.MustParseAddr(serverIP), netip.MustParseAddr(otherIP)
	enters := func(a netip.Addr) bool {
		f, ok := g.enter(netip.AddrPortFrom(a, 80), true, func() {})
		if ok {
			g.leave(f)
		}
		return ok
	}
	must(t, g.open(t.Context(), "good.example", []netip.Addr{server}, time.Hour))
	must(t, g.open(t.Context(), "good.example", []netip.Addr{other}, -time.Second))
	if !enters(server) || enters(other) || g.pinned() != 1 {
		t.Error("an address is open by its time alone")
	}
	// An answer that was under way while the policy changed opens nothing.
	must(t, g.set(spore.Egress{AllowDomains: []string{"other.example"}}))
	if g.open(t.Context(), "good.example", []netip.Addr{server}, time.Hour) == nil || enters(server) {
		t.Error("a name opens an address that it may not lead to any more")
	}
	if g.open(t.Context(), "other.example", []netip.Addr{netip.MustParseAddr(privateIP)}, time.Hour) == nil {
		t.Error("a name opens a private address")
	}
	failed := 0
	for i := range maxPins + 100 {
		a := netip.MustParseAddr(fmt.Sprintf("20.0.%d.%d", i>>8, i&255))
		if g.open(t.Context(), "other.example", []netip.Addr{a}, time.Hour) != nil {
			failed++
		}
	}
	if failed != 100 || g.pinned() != maxPins {
		t.Errorf("%d failed, %d are open", failed, g.pinned())
	}
}
