package usernet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// adminProhibited is the code for what a policy denies.
const adminProhibited = header.ICMPv4Code(13)

// pingKey tells pings of the guest apart.
type pingKey struct {
	to    netip.Addr
	ident uint16
}

// takeICMP looks at an ICMP packet of the guest. Only echo requests, whole ones, go anywhere; the rest concerns connections that
// end here.
func (e *engine) takeICMP(packet []byte) {
	h := header.IPv4(packet)
	icmp := header.ICMPv4(h.Payload())
	to := netip.AddrFrom4(h.DestinationAddress().As4())
	if len(icmp) < header.ICMPv4MinimumSize || h.More() || h.FragmentOffset() != 0 ||
		icmp.Type() != header.ICMPv4Echo || icmp.Code() != 0 || checksum.Checksum(icmp, 0) != 0xffff {
		e.wire.dropped.Add(1)
		return
	}
	if to == GatewayAddress {
		e.replyEcho(to, icmp.Ident(), icmp.Sequence(), icmp.Payload())
		return
	}
	key := pingKey{to, icmp.Ident()}
	e.flows.mu.Lock()
	d := e.flows.ping[key]
	full := len(e.flows.ping) >= maxPings
	e.flows.mu.Unlock()
	if d == nil {
		var denied bool
		if !full {
			d, denied = e.flows.start(netip.AddrPortFrom(to, 0), pingTime, func() (net.Conn, error) { return dialPing(to) })
		}
		if d == nil {
			code := header.ICMPv4HostUnreachable
			if denied {
				code = adminProhibited
			}
			e.unreachable(to, code, packet[:min(len(packet), int(h.HeaderLength())+8)])
			return
		}
		if !e.begin() {
			d.end()
			return
		}
		e.flows.mu.Lock()
		e.flows.ping[key] = d
		e.flows.mu.Unlock()
		go e.awaitEchoes(d, key)
	}
	d.seen()
	// The kernel puts in a number and a checksum of its own.
	if !e.out.allow(onWire(len(icmp))) || send(d.host, icmp) != nil {
		e.wire.dropped.Add(1)
	}
}

func (e *engine) awaitEchoes(d *datagrams, key pingKey) {
	defer e.wg.Done()
	defer d.end()
	defer func() {
		e.flows.mu.Lock()
		defer e.flows.mu.Unlock()
		delete(e.flows.ping, key)
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := d.host.Read(buf)
		if err != nil {
			return
		}
		icmp := header.ICMPv4(buf[:n])
		if n < header.ICMPv4MinimumSize || icmp.Type() != header.ICMPv4EchoReply {
			continue
		}
		if e.in.within(d.ctx, onWire(n), datagramPatience) {
			e.replyEcho(key.to, key.ident, icmp.Sequence(), icmp.Payload())
		}
	}
}

func send(conn net.Conn, data []byte) error {
	_, err := conn.Write(data)
	return err
}

// dialPing makes a socket that sends pings and hears their answers, which the kernel lets anybody do whose group is in
// net.ipv4.ping_group_range.
func dialPing(to netip.Addr) (net.Conn, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMP)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "ping")
	defer f.Close()
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.As4()}); err != nil {
		return nil, err
	}
	return net.FileConn(f)
}

func (e *engine) replyEcho(from netip.Addr, ident, sequence uint16, payload []byte) {
	m := header.ICMPv4(make([]byte, header.ICMPv4MinimumSize+len(payload)))
	m.SetType(header.ICMPv4EchoReply)
	m.SetIdent(ident)
	m.SetSequence(sequence)
	copy(m.Payload(), payload)
	e.sendICMP(from, m)
}

// prohibit tells the guest that a UDP flow of it leads nowhere. It returns true.
func (e *engine) prohibit(to netip.AddrPort, from uint16, code header.ICMPv4Code) bool {
	about := make([]byte, header.IPv4MinimumSize+header.UDPMinimumSize)
	encodeIPv4(about, GuestAddress, to.Addr(), header.UDPProtocolNumber)
	binary.BigEndian.PutUint16(about[header.IPv4MinimumSize:], from)
	binary.BigEndian.PutUint16(about[header.IPv4MinimumSize+2:], to.Port())
	binary.BigEndian.PutUint16(about[header.IPv4MinimumSize+4:], header.UDPMinimumSize)
	e.unreachable(to.Addr(), code, about)
	return true
}

// unreachable tells the guest that a packet, of which about is the beginning, did not arrive.
func (e *engine) unreachable(from netip.Addr, code header.ICMPv4Code, about []byte) {
	m := header.ICMPv4(make([]byte, header.ICMPv4MinimumSize+len(about)))
	m.SetType(header.ICMPv4DstUnreachable)
	m.SetCode(code)
	copy(m[header.ICMPv4MinimumSize:], about)
	e.sendICMP(from, m)
}

func (e *engine) sendICMP(from netip.Addr, m header.ICMPv4) {
	if len(m) > mtu-header.IPv4MinimumSize {
		e.wire.dropped.Add(1)
		return
	}
	m.SetChecksum(0)
	m.SetChecksum(^checksum.Checksum(m, 0))
	packet := make([]byte, header.IPv4MinimumSize+len(m))
	copy(packet[header.IPv4MinimumSize:], m)
	encodeIPv4(packet, from, GuestAddress, header.ICMPv4ProtocolNumber)
	if !e.wire.send(header.IPv4ProtocolNumber, packet) {
		e.wire.dropped.Add(1)
	}
}

// encodeIPv4 writes the header of a packet.
func encodeIPv4(packet []byte, from, to netip.Addr, protocol tcpip.TransportProtocolNumber) {
	h := header.IPv4(packet)
	h.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(packet)), TTL: 64, Protocol: uint8(protocol),
		SrcAddr: tcpip.AddrFrom4(from.As4()), DstAddr: tcpip.AddrFrom4(to.As4()),
	})
	h.SetChecksum(^h.CalculateChecksum())
}
