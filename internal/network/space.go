package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/network/policy"
	"github.com/sporevm/spore/internal/thread"
)

// space is one namespace with its link to the host.
type space struct {
	name  string
	slot  int
	outer netip.Addr // the host's end of the link
	inner netip.Addr // the namespace's end

	policy atomic.Pointer[policy.Policy]

	mu    sync.Mutex // one change at a time
	rec   record
	names *nameServer
	pins  map[netip.Addr]pin
	doors []door // what of the host itself it may reach
	gone  bool   // removed; its name may be another's
}

func newSpace(prefix string, slot int, outer netip.Addr) *space {
	return &space{
		name: slotName(prefix, slot), slot: slot, outer: outer, inner: outer.Next(),
		rec: record{Slot: slot, Outer: outer}, pins: map[netip.Addr]pin{},
	}
}

// errTaken says that the addresses of a link are somebody else's, who is another server on this machine.
var errTaken = errors.New("the addresses of the link are in use")

// create makes a namespace that lets nothing through. On error nothing is left.
func (m *Manager) create(ctx context.Context) (*space, error) {
	const tries = 64
	for range tries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		m.mu.Lock()
		slot, ok := m.slots.take()
		if !ok {
			m.mu.Unlock()
			break
		}
		s := newSpace(m.prefix, slot, m.slots.outer(slot))
		m.spaces[s.name] = s
		m.mu.Unlock()
		err := m.build(s)
		if err == nil {
			return s, nil
		}
		if undo := m.abandon(s); undo != nil {
			return nil, errors.Join(err, undo)
		}
		if !errors.Is(err, errTaken) {
			return nil, explain(err)
		}
	}
	return nil, spore.Errorf(spore.CodeBusy, "no link of %s is free", m.slots.subnet).WithHint("give the server a larger subnet, or end some sandboxes")
}

// task is one step of making or removing a namespace.
type task struct {
	name string
	do   func() error
}

func (m *Manager) perform(s *space, tasks []task) error {
	for _, t := range tasks {
		err := m.step(t.name)
		if err == nil {
			err = t.do()
		}
		if err != nil {
			return fmt.Errorf("network %s: %s: %w", s.name, t.name, err)
		}
	}
	return nil
}

func (m *Manager) build(s *space) error {
	return m.perform(s, []task{
		{"record", func() error { return m.writeRecord(s.name, s.rec) }},
		{"put up the rules", func() error { return m.putUp(nil) }},
		{"mount the namespace", func() error { return m.mount(s.name) }},
		{"fill the namespace", func() error { return m.inside(s, m.furnish) }},
		{"admit the link", func() error { return m.admit(s) }},
		{"make the link", func() error { return m.makeLink(s) }},
		{"connect the host", func() error { return m.connectHost(s) }},
		{"connect the namespace", func() error { return m.inside(s, func() error { return connectSpace(s) }) }},
		{"open the ways out", m.openWays},
	})
}

// inside runs fn on a thread in the namespace.
func (m *Manager) inside(s *space, fn func() error) error {
	ns, err := os.Open(m.netnsPath(s.name))
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := isNamespace(ns); err != nil {
		return err
	}
	return thread.InNetwork(ns, fn)
}

// isNamespace refuses a file on which no network namespace is mounted.
func isNamespace(f *os.File) error {
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return fmt.Errorf("%s is not a network namespace: %w", f.Name(), fs.ErrNotExist)
	}
	return nil
}

// mount makes a network namespace and gives it a place in the file system, where it stays without a process.
func (m *Manager) mount(name string) error {
	if err := os.MkdirAll(m.opt.NamespaceDir, 0o755); err != nil {
		return err
	}
	path := m.netnsPath(name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	return thread.InNewNetwork(func() error {
		return unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "")
	})
}

func (m *Manager) unmount(name string) error {
	path := m.netnsPath(name)
	for { // mounts may lie one over the other
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return err
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// furnish sets up a namespace that is new: its rules first, so that there is never a way through it without them.
func (m *Manager) furnish() error {
	if err := m.step("rules"); err != nil {
		return err
	}
	if err := theInner.install(); err != nil {
		return fmt.Errorf("rules: %w", err)
	}
	for _, s := range [][2]string{
		{"ipv6/conf/all/disable_ipv6", "1"}, {"ipv6/conf/default/disable_ipv6", "1"},
		{"ipv4/conf/all/rp_filter", "1"}, {"ipv4/conf/default/rp_filter", "1"},
		{"ipv4/conf/default/accept_redirects", "0"}, {"ipv4/conf/all/accept_redirects", "0"},
		{"ipv4/conf/default/send_redirects", "0"}, {"ipv4/conf/all/send_redirects", "0"},
		{"ipv4/conf/all/arp_ignore", "1"},
		{"ipv4/ip_forward", "1"},
	} {
		if err := sysctl(s[0], s[1]); err != nil && !(errors.Is(err, fs.ErrNotExist) && s[0][3] == '6') {
			return err
		}
	}
	if err := m.step("tap"); err != nil {
		return err
	}
	if err := makeTap(m.opt.Owner); err != nil {
		return fmt.Errorf("tap: %w", err)
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := h.LinkSetUp(lo); err != nil {
		return err
	}
	tap, err := h.LinkByName(TapName)
	if err != nil {
		return err
	}
	if err := h.LinkSetHardwareAddr(tap, mac(GatewayMAC)); err != nil {
		return err
	}
	if err := h.AddrAdd(tap, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(Gateway, GuestAddress.Bits()))}); err != nil {
		return err
	}
	if err := h.LinkSetUp(tap); err != nil {
		return err
	}
	// The guest need not be asked who it is, nor can it say that it is somebody else.
	return h.NeighSet(&netlink.Neigh{
		LinkIndex: tap.Attrs().Index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT,
		IP: GuestAddress.Addr().AsSlice(), HardwareAddr: mac(GuestMAC),
	})
}

// makeTap makes the TAP device of the namespace that the calling thread is in. It stays when nobody has it open.
func makeTap(owner int) error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	req, err := unix.NewIfreq(TapName)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, req); err != nil {
		return err
	}
	if owner != 0 {
		if err := unix.IoctlSetInt(int(f.Fd()), unix.TUNSETOWNER, owner); err != nil {
			return err
		}
	}
	return unix.IoctlSetInt(int(f.Fd()), unix.TUNSETPERSIST, 1)
}

// makeLink makes the link with both its ends, each in its place from the start.
func (m *Manager) makeLink(s *space) error {
	ns, err := os.Open(m.netnsPath(s.name))
	if err != nil {
		return err
	}
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = s.name
	return m.host.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: upName, PeerNamespace: netlink.NsFd(int(ns.Fd()))})
}

// connectHost sets up the host's end. Its route is the claim on the addresses: the kernel gives it to one server only.
func (m *Manager) connectHost(s *space) error {
	link, err := m.host.LinkByName(s.name)
	if err != nil {
		return err
	}
	if err := thread.InNetwork(m.hostNS, func() error {
		if err := sysctl("ipv6/conf/"+s.name+"/disable_ipv6", "1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, name := range []string{"rp_filter", "forwarding"} {
			if err := sysctl("ipv4/conf/"+s.name+"/"+name, "1"); err != nil {
				return err
			}
		}
		for _, name := range []string{"accept_redirects", "send_redirects", "accept_source_route"} {
			if err := sysctl("ipv4/conf/"+s.name+"/"+name, "0"); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	if err := m.host.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(s.outer, 32)), Flags: unix.IFA_F_NOPREFIXROUTE}); err != nil {
		return err
	}
	if err := m.host.LinkSetUp(link); err != nil {
		return err
	}
	err = m.host.RouteAdd(&netlink.Route{
		LinkIndex: link.Attrs().Index, Dst: ipNet(netip.PrefixFrom(s.inner, 32)), Src: s.outer.AsSlice(), Scope: netlink.SCOPE_LINK,
	})
	if errors.Is(err, unix.EEXIST) {
		return errTaken
	}
	return err
}

// connectSpace sets up the namespace's end. The calling thread is in the namespace.
func connectSpace(s *space) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(upName)
	if err != nil {
		return err
	}
	if err := h.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(s.inner, 31))}); err != nil {
		return err
	}
	if err := h.LinkSetUp(link); err != nil {
		return err
	}
	return h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: s.outer.AsSlice()})
}

// remove takes everything of a namespace away, whatever there is of it. It may be called again when it has failed.
func (m *Manager) remove(s *space) error {
	if err := m.perform(s, []task{{"stop answering names", s.closeNames}}); err != nil {
		return err
	}
	if err := m.dismantle(s); err != nil {
		return err
	}
	return m.settle()
}

func (m *Manager) dismantle(s *space) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return nil
	}
	err := m.perform(s, []task{
		{"remove the link", func() error { return m.removeLink(s.name) }},
		{"dismiss the link", func() error { return m.dismiss(s) }},
		{"unmount the namespace", func() error { return m.unmount(s.name) }},
		{"drop the record", func() error { return m.dropRecord(s.name) }},
	})
	if err != nil {
		return err
	}
	s.gone = true
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.spaces, s.name)
	delete(m.slots.taken, s.slot)
	return nil
}

// removeLink removes both ends of a link, if they are there.
func (m *Manager) removeLink(name string) error {
	link, err := m.host.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := m.host.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}

// mac parses an address that is known to be one.
func mac(s string) net.HardwareAddr {
	hw, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return hw
}
