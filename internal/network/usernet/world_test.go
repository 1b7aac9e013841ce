package usernet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	spore "github.com/sporevm/spore"
)

// The test binary is the sidecar too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Command {
		if os.Getenv("LC_ALL") != "C" || len(os.Environ()) != 1 {
			fmt.Fprintln(os.Stderr, "the sidecar inherits an environment:", os.Environ())
			os.Exit(1)
		}
		os.Exit(Main(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "start-and-wait" {
		os.Exit(startAndWait(os.Args[2], len(os.Args) > 3 && os.Args[3] == "tap"))
	}
	os.Exit(m.Run())
}

// patience bounds every wait of the tests. It is no measure of speed.
const patience = time.Minute

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantCode(t testing.TB, what string, err error, want spore.Code) {
	t.Helper()
	if got := spore.CodeOf(err); got != want {
		t.Errorf("%s: code %q, want %q: %v", what, got, want, err)
	}
}

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it did not come about: %s", what)
		}
	}
}

// namespace is a network namespace with a thread in it. What the thread makes stays there.
type namespace struct{ jobs chan func() }

func newNamespace(t testing.TB) *namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making network namespaces needs root")
	}
	n := &namespace{jobs: make(chan func())}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // and let it end: it is in the namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		started <- err
		for job := range n.jobs {
			job()
		}
	}()
	must(t, <-started)
	t.Cleanup(func() { close(n.jobs) })
	return n
}

// do runs fn in the namespace.
func (n *namespace) do(t testing.TB, fn func() error) {
	t.Helper()
	done := make(chan error)
	n.jobs <- func() { done <- fn() }
	must(t, <-done)
}

// Addresses of the world: the host's link to it, servers on the internet, one in a private network.
const (
	hostIP    = "192.0.2.1"
	routerIP  = "192.0.2.2"
	serverIP  = "198.51.100.1"
	otherIP   = "198.51.100.2"
	privateIP = "10.9.9.9"
)

// world is a host for sidecars in one namespace, and an internet in another.
type world struct {
	host, net *namespace
	names     *names
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{host: newNamespace(t), net: newNamespace(t)}
	var netFD int
	w.net.do(t, func() (err error) {
		netFD, err = unix.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	defer unix.Close(netFD)
	up := func(name string, addrs ...string) error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(link, addr); err != nil {
				return fmt.Errorf("%s: %w", a, err)
			}
		}
		return netlink.LinkSetUp(link)
	}
	w.host.do(t, func() error {
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "world", PeerNamespace: netlink.NsFd(netFD)}
		if err := netlink.LinkAdd(pair); err != nil {
			return err
		}
		if err := errors.Join(up("lo"), up("uplink", hostIP+"/24")); err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(routerIP)}); err != nil {
			return err
		}
		return allowPings("0 2147483647")
	})
	w.net.do(t, func() error {
		return errors.Join(up("lo", serverIP+"/32", otherIP+"/32", privateIP+"/32"), up("world", routerIP+"/24"))
	})
	w.names = newNames(t, w.net)
	return w
}

// allowPings says which groups may ping, in this thread's namespace.
func allowPings(groups string) error {
	return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte(groups), 0)
}

func (w *world) tcpListener(t testing.TB, addr string) (l net.Listener) {
	t.Helper()
	w.net.do(t, func() (err error) { l, err = net.Listen("tcp4", addr); return err })
	return l
}

// listen is a server of the world.
func (w *world) listen(t testing.TB, addr string, serve func(net.Conn)) {
	t.Helper()
	serveOn(t, w.net, addr, serve)
}

func serveOn(t testing.TB, n *namespace, addr string, serve func(net.Conn)) {
	t.Helper()
	var l net.Listener
	n.do(t, func() (err error) { l, err = net.Listen("tcp4", addr); return err })
	acceptFrom(t, l, serve)
}

func acceptFrom(t testing.TB, l net.Listener, serve func(net.Conn)) {
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			stop := context.AfterFunc(t.Context(), func() { conn.Close() })
			wg.Go(func() { defer stop(); defer conn.Close(); serve(conn) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
}

func echo(c net.Conn) { io.Copy(c, c) }

// echoPackets is a UDP server of the world.
func (w *world) echoPackets(t testing.TB, addr string) {
	t.Helper()
	var pc net.PacketConn
	w.net.do(t, func() (err error) { pc, err = net.ListenPacket("udp4", addr); return err })
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 64<<10)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			pc.WriteTo(buf[:n], from)
		}
	}()
	t.Cleanup(func() { pc.Close(); <-done })
}

// names is the name server of the host.
type names struct {
	addr netip.AddrPort
	mu   sync.Mutex
	know map[string]string
}

func newNames(t testing.TB, n *namespace) *names {
	t.Helper()
	s := &names{addr: netip.AddrPortFrom(netip.MustParseAddr(routerIP), 53), know: map[string]string{}}
	var pc net.PacketConn
	n.do(t, func() (err error) { pc, err = net.ListenPacket("udp4", s.addr.String()); return err })
	server := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		s.mu.Lock()
		defer s.mu.Unlock()
		if a := s.know[strings.ToLower(strings.TrimSuffix(q.Question[0].Name, "."))]; a != "" {
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP(a)})
		} else {
			m.Rcode = dns.RcodeNameError
		}
		w.WriteMsg(m)
	})}
	done := make(chan struct{})
	go func() { server.ActivateAndServe(); close(done) }()
	t.Cleanup(func() { server.Shutdown(); <-done })
	return s
}

func (s *names) set(name, addr string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.know[name] = addr
}

// start starts a sidecar on the world's host.
func (w *world) start(t testing.TB, spec Spec) *Link {
	t.Helper()
	spec.Nameservers = []netip.AddrPort{w.names.addr}
	return startIn(t, w.host, spec)
}

func startIn(t testing.TB, n *namespace, spec Spec) *Link {
	t.Helper()
	dir := t.TempDir()
	if spec.ID == "" {
		spec.ID = "s1"
	}
	var l *Link
	n.do(t, func() (err error) { l, err = Start(dir, spec, Options{}); return err })
	t.Cleanup(func() { cleaned(t, dir) })
	return l
}

// cleaned ends what runs in dir and checks that nothing is left.
func cleaned(t testing.TB, dir string) {
	t.Helper()
	if t.Failed() {
		t.Logf("the sidecar's log: %s", lastWords(filepath.Join(dir, nameLog)))
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	must(t, Clean(ctx, dir))
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("files were left: %v, %v", entries, err)
	}
}

// inner is a guest's side of a link: a network stack in this process.
type inner struct {
	t     testing.TB
	stack *stack.Stack
	conn  net.Conn
	link  *channel.Endpoint
	done  chan struct{} // closed when the sidecar has closed the connection

	mu   sync.Mutex
	seen [][]byte // frames that are no IPv4
	icmp [][]byte // packets
	rst  [][]byte // packets
}

func newGuest(t testing.TB, socket string) *inner {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	must(t, err)
	g := &inner{t: t, conn: conn, link: channel.New(4096, mtu, ""), done: make(chan struct{})}
	g.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocolWithOptions(ipv4.Options{AllowExternalLoopbackTraffic: true})},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	for _, err := range []tcpip.Error{
		g.stack.CreateNIC(1, g.link),
		g.stack.AddProtocolAddress(1, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddressWithPrefix{
			Address: tcpip.AddrFrom4(GuestAddress.As4()), PrefixLen: 30,
		}}, stack.AddressProperties{}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	g.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 1}})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			pkt := g.link.ReadContext(ctx)
			if pkt == nil {
				return
			}
			err := g.send(0x0800, pkt.ToView().AsSlice())
			pkt.DecRef()
			if err != nil {
				return
			}
		}
	})
	wg.Go(func() {
		defer close(g.done)
		r := newFrameReader(conn)
		for {
			frame, err := r.next()
			if err != nil {
				return
			}
			if frame[12] == 8 && frame[13] == 0 {
				g.mu.Lock()
				switch {
				case frame[14+9] == 1:
					g.icmp = append(g.icmp, slices.Clone(frame[14:]))
				case frame[14+9] == 6 && header.TCP(header.IPv4(frame[14:]).Payload()).Flags().Contains(header.TCPFlagRst):
					g.rst = append(g.rst, slices.Clone(frame[14:]))
				}
				g.mu.Unlock()
				pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame[14:])})
				g.link.InjectInbound(ipv4.ProtocolNumber, pkt)
				pkt.DecRef()
				continue
			}
			g.mu.Lock()
			g.seen = append(g.seen, slices.Clone(frame))
			g.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		cancel()
		conn.Close()
		wg.Wait()
		g.stack.Destroy()
	})
	return g
}

func (g *inner) send(kind uint16, payload []byte) error {
	frame := append(append([]byte(nil), gatewayMAC[:]...), guestMAC[:]...)
	frame = append(append(frame, byte(kind>>8), byte(kind)), payload...)
	_, err := g.conn.Write(append([]byte{0, 0, byte(len(frame) >> 8), byte(len(frame))}, frame...))
	return err
}

func full(addr string) tcpip.FullAddress {
	a := netip.MustParseAddrPort(addr)
	return tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFrom4(a.Addr().As4()), Port: a.Port()}
}

// dial connects from the guest.
func (g *inner) dial(addr string) (*gonet.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := gonet.DialContextTCP(ctx, g.stack, full(addr), ipv4.ProtocolNumber)
	if err != nil {
		return nil, err
	}
	g.t.Cleanup(func() { conn.Close() })
	return conn, conn.SetDeadline(time.Now().Add(patience))
}

// reaches says whether the guest can connect. A refusal must come at once rather than by waiting.
func (g *inner) reaches(addr string) bool {
	g.t.Helper()
	conn, err := g.dial(addr)
	if err != nil && !strings.Contains(err.Error(), "refused") {
		g.t.Errorf("%s: %v", addr, err)
	}
	if err == nil {
		conn.Close()
	}
	return err == nil
}

func (g *inner) udp(addr string) *gonet.UDPConn {
	g.t.Helper()
	to := full(addr)
	conn, err := gonet.DialUDP(g.stack, nil, &to, ipv4.ProtocolNumber)
	must(g.t, err)
	g.t.Cleanup(func() { conn.Close() })
	must(g.t, conn.SetDeadline(time.Now().Add(patience)))
	return conn
}

// resolve asks the guest's name server; "" when there is no such name.
func (g *inner) resolve(network, name string) string {
	g.t.Helper()
	var conn net.Conn
	if network == "udp" {
		conn = g.udp(GatewayAddress.String() + ":53")
	} else {
		c, err := g.dial(GatewayAddress.String() + ":53")
		must(g.t, err)
		conn = c
	}
	defer conn.Close()
	c := &dns.Conn{Conn: conn}
	must(g.t, c.WriteMsg(new(dns.Msg).SetQuestion(name+".", dns.TypeA)))
	m, err := c.ReadMsg()
	must(g.t, err)
	if len(m.Answer) == 0 {
		return ""
	}
	return m.Answer[0].(*dns.A).A.String()
}

// startAndWait is a server that starts a sidecar and stays until it is killed.
func startAndWait(dir string, tap bool) int {
	if _, err := Start(dir, Spec{ID: "s1", Tap: tap}, Options{}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("started")
	select {}
}
