package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/miekg/dns"
	"github.com/sporevm/spore/internal/thread"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

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
	if err := thread.InNetwork(ns, func() error {
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

// patience is how long a guest waits for an answer that must come. It is no measure of speed.
const patience = 20 * time.Second

// unanswered is how long it waits for one that must not come.
const unanswered = 300 * time.Millisecond

func (g *guest) dial(network string, to netip.AddrPort, wait time.Duration) (c net.Conn, err error) {
	err = thread.InNetwork(g.ns, func() (err error) {
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
	if err := thread.InNetwork(g.ns, func() (err error) {
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
