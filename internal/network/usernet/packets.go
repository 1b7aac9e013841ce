package usernet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// vnetHeader is the size of what precedes each frame on a packet socket: virtio's header, without the count of buffers.
const vnetHeader = 10

// What of virtio's header matters.
const (
	vnetNeedsChecksum = 1 // in the flags: the transport checksum is not there yet
	vnetWhole         = 0 // in the kind: an ordinary frame
	vnetTCP4          = 1 // a TCP segment over IPv4 that is longer than the link carries
	vnetUDP           = 3 // the same of a datagram, which is to be sent in fragments
	vnetECN           = 0x80
)

// packets is a cable through a packet socket on the TAP device that the VM has open.
type packets struct {
	frames, events *os.File
	index          int32 // of the device
	buf            [vnetHeader + maxFrame]byte
	news           [16 << 10]byte
}

// inheritPackets takes over the descriptors that Start has made of a tap.
func inheritPackets(frames, events int) (*packets, error) {
	addr, err := unix.Getsockname(frames)
	link, ok := addr.(*unix.SockaddrLinklayer)
	if err != nil || !ok {
		return nil, fmt.Errorf("usernet: this is started by the server only: %w", errors.Join(err, unix.EAFNOSUPPORT))
	}
	for _, fd := range []int{frames, events} {
		if err := unix.SetNonblock(fd, true); err != nil {
			return nil, fmt.Errorf("usernet: %w", err)
		}
	}
	return &packets{
		frames: os.NewFile(uintptr(frames), "packets"), events: os.NewFile(uintptr(events), "events"), index: int32(link.Ifindex),
	}, nil
}

// Close also ends what waits for frames or events.
func (p *packets) Close() error { return errors.Join(p.frames.Close(), p.events.Close()) }

func (p *packets) receive() ([]byte, error) {
	n, err := p.frames.Read(p.buf[:])
	if errors.Is(err, unix.EINVAL) { // the guest has sent a frame that the kernel has no header for
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return finish(p.buf[:n]), nil
}

// finish cuts the frame out of what a packet socket has read, and does what the guest has left to do: its transport checksum. Empty
// is a frame that the link does not carry.
func finish(raw []byte) []byte {
	if len(raw) < vnetHeader+etherHeader {
		return nil
	}
	flags, kind, frame := raw[0], raw[1], raw[vnetHeader:]
	switch {
	case kind == vnetWhole && len(frame) <= etherHeader+mtu:
	case kind&^vnetECN == vnetTCP4, kind == vnetUDP: // the stack takes it in one piece
	default:
		return nil
	}
	if flags&vnetNeedsChecksum != 0 && binary.BigEndian.Uint16(frame[12:]) == uint16(header.IPv4ProtocolNumber) {
		completeChecksum(frame[etherHeader:])
	}
	return frame
}

// completeChecksum sets the transport checksum of a packet. Where it is and what it covers is taken from the packet rather than from
// what the guest says about it. A packet that is none is left as it is, to be dropped by whoever takes it.
func completeChecksum(payload []byte) {
	h := header.IPv4(payload)
	if len(payload) < header.IPv4MinimumSize || !h.IsValid(len(payload)) || h.More() || h.FragmentOffset() != 0 {
		return
	}
	segment := payload[h.HeaderLength():h.TotalLength()]
	pseudo := func(p tcpip.TransportProtocolNumber) uint16 {
		return header.PseudoHeaderChecksum(p, h.SourceAddress(), h.DestinationAddress(), uint16(len(segment)))
	}
	switch p := h.TransportProtocol(); {
	case p == header.TCPProtocolNumber && len(segment) >= header.TCPMinimumSize:
		setChecksum(segment, 16, pseudo(p))
	case p == header.UDPProtocolNumber && len(segment) >= header.UDPMinimumSize:
		setChecksum(segment, 6, pseudo(p))
	}
}

// setChecksum puts the checksum of a segment at a place in it.
func setChecksum(segment []byte, at int, pseudo uint16) {
	field := segment[at : at+2]
	clear(field)
	sum := ^checksum.Checksum(segment, pseudo)
	if sum == 0 { // which in UDP says that there is none, and else is the same
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(field, sum)
}

func (p *packets) send(frames [][]byte) (lost int, err error) {
	for _, f := range frames {
		// The header stays empty: nothing is left to do.
		_, err := p.frames.Write(f)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			lost++
		case err != nil:
			return lost, err
		}
	}
	return lost, nil
}

// await waits until the VM has the device open, for a while; false when it did not come. From then on the cable ends when it has let
// go of it.
func (p *packets) await(ctx context.Context, patience time.Duration) (bool, error) {
	stop := context.AfterFunc(ctx, func() { p.events.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := p.events.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return false, fmt.Errorf("usernet: %w", err)
	}
	if ctx.Err() != nil {
		return false, nil
	}
	if err := p.ask(); err != nil {
		return false, err
	}
	for {
		open, err := p.next()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return false, nil
		case err != nil:
			return false, err
		case open:
			if err := p.events.SetReadDeadline(time.Time{}); err != nil {
				return false, fmt.Errorf("usernet: %w", err)
			}
			go p.watch()
			return true, nil
		}
	}
}

// watch ends the cable when the VM has let go of the device.
func (p *packets) watch() {
	for {
		if open, err := p.next(); err != nil || !open {
			p.Close()
			return
		}
	}
}

// ask has the kernel tell how the device is now.
func (p *packets) ask() error {
	req := make([]byte, unix.SizeofNlMsghdr+unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(req, uint32(len(req)))
	binary.NativeEndian.PutUint16(req[4:], unix.RTM_GETLINK)
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(req[unix.SizeofNlMsghdr+4:], uint32(p.index))
	if _, err := p.events.Write(req); err != nil {
		return fmt.Errorf("usernet: ask about the TAP device: %w", err)
	}
	return nil
}

// next says whether somebody has the device open, as soon as there is news of it.
func (p *packets) next() (bool, error) {
	for {
		n, err := p.events.Read(p.news[:])
		if errors.Is(err, unix.ENOBUFS) { // there was more news than room
			if err := p.ask(); err != nil {
				return false, err
			}
			continue
		}
		if err != nil {
			return false, fmt.Errorf("usernet: watch the TAP device: %w", err)
		}
		if open, ok := carrier(p.news[:n], p.index); ok {
			return open, nil
		}
	}
}

// carrier reads from the kernel's messages whether somebody has a device open; ok is false when they do not say.
func carrier(text []byte, index int32) (open, ok bool) {
	messages, err := syscall.ParseNetlinkMessage(text)
	if err != nil {
		return false, false
	}
	for _, m := range messages {
		if len(m.Data) < unix.SizeofIfInfomsg || int32(binary.NativeEndian.Uint32(m.Data[4:])) != index {
			continue
		}
		switch m.Header.Type {
		case unix.RTM_NEWLINK:
			open, ok = binary.NativeEndian.Uint32(m.Data[8:])&unix.IFF_LOWER_UP != 0, true
		case unix.RTM_DELLINK:
			open, ok = false, true
		}
	}
	return open, ok
}
