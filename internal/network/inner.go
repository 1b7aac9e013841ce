package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/network/policy"
)

// upName is the namespace's end of its link to the host.
const upName = "up0"

// pinnedMark is on flows that began towards an address which a name had resolved to: they may go on when the answer no
// longer holds.
const pinnedMark = 1

// maxPins bounds how many addresses one guest can have opened by names at a time.
const maxPins = 4096

// What a guest may ask of the host's table of flows, which all sandboxes and the host itself share: so many flows at a time, and so
// many new ones a second.
const (
	maxFlows      = 8192
	newFlows      = 500
	newFlowsBurst = 2000
)

// inner is the packet filter inside a namespace. Its parts are only descriptions; what they describe is in the kernel.
type inner struct {
	v4, v6  *nftables.Table
	allowed *nftables.Set // ranges that the policy allows
	pinned  *nftables.Set // addresses that allowed names have resolved to, for as long as the answers hold
	proxy   *nftables.Set // the proxy's address and port
}

var theInner = newInner()

func newInner() *inner {
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "spore"}
	return &inner{
		v4:      t,
		v6:      &nftables.Table{Family: nftables.TableFamilyIPv6, Name: "spore"},
		allowed: &nftables.Set{Table: t, ID: 1, Name: "allowed", KeyType: nftables.TypeIPAddr, Interval: true},
		pinned:  &nftables.Set{Table: t, ID: 2, Name: "pinned", KeyType: nftables.TypeIPAddr, HasTimeout: true, Size: maxPins},
		proxy: &nftables.Set{
			Table: t, ID: 3, Name: "proxy", KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService), Concatenation: true,
		},
	}
}

// install makes the tables, which let nothing through until there is a policy. The calling thread is in the namespace.
func (in *inner) install() error {
	return filterWithin(func(c *nftables.Conn) error {
		renew(c, in.v4)
		for _, s := range []*nftables.Set{in.allowed, in.pinned, in.proxy} {
			if err := c.AddSet(s, nil); err != nil {
				return err
			}
		}
		denied := nftables.ChainPolicyDrop
		passed := nftables.ChainPolicyAccept
		chain := func(t *nftables.Table, name string, hook *nftables.ChainHook, at *nftables.ChainPriority, p *nftables.ChainPolicy) *nftables.Chain {
			return c.AddChain(&nftables.Chain{Table: t, Name: name, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: at, Policy: p})
		}
		add := func(ch *nftables.Chain, parts ...match) {
			c.AddRule(&nftables.Rule{Table: ch.Table, Chain: ch, Exprs: rule(parts...)})
		}

		// The guest is who it is.
		spoof := chain(in.v4, "spoof", nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, &passed)
		add(spoof, from(TapName), sourceIsNot(GuestAddress.Addr()), drop())

		// Questions to the gateway need no memory of them.
		add(spoof, from(TapName), destinationIs(Gateway), untracked())
		replies := chain(in.v4, "replies", nftables.ChainHookOutput, nftables.ChainPriorityRaw, &passed)
		add(replies, to(TapName), sourceIs(Gateway), untracked())

		// The namespace itself answers names and pings, to the guest only.
		input := chain(in.v4, "input", nftables.ChainHookInput, nftables.ChainPriorityFilter, &denied)
		for _, p := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			add(input, from(TapName), destinationIs(Gateway), protocol(p), portIs(53), accept())
		}
		add(input, from(TapName), destinationIs(Gateway), echoRequest(), atMost(50), accept())

		// Each packet of the guest is judged anew, so that a policy which gets narrower holds for flows that are there already.
		forward := chain(in.v4, "forward", nftables.ChainHookForward, nftables.ChainPriorityFilter, &denied)
		out := match(append(from(TapName), to(upName)...))
		add(forward, from(upName), to(TapName), stateIn(known), accept())
		add(forward, out, stateIn(expr.CtStateBitNEW), moreThan(newFlows, newFlowsBurst), drop())
		add(forward, out, stateIn(expr.CtStateBitNEW), flowsOver(maxFlows), drop())
		add(forward, out, destinationIn(in.allowed), accept())
		add(forward, out, stateIn(known), markIs(pinnedMark), accept())
		add(forward, out, destinationIn(in.pinned), setMark(pinnedMark), accept())
		add(forward, out, protocol(unix.IPPROTO_TCP),
			match{loadDestination, payload(expr.PayloadBaseTransportHeader, 2, 2, secondRegister), lookup(in.proxy)}, accept())
		// A refusal that is heard of at once is worth more than a silence; but it must cost the host little.
		add(forward, from(TapName), protocol(unix.IPPROTO_TCP), atMost(200), rejectTCP())
		add(forward, from(TapName), atMost(200), rejectAny())

		nat := c.AddChain(&nftables.Chain{
			Table: in.v4, Name: "nat", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource, Policy: &passed,
		})
		add(nat, to(upName), match{&expr.Masq{}})

		// Nothing of IPv6 goes anywhere.
		renew(c, in.v6)
		chain(in.v6, "prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, &denied)
		chain(in.v6, "output", nftables.ChainHookOutput, nftables.ChainPriorityRaw, &denied)
		return nil
	})
}

// pin is an address that a name has opened.
type pin struct {
	domain string
	until  time.Time
}

// load puts a policy in force in one step, with the pins that go on holding. The calling thread is in the namespace.
func (in *inner) load(p *policy.Policy, pins map[netip.Addr]pin) error {
	return filterWithin(func(c *nftables.Conn) error {
		c.FlushSet(in.allowed)
		c.FlushSet(in.pinned)
		c.FlushSet(in.proxy)
		if err := addElements(c, in.allowed, intervals(p.Ranges())); err != nil {
			return err
		}
		if proxy, ok := p.Proxy(); ok {
			if err := addElements(c, in.proxy, []nftables.SetElement{{Key: addrPort(proxy)}}); err != nil {
				return err
			}
		}
		var kept []nftables.SetElement
		now := time.Now()
		for addr, pin := range pins {
			if left := pin.until.Sub(now); left >= time.Millisecond {
				kept = append(kept, pinElement(addr, pin.domain, left))
			}
		}
		return addElements(c, in.pinned, kept)
	})
}

// intervals are the allowed ones of ranges as a set holds them: where one begins, and the first address after it.
func intervals(ranges []policy.Range) []nftables.SetElement {
	var all []nftables.SetElement
	for _, r := range ranges {
		if !r.Allow {
			continue
		}
		all = append(all, nftables.SetElement{Key: r.First.AsSlice()})
		if next := r.Last.Next(); next.IsValid() {
			all = append(all, nftables.SetElement{Key: next.AsSlice(), IntervalEnd: true})
		}
	}
	return all
}

// addrPort is an address and a port as a set holds them: each is filled up to four bytes.
func addrPort(a netip.AddrPort) []byte {
	return append(binary.BigEndian.AppendUint16(a.Addr().AsSlice(), a.Port()), 0, 0)
}

// maxComment is how long a name may be that is kept beside the address it has opened.
const maxComment = 250

func pinElement(addr netip.Addr, domain string, ttl time.Duration) nftables.SetElement {
	if len(domain) > maxComment {
		domain = "" // the pin does not outlive the next change of the policy
	}
	return nftables.SetElement{Key: addr.AsSlice(), Timeout: ttl, Comment: domain}
}

// pin opens addresses for a time, in place of an earlier time. The calling thread is in the namespace.
func (in *inner) pin(pins map[netip.Addr]pin) error {
	var all []nftables.SetElement
	now := time.Now()
	for addr, p := range pins {
		all = append(all, pinElement(addr, p.domain, max(p.until.Sub(now), time.Millisecond)))
	}
	return filterWithin(func(c *nftables.Conn) error {
		if err := dropElements(c, in.pinned, all); err != nil {
			return err
		}
		return addElements(c, in.pinned, all)
	})
}

// pins lists the addresses that names have opened. The calling thread is in the namespace.
func (in *inner) pins() (map[netip.Addr]pin, error) {
	c, err := newConn()
	if err != nil {
		return nil, err
	}
	defer c.CloseLasting()
	elements, err := c.GetSetElements(in.pinned)
	if err != nil {
		return nil, err
	}
	all := map[netip.Addr]pin{}
	now := time.Now()
	for _, e := range elements {
		if addr, ok := netip.AddrFromSlice(e.Key); ok {
			all[addr] = pin{domain: e.Comment, until: now.Add(e.Expires)}
		}
	}
	return all, nil
}

// flows answers whether a flow of the guest may go on.
type flows func(to netip.AddrPort, protocol uint8, mark uint32) bool

// cut ends the flows that may not go on: what comes back for them is dropped from now on, and what the guest sends is judged as the
// beginning of a flow. The calling thread is in the namespace.
func (keep flows) cut() (int, error) {
	h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, err
	}
	defer h.Close()
	const tries = 5
	total := 0
	for range tries {
		var n uint
		n, err = h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, keep)
		total += int(n)
		if err == nil {
			return total, nil
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return total, fmt.Errorf("cut the flows that are no longer allowed: %w", err)
}

// MatchConntrackFlow says whether a flow is to be cut.
func (keep flows) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	addr, ok := netip.AddrFromSlice(f.Forward.DstIP.To4())
	return !ok || !keep(netip.AddrPortFrom(addr, f.Forward.DstPort), f.Forward.Protocol, f.Mark)
}

// sysctl sets a value of the network namespace that the calling thread is in, as /proc/sys/net has it.
func sysctl(name, value string) error {
	return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0)
}
