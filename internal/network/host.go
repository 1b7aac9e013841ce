package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/network/policy"
	"github.com/sporevm/spore/internal/thread"
)

// outer is a server's packet filter on the host: it keeps links apart from each other and from the host itself, and lends them the
// host's address towards the world.
type outer struct {
	prefix  string
	v4, v6  *nftables.Table
	links   *nftables.Set // a link, and the only address that packets from it have
	inners  *nftables.Set // those addresses alone
	open    *nftables.Set // a link's address, and an address of the host that its policy opens
	openTCP *nftables.Set // the same with a port
}

func newOuter(prefix string) *outer {
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: prefix}
	set := func(id uint32, name string, types ...nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Table: t, ID: id, Name: name, KeyType: nftables.MustConcatSetType(types...), Concatenation: true}
	}
	return &outer{
		prefix: prefix, v4: t,
		v6:      &nftables.Table{Family: nftables.TableFamilyIPv6, Name: prefix},
		links:   set(1, "links", nftables.TypeIFName, nftables.TypeIPAddr),
		open:    set(2, "open", nftables.TypeIPAddr, nftables.TypeIPAddr),
		openTCP: set(3, "open-tcp", nftables.TypeIPAddr, nftables.TypeIPAddr, nftables.TypeInetService),
		inners:  &nftables.Set{Table: t, ID: 4, Name: "addresses", KeyType: nftables.TypeIPAddr},
	}
}

// install puts the tables in place of those that may be there, in one step. The calling thread is in the host's namespace.
func (o *outer) install(spaces []*space) error {
	return filterWithin(func(c *nftables.Conn) error {
		renew(c, o.v4)
		for _, s := range []*nftables.Set{o.links, o.inners, o.open, o.openTCP} {
			if err := c.AddSet(s, nil); err != nil {
				return err
			}
		}
		passed := nftables.ChainPolicyAccept
		chain := func(t *nftables.Table, name string, kind nftables.ChainType, hook *nftables.ChainHook, at *nftables.ChainPriority) *nftables.Chain {
			return c.AddChain(&nftables.Chain{Table: t, Name: name, Type: kind, Hooknum: hook, Priority: at, Policy: &passed})
		}
		add := func(ch *nftables.Chain, parts ...match) {
			c.AddRule(&nftables.Rule{Table: ch.Table, Chain: ch, Exprs: rule(parts...)})
		}
		filter := nftables.ChainTypeFilter

		spoof := chain(o.v4, "spoof", filter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
		add(spoof, fromStarting(o.prefix), match{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, payload(expr.PayloadBaseNetworkHeader, 12, 4, afterName), lookupNot(o.links),
		}, drop())

		// The host itself is reached only where a policy says so by its very address.
		input := chain(o.v4, "input", filter, nftables.ChainHookInput, nftables.ChainPriorityFilter)
		both := match{loadSource, payload(expr.PayloadBaseNetworkHeader, 16, 4, secondRegister)}
		add(input, fromStarting(o.prefix), both, match{lookup(o.open)}, accept())
		add(input, fromStarting(o.prefix), protocol(unix.IPPROTO_TCP), both,
			match{payload(expr.PayloadBaseTransportHeader, 2, 2, thirdRegister), lookup(o.openTCP)}, accept())
		add(input, fromStarting(o.prefix), drop())

		// Out to the world, and back what was asked for; never to a link, be it of another server.
		forward := chain(o.v4, "forward", filter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
		add(forward, fromStarting(o.prefix), toStarting(nameStart), drop())
		add(forward, toStarting(o.prefix), fromStarting(nameStart), drop())
		add(forward, toStarting(o.prefix), stateIn(known), accept())
		add(forward, toStarting(o.prefix), drop())

		output := chain(o.v4, "output", filter, nftables.ChainHookOutput, nftables.ChainPriorityFilter)
		add(output, toStarting(o.prefix), stateIn(known), accept())
		add(output, toStarting(o.prefix), drop())

		nat := chain(o.v4, "nat", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
		add(nat, match{loadSource, lookup(o.inners)}, toNotStarting(nameStart), match{&expr.Masq{}})

		renew(c, o.v6)
		six := chain(o.v6, "prerouting", filter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
		add(six, fromStarting(o.prefix), drop())
		sixOut := chain(o.v6, "output", filter, nftables.ChainHookOutput, nftables.ChainPriorityRaw)
		add(sixOut, toStarting(o.prefix), drop())

		for _, s := range spaces {
			if err := o.each(s, s.doors, func(set *nftables.Set, e []nftables.SetElement) error { return addElements(c, set, e) }); err != nil {
				return err
			}
		}
		return nil
	})
}

// each calls fn with all elements that belong to a link whose policy opens doors.
func (o *outer) each(s *space, doors []door, fn func(*nftables.Set, []nftables.SetElement) error) error {
	if err := fn(o.links, []nftables.SetElement{{Key: append(ifname(s.name), s.inner.AsSlice()...)}}); err != nil {
		return err
	}
	if err := fn(o.inners, []nftables.SetElement{{Key: s.inner.AsSlice()}}); err != nil {
		return err
	}
	return o.eachDoor(s, doors, fn)
}

func (o *outer) eachDoor(s *space, doors []door, fn func(*nftables.Set, []nftables.SetElement) error) error {
	var open, openTCP []nftables.SetElement
	for _, d := range doors {
		if d.port == 0 {
			open = append(open, nftables.SetElement{Key: append(s.inner.AsSlice(), d.addr.AsSlice()...)})
		} else {
			openTCP = append(openTCP, nftables.SetElement{Key: append(s.inner.AsSlice(), addrPort(netip.AddrPortFrom(d.addr, d.port))...)})
		}
	}
	if err := fn(o.open, open); err != nil {
		return err
	}
	return fn(o.openTCP, openTCP)
}

// door is an address of the host that a policy opens by naming it, or one TCP port of it.
type door struct {
	addr netip.Addr
	port uint16 // 0: all, of every protocol
}

// doors are what of the host a policy opens.
func doors(p *policy.Policy, host []netip.Addr) []door {
	var all []door
	proxy, proxied := p.Proxy()
	for _, a := range host {
		switch {
		case a.IsLoopback():
		case p.Allows(a):
			all = append(all, door{addr: a})
		case proxied && proxy.Addr() == a:
			all = append(all, door{addr: a, port: proxy.Port()})
		}
	}
	return all
}

// onHost makes one change of the packet filter in the host's namespace.
func (m *Manager) onHost(change func(c *nftables.Conn) error) error {
	return thread.InNetwork(m.hostNS, func() error { return filterWithin(change) })
}

// admit lets packets come from a link, before it is there.
func (m *Manager) admit(s *space) error {
	return m.onHost(func(c *nftables.Conn) error {
		return m.outer.each(s, nil, func(set *nftables.Set, e []nftables.SetElement) error { return addElements(c, set, e) })
	})
}

// dismiss is the contrary of admit, also when that was not done.
func (m *Manager) dismiss(s *space) error {
	err := m.onHost(func(c *nftables.Conn) error {
		return m.outer.each(s, s.doors, func(set *nftables.Set, e []nftables.SetElement) error { return dropElements(c, set, e) })
	})
	if errors.Is(err, unix.ENOENT) { // there is no table
		return nil
	}
	return err
}

// setDoors opens what a new policy opens of the host, and closes what it does not, in one step.
func (m *Manager) setDoors(s *space, doors []door) error {
	if slices.Equal(doors, s.doors) {
		return nil
	}
	if err := m.onHost(func(c *nftables.Conn) error {
		if err := m.outer.eachDoor(s, s.doors, func(set *nftables.Set, e []nftables.SetElement) error { return dropElements(c, set, e) }); err != nil {
			return err
		}
		return m.outer.eachDoor(s, doors, func(set *nftables.Set, e []nftables.SetElement) error { return addElements(c, set, e) })
	}); err != nil {
		return err
	}
	s.doors = doors
	return nil
}

// chooseSubnet decides where the addresses of links come from: nowhere that the host knows other things.
func (m *Manager) chooseSubnet() (netip.Prefix, error) {
	candidates := Subnets
	if m.opt.Subnet.IsValid() {
		candidates = []netip.Prefix{m.opt.Subnet}
	}
	routes, err := m.host.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("list the host's routes: %w", err)
	}
	var refusal error
	for _, c := range candidates {
		r, err := m.routeInto(c, routes)
		if err != nil {
			return netip.Prefix{}, err
		}
		if r == "" {
			return c, nil
		}
		refusal = spore.Errorf(spore.CodeConflict, "the subnet %s for links is in use: the host has a route to %s", c, r).WithHint("give the server another subnet")
	}
	return netip.Prefix{}, refusal
}

// routeInto names a route, other than a link's or a default route, that leads into a subnet; "" when there is none.
func (m *Manager) routeInto(subnet netip.Prefix, routes []netlink.Route) (string, error) {
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		addr, ok := netip.AddrFromSlice(r.Dst.IP.To4())
		bits, _ := r.Dst.Mask.Size()
		if p := netip.PrefixFrom(addr, bits); !ok || bits == 0 || !p.Overlaps(subnet) {
			continue
		}
		by := ""
		if r.LinkIndex != 0 {
			link, err := m.host.LinkByIndex(r.LinkIndex)
			if errors.As(err, new(netlink.LinkNotFoundError)) {
				continue
			}
			if err != nil {
				return "", err
			}
			if by = link.Attrs().Name; strings.HasPrefix(by, nameStart) {
				continue
			}
			by = " by " + by
		}
		return r.Dst.String() + by, nil
	}
	return "", nil
}

// Obstacles names the chains of the host's own packet filter that drop forwarded packets unless a rule says otherwise, as Docker and ufw
// make them. Where there is one, sandboxes reach nothing until it lets packets from and to links "spore-*" through.
func (m *Manager) Obstacles() ([]string, error) {
	var all []string
	err := thread.InNetwork(m.hostNS, func() error {
		c, err := newConn()
		if err != nil {
			return err
		}
		defer c.CloseLasting()
		chains, err := c.ListChains()
		if err != nil {
			return fmt.Errorf("list the host's rules: %w", err)
		}
		for _, ch := range chains {
			family := ch.Table.Family
			if ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookForward && ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop &&
				(family == nftables.TableFamilyIPv4 || family == nftables.TableFamilyINet) {
				all = append(all, fmt.Sprintf("chain %s of table %s", ch.Name, ch.Table.Name))
			}
		}
		return nil
	})
	return all, err
}

// putUp puts up the host's rules, with the links that there are. They are there only while there are links: a server that needs
// none leaves the host as it is.
func (m *Manager) putUp(spaces []*space) error {
	m.rules.Lock()
	defer m.rules.Unlock()
	if m.installed {
		return nil
	}
	// Should the directory go while there still is something, this says whose it was.
	if err := os.MkdirAll(m.opt.RunDir, 0o755); err != nil {
		return err
	}
	dir, err := filepath.Abs(m.opt.Dir)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(m.opt.RunDir, m.prefix), []byte(dir), 0o644); err != nil {
		return err
	}
	err = thread.InNetwork(m.hostNS, func() error { return m.outer.install(spaces) })
	if errors.Is(err, unix.ENOENT) { // of a kernel that lacks what a rule is made of
		return unfit(err)
	}
	if err != nil {
		return explain(fmt.Errorf("put up the host's rules: %w", err))
	}
	m.installed = true
	return nil
}

// settle takes the host's rules away when there is no link any more.
func (m *Manager) settle() error {
	m.rules.Lock()
	defer m.rules.Unlock()
	m.mu.Lock()
	needed := len(m.spaces) > 0
	m.mu.Unlock()
	if needed || !m.installed {
		return nil
	}
	if err := m.leaveHost(); err != nil {
		return err
	}
	m.installed = false
	return nil
}

// leaveHostAlone takes away rules of the host that an earlier server has put up.
func (m *Manager) leaveHostAlone() error {
	m.rules.Lock()
	defer m.rules.Unlock()
	if m.installed {
		return nil
	}
	return m.leaveHost()
}

// up says whether the host's rules are this manager's.
func (m *Manager) up() bool {
	m.rules.Lock()
	defer m.rules.Unlock()
	return m.installed
}

// leaveHost removes the server's tables, which no link needs any more.
func (m *Manager) leaveHost() error {
	if err := m.onHost(func(c *nftables.Conn) error {
		forget(c, m.outer.v4)
		forget(c, m.outer.v6)
		return nil
	}); err != nil {
		return fmt.Errorf("remove the host's rules: %w", err)
	}
	if err := m.closeWays(); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(m.opt.RunDir, m.prefix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
