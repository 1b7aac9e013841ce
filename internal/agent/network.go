package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SetAddress gives an interface its address, and brings it up. What an earlier identity had set there goes.
func (g *Guest) SetAddress(a Address) error {
	prefix, gateway, mac, err := a.parse()
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	iface := func(what string, request uint, fill func(*unix.Ifreq) error) error {
		req, err := unix.NewIfreq(a.Interface)
		if err == nil {
			err = fill(req)
		}
		if err == nil {
			err = unix.IoctlIfreq(fd, request, req)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	}
	flags := func(up bool) error {
		req, err := unix.NewIfreq(a.Interface)
		if err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
			return err
		}
		f := req.Uint16() &^ unix.IFF_UP
		if up {
			f |= unix.IFF_UP
		}
		req.SetUint16(f)
		return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
	}
	if mac != nil {
		if err := flags(false); err != nil { // a hardware address is only set while the interface is down
			return err
		}
		if err := setMAC(fd, a.Interface, mac); err != nil {
			return fmt.Errorf("hardware address: %w", err)
		}
	}
	if a.MTU != 0 {
		if err := iface("mtu", unix.SIOCSIFMTU, func(r *unix.Ifreq) error { r.SetUint32(uint32(a.MTU)); return nil }); err != nil {
			return err
		}
	}
	addr := prefix.Addr().As4()
	if err := iface("address", unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(addr[:]) }); err != nil {
		return err
	}
	mask := net.CIDRMask(prefix.Bits(), 32)
	if err := iface("netmask", unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr(mask) }); err != nil {
		return err
	}
	if err := flags(true); err != nil {
		return err
	}
	if gateway.IsValid() {
		if err := addDefaultRoute(fd, gateway); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("route by way of %s: %w", gateway, err)
		}
	}
	return nil
}

func (a Address) parse() (prefix netip.Prefix, gateway netip.Addr, mac net.HardwareAddr, err error) {
	if prefix, err = netip.ParsePrefix(a.CIDR); err != nil {
		return
	}
	if !prefix.Addr().Is4() {
		err = fmt.Errorf("%s is not an IPv4 address", a.CIDR)
		return
	}
	if a.Gateway != "" {
		if gateway, err = netip.ParseAddr(a.Gateway); err != nil {
			return
		}
		if !gateway.Is4() {
			err = fmt.Errorf("%s is not an IPv4 address", a.Gateway)
			return
		}
	}
	if a.MAC != "" {
		if mac, err = net.ParseMAC(a.MAC); err == nil && len(mac) != 6 {
			err = fmt.Errorf("%s is not an Ethernet address", a.MAC)
		}
	}
	if err == nil && (a.MTU < 0 || a.MTU > 65535) {
		err = fmt.Errorf("an mtu of %d is not possible", a.MTU)
	}
	return
}

func setMAC(fd int, name string, mac net.HardwareAddr) error {
	var req struct {
		name   [unix.IFNAMSIZ]byte
		family uint16
		addr   [22]byte
	}
	if len(name) >= len(req.name) {
		return unix.EINVAL
	}
	copy(req.name[:], name)
	req.family = unix.ARPHRD_ETHER
	copy(req.addr[:], mac)
	return ioctl(fd, unix.SIOCSIFHWADDR, unsafe.Pointer(&req))
}

func addDefaultRoute(fd int, gateway netip.Addr) error {
	// struct rtentry of linux/route.h.
	var req struct {
		_                  uint64
		dst, gateway, mask unix.RawSockaddrInet4
		flags              uint16
		_                  [2]byte
		_                  [2]uint64
		metric             int16
		_                  [6]byte
		dev                uintptr
		mtu, window        uint64
		irtt               uint16
		_                  [6]byte
	}
	req.dst.Family, req.gateway.Family, req.mask.Family = unix.AF_INET, unix.AF_INET, unix.AF_INET
	req.gateway.Addr = gateway.As4()
	req.flags = unix.RTF_UP | unix.RTF_GATEWAY
	return ioctl(fd, unix.SIOCADDRT, unsafe.Pointer(&req))
}

func ioctl(fd int, request uint, arg unsafe.Pointer) error {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg)); e != 0 {
		return e
	}
	return nil
}
