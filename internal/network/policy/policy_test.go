package policy

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/sporevm/spore"
)

var off, on = new(bool), func() *bool { b := true; return &b }()

func compile(t testing.TB, e spore.Egress, host ...string) *Policy {
	t.Helper()
	var addrs []netip.Addr
	for _, h := range host {
		addrs = append(addrs, netip.MustParseAddr(h))
	}
	p, err := Compile(e, addrs)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAllows(t *testing.T) {
	for _, c := range []struct {
		name   string
		egress spore.Egress
		yes    string
		no     string
	}{
		{
			name: "nothing said",
			yes:  "8.8.8.8 1.1.1.1 172.32.0.1 172.15.255.255 100.63.255.255 198.20.0.0 223.255.255.255 192.0.1.0",
			no: "0.1.2.3 10.0.0.1 100.64.0.1 127.0.0.1 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.8 192.168.1.1 198.18.0.1 198.19.255.255 " +
				"224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255 203.0.113.7 ::1 2001:4860:4860::8888 ::ffff:10.0.0.1",
		},
		{name: "an IPv4 address in IPv6's clothes", yes: "::ffff:8.8.8.8", no: "::ffff:203.0.113.7"},
		{name: "internet off", egress: spore.Egress{Internet: off}, no: "8.8.8.8 10.0.0.1"},
		{name: "a private range opened as a whole", egress: spore.Egress{AllowCIDRs: []string{"10.0.0.0/8"}}, yes: "10.1.2.3 8.8.8.8", no: "192.168.0.1"},
		{name: "a part of a private range", egress: spore.Egress{AllowCIDRs: []string{"10.1.0.0/16"}}, yes: "10.1.2.3", no: "10.2.0.1"},
		{name: "all addresses are not the private ones", egress: spore.Egress{Internet: off, AllowCIDRs: []string{"0.0.0.0/0"}}, yes: "8.8.8.8", no: "10.0.0.1 203.0.113.7"},
		{name: "wider than private is not private", egress: spore.Egress{AllowCIDRs: []string{"10.0.0.0/7"}}, yes: "11.0.0.1", no: "10.0.0.1"},
		{name: "the narrower rule decides", egress: spore.Egress{
			DenyCIDRs: []string{"8.0.0.0/8", "8.8.8.8/32"}, AllowCIDRs: []string{"8.8.0.0/16"},
		}, yes: "8.8.4.4 9.9.9.9", no: "8.1.1.1 8.8.8.8"},
		{name: "the host by its address only", egress: spore.Egress{AllowCIDRs: []string{"203.0.113.0/24"}}, yes: "203.0.113.8", no: "203.0.113.7"},
		{name: "the host opened", egress: spore.Egress{AllowCIDRs: []string{"203.0.113.7"}}, yes: "203.0.113.7"},
		{name: "the last address of all", egress: spore.Egress{AllowCIDRs: []string{"255.255.255.255"}}, yes: "255.255.255.255", no: "255.255.255.254"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := compile(t, c.egress, "203.0.113.7", "2001:db8::1")
			for _, a := range strings.Fields(c.yes) {
				if !p.Allows(netip.MustParseAddr(a)) {
					t.Errorf("%s is denied", a)
				}
			}
			for _, a := range strings.Fields(c.no) {
				if p.Allows(netip.MustParseAddr(a)) {
					t.Errorf("%s is allowed", a)
				}
			}
		})
	}
	if compile(t, spore.Egress{}).Allows(netip.Addr{}) {
		t.Error("no address at all is allowed")
	}
}

// The table in docs/networking.md.
func TestTableOfTheDocs(t *testing.T) {
	probes := []string{"8.8.8.8", "10.1.2.3", "10.2.0.1", "203.0.113.7"}
	for _, c := range []struct {
		egress spore.Egress
		want   []bool
	}{
		{spore.Egress{}, []bool{true, false, false, false}},
		{spore.Egress{AllowCIDRs: []string{"10.1.0.0/16"}}, []bool{true, true, false, false}},
		{spore.Egress{AllowCIDRs: []string{"10.0.0.0/8"}, DenyCIDRs: []string{"10.2.0.0/16"}}, []bool{true, true, false, false}},
		{spore.Egress{AllowCIDRs: []string{"0.0.0.0/0"}}, []bool{true, false, false, false}},
		{spore.Egress{AllowCIDRs: []string{"203.0.113.0/24"}}, []bool{true, false, false, false}},
		{spore.Egress{AllowCIDRs: []string{"203.0.113.7"}}, []bool{true, false, false, true}},
		{spore.Egress{Internet: off, AllowCIDRs: []string{"10.1.2.3"}}, []bool{false, true, false, false}},
	} {
		p := compile(t, c.egress, "203.0.113.7")
		for i, probe := range probes {
			if p.Allows(netip.MustParseAddr(probe)) != c.want[i] {
				t.Errorf("%+v: %s is %v", c.egress, probe, !c.want[i])
			}
		}
	}
}

func TestName(t *testing.T) {
	open := compile(t, spore.Egress{})
	if !open.Name("anything.at.all") || !open.Open() {
		t.Error("a name is refused while the internet is on")
	}
	p := compile(t, spore.Egress{AllowDomains: []string{"example.com", "*.example.org", "*.a.example.net"}})
	if p.Open() {
		t.Error("open with a list of names")
	}
	for name, want := range map[string]bool{
		"example.com": true, "example.com.": true, "EXAMPLE.com": true, "www.example.com": false, "badexample.com": false,
		"example.org": true, "www.example.org": true, "a.b.c.example.org.": true, "badexample.org": false, "org": false,
		"example.net": false, "b.a.example.net": true, "": false, ".": false, "example.com.evil.net": false,
	} {
		if p.Name(name) != want {
			t.Errorf("Name(%q) = %v", name, !want)
		}
	}
}

func TestPinnable(t *testing.T) {
	p := compile(t, spore.Egress{
		AllowDomains: []string{"example.com"}, AllowCIDRs: []string{"10.1.0.0/16"}, DenyCIDRs: []string{"0.0.0.0/0", "192.0.2.0/24"},
	}, "203.0.113.7")
	for addr, want := range map[string]bool{
		"93.184.216.34": true, "10.1.2.3": true, "10.2.0.1": false, "127.0.0.1": false, "169.254.169.254": false,
		"192.0.2.9": false, "203.0.113.7": false, "::1": false, "2001:db8::2": false, "::ffff:127.0.0.1": false,
	} {
		if p.Pinnable(netip.MustParseAddr(addr)) != want {
			t.Errorf("Pinnable(%s) = %v", addr, !want)
		}
	}
}

func TestProxy(t *testing.T) {
	p := compile(t, spore.Egress{Internet: off, Proxy: "http://10.1.2.3:3128"})
	if to, ok := p.Proxy(); !ok || to != netip.MustParseAddrPort("10.1.2.3:3128") {
		t.Errorf("the proxy is %v, %v", to, ok)
	}
	for to, want := range map[string]bool{"10.1.2.3:3128": true, "[::ffff:10.1.2.3]:3128": true, "10.1.2.3:22": false, "10.1.2.4:3128": false} {
		if p.AllowsTCP(netip.MustParseAddrPort(to)) != want {
			t.Errorf("AllowsTCP(%s) = %v", to, !want)
		}
	}
	if p.Allows(netip.MustParseAddr("10.1.2.3")) {
		t.Error("all ports of the proxy's address are open")
	}
	if _, ok := compile(t, spore.Egress{}).Proxy(); ok {
		t.Error("a proxy out of nothing")
	}
	for _, bad := range []string{"127.0.0.1", "0.0.0.0", "224.0.0.5", "255.255.255.255", "169.254.169.254"} {
		if _, err := Compile(spore.Egress{Proxy: "http://" + bad + ":3128"}, nil); spore.CodeOf(err) != spore.CodeInvalid || spore.AsError(err).Field != "network.egress.proxy" {
			t.Errorf("a proxy at %s: %v", bad, err)
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	for field, e := range map[string]spore.Egress{
		"network.egress.allowCIDRs":   {AllowCIDRs: []string{"10.0.0.0/33"}},
		"network.egress.denyCIDRs":    {AllowCIDRs: []string{"10.0.0.0/8"}, DenyCIDRs: []string{"10.0.0.0/8"}},
		"network.egress.allowDomains": {AllowDomains: []string{"not a name"}},
		"network.egress.proxy":        {Proxy: "socks://10.0.0.1"},
	} {
		if _, err := Compile(e, nil); spore.CodeOf(err) != spore.CodeInvalid || spore.AsError(err).Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// oracle decides by looking at every rule.
func oracle(e spore.Egress, host []netip.Addr, addr netip.Addr) bool {
	best, allowed := -1, e.Open()
	look := func(p netip.Prefix, allow bool) {
		if p.Contains(addr) && p.Bits() >= best {
			best, allowed = p.Bits(), allow
		}
	}
	for _, p := range builtin {
		look(p, false)
	}
	for _, h := range host {
		look(netip.PrefixFrom(h, 32), false)
	}
	// Of one length only one of these holds addr, and comes after what is built in.
	allow, deny, _ := e.Prefixes()
	type rule struct {
		netip.Prefix
		allow bool
	}
	var rules []rule
	for _, p := range deny {
		rules = append(rules, rule{p, false})
	}
	for _, p := range allow {
		rules = append(rules, rule{p, true})
	}
	slices.SortFunc(rules, func(a, b rule) int { return a.Bits() - b.Bits() })
	for _, r := range rules {
		look(r.Prefix, r.allow)
	}
	return allowed
}

func TestAgainstOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		anAddr := rapid.Custom(func(t *rapid.T) netip.Addr {
			// Few distinct leading bytes, so that rules lie within one another.
			lead := rapid.SampledFrom([]byte{0, 8, 10, 100, 127, 172, 192, 198, 224, 255}).Draw(t, "lead")
			rest := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 16, 64, 127, 128, 254, 255}), 3, 3).Draw(t, "rest")
			return netip.AddrFrom4([4]byte{lead, rest[0], rest[1], rest[2]})
		})
		aPrefix := rapid.Custom(func(t *rapid.T) string {
			return netip.PrefixFrom(anAddr.Draw(t, "addr"), rapid.IntRange(0, 32).Draw(t, "bits")).Masked().String()
		})
		e := spore.Egress{AllowCIDRs: rapid.SliceOfN(aPrefix, 0, 12).Draw(t, "allow")}
		e.DenyCIDRs = slices.DeleteFunc(rapid.SliceOfN(aPrefix, 0, 12).Draw(t, "deny"), func(s string) bool { return slices.Contains(e.AllowCIDRs, s) })
		e.Internet = rapid.SampledFrom([]*bool{nil, on, off}).Draw(t, "internet")
		host := rapid.SliceOfN(anAddr, 0, 3).Draw(t, "host")
		p, err := Compile(e, host)
		if err != nil {
			t.Fatal(err)
		}
		probes := rapid.SliceOfN(anAddr, 1, 20).Draw(t, "probes")
		for _, s := range p.spans {
			probes = append(probes, address(s.first), address(s.last))
		}
		for _, a := range probes {
			if want := oracle(e, host, a); p.Allows(a) != want {
				t.Fatalf("Allows(%s) = %v", a, !want)
			}
		}
		checkRanges(t, p)
	})
}

type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// checkRanges sees that the ranges hold every address once, and say what Allows says.
func checkRanges(t failer, p *Policy) {
	t.Helper()
	next := uint64(0)
	ranges := p.Ranges()
	for i, r := range ranges {
		if uint64(number(r.First)) != next || r.Last.Less(r.First) {
			t.Fatalf("range %d is %v to %v; address number %d was due", i, r.First, r.Last, next)
		}
		if i > 0 && ranges[i-1].Allow == r.Allow {
			t.Fatalf("range %d says what its neighbour says", i)
		}
		next = uint64(number(r.Last)) + 1
		span := number(r.Last) - number(r.First)
		for _, a := range []netip.Addr{r.First, r.Last, address(number(r.First) + uint32(rand.Uint64N(uint64(span)+1)))} {
			if p.Allows(a) != r.Allow {
				t.Fatalf("%s: the range says %v", a, r.Allow)
			}
		}
	}
	if next != 1<<32 {
		t.Fatalf("the ranges end before address number %d", next)
	}
}

func FuzzCompile(f *testing.F) {
	f.Add("10.0.0.0/8 1.2.3.4", "1.0.0.0/8", "example.com *.example.org", "http://10.1.2.3:3128", true, uint32(0x08080808))
	f.Add("0.0.0.0/0", "0.0.0.0/1 128.0.0.0/1", "", "", false, uint32(0xffffffff))
	f.Add("::/0", "10.0.0.1/8", "-.-", "http://[::1]", false, uint32(0))
	f.Fuzz(func(t *testing.T, allow, deny, domains, proxy string, internet bool, probe uint32) {
		e := spore.Egress{
			Internet: &internet, AllowCIDRs: strings.Fields(allow), DenyCIDRs: strings.Fields(deny), AllowDomains: strings.Fields(domains), Proxy: proxy,
		}
		host := []netip.Addr{address(probe ^ 1)}
		p, err := Compile(e, host)
		if err != nil {
			if spore.CodeOf(err) != spore.CodeInvalid || spore.AsError(err).Field == "" {
				t.Fatalf("refused without the field: %v", err)
			}
			return
		}
		if a := address(probe); p.Allows(a) != oracle(e, host, a) {
			t.Fatalf("Allows(%s) = %v", a, p.Allows(a))
		}
		for _, d := range e.AllowDomains {
			if !p.Name(strings.TrimPrefix(d, "*.")) {
				t.Fatalf("%s is refused", d)
			}
		}
		checkRanges(t, p)
	})
}

func BenchmarkCompile(b *testing.B) {
	var e spore.Egress
	for i := range spore.MaxEgressRules {
		e.AllowCIDRs = append(e.AllowCIDRs, netip.PrefixFrom(address(uint32(i)<<20), 12).String())
		e.DenyCIDRs = append(e.DenyCIDRs, netip.PrefixFrom(address(uint32(i)<<20|uint32(i)<<8), 24).String())
	}
	for b.Loop() {
		if _, err := Compile(e, nil); err != nil {
			b.Fatal(err)
		}
	}
}
