package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/thread"
)

var off = new(bool)

// worldEcho is what answers in the world.
var worldEcho = netip.AddrPortFrom(publicA, echoPort)

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
	for _, to := range []netip.Addr{private, metadata, hostAddr, sb.inner, sb.outer, sa.inner, sa.outer} {
		if err := ga.ping(to, unanswered); err == nil {
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

// A policy that opens a range which holds the links, and the links' own addresses, opens no way to another sandbox; nor does a
// policy that opens all that is private open the host.
func TestPolicyOpensNoSandbox(t *testing.T) {
	w := newWorld(t)
	m := w.serving()
	wide := []string{"198.18.0.0/15", "10.0.0.0/8", "169.254.169.254", "203.0.112.0/20"}
	g := w.plug(mustAttach(t, m, "a", spore.Egress{AllowCIDRs: wide}))
	w.plug(mustAttach(t, m, "b", spore.Egress{AllowCIDRs: wide}))
	for _, open := range []netip.Addr{private, metadata, publicA} {
		if err := g.reach("tcp", netip.AddrPortFrom(open, echoPort), patience); err != nil {
			t.Errorf("%s, which is opened: %v", open, err)
		}
	}
	b := m.find("b")
	if err := m.Update(t.Context(), "a", isolated(spore.Egress{AllowCIDRs: append(wide, b.inner.String(), b.outer.String())}), spore.Limits{}); err != nil {
		t.Fatal(err)
	}
	// The host's end of the other link is an address of the host, and was opened by its name; the other end never is.
	for _, to := range []netip.Addr{b.inner, hostAddr} {
		if g.ping(to, unanswered) == nil || g.reach("udp", netip.AddrPortFrom(to, echoPort), unanswered) == nil {
			t.Errorf("a reaches %s", to)
		}
	}
}

func TestHostOpened(t *testing.T) {
	w := newWorld(t)
	m := w.serving()
	host := netip.AddrPortFrom(hostAddr, echoPort)
	g := w.plug(mustAttach(t, m, "a", spore.Egress{Internet: off, Proxy: "http://" + host.String()}))
	if err := g.reach("tcp", host, patience); err != nil {
		t.Errorf("the proxy on the host: %v", err)
	}
	if g.reach("udp", host, unanswered) == nil || g.ping(hostAddr, unanswered) == nil {
		t.Error("more than the proxy's port is open")
	}
	if err := m.Update(t.Context(), "a", isolated(spore.Egress{Internet: off, AllowCIDRs: []string{hostAddr.String()}}), spore.Limits{}); err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"tcp", "udp"} {
		if err := g.reach(network, host, patience); err != nil {
			t.Errorf("the host, opened by its address: %v", err)
		}
	}
	other := w.plug(mustAttach(t, m, "b", spore.Egress{}))
	if other.reach("tcp", host, unanswered) == nil {
		t.Error("what is opened for one is open for another")
	}
	if err := m.Update(t.Context(), "a", isolated(spore.Egress{}), spore.Limits{}); err != nil {
		t.Fatal(err)
	}
	if g.reach("tcp", host, unanswered) == nil {
		t.Error("the host is still open")
	}
}

func TestProxyInTheWorld(t *testing.T) {
	w := newWorld(t)
	m := w.serving()
	g := w.plug(mustAttach(t, m, "a", spore.Egress{Internet: off, Proxy: fmt.Sprintf("http://%s:%d", private, echoPort)}))
	if err := g.reach("tcp", netip.AddrPortFrom(private, echoPort), patience); err != nil {
		t.Errorf("the proxy: %v", err)
	}
	if g.reach("udp", netip.AddrPortFrom(private, echoPort), unanswered) == nil || g.reach("tcp", worldEcho, unanswered) == nil {
		t.Error("more than the proxy is open")
	}
}

// A guest that says it is another gets nothing through.
func TestSpoof(t *testing.T) {
	w := newWorld(t)
	m := w.serving()
	g := w.plug(mustAttach(t, m, "a", spore.Egress{}))
	if err := g.ping(publicA, patience); err != nil {
		t.Fatal(err)
	}
	other := netip.MustParsePrefix("10.254.254.2/32")
	w.in(g.ns, func(h *netlink.Handle) error {
		link := up(t, h, "eth0", netip.MustParsePrefix("198.51.100.1/32"))
		addr, err := netlink.ParseAddr(other.String())
		if err != nil {
			return err
		}
		addr.Mask = ipNet(GuestAddress).Mask
		if err := h.AddrDel(link, addr); err != nil {
			return err
		}
		gateway := ipNet(netip.PrefixFrom(Gateway, 32))
		if err := h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: gateway, Scope: netlink.SCOPE_LINK}); err != nil {
			return err
		}
		if err := h.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: Gateway.AsSlice(), HardwareAddr: mac(GatewayMAC)}); err != nil {
			return err
		}
		return h.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: Gateway.AsSlice()})
	})
	for _, to := range []netip.Addr{publicA, Gateway} {
		if g.ping(to, unanswered) == nil {
			t.Errorf("%s answers to a false address", to)
		}
	}
}

// Even where IPv6 were switched on in a namespace, the rules let none of it through.
func TestIPv6(t *testing.T) {
	w := newWorld(t)
	m := w.serving()
	l := mustAttach(t, m, "a", spore.Egress{})
	g := w.plug(l)
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		t.Skip("this kernel has no IPv6")
	}
	space, err := os.Open(l.NetNS)
	if err != nil {
		t.Fatal(err)
	}
	defer space.Close()
	six := func(name, addr string) func(h *netlink.Handle) error {
		return func(h *netlink.Handle) error {
			link, err := h.LinkByName(name)
			if err != nil {
				return err
			}
			a, err := netlink.ParseAddr(addr)
			if err != nil {
				return err
			}
			a.Flags = unix.IFA_F_NODAD
			return h.AddrAdd(link, a)
		}
	}
	w.in(g.ns, six("eth0", "fd00:53::2/64"))
	w.in(space, func(h *netlink.Handle) error {
		addrs, err := h.AddrList(nil, netlink.FAMILY_V6)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			t.Errorf("the namespace has the address %s", a.IP)
		}
		for _, name := range []string{"all", TapName} {
			if err := sysctl("ipv6/conf/"+name+"/disable_ipv6", "0"); err != nil {
				return err
			}
		}
		return six(TapName, "fd00:53::1/64")(h)
	})
	talkSix := func(wait time.Duration) error {
		c, err := g.dial("udp", netip.MustParseAddrPort("[fd00:53::1]:7"), wait)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := talk(c, wait); errors.Is(err, unix.ECONNREFUSED) {
			return nil // somebody there has answered
		} else {
			return err
		}
	}
	if talkSix(unanswered) == nil {
		t.Error("a packet of IPv6 was answered")
	}
	// The same without the rules is answered: the trial tries something.
	if err := thread.InNetwork(space, func() error {
		return filterWithin(func(c *nftables.Conn) error { c.DelTable(theInner.v6); return nil })
	}); err != nil {
		t.Fatal(err)
	}
	if err := talkSix(patience); err != nil {
		t.Errorf("without rules: %v", err)
	}
}

func TestTwoServers(t *testing.T) {
	w := newWorld(t)
	before := w.traces()
	small := func(o *Options) { o.Subnet = netip.MustParsePrefix("198.19.7.0/29") } // four links
	m, n := w.serving(small), w.serving(small)
	var guests []*guest
	for _, id := range []string{"a", "b"} {
		guests = append(guests, w.plug(mustAttach(t, m, id, spore.Egress{})), w.plug(mustAttach(t, n, id, spore.Egress{})))
	}
	for i, g := range guests {
		if err := g.reach("tcp", worldEcho, patience); err != nil {
			t.Errorf("guest %d: %v", i, err)
		}
	}
	if _, err := n.Attach(t.Context(), "c", isolated(spore.Egress{}), spore.Limits{}); spore.CodeOf(err) != spore.CodeBusy {
		t.Errorf("one link too many: %v", err)
	}
	if err := guests[0].ping(n.find("a").inner, unanswered); err == nil {
		t.Error("a sandbox of one server reaches one of the other")
	}
	closeAll(t, m)
	for i, g := range guests {
		stays, wait := i%2 == 1, patience
		if !stays {
			wait = unanswered
		}
		if err := g.reach("tcp", worldEcho, wait); (err == nil) != stays {
			t.Errorf("guest %d, when one server has ended: %v", i, err)
		}
	}
	if _, err := n.Attach(t.Context(), "c", isolated(spore.Egress{}), spore.Limits{}); err != nil {
		t.Errorf("a link that is free again: %v", err)
	}
	closeAll(t, n)
	if after := w.traces(); after != before {
		t.Errorf("left behind:\n%s\nthere was:\n%s", after, before)
	}
}

func TestRounds(t *testing.T) {
	w := newWorld(t)
	before := w.traces()
	m := w.serving(func(o *Options) { o.PoolSize = 3 })
	var g errgroup.Group
	for worker := range 4 {
		g.Go(func() error {
			for round := range 13 {
				id := fmt.Sprintf("s%d-%d", worker, round)
				if _, err := m.Attach(t.Context(), id, isolated(spore.Egress{}), spore.Limits{NetworkInMbps: 10}); err != nil {
					return err
				}
				if err := m.Update(t.Context(), id, isolated(spore.Egress{Internet: off}), spore.Limits{}); err != nil {
					return err
				}
				if err := m.Detach(t.Context(), id); err != nil {
					return err
				}
				if err := m.Detach(t.Context(), id); err != nil {
					return fmt.Errorf("a second time: %w", err)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if left, err := m.Leftovers(nil); err != nil || len(left) > 0 {
		t.Errorf("%v is left over, %v", left, err)
	}
	closeAll(t, m)
	if after := w.traces(); after != before {
		t.Errorf("left behind:\n%s\nthere was:\n%s", after, before)
	}
	records, err := os.ReadDir(m.opt.Dir)
	if err != nil || len(records) > 0 {
		t.Errorf("%d records are left, %v", len(records), err)
	}
}

func TestAttachRefuses(t *testing.T) {
	w := newWorld(t)
	m := w.serving()
	before := w.traces()
	for name, c := range map[string]struct {
		id      string
		network spore.Network
		limits  spore.Limits
		field   string
	}{
		"nobody":    {"", isolated(spore.Egress{}), spore.Limits{}, "id"},
		"mode":      {"a", spore.Network{Mode: spore.NetworkUser}, spore.Limits{}, "network.mode"},
		"no mode":   {"a", spore.Network{}, spore.Limits{}, "network.mode"},
		"range":     {"a", isolated(spore.Egress{AllowCIDRs: []string{"10.0.0.0/64"}}), spore.Limits{}, "network.egress.allowCIDRs"},
		"name":      {"a", isolated(spore.Egress{AllowDomains: []string{"-"}}), spore.Limits{}, "network.egress.allowDomains"},
		"limits":    {"a", isolated(spore.Egress{}), spore.Limits{NetworkInMbps: -1}, "limits.networkInMbps"},
		"contradic": {"a", isolated(spore.Egress{AllowCIDRs: []string{"10.0.0.1"}, DenyCIDRs: []string{"10.0.0.1/32"}}), spore.Limits{}, "network.egress.denyCIDRs"},
	} {
		if _, err := m.Attach(t.Context(), c.id, c.network, c.limits); spore.CodeOf(err) != spore.CodeInvalid || spore.AsError(err).Field != c.field {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := m.Update(t.Context(), "stranger", isolated(spore.Egress{}), spore.Limits{}); spore.CodeOf(err) != spore.CodeNotFound {
		t.Errorf("a change of nothing: %v", err)
	}
	if _, err := m.Link("stranger"); spore.CodeOf(err) != spore.CodeNotFound {
		t.Errorf("a link of nobody: %v", err)
	}
	if after := w.traces(); after != before {
		t.Errorf("left behind:\n%s\nthere was:\n%s", after, before)
	}
}

// An attach of what is attached keeps the cable, and one that many do at once is done once.
func TestAttachAgain(t *testing.T) {
	w := newWorld(t)
	m := w.serving()
	first := mustAttach(t, m, "a", spore.Egress{})
	var g errgroup.Group
	for range 5 {
		g.Go(func() error {
			l, err := m.Attach(t.Context(), "a", isolated(spore.Egress{Internet: off}), spore.Limits{})
			if err == nil && l != first {
				err = fmt.Errorf("another cable: %v", l)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if gst := w.plug(first); gst.reach("tcp", worldEcho, unanswered) == nil {
		t.Error("the later policy is not in force")
	}
}
