package usernet

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// queued is how many frames wait for the guest to take them; more are dropped, as by any network.
const queued = 1024

// wire is the link to the guest: the stack's end of the cable. It carries IPv4 from and to the guest's one address and answers
// its ARP requests by itself; all else is dropped. It implements stack.LinkEndpoint.
type wire struct {
	ping       func(packet []byte) // takes the guest's ICMP
	queue      chan []byte
	dispatcher atomic.Pointer[stack.NetworkDispatcher]
	guest      atomic.Uint64 // the guest's hardware address, in the low 48 bits

	inBytes, outBytes, dropped atomic.Int64
}

func newWire() *wire {
	w := &wire{queue: make(chan []byte, queued)}
	w.learn(guestMAC[:])
	return w
}

func (w *wire) learn(mac []byte) {
	if mac[0]&1 != 0 {
		return
	}
	var b [8]byte
	copy(b[2:], mac)
	w.guest.Store(binary.BigEndian.Uint64(b[:]))
}

// errNoVM is the failure of a connection that does not speak as a VM does.
var errNoVM = errors.New("usernet: whoever is connected is no VM")

// carry moves frames between the stack and the VM until the VM is gone or ctx ends. It closes the cable.
func (w *wire) carry(ctx context.Context, c cable) error {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { w.write(ctx, c); cancel() })
	err := w.read(c)
	cancel()
	wg.Wait()
	c.Close() // may have been done already
	if errors.Is(err, errNoVM) {
		return err
	}
	return nil // however a VM's end looks from here
}

func (w *wire) read(c cable) error {
	for {
		frame, err := c.receive()
		if err != nil {
			return err
		}
		w.outBytes.Add(int64(len(frame)))
		if !w.take(frame) {
			w.dropped.Add(1)
		}
	}
}

const etherHeader = header.EthernetMinimumSize

// take gives a frame of the guest to whom it concerns; false when that is nobody.
func (w *wire) take(frame []byte) bool {
	if len(frame) < etherHeader {
		return false
	}
	payload := frame[etherHeader:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case uint16(header.ARPProtocolNumber):
		answer := answerARP(payload)
		if answer == nil {
			return false
		}
		w.learn(frame[6:12])
		return w.send(header.ARPProtocolNumber, answer)
	case uint16(header.IPv4ProtocolNumber):
		packet, ok := fromGuest(payload)
		if !ok {
			return false
		}
		w.learn(frame[6:12])
		if packet[9] == uint8(header.ICMPv4ProtocolNumber) {
			w.ping(packet)
			return true
		}
		d := w.dispatcher.Load()
		if d == nil {
			return false
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(packet)})
		defer pkt.DecRef()
		(*d).DeliverNetworkPacket(ipv4.ProtocolNumber, pkt)
		return true
	}
	return false
}

// fromGuest cuts a packet out of a frame; ok is false unless it is one that the guest may send.
func fromGuest(payload []byte) (packet []byte, ok bool) {
	h := header.IPv4(payload)
	if len(payload) < header.IPv4MinimumSize || !h.IsValid(len(payload)) {
		return nil, false
	}
	to := netip.AddrFrom4(h.DestinationAddress().As4())
	if netip.AddrFrom4(h.SourceAddress().As4()) != GuestAddress || to.IsUnspecified() || to.IsMulticast() || to.As4()[0] >= 240 {
		return nil, false
	}
	return payload[:h.TotalLength()], true
}

// answerARP answers for the gateway, which is all that there is on the link.
func answerARP(payload []byte) []byte {
	h := header.ARP(payload)
	if len(payload) < header.ARPSize || !h.IsValid() || h.Op() != header.ARPRequest {
		return nil
	}
	if gateway := GatewayAddress.As4(); [4]byte(h.ProtocolAddressTarget()) != gateway {
		return nil
	}
	out := make([]byte, header.ARPSize)
	a := header.ARP(out)
	a.SetIPv4OverEthernet()
	a.SetOp(header.ARPReply)
	copy(a.HardwareAddressSender(), gatewayMAC[:])
	copy(a.ProtocolAddressSender(), h.ProtocolAddressTarget())
	copy(a.HardwareAddressTarget(), h.HardwareAddressSender())
	copy(a.ProtocolAddressTarget(), h.ProtocolAddressSender())
	return out
}

// send queues a frame for the guest; false when there is no room.
func (w *wire) send(protocol tcpip.NetworkProtocolNumber, parts ...[]byte) bool {
	size := etherHeader
	for _, p := range parts {
		size += len(p)
	}
	frame := make([]byte, headroom+etherHeader, headroom+size)
	var to [8]byte
	binary.BigEndian.PutUint64(to[:], w.guest.Load())
	copy(frame[headroom:], to[2:])
	copy(frame[headroom+6:], gatewayMAC[:])
	binary.BigEndian.PutUint16(frame[headroom+12:], uint16(protocol))
	for _, p := range parts {
		frame = append(frame, p...)
	}
	select {
	case w.queue <- frame:
		return true
	default:
		return false
	}
}

// write sends what is queued, as much at a time as there is.
func (w *wire) write(ctx context.Context, c cable) {
	const most = 48
	batch := make([][]byte, 0, most)
	for {
		select {
		case <-ctx.Done():
			return
		case frame := <-w.queue:
			batch = append(batch[:0], frame)
		}
	more:
		for len(batch) < most {
			select {
			case frame := <-w.queue:
				batch = append(batch, frame)
			default:
				break more
			}
		}
		for _, frame := range batch {
			w.inBytes.Add(int64(len(frame) - headroom))
		}
		lost, err := c.send(batch)
		w.dropped.Add(int64(lost))
		if err != nil {
			return // the reader notices, and says why
		}
	}
}

// WritePackets implements stack.LinkWriter.
func (w *wire) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	n := 0
	for _, pkt := range list.AsSlice() {
		if !w.send(pkt.NetworkProtocolNumber, pkt.AsSlices()...) {
			w.dropped.Add(1)
		}
		n++ // a frame that was lost on the way was sent all the same
	}
	return n, nil
}

// Attach implements stack.NetworkLinkEndpoint.
func (w *wire) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		w.dispatcher.Store(nil)
		return
	}
	w.dispatcher.Store(&d)
}

// IsAttached implements stack.NetworkLinkEndpoint.
func (w *wire) IsAttached() bool { return w.dispatcher.Load() != nil }

// MTU implements stack.NetworkLinkEndpoint.
func (w *wire) MTU() uint32 { return mtu }

// SetMTU implements stack.NetworkLinkEndpoint; the link's is what it is.
func (w *wire) SetMTU(uint32) {}

// MaxHeaderLength implements stack.NetworkLinkEndpoint: the stack leaves frames to this type.
func (w *wire) MaxHeaderLength() uint16 { return 0 }

// LinkAddress implements stack.NetworkLinkEndpoint.
func (w *wire) LinkAddress() tcpip.LinkAddress { return "" }

// SetLinkAddress implements stack.NetworkLinkEndpoint.
func (w *wire) SetLinkAddress(tcpip.LinkAddress) {}

// Capabilities implements stack.NetworkLinkEndpoint.
func (w *wire) Capabilities() stack.LinkEndpointCapabilities { return 0 }

// Wait implements stack.NetworkLinkEndpoint.
func (w *wire) Wait() {}

// ARPHardwareType implements stack.NetworkLinkEndpoint.
func (w *wire) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }

// AddHeader implements stack.NetworkLinkEndpoint.
func (w *wire) AddHeader(*stack.PacketBuffer) {}

// ParseHeader implements stack.NetworkLinkEndpoint.
func (w *wire) ParseHeader(*stack.PacketBuffer) bool { return true }

// Close implements stack.NetworkLinkEndpoint.
func (w *wire) Close() {}

// SetOnCloseAction implements stack.NetworkLinkEndpoint.
func (w *wire) SetOnCloseAction(func()) {}
