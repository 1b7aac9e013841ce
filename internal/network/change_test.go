package network

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/thread"
)

// change alters what a guest may reach.
func change(t *testing.T, m *Manager, id string, e spore.Egress) {
	t.Helper()
	if err := m.Update(t.Context(), id, isolated(e), spore.Limits{}); err != nil {
		t.Fatal(err)
	}
}

func TestChangeCutsFlows(t *testing.T) {
	w := newWorld(t)
	m := w.serving()
	g := w.plug(mustAttach(t, m, "a", spore.Egress{}))
	other := netip.AddrPortFrom(publicB, echoPort)
	tcp, err := g.dial("tcp", worldEcho, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := g.dial("udp", worldEcho, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	stays, err := g.dial("tcp", other, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer stays.Close()
	poured, err := g.dial("tcp", worldEcho, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer poured.Close()
	if _, err := poured.Write([]byte("pour")); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{"tcp": talk(tcp, patience), "udp": talk(udp, patience), "the other": talk(stays, patience)} {
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	change(t, m, "a", spore.Egress{DenyCIDRs: []string{publicA.String()}})
	if err := talk(tcp, patience); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a flow that is denied now should be reset: %v", err)
	}
	if talk(udp, unanswered) == nil {
		t.Error("a UDP flow that is denied now goes on")
	}
	// What comes without being asked for ends as well: of what was on its way some is still there to read.
	if !ends(poured) {
		t.Error("what is sent to the guest goes on to come")
	}
	if err := talk(stays, patience); err != nil {
		t.Errorf("a flow that is allowed still: %v", err)
	}
	change(t, m, "a", spore.Egress{})
	if err := g.reach("tcp", worldEcho, patience); err != nil {
		t.Errorf("after it was allowed again: %v", err)
	}
}

// ends reads what is left on a connection, and says whether nothing more comes after that.
func ends(c net.Conn) bool {
	b := make([]byte, 64<<10)
	for n := 0; n < 256<<20; {
		c.SetReadDeadline(time.Now().Add(unanswered))
		k, err := c.Read(b)
		if n += k; err != nil {
			return true
		}
	}
	return false
}

func TestNames(t *testing.T) {
	w := newWorld(t)
	resolverAt := localNames(t, map[string]netip.Addr{
		"allowed.example.com": publicA, "www.example.org": publicB, "other.example.com": publicB, "rebind.example.com": private, "host.example.com": hostAddr,
	})
	m := w.serving(func(o *Options) { o.Nameservers = []netip.AddrPort{resolverAt} })
	names := []string{"allowed.example.com", "rebind.example.com", "host.example.com"}
	l := mustAttach(t, m, "a", spore.Egress{AllowDomains: names})
	g := w.plug(l)
	other := netip.AddrPortFrom(publicB, echoPort)

	if g.reach("tcp", worldEcho, unanswered) == nil {
		t.Error("an address is open before its name was asked for")
	}
	for _, network := range []string{"udp", "tcp"} {
		addrs, err := g.ask(network, "allowed.example.com", netip.AddrPortFrom(l.Nameserver, 53))
		if err != nil || !slices.Equal(addrs, []netip.Addr{publicA}) {
			t.Fatalf("an allowed name by %s: %v, %v", network, addrs, err)
		}
	}
	if err := g.reach("tcp", worldEcho, patience); err != nil {
		t.Errorf("an allowed name's address: %v", err)
	}
	for _, denied := range []string{"other.example.com", "www.example.org", "rebind.example.com", "host.example.com"} {
		if addrs, err := g.lookup(denied, l); err == nil && len(addrs) > 0 {
			t.Errorf("%s is %v", denied, addrs)
		}
	}
	for _, to := range []netip.AddrPort{other, netip.AddrPortFrom(private, echoPort), netip.AddrPortFrom(hostAddr, echoPort)} {
		if g.reach("tcp", to, unanswered) == nil {
			t.Errorf("%s is reached", to)
		}
	}

	// A flow outlives the answer that opened it; a new one needs a new answer.
	flow, err := g.dial("tcp", worldEcho, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer flow.Close()
	if err := talk(flow, patience); err != nil {
		t.Fatal(err)
	}
	s := m.find("a")
	if err := m.inside(s, func() error {
		return filterWithin(func(c *nftables.Conn) error { c.FlushSet(theInner.pinned); return nil })
	}); err != nil {
		t.Fatal(err)
	}
	if g.reach("tcp", worldEcho, unanswered) == nil {
		t.Error("a new flow without an answer that holds")
	}
	if err := talk(flow, patience); err != nil {
		t.Errorf("a flow is cut because an answer holds no longer: %v", err)
	}
	s.mu.Lock()
	clear(s.pins) // as it would be when the time was over
	s.mu.Unlock()

	// More names: what there is stays.
	change(t, m, "a", spore.Egress{AllowDomains: append(names, "*.example.org")})
	if err := talk(flow, patience); err != nil {
		t.Errorf("a flow is cut because a name was added: %v", err)
	}
	if addrs, err := g.lookup("www.example.org", l); err != nil || !slices.Equal(addrs, []netip.Addr{publicB}) {
		t.Errorf("a name below another: %v, %v", addrs, err)
	}
	if _, err := g.lookup("allowed.example.com", l); err != nil {
		t.Error(err)
	}
	for _, to := range []netip.AddrPort{worldEcho, other} {
		if err := g.reach("udp", to, patience); err != nil {
			t.Errorf("%s: %v", to, err)
		}
	}

	// Fewer names: what only they had opened is closed, what others opened is not.
	change(t, m, "a", spore.Egress{AllowDomains: []string{"*.example.org"}})
	if err := talk(flow, patience); err == nil {
		t.Error("a flow to a name that is no longer allowed goes on")
	}
	if g.reach("udp", worldEcho, unanswered) == nil {
		t.Error("the address of a name that is no longer allowed is open")
	}
	if err := g.reach("udp", other, patience); err != nil {
		t.Errorf("a name that is allowed as before: %v", err)
	}
	if err := m.pin(s, "allowed.example.com", []netip.Addr{publicA}, time.Minute); !errors.Is(err, errPolicyChanged) {
		t.Errorf("an answer that comes after the change: %v", err)
	}
}

// A pin is never made shorter by another answer, and the longest holds in the kernel.
func TestPinHolds(t *testing.T) {
	w := newWorld(t)
	m := w.serving()
	mustAttach(t, m, "a", spore.Egress{AllowDomains: []string{"a.example.com", "b.example.com"}})
	s := m.find("a")
	for _, hold := range []time.Duration{time.Minute, time.Hour, time.Second} {
		if err := m.pin(s, "a.example.com", []netip.Addr{publicA, publicB}, hold); err != nil {
			t.Fatal(err)
		}
	}
	var pins map[netip.Addr]pin
	if err := m.inside(s, func() (err error) {
		pins, err = theInner.pins()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{publicA, publicB} {
		if p := pins[a]; p.domain != "a.example.com" || time.Until(p.until) < 50*time.Minute {
			t.Errorf("%s is open for %v because of %q", a, time.Until(p.until), p.domain)
		}
	}
	if err := m.pin(s, "a.example.com", []netip.Addr{private}, time.Minute); err == nil {
		t.Error("a private address is opened by a name")
	}
}

// The greatest policy that there can be is taken in one piece, and a change of it is quick to come into force.
func TestGreatestPolicy(t *testing.T) {
	w := newWorld(t)
	m := w.serving()
	e := spore.Egress{Internet: off}
	for i := range spore.MaxEgressRules {
		a := netip.AddrFrom4([4]byte{byte(20 + i/64), byte(i % 64 * 4), 0, 0})
		e.AllowCIDRs = append(e.AllowCIDRs, netip.PrefixFrom(a, 16).String())
		e.DenyCIDRs = append(e.DenyCIDRs, netip.PrefixFrom(a.Next().Next(), 32).String())
	}
	e.AllowCIDRs[7], e.AllowCIDRs[8] = publicA.String(), "255.255.255.255"
	for i := range spore.MaxEgressDomains {
		e.AllowDomains = append(e.AllowDomains, strings.Repeat("x", 1+i/16)+"."+strings.Repeat("y", 1+i%16)+".com")
	}
	g := w.plug(mustAttach(t, m, "a", e))
	if err := g.reach("tcp", worldEcho, patience); err != nil {
		t.Error(err)
	}
	if g.reach("tcp", netip.AddrPortFrom(publicB, echoPort), unanswered) == nil {
		t.Error("what no rule names is open")
	}
	e.AllowCIDRs[7] = publicB.String()
	change(t, m, "a", e)
	if err := g.reach("tcp", netip.AddrPortFrom(publicB, echoPort), patience); err != nil {
		t.Error(err)
	}
}

// A guest that opens flows without end gets a share of the host's table of flows, and no more.
func TestFlowsAreBounded(t *testing.T) {
	w := newWorld(t)
	names := localNames(t, map[string]netip.Addr{"a.example.com": publicA})
	m := w.serving(func(o *Options) { o.Nameservers = []netip.AddrPort{names} })
	l := mustAttach(t, m, "a", spore.Egress{})
	g := w.plug(l)
	var pc net.PacketConn
	if err := thread.InNetwork(g.ns, func() (err error) {
		pc, err = net.ListenPacket("udp4", "")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	if _, err := g.lookup("a.example.com", l); err != nil {
		t.Error(err)
	}
	flows := func() (n int) {
		t.Helper()
		if err := m.inside(m.find("a"), func() error {
			h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
			if err != nil {
				return err
			}
			defer h.Close()
			list, err := h.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
			n = len(list)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := flows(); n != 0 {
		t.Errorf("%d flows come of asking for a name", n)
	}
	begin, n := time.Now(), 0
	for n < newFlowsBurst/2 && time.Since(begin) < time.Minute { // of what is sent all at once a busy machine may lose most
		for port := range 20000 {
			to := &net.UDPAddr{IP: publicB.AsSlice(), Port: 1024 + port}
			if _, err := pc.WriteTo([]byte("x"), to); err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.ECONNREFUSED) {
				t.Fatal(err)
			}
		}
		n = flows()
	}
	most := newFlowsBurst + newFlows*int(time.Since(begin).Seconds()+2)
	t.Logf("%d flows after %v", n, time.Since(begin))
	if n < newFlowsBurst/2 || n > min(most, maxFlows) {
		t.Errorf("%d flows; %d may be", n, min(most, maxFlows))
	}
}
