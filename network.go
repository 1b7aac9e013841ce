package spore

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// NetworkMode is how a sandbox is connected to the world.
type NetworkMode string

const (
	NetworkNone     NetworkMode = "none"     // nothing is plugged in; ports and the agent work all the same
	NetworkUser     NetworkMode = "user"     // through a process of the server's own user; needs no privilege
	NetworkIsolated NetworkMode = "isolated" // a network namespace of its own behind NAT; needs root
)

// Network says how a sandbox is connected and what it may reach.
type Network struct {
	Mode   NetworkMode `json:"mode,omitempty"` // "" is NetworkNone
	Egress Egress      `json:"egress,omitzero"`
}

// Connected says whether there is a cable at all.
func (n Network) Connected() bool { return n.Mode != "" && n.Mode != NetworkNone }

// IsZero says whether nothing was said of it.
func (n Network) IsZero() bool { return n.Mode == "" && n.Egress.IsZero() }

// Egress is the policy for what a sandbox sends. For an address the most specific prefix that holds it decides. Built in
// are: private, shared, link-local, multicast and reserved ranges, and every address of the host, are denied. So a rule for the same or a
// narrower range opens them, and a rule for all addresses does not. IPv6 is not carried.
type Egress struct {
	// Internet says whether addresses that no rule names may be reached. Nil is true, but false when AllowDomains is given.
	Internet   *bool    `json:"internet,omitempty"`
	AllowCIDRs []string `json:"allowCIDRs,omitempty"` // IPv4 prefixes; a lone address is a /32
	DenyCIDRs  []string `json:"denyCIDRs,omitempty"`
	// AllowDomains are names that may be reached while the internet is off: "example.com" alone, "*.example.com" with all below it.
	// What Spore's own resolver answers for them is opened for as long as the answer holds, unless it is private.
	AllowDomains []string `json:"allowDomains,omitempty"`
	// Proxy is the URL of an HTTP proxy ("http://10.1.2.3:3128"), which is opened, and named in the environment of commands.
	Proxy string `json:"proxy,omitempty"`
}

// IsZero says whether it is the default policy, with nothing said.
func (e Egress) IsZero() bool {
	return e.Internet == nil && len(e.AllowCIDRs) == 0 && len(e.DenyCIDRs) == 0 && len(e.AllowDomains) == 0 && e.Proxy == ""
}

// Limits of a policy, so that a caller cannot make the host's tables grow without bound.
const (
	MaxEgressRules   = 1024
	MaxEgressDomains = 256
)

// Open says whether addresses that no rule names may be reached.
func (e Egress) Open() bool {
	if e.Internet != nil {
		return *e.Internet
	}
	return len(e.AllowDomains) == 0
}

// Validate refuses a network that cannot be, with the field named.
func (n Network) Validate() error {
	switch n.Mode {
	case "", NetworkNone, NetworkUser, NetworkIsolated:
	default:
		return Invalidf("network.mode", "%q is not a network mode", n.Mode).WithHint("one of none, user and isolated")
	}
	return n.Egress.Validate()
}

// Validate refuses a policy that cannot be, or contradicts itself, with the field named.
func (e Egress) Validate() error {
	allowed, err := prefixes("network.egress.allowCIDRs", e.AllowCIDRs)
	if err != nil {
		return err
	}
	denied, err := prefixes("network.egress.denyCIDRs", e.DenyCIDRs)
	if err != nil {
		return err
	}
	for _, p := range denied {
		if slices.Contains(allowed, p) {
			return Invalidf("network.egress.denyCIDRs", "%s is both allowed and denied", p).WithHint("take it out of one list; for overlapping ranges the narrower one decides")
		}
	}
	if len(e.AllowDomains) > MaxEgressDomains {
		return Invalidf("network.egress.allowDomains", "%d names are too many", len(e.AllowDomains)).WithHint("at most %d", MaxEgressDomains)
	}
	for _, d := range e.AllowDomains {
		if !domainForm(strings.TrimPrefix(d, "*.")) {
			return Invalidf("network.egress.allowDomains", "%q is not a domain name", d).WithHint("such as example.com, or *.example.com for all below it")
		}
	}
	if len(e.AllowDomains) > 0 && e.Open() {
		return Invalidf("network.egress.allowDomains", "names have no effect while the internet is on").WithHint("leave internet out, or set it to false")
	}
	if e.Proxy == "" {
		return nil
	}
	if _, err := e.ProxyAddress(); err != nil {
		return err
	}
	return nil
}

// Prefixes are the two lists of a valid policy.
func (e Egress) Prefixes() (allow, deny []netip.Prefix, err error) {
	if allow, err = prefixes("network.egress.allowCIDRs", e.AllowCIDRs); err != nil {
		return nil, nil, err
	}
	deny, err = prefixes("network.egress.denyCIDRs", e.DenyCIDRs)
	return allow, deny, err
}

// ProxyAddress is where Proxy listens. Its host is an address: a name could come to mean something else.
func (e Egress) ProxyAddress() (netip.AddrPort, error) {
	const field = "network.egress.proxy"
	u, err := url.Parse(e.Proxy)
	if err != nil || u.Scheme != "http" || u.Host == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return netip.AddrPort{}, Invalidf(field, "it is not the URL of an HTTP proxy").WithHint("such as http://10.1.2.3:3128")
	}
	if u.User != nil {
		return netip.AddrPort{}, Invalidf(field, "a URL is no place for a password")
	}
	addr, err := netip.ParseAddr(u.Hostname())
	if err != nil || !addr.Is4() {
		return netip.AddrPort{}, Invalidf(field, "%q is not an IPv4 address", u.Hostname()).WithHint("name the proxy by its address")
	}
	port := u.Port()
	if port == "" {
		port = "80"
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return netip.AddrPort{}, Invalidf(field, "%q is not a port", port)
	}
	return netip.AddrPortFrom(addr, uint16(n)), nil
}

func prefixes(field string, list []string) ([]netip.Prefix, error) {
	if len(list) > MaxEgressRules {
		return nil, Invalidf(field, "%d ranges are too many", len(list)).WithHint("at most %d", MaxEgressRules)
	}
	var all []netip.Prefix
	for _, s := range list {
		if !strings.Contains(s, "/") {
			s += "/32"
		}
		p, err := netip.ParsePrefix(s)
		if err != nil || !p.Addr().Is4() {
			return nil, Invalidf(field, "%q is not an IPv4 range", strings.TrimSuffix(s, "/32")).WithHint("such as 203.0.113.0/24")
		}
		if p != p.Masked() {
			return nil, Invalidf(field, "%s has bits set beyond its prefix", p).WithHint("did you mean %s?", p.Masked())
		}
		all = append(all, p)
	}
	return all, nil
}

// domainForm says whether a name is made of labels as RFC 1123 has them, two at least.
func domainForm(name string) bool {
	if len(name) > 253 || !strings.Contains(name, ".") {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
				return false
			}
		}
	}
	return true
}

// PortForward publishes a TCP port of a sandbox on the host. It works in every network mode, and a snapshot keeps it.
type PortForward struct {
	HostAddress string `json:"hostAddress,omitempty"` // "" is 127.0.0.1
	HostPort    int    `json:"hostPort,omitempty"`    // 0: one that is free
	GuestPort   int    `json:"guestPort"`
	// Picked says that any host port would have done and the node has picked this one. Another may take its place when the
	// sandbox is resumed or moved.
	Picked bool `json:"picked,omitempty"`
}

// PortTaken is the cause of a refusal to publish a port where somebody else on the host has it.
type PortTaken struct {
	HostAddress string
	HostPort    int
	By          string // who has it: "sandbox s1"
}

func (e *PortTaken) Error() string {
	return fmt.Sprintf("port %d of %s is taken by %s", e.HostPort, e.HostAddress, e.By)
}

// DefaultHostAddress is where ports are published when no address is named.
const DefaultHostAddress = "127.0.0.1"

// MaxPortForwards bounds how many ports one sandbox publishes.
const MaxPortForwards = 128

// WithDefaults fills in the address.
func (p PortForward) WithDefaults() PortForward {
	if p.HostAddress == "" {
		p.HostAddress = DefaultHostAddress
	}
	return p
}

// ValidatePorts refuses ports that cannot be, or that are in each other's way.
func ValidatePorts(ports []PortForward) error {
	if len(ports) > MaxPortForwards {
		return Invalidf("ports", "%d ports are too many", len(ports)).WithHint("at most %d", MaxPortForwards)
	}
	type place struct {
		addr netip.Addr
		port int
	}
	var taken []place
	for _, p := range ports {
		p = p.WithDefaults()
		addr, err := netip.ParseAddr(p.HostAddress)
		switch {
		case err != nil || addr.Zone() != "":
			return Invalidf("ports.hostAddress", "%q is not an IP address", p.HostAddress).WithHint("such as 127.0.0.1, or 0.0.0.0 for all of the host's")
		case p.HostPort < 0 || p.HostPort > 65535:
			return Invalidf("ports.hostPort", "%d is not a port", p.HostPort)
		case p.GuestPort < 1 || p.GuestPort > 65535:
			return Invalidf("ports.guestPort", "%d is not a port", p.GuestPort)
		}
		if p.HostPort == 0 {
			continue
		}
		for _, t := range taken {
			if t.port == p.HostPort && (t.addr == addr || t.addr.IsUnspecified() || addr.IsUnspecified()) {
				return Invalidf("ports.hostPort", "port %d of the host is named twice", p.HostPort).WithHint("give each forward a host port of its own, or 0 for any")
			}
		}
		taken = append(taken, place{addr, p.HostPort})
	}
	return nil
}

// MergePorts is what a stored request and a caller's come to: the caller's win where both publish one guest port or claim one
// place on the host, and nothing is there twice.
func MergePorts(stored, asked []PortForward) []PortForward {
	var all []PortForward
	add := func(p PortForward) {
		p = p.WithDefaults()
		for _, q := range all {
			if q == p || q.HostPort != 0 && q.HostPort == p.HostPort && q.HostAddress == p.HostAddress {
				return
			}
		}
		all = append(all, p)
	}
	for _, p := range asked {
		add(p)
	}
	for _, p := range stored {
		if !slices.ContainsFunc(asked, func(a PortForward) bool { return a.GuestPort == p.GuestPort }) {
			add(p)
		}
	}
	return all
}
