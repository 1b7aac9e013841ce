package network

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/thread"
)

// A host that is no router does not become one for others.
func TestGuard(t *testing.T) {
	w := newWorld(t)
	before := w.traces()
	m := w.manager(t.TempDir())
	m.lookAgain = 50 * time.Millisecond
	if _, err := m.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	g := w.plug(mustAttach(t, m, "a", spore.Egress{}))
	if err := g.ping(publicA, patience); err != nil {
		t.Fatal(err)
	}
	// Somebody in the world uses the host as a router to a network behind it.
	behind := w.namespace(filepath.Join(t.TempDir(), "behind"))
	w.in(w.host, func(h *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "lan"
		if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(behind.Fd()))}); err != nil {
			return err
		}
		up(t, h, "lan", netip.MustParsePrefix("192.0.2.1/24"))
		return nil
	})
	w.in(behind, func(h *netlink.Handle) error {
		link := up(t, h, "eth0", netip.MustParsePrefix("192.0.2.2/24"))
		return h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: netip.MustParseAddr("192.0.2.1").AsSlice()})
	})
	w.in(w.internet, func(h *netlink.Handle) error {
		link, err := h.LinkByName("down")
		if err != nil {
			return err
		}
		return h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("192.0.2.0/24")), Gw: hostAddr.AsSlice()})
	})
	stranger := &guest{w: w, ns: w.internet}
	if stranger.ping(netip.MustParseAddr("192.0.2.2"), unanswered) == nil {
		t.Error("the host forwards for a stranger")
	}
	// When the host's owner makes it a router, Spore is not in the way.
	if err := thread.InNetwork(w.host, func() error { return sysctl("ipv4/ip_forward", "1") }); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		err := stranger.ping(netip.MustParseAddr("192.0.2.2"), unanswered)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a router's packets: %v", err)
		}
	}
	if err := g.ping(publicA, patience); err != nil {
		t.Error(err)
	}
	if err := thread.InNetwork(w.host, func() error { return sysctl("ipv4/ip_forward", "0") }); err != nil {
		t.Fatal(err)
	}
	w.in(w.host, func(h *netlink.Handle) error {
		link, err := h.LinkByName("lan")
		if err != nil {
			return err
		}
		return h.LinkDel(link)
	})
	closeAll(t, m)
	if after := w.traces(); after != before {
		t.Errorf("left behind:\n%s\nthere was:\n%s", after, before)
	}
}

// A host that lacks something says so.
func TestUnfit(t *testing.T) {
	w := newWorld(t)
	m := w.serving()
	before := w.traces()
	m.step = func(name string) error {
		if name == "make the link" {
			return fmt.Errorf("veth: %w", unix.EOPNOTSUPP)
		}
		return nil
	}
	if _, err := m.Attach(t.Context(), "a", isolated(spore.Egress{}), spore.Limits{}); spore.CodeOf(err) != spore.CodeUnsupported || spore.AsError(err).Hint == "" {
		t.Errorf("a kernel without links: %v", err)
	}
	if after := w.traces(); after != before {
		t.Errorf("left behind:\n%s\nthere was:\n%s", after, before)
	}
}

func TestSubnetInUse(t *testing.T) {
	w := newWorld(t)
	taken := func(o *Options) { o.Subnet = netip.MustParsePrefix("203.0.0.0/16") }
	m := w.manager(t.TempDir(), taken)
	if _, err := m.Recover(t.Context(), []string{"a"}); spore.CodeOf(err) != spore.CodeConflict || !strings.Contains(err.Error(), "uplink") {
		t.Errorf("links in the uplink's network: %v", err)
	}
	// A server that has no sandbox to lose does without.
	m = w.manager(t.TempDir(), taken)
	if _, err := m.Recover(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if _, err := m.Attach(t.Context(), "a", isolated(spore.Egress{}), spore.Limits{}); spore.CodeOf(err) != spore.CodeConflict || !strings.Contains(err.Error(), "uplink") {
		t.Errorf("links in the uplink's network: %v", err)
	}
	// Where nothing was asked for, another range is taken.
	w.in(w.host, func(h *netlink.Handle) error {
		link, err := h.LinkByName("uplink")
		if err != nil {
			return err
		}
		return h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("198.19.128.0/17")), Gw: publicA.AsSlice()})
	})
	m = w.serving()
	g := w.plug(mustAttach(t, m, "a", spore.Egress{}))
	if inner := m.find("a").inner; !Subnets[1].Contains(inner) {
		t.Errorf("the link is at %s", inner)
	}
	if err := g.reach("tcp", worldEcho, patience); err != nil {
		t.Error(err)
	}
	for _, s := range []string{"10.254.254.0/24", "198.19.0.0/31", "198.0.0.0/8", "198.19.0.1/16", "fd00::/64"} {
		if _, err := New(Options{Dir: t.TempDir(), Subnet: netip.MustParsePrefix(s)}); spore.CodeOf(err) != spore.CodeInvalid {
			t.Errorf("links in %s: %v", s, err)
		}
	}
}

func TestObstacles(t *testing.T) {
	w := newWorld(t)
	m := w.serving()
	if all, err := m.Obstacles(); err != nil || len(all) > 0 {
		t.Errorf("there are %v, %v", all, err)
	}
	policy := nftables.ChainPolicyDrop
	if err := m.onHost(func(c *nftables.Conn) error {
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"})
		c.AddChain(&nftables.Chain{
			Table: table, Name: "FORWARD", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &policy,
		})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if all, err := m.Obstacles(); err != nil || len(all) != 1 || all[0] != "chain FORWARD of table filter" {
		t.Errorf("there are %v, %v", all, err)
	}
}
