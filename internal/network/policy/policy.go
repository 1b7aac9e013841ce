// Package policy turns what a sandbox was said to be allowed to reach into decisions about single addresses and names, the same
// for every way a sandbox can be connected.
package policy

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/sporevm/spore"
)

// builtin are the ranges that are denied unless a rule for the same or a narrower range opens them.
var builtin = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),      // this network
	netip.MustParsePrefix("10.0.0.0/8"),     // private
	netip.MustParsePrefix("100.64.0.0/10"),  // shared by carriers
	netip.MustParsePrefix("127.0.0.0/8"),    // loopback
	netip.MustParsePrefix("169.254.0.0/16"), // link-local, where clouds keep their metadata
	netip.MustParsePrefix("172.16.0.0/12"),  // private
	netip.MustParsePrefix("192.0.0.0/24"),   // of the protocol's own
	netip.MustParsePrefix("192.168.0.0/16"), // private
	netip.MustParsePrefix("198.18.0.0/15"),  // measurements
	netip.MustParsePrefix("224.0.0.0/4"),    // multicast
	netip.MustParsePrefix("240.0.0.0/4"),    // reserved, and broadcast
}

// Builtin are the ranges that are denied unless a rule for the same or a narrower range opens them. The addresses of the host
// come on top of them.
func Builtin() []netip.Prefix { return slices.Clone(builtin) }

// verdict is what one rule says, and who said it.
type verdict uint8

const (
	internetOff verdict = iota // nothing is said of the address, and the internet is off
	internetOn
	builtinDeny
	ruleDeny
	ruleAllow
)

func (v verdict) allows() bool { return v == internetOn || v == ruleAllow }

// span is a run of addresses that one rule decides.
type span struct {
	first, last uint32
	verdict     verdict
}

// Policy decides what a sandbox may reach. It never changes; all methods may be called from many goroutines.
type Policy struct {
	spans  []span // in order, without gaps, from the first address to the last
	open   bool
	names  map[string]bool // allowed by themselves
	below  map[string]bool // allowed with all below them
	proxy  netip.AddrPort
	egress spore.Egress
}

// Compile makes the policy that egress describes on a host with these addresses. It fails with spore.CodeInvalid, naming the
// field, for a policy that cannot be.
func Compile(egress spore.Egress, host []netip.Addr) (*Policy, error) {
	if err := egress.Validate(); err != nil {
		return nil, err
	}
	allow, deny, err := egress.Prefixes()
	if err != nil {
		return nil, err
	}
	all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	rules := map[netip.Prefix]verdict{all: internetOff}
	if egress.Open() {
		rules[all] = internetOn
	}
	for _, p := range builtin {
		rules[p] = builtinDeny
	}
	for _, a := range host {
		if a = a.Unmap(); a.Is4() {
			rules[netip.PrefixFrom(a, 32)] = builtinDeny
		}
	}
	for _, p := range deny {
		rules[p] = ruleDeny
	}
	for _, p := range allow {
		rules[p] = ruleAllow
	}
	if rules[all] == ruleDeny {
		rules[all] = internetOff // the same said in other words; allowed names are narrower than it
	}
	p := &Policy{spans: flatten(rules), open: rules[all].allows(), names: map[string]bool{}, below: map[string]bool{}, egress: egress}
	for _, d := range egress.AllowDomains {
		if parent, ok := strings.CutPrefix(d, "*."); ok {
			p.below[parent] = true
		} else {
			p.names[d] = true
		}
	}
	if egress.Proxy != "" {
		if p.proxy, err = egress.ProxyAddress(); err != nil {
			return nil, err
		}
		if a := p.proxy.Addr(); a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() || a.IsLinkLocalUnicast() || a.As4()[0] >= 240 || a.As4()[0] == 0 {
			return nil, spore.Invalidf("network.egress.proxy", "a sandbox cannot reach a proxy at %s", a).
				WithHint("name an address of the host or of another machine")
		}
	}
	return p, nil
}

// flatten turns prefixes, of which the narrower decides, into runs of addresses. One of the prefixes holds all addresses.
func flatten(rules map[netip.Prefix]verdict) []span {
	type rule struct {
		span
		bits int
	}
	ordered := make([]rule, 0, len(rules))
	for p, v := range rules {
		first, last := bounds(p)
		ordered = append(ordered, rule{span{first, last, v}, p.Bits()})
	}
	// Prefixes hold one another or are apart. In this order each comes after all that hold it.
	slices.SortFunc(ordered, func(a, b rule) int {
		return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(a.bits, b.bits))
	})
	var spans []span
	next := uint64(0) // the first address that no span has yet
	emit := func(last uint64, v verdict) {
		if next > last {
			return
		}
		if n := len(spans); n > 0 && spans[n-1].verdict == v {
			spans[n-1].last = uint32(last)
		} else {
			spans = append(spans, span{uint32(next), uint32(last), v})
		}
		next = last + 1
	}
	var within []rule // those that hold the address next, from the widest to the narrowest
	for _, r := range ordered {
		for len(within) > 0 && within[len(within)-1].last < r.first {
			top := within[len(within)-1]
			emit(uint64(top.last), top.verdict)
			within = within[:len(within)-1]
		}
		if len(within) > 0 && r.first > 0 {
			emit(uint64(r.first)-1, within[len(within)-1].verdict)
		}
		within = append(within, r)
	}
	for len(within) > 0 {
		top := within[len(within)-1]
		emit(uint64(top.last), top.verdict)
		within = within[:len(within)-1]
	}
	return spans
}

func bounds(p netip.Prefix) (first, last uint32) {
	first = number(p.Masked().Addr())
	return first, first | uint32(uint64(1)<<(32-p.Bits())-1)
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func address(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

// Egress is what the policy was compiled from.
func (p *Policy) Egress() spore.Egress { return p.egress }

// Open says whether addresses that no narrower rule names may be reached.
func (p *Policy) Open() bool { return p.open }

// Allows says whether an address may be reached on any port. IPv6 never is.
func (p *Policy) Allows(addr netip.Addr) bool {
	v, ok := p.verdict(addr)
	return ok && v.allows()
}

// AllowsTCP says whether a TCP port of an address may be reached: all of those that Allows names, and the proxy.
func (p *Policy) AllowsTCP(to netip.AddrPort) bool {
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	return p.Allows(to.Addr()) || p.proxy.IsValid() && to == p.proxy
}

func (p *Policy) verdict(addr netip.Addr) (verdict, bool) {
	if addr = addr.Unmap(); !addr.Is4() {
		return 0, false
	}
	n := number(addr)
	i, found := slices.BinarySearchFunc(p.spans, n, func(s span, n uint32) int { return cmp.Compare(s.first, n) })
	if !found {
		i--
	}
	return p.spans[i].verdict, true
}

// Range is a run of addresses, ends included, that may or may not be reached.
type Range struct {
	First, Last netip.Addr
	Allow       bool
}

// Ranges are all IPv4 addresses in order, without gaps; neighbours differ in Allow.
func (p *Policy) Ranges() []Range {
	var all []Range
	for _, s := range p.spans {
		if n := len(all); n > 0 && all[n-1].Allow == s.verdict.allows() {
			all[n-1].Last = address(s.last)
			continue
		}
		all = append(all, Range{address(s.first), address(s.last), s.verdict.allows()})
	}
	return all
}

// Proxy is the address and TCP port that is open besides what Allows says; ok is false when there is none.
func (p *Policy) Proxy() (addr netip.AddrPort, ok bool) { return p.proxy, p.proxy.IsValid() }

// Name says whether a name may be resolved for the sandbox: every one while the internet is on, else those that are allowed. Case
// and a final dot do not matter.
func (p *Policy) Name(domain string) bool {
	if p.open {
		return true
	}
	domain = strings.ToLower(strings.TrimSuffix(domain, "."))
	if p.names[domain] {
		return true
	}
	for domain != "" {
		if p.below[domain] {
			return true
		}
		_, domain, _ = strings.Cut(domain, ".")
	}
	return false
}

// Pinnable says whether an address may be opened because an allowed name resolved to it. A name's owner can make it resolve to
// anything; so what is denied by a rule or built in stays denied.
func (p *Policy) Pinnable(addr netip.Addr) bool {
	v, ok := p.verdict(addr)
	return ok && v != builtinDeny && v != ruleDeny
}
