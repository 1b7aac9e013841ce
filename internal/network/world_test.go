package network

import (
	"context"
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

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/thread"
)

// A world is a machine of the test's own (a network namespace that stands for the host) with the internet at its only uplink (another
// one). Nothing of the real host is touched.
type world struct {
	t        testing.TB
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

func newWorld(t testing.TB) *world {
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
	if err := thread.InNewNetwork(func() error { return unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "") }); err != nil {
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
	if err := thread.InNetwork(ns, func() error {
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

func up(t testing.TB, h *netlink.Handle, name string, addrs ...netip.Prefix) netlink.Link {
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
// a datagram that begins with "sink" is counted, and one that begins with "pour" is answered with many.
func (w *world) echo(ns *os.File, at netip.AddrPort) {
	w.t.Helper()
	var l net.Listener
	var pc net.PacketConn
	if err := thread.InNetwork(ns, func() (err error) {
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
			if strings.HasPrefix(string(b[:n]), "sink") {
				w.sunk.Add(int64(n))
				continue
			}
			if string(b[:n]) == "pour" {
				go blast("", func(b []byte) error { _, err := pc.WriteTo(b, from); return err })
				continue
			}
			pc.WriteTo(b[:n], from)
		}
	}()
}

// localNames serves names to the resolvers, which ask from where the server's process is; all hold for a short time.
func localNames(t testing.TB, zone map[string]netip.Addr) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveZone(t, pc, zone)
	return pc.LocalAddr().(*net.UDPAddr).AddrPort()
}

func serveZone(t testing.TB, pc net.PacketConn, zone map[string]netip.Addr) {
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
	opt := Options{Dir: dir, Log: slog.New(slog.NewTextHandler(logWriter{w.t}, nil)), Host: w.hostPath, NamespaceDir: w.dir, RunDir: w.runDir()}
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

func (w *world) runDir() string { return w.dir + "-run" }

func closeAll(t testing.TB, m *Manager) {
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

type logWriter struct{ t testing.TB }

func (w logWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// isolated is a network with a policy.
func isolated(e spore.Egress) spore.Network {
	return spore.Network{Mode: spore.NetworkIsolated, Egress: e}
}

func mustAttach(t testing.TB, m *Manager, id string, e spore.Egress) Link {
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
	if entries, err = os.ReadDir(w.runDir()); err != nil && !errors.Is(err, os.ErrNotExist) {
		w.t.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, "note "+e.Name())
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
