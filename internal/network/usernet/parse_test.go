package usernet

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	spore "github.com/sporevm/spore"
)

// FuzzFrames is a guest that sends whatever it likes: the engine must live, and answer nothing but frames to the guest.
func FuzzFrames(f *testing.F) {
	packet := func(protocol byte, to string, payload []byte) []byte {
		p := make([]byte, header.IPv4MinimumSize+len(payload))
		copy(p[header.IPv4MinimumSize:], payload)
		encodeIPv4(p, GuestAddress, netip.MustParseAddr(to), header.UDPProtocolNumber)
		p[9] = protocol
		h := header.IPv4(p)
		h.SetChecksum(0)
		h.SetChecksum(^h.CalculateChecksum())
		return p
	}
	frame := func(kind uint16, payload []byte) []byte {
		b := append(append([]byte(nil), gatewayMAC[:]...), guestMAC[:]...)
		return append(binary.BigEndian.AppendUint16(b, kind), payload...)
	}
	arp := header.ARP(make([]byte, header.ARPSize))
	arp.SetIPv4OverEthernet()
	arp.SetOp(header.ARPRequest)
	copy(arp.ProtocolAddressTarget(), GatewayAddress.AsSlice())
	syn := header.TCP(make([]byte, header.TCPMinimumSize))
	syn.Encode(&header.TCPFields{SrcPort: 1, DstPort: 80, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagSyn, WindowSize: 1000})
	query := append([]byte{0, 9, 0, 53, 0, 36, 0, 0}, "\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01"...)
	f.Add(frame(0x0806, arp))
	f.Add(frame(0x0800, packet(6, "198.51.100.1", syn)))
	f.Add(frame(0x0800, packet(17, GatewayAddress.String(), query)))
	f.Add(frame(0x0800, packet(17, "198.51.100.1", []byte{0, 9, 0, 9, 0, 8, 0, 0})))
	f.Add(frame(0x0800, packet(1, GatewayAddress.String(), []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0})))
	f.Add(frame(0x0800, packet(1, "198.51.100.1", []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0})))
	f.Add(frame(0x86dd, make([]byte, 60)))
	f.Add([]byte{})
	// The policy allows nothing, so whatever the fuzzer finds goes nowhere.
	e, err := newEngine(Spec{ID: "s1", Egress: spore.Egress{Internet: internetOff}, Nameservers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}}, quiet())
	must(f, err)
	guest, link := net.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- e.run(context.Background(), newStream(link)) }()
	f.Cleanup(func() {
		guest.Close()
		if err := <-ended; err != nil {
			f.Error(err)
		}
	})
	wrong := make(chan []byte, 1)
	go func() {
		r := newFrameReader(guest)
		for {
			got, err := r.next()
			if err != nil {
				return
			}
			if !bytes.Equal(got[6:12], gatewayMAC[:]) {
				select {
				case wrong <- bytes.Clone(got):
				default:
				}
			}
		}
	}()
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := guest.Write(append(binary.BigEndian.AppendUint32(nil, uint32(min(len(raw), maxFrame))), raw[:min(len(raw), maxFrame)]...)); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-wrong:
			t.Fatalf("%x", got)
		default:
		}
		if n := e.stats(); n.Opened != 0 {
			t.Fatalf("%+v", n)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"pid":1,"start":2,"bootId":"x"}`))
	f.Add([]byte(`{"egress":{"allowCIDRs":["1.2.3.4"]},"rates":{"in":1},"end":true}`))
	f.Add([]byte(`{"id":"s1","egress":{},"rates":{},"uid":5}`))
	f.Add([]byte("1 (a) b) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 12345 0"))
	f.Add([]byte{0, 0, 0, 2, 1, 2, 0, 0, 0xff, 0, 1})
	f.Fuzz(func(t *testing.T, text []byte) {
		if r, err := parseRecord(text); err == nil && r.PID <= 0 {
			t.Fatalf("%+v", r)
		}
		parseStat(text)
		parseRequest(bytes.NewReader(text))
		readSpec(bytes.NewReader(text))
		answerARP(text)
		if p, ok := fromGuest(text); ok && (len(p) > len(text) || len(p) < header.IPv4MinimumSize) {
			t.Fatalf("%x", p)
		}
		r := newFrameReader(bytes.NewReader(text))
		for {
			frame, err := r.next()
			if len(frame) > mtu+etherHeader {
				t.Fatalf("%d bytes", len(frame))
			}
			if err != nil {
				break
			}
		}
	})
}

func TestFrameReader(t *testing.T) {
	long := append([]byte{0, 0, 0x10, 0}, make([]byte, 0x1000)...)
	r := newFrameReader(io.MultiReader(bytes.NewReader(long), strings.NewReader("\x00\x00\x00\x03abc\x00\x00\x00\x00\x00\x00\x00\x09x")))
	for _, want := range []string{"", "abc", ""} {
		if got, err := r.next(); err != nil || string(got) != want {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	if _, err := r.next(); err == nil {
		t.Error("half a frame was taken")
	}
}
