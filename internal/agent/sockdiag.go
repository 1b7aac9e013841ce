package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The parts of linux/sock_diag.h and linux/inet_diag.h that are wanted here.
const (
	sockDiagByFamily = 20
	sockDestroy      = 21
	socketIDSize     = 48 // struct inet_diag_sockid
	diagMsgSize      = 72 // struct inet_diag_msg

	// tcpStates are the states of connections, as opposed to listening sockets and those that linger after their end.
	tcpStates = 1<<1 | 1<<2 | 1<<3 | 1<<4 | 1<<5 | 1<<8 | 1<<9 | 1<<11
)

// connection is one TCP connection as the kernel lists it.
type connection struct {
	family   uint8
	id       [socketIDSize]byte // the kernel's name for it
	src, dst netip.Addr
}

// leavesGuest says whether the other end is not in this guest.
func (c connection) leavesGuest() bool {
	return !c.dst.IsLoopback() && !c.dst.IsUnspecified() && c.src != c.dst
}

// DropConnections ends the TCP connections whose other end is outside: it talks to another thaw by now, or to nobody. The
// kernel needs its tcp_diag module for this.
func (g *Guest) DropConnections() (int, error) {
	if !hasNIC() {
		return 0, nil
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return 0, fmt.Errorf("this kernel cannot list them: %w", err)
	}
	defer unix.Close(fd)
	dropped := 0
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		conns, err := listConnections(fd, family)
		if err != nil {
			return dropped, err
		}
		for _, c := range conns {
			if !c.leavesGuest() {
				continue
			}
			err := destroy(fd, c)
			switch {
			case err == nil:
				dropped++
			case errors.Is(err, unix.ENOENT): // has ended by itself
			default:
				return dropped, err
			}
		}
	}
	return dropped, nil
}

// hasNIC says whether the guest has any interface beside the loopback, which is always the first. Network cards are
// found at boot and so have the lowest numbers. A thaw asks this, and asking is much quicker than listing nothing.
func hasNIC() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return true // let the list say
	}
	defer unix.Close(fd)
	for index := int32(2); index < 16; index++ {
		req := struct {
			name  [unix.IFNAMSIZ]byte
			index int32
			_     [20]byte
		}{index: index}
		if ioctl(fd, unix.SIOCGIFNAME, unsafe.Pointer(&req)) == nil {
			return true
		}
	}
	return false
}

func listConnections(fd int, family uint8) ([]connection, error) {
	if err := sendDiag(fd, sockDiagByFamily, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, family, [socketIDSize]byte{}); err != nil {
		return nil, err
	}
	var conns []connection
	buf := make([]byte, 32<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		more, done, err := parseDiag(buf[:n])
		conns = append(conns, more...)
		if err != nil || done {
			return conns, err
		}
	}
}

// parseDiag reads one datagram of an answer.
func parseDiag(b []byte) (conns []connection, done bool, err error) {
	for len(b) >= unix.NLMSG_HDRLEN {
		length := int(binary.NativeEndian.Uint32(b))
		if length < unix.NLMSG_HDRLEN || length > len(b) {
			return conns, true, errors.New("the kernel's list of connections is malformed")
		}
		kind, body := binary.NativeEndian.Uint16(b[4:]), b[unix.NLMSG_HDRLEN:length]
		switch kind {
		case unix.NLMSG_DONE:
			return conns, true, nil
		case unix.NLMSG_ERROR:
			if len(body) < 4 {
				return conns, true, errors.New("the kernel's list of connections is malformed")
			}
			if e := int32(binary.NativeEndian.Uint32(body)); e != 0 {
				return conns, true, unix.Errno(-e)
			}
			return conns, true, nil
		case sockDiagByFamily:
			if len(body) < diagMsgSize {
				return conns, true, errors.New("the kernel's list of connections is malformed")
			}
			c := connection{family: body[0]}
			copy(c.id[:], body[4:])
			c.src, c.dst = addressOf(c.family, c.id[4:20]), addressOf(c.family, c.id[20:36])
			conns = append(conns, c)
		}
		b = b[min(len(b), (length+3)&^3):]
	}
	return conns, false, nil
}

func addressOf(family uint8, b []byte) netip.Addr {
	if family == unix.AF_INET {
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.AddrFrom16([16]byte(b[:16])).Unmap()
}

func destroy(fd int, c connection) error {
	if err := sendDiag(fd, sockDestroy, unix.NLM_F_REQUEST|unix.NLM_F_ACK, c.family, c.id); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		_, _, err = parseDiag(buf[:n])
		return err
	}
}

func sendDiag(fd int, kind, flags uint16, family uint8, id [socketIDSize]byte) error {
	var req struct {
		header unix.NlMsghdr
		// struct inet_diag_req_v2
		family, protocol, ext, _ uint8
		states                   uint32
		id                       [socketIDSize]byte
	}
	req.header = unix.NlMsghdr{Len: uint32(unsafe.Sizeof(req)), Type: kind, Flags: flags}
	req.family, req.protocol, req.states, req.id = family, unix.IPPROTO_TCP, tcpStates, id
	return unix.Sendto(fd, unsafe.Slice((*byte)(unsafe.Pointer(&req)), unsafe.Sizeof(req)), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}
