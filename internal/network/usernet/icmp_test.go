package usernet

import (
	"bytes"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	spore "github.com/sporevm/spore"
)

// echoRequest is a ping of the guest.
func echoRequest(to string, ident, sequence uint16, payload []byte) []byte {
	m := header.ICMPv4(make([]byte, header.ICMPv4MinimumSize+len(payload)))
	m.SetType(header.ICMPv4Echo)
	m.SetIdent(ident)
	m.SetSequence(sequence)
	copy(m.Payload(), payload)
	m.SetChecksum(^checksum.Checksum(m, 0))
	packet := make([]byte, header.IPv4MinimumSize+len(m))
	copy(packet[header.IPv4MinimumSize:], m)
	encodeIPv4(packet, GuestAddress, netip.MustParseAddr(to), header.ICMPv4ProtocolNumber)
	return packet
}

// pinged sends a packet and returns the ICMP message that comes for it.
func (g *inner) pinged(packet []byte) (from string, m header.ICMPv4) {
	g.t.Helper()
	g.mu.Lock()
	before := len(g.icmp)
	g.mu.Unlock()
	must(g.t, g.send(0x0800, packet))
	eventually(g.t, "a ping is answered", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return len(g.icmp) > before })
	g.mu.Lock()
	defer g.mu.Unlock()
	h := header.IPv4(g.icmp[before])
	if !h.IsValid(len(h)) || !h.IsChecksumValid() || checksum.Checksum(h.Payload(), 0) != 0xffff {
		g.t.Errorf("it is not valid: %x", h)
	}
	return h.SourceAddress().String(), h.Payload()
}

func TestPing(t *testing.T) {
	w := newWorld(t)
	l := w.start(t, Spec{})
	g := newGuest(t, l.Socket())
	want := bytes.Repeat([]byte("ping"), 100)
	for _, to := range []string{GatewayAddress.String(), serverIP, serverIP, otherIP} {
		for sequence := range uint16(3) {
			from, m := g.pinged(echoRequest(to, 77, sequence, want))
			if from != to || m.Type() != header.ICMPv4EchoReply || m.Ident() != 77 || m.Sequence() != sequence || !bytes.Equal(m.Payload(), want) {
				t.Errorf("%s answers %x from %s", to, []byte(m[:8]), from)
			}
		}
	}
	request := echoRequest(privateIP, 77, 1, nil)
	from, m := g.pinged(request)
	if from != privateIP || m.Type() != header.ICMPv4DstUnreachable || m.Code() != adminProhibited || !bytes.Equal(m[8:], request[:28]) {
		t.Errorf("a denied address answers %x from %s", []byte(m), from)
	}
	must(t, l.Update(t.Context(), spore.Egress{Internet: internetOff}, Rates{}))
	if _, m := g.pinged(echoRequest(serverIP, 77, 9, nil)); m.Type() != header.ICMPv4DstUnreachable {
		t.Errorf("an address that is denied now answers %x", []byte(m))
	}
}

// Where the host lets nobody ping without a right, a guest hears that at once.
func TestPingWithoutRight(t *testing.T) {
	w := newWorld(t)
	w.host.do(t, func() error { return allowPings("1 0") })
	g := newGuest(t, w.start(t, Spec{}).Socket())
	if from, m := g.pinged(echoRequest(serverIP, 1, 1, nil)); m.Type() != header.ICMPv4DstUnreachable || from != serverIP {
		t.Errorf("%x from %s", []byte(m), from)
	}
	for i := range uint16(3 * maxPings) { // more than there are sockets for, and none is held
		if _, m := g.pinged(echoRequest(GatewayAddress.String(), i, 1, nil)); m.Type() != header.ICMPv4EchoReply {
			t.Errorf("%x", []byte(m))
		}
	}
}
