package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
)

// A world is a machine of the test's own (a network namespace that stands for the host) with the internet at its only uplink (another
// one). Nothing of the real host is touched.
type world struct {
	t        *testing.T
	host     *os.File
	hostPath string
	internet *os.File
	dir      string // of the namespaces of sandboxes
	sunk     atomic.Int64
}

// What there is in the world, beside the host at hostAddr. Its way back to a sandbox is by the host's address only.
var (
	hostAddr  = netip.MustParseAddr("203.0.113.1")
	publicA   = netip.MustParseAddr("203.0.113.10")
	publicB   = netip.MustParseAddr("203.0.113.11")
	private   = netip.MustParseAddr("10.9.9.9")
	metadata  = netip.MustParseAddr("169.254.169.254")
	allServed = []netip.Addr{publicA, publicB, private, metadata}
)

const echoPort = 7

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("isolated networks need root")
	}
	w := &world{t: t, dir: filepath.Join(t.TempDir(), "netns")}
	places := t.TempDir()
	w.hostPath = filepath.Join(places, "host")
	w.host = w.namespace(w.hostPath)
	w.internet = w.namespace(filepath.Join(places, "internet"))
	w.in(w.host, func(h *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "uplink"
		if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "down", PeerNamespace: netlink.NsFd(int(w.internet.Fd()))}); err != nil {
			return err
		}
		link := up(t, h, "uplink", netip.PrefixFrom(hostAddr, 24))
		if err := h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: publicA.AsSlice()}); err != nil {
			return err
		}
		up(t, h, "lo")
		return nil
	})
	w.in(w.internet, func(h *netlink.Handle) error {
		up(t, h, "lo")
		up(t, h, "down", netip.PrefixFrom(publicA, 24), netip.PrefixFrom(publicB, 24), netip.PrefixFrom(private, 32), netip.PrefixFrom(metadata, 32))
		return nil
	})
	for _, a := range allServed {
		w.echo(w.internet, netip.AddrPortFrom(a, echoPort))
	}
	w.echo(w.host, netip.AddrPortFrom(hostAddr, echoPort))
	return w
}

// namespace makes a network namespace that ends with the test.
func (w *world) namespace(path string) *os.File {
	w.t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := withinNew(func() error { return unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "") }); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			w.t.Error(err)
		}
	})
	f, err := os.Open(path)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { f.Close() })
	return f
}

func (w *world) in(ns *os.File, fn func(h *netlink.Handle) error) {
	w.t.Helper()
	if err := within(ns, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		return fn(h)
	}); err != nil {
		w.t.Fatal(err)
	}
}

func up(t *testing.T, h *netlink.Handle, name string, addrs ...netip.Prefix) netlink.Link {
	t.Helper()
	link, err := h.LinkByName(name)
	if err != nil {
		t.Error(err)
		return nil
	}
	for _, a := range addrs {
		if err := h.AddrAdd(link, &netlink.Addr{IPNet: ipNet(a)}); err != nil {
			t.Errorf("%s: %v", a, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		t.Error(err)
	}
	return link
}

// echo serves TCP and UDP: what comes is sent back. A TCP client that says "pour" is sent zeros for as long as it takes them;
// what one sends after "sink" is counted.
func (w *world) echo(ns *os.File, at netip.AddrPort) {
	w.t.Helper()
	var l net.Listener
	var pc net.PacketConn
	if err := within(ns, func() (err error) {
		if l, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at)); err != nil {
			return err
		}
		pc, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		return err
	}); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { l.Close(); pc.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				first := make([]byte, 4)
				if _, err := io.ReadFull(c, first); err != nil {
					return
				}
				if string(first) == "pour" {
					zeros := make([]byte, 32<<10)
					for {
						if _, err := c.Write(zeros); err != nil {
							return
						}
					}
				}
				if string(first) == "sink" {
					b := make([]byte, 32<<10)
					for {
						n, err := c.Read(b)
						w.sunk.Add(int64(n))
						if err != nil {
							return
						}
					}
				}
				c.Write(first)
				io.Copy(c, c)
			}()
		}
	}()
	go func() {
		b := make([]byte, 2048)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			pc.WriteTo(b[:n], from)
		}
	}()
}

// localNames serves names to the resolvers, which ask from where the server's process is; all hold for a short time.
func localNames(t *testing.T, zone map[string]netip.Addr) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveZone(t, pc, zone)
	return pc.LocalAddr().(*net.UDPAddr).AddrPort()
}

func serveZone(t *testing.T, pc net.PacketConn, zone map[string]netip.Addr) {
	s := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		if a, ok := zone[strings.TrimSuffix(q.Question[0].Name, ".")]; !ok {
			m.Rcode = dns.RcodeNameError
		} else if q.Question[0].Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: a.AsSlice()}}
		}
		rw.WriteMsg(m)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.ActivateAndServe()
	}()
	t.Cleanup(func() { pc.Close(); <-done })
}

// manager makes a manager on the world's host, with the internet's names, that is taken away when the test ends.
func (w *world) manager(dir string, change ...func(*Options)) *Manager {
	w.t.Helper()
	opt := Options{Dir: dir, Log: slog.New(slog.NewTextHandler(logWriter{w.t}, nil)), Host: w.hostPath, NamespaceDir: w.dir}
	for _, c := range change {
		c(&opt)
	}
	m, err := New(opt)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { closeAll(w.t, m) })
	return m
}

// serving is a manager that has recovered nothing.
func (w *world) serving(change ...func(*Options)) *Manager {
	w.t.Helper()
	m := w.manager(w.t.TempDir(), change...)
	if _, err := m.Recover(w.t.Context(), nil); err != nil {
		w.t.Fatal(err)
	}
	return m
}

func closeAll(t *testing.T, m *Manager) {
	t.Helper()
	m.mu.Lock()
	over := m.closed
	var ids []string
	for id := range m.attached {
		ids = append(ids, id)
	}
	m.mu.Unlock()
	if over {
		return
	}
	for _, id := range ids {
		if err := m.Detach(context.Background(), id); err != nil {
			t.Error(err)
		}
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

type logWriter struct{ t *testing.T }

func (w logWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// A guest is a network namespace whose eth0 is at the other end of a sandbox's cable.
type guest struct {
	w    *world
	ns   *os.File
	stop func()
}

// plug connects a new guest to a link.
func (w *world) plug(l Link) *guest {
	w.t.Helper()
	ns := w.namespace(filepath.Join(w.t.TempDir(), "guest"))
	space, err := os.Open(l.NetNS)
	if err != nil {
		w.t.Fatal(err)
	}
	defer space.Close()
	cable := w.openTap(space, l.Tap)
	nic := w.openTap(ns, "eth0")
	w.in(ns, func(h *netlink.Handle) error {
		for _, name := range []string{"all", "default"} {
			if err := sysctl("ipv6/conf/"+name+"/accept_dad", "0"); err != nil {
				return err
			}
		}
		link, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := h.LinkSetHardwareAddr(link, mac(l.MAC)); err != nil {
			return err
		}
		up(w.t, h, "lo")
		up(w.t, h, "eth0", l.Address)
		return h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: l.Gateway.AsSlice()})
	})
	go pump(cable, nic)
	go pump(nic, cable)
	g := &guest{w: w, ns: ns}
	g.stop = func() { cable.Close(); nic.Close() }
	w.t.Cleanup(g.stop)
	return g
}

func pump(to, from *os.File) {
	b := make([]byte, 70<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		if _, err := to.Write(b[:n]); err != nil && !errors.Is(err, unix.EIO) {
			return
		}
	}
}

func (w *world) openTap(ns *os.File, name string) *os.File {
	w.t.Helper()
	var f *os.File
	if err := within(ns, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			unix.Close(fd)
			return err
		}
		f = os.NewFile(uintptr(fd), name)
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
	return f
}

// patience is how long a guest waits for an answer that may come.
const patience = 2 * time.Second

// unanswered is how long it waits for one that must not come.
const unanswered = 300 * time.Millisecond

func (g *guest) dial(network string, to netip.AddrPort, wait time.Duration) (c net.Conn, err error) {
	err = within(g.ns, func() (err error) {
		c, err = (&net.Dialer{Timeout: wait}).Dial(network, to.String())
		return err
	})
	return c, err
}

// talk says whether what is sent to an echo server comes back.
func talk(c net.Conn, wait time.Duration) error {
	c.SetDeadline(time.Now().Add(wait))
	if _, err := c.Write([]byte("spore")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 5))
	return err
}

func (g *guest) reach(network string, to netip.AddrPort, wait time.Duration) error {
	c, err := g.dial(network, to, wait)
	if err != nil {
		return err
	}
	defer c.Close()
	return talk(c, wait)
}

// ping sends an echo request and waits for the reply.
func (g *guest) ping(to netip.Addr, wait time.Duration) error {
	var pc net.PacketConn
	if err := within(g.ns, func() (err error) {
		pc, err = net.ListenPacket("ip4:icmp", "0.0.0.0")
		return err
	}); err != nil {
		return err
	}
	defer pc.Close()
	pc.SetDeadline(time.Now().Add(wait))
	msg := []byte{8, 0, 0, 0, 0x53, 0x50, 0, 1}
	sum := uint32(0)
	for i := 0; i < len(msg); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(msg[i:]))
	}
	binary.BigEndian.PutUint16(msg[2:], ^uint16(sum+sum>>16))
	if _, err := pc.WriteTo(msg, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return err
	}
	b := make([]byte, 1500)
	for {
		n, from, err := pc.ReadFrom(b)
		if err != nil {
			return err
		}
		if n >= 8 && b[0] == 0 && from.String() == to.String() {
			return nil
		}
	}
}

// lookup asks the nameserver for the address of a name.
func (g *guest) lookup(name string, l Link) ([]netip.Addr, error) {
	return g.ask("udp", name, netip.AddrPortFrom(l.Nameserver, 53))
}

func (g *guest) ask(network, name string, server netip.AddrPort) ([]netip.Addr, error) {
	c, err := g.dial(network, server, patience)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	conn := &dns.Conn{Conn: c}
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), dns.TypeA)
	if err := conn.WriteMsg(q); err != nil {
		return nil, err
	}
	m, err := conn.ReadMsg()
	if err != nil {
		return nil, err
	}
	if m.Rcode != dns.RcodeSuccess {
		return nil, fmt.Errorf("the answer is %s", dns.RcodeToString[m.Rcode])
	}
	var all []netip.Addr
	for _, rr := range m.Answer {
		if a, ok := rr.(*dns.A); ok {
			if addr, ok := netip.AddrFromSlice(a.A.To4()); ok {
				all = append(all, addr)
			}
		}
	}
	return all, nil
}

// isolated is a network with a policy.
func isolated(e spore.Egress) spore.Network {
	return spore.Network{Mode: spore.NetworkIsolated, Egress: e}
}

func mustAttach(t *testing.T, m *Manager, id string, e spore.Egress) Link {
	t.Helper()
	l, err := m.Attach(t.Context(), id, isolated(e), spore.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// traces is all that managers may leave in a world, in words.
func (w *world) traces() string {
	w.t.Helper()
	var all []string
	w.in(w.host, func(h *netlink.Handle) error {
		links, err := h.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			forwards, err := isOn("/proc/sys/net/ipv4/conf/" + l.Attrs().Name + "/forwarding")
			if err != nil {
				return err
			}
			all = append(all, fmt.Sprintf("link %s %v", l.Attrs().Name, forwards))
		}
		routes, err := h.RouteList(nil, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		all = append(all, fmt.Sprintf("%d routes", len(routes)))
		c, err := newConn()
		if err != nil {
			return err
		}
		defer c.CloseLasting()
		tables, err := c.ListTables()
		if err != nil {
			return err
		}
		for _, t := range tables {
			all = append(all, "table "+t.Name)
		}
		return nil
	})
	entries, err := os.ReadDir(w.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		w.t.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, "namespace "+e.Name())
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		w.t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, w.dir) {
			all = append(all, "mount "+line)
		}
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}
