package usernet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/thread"
)

// TapName is the TAP device of a VM that takes its frames from one, in a network namespace where there is nothing else.
const TapName = "tap0"

// tap is a TAP device in a network namespace of its own. The namespace has no name: it is there for as long as one of the files is
// open or the VM is in it, so nothing of it can be left behind.
type tap struct {
	packets *os.File // a packet socket on the device
	events  *os.File // tells when the VM comes and goes
	ns      *os.File // the namespace
}

const (
	// tapBuffer is how much of the guest's frames waits for the sidecar: the windows of a few connections, since the guest is not
	// held back when there is no more room.
	tapBuffer = 4 << 20
	// tapQueue is how many frames wait for the guest in the kernel.
	tapQueue = 1024
)

// tapFor is the TAP device for a VM; one that runs has one already.
func tapFor(vm int) (*tap, error) {
	if vm != 0 {
		return joinTap(vm)
	}
	return newTap()
}

// newTap makes a TAP device. It fails with spore.CodeUnsupported where that cannot be done.
func newTap() (_ *tap, err error) {
	if os.Geteuid() != 0 {
		return nil, spore.Errorf(spore.CodeUnsupported, "TAP devices take root, and this server runs as user %d", os.Geteuid()).
			WithHint("run the server as root, or use the QEMU engine, which needs no TAP device for mode user")
	}
	t := &tap{}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	err = thread.InNewNetwork(func() error {
		for _, step := range []func() error{bare, makeTap, t.furnish} {
			if err := step(); err != nil {
				return err
			}
		}
		return nil
	})
	for _, errno := range []unix.Errno{unix.EPERM, unix.EACCES, unix.ENOENT, unix.ENODEV, unix.ENOPROTOOPT, unix.EAFNOSUPPORT} {
		if errors.Is(err, errno) {
			return t, spore.Errorf(spore.CodeUnsupported, "this host makes no TAP device for a network process: %w", err).
				WithHint("it takes root with all capabilities, and a kernel with network namespaces, tun and packet sockets; the QEMU engine needs none of them for mode user")
		}
	}
	if err != nil {
		err = fmt.Errorf("usernet: make a TAP device: %w", err)
	}
	return t, err
}

// joinTap takes up the TAP device that a VM has open, whose sidecar has ended.
func joinTap(vm int) (_ *tap, err error) {
	t := &tap{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("usernet: take up the TAP device of process %d: %w", vm, err), t.Close())
		}
	}()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", vm))
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	own, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		return nil, err
	}
	if fi, err := ns.Stat(); err != nil || os.SameFile(fi, own) {
		return nil, errors.Join(errors.New("it is in no network namespace of its own"), err)
	}
	return t, thread.InNetwork(ns, t.furnish)
}

// ProbeTap says whether sidecars can be started here for VMs that want a TAP device. It fails with spore.CodeUnsupported, and the
// reason, when they cannot.
func ProbeTap() error {
	t, err := newTap()
	if err != nil {
		return err
	}
	return t.Close()
}

// Close lets go of the device.
func (t *tap) Close() error {
	var errs []error
	for _, f := range []*os.File{t.packets, t.events, t.ns} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// bare sees to it that the host's kernel has no part in what passes in the namespace of the calling thread, which is a new one: no
// address, no IPv6, and the frames bear another hardware address than the device's, so it drops its copies first thing.
func bare() error {
	for _, scope := range []string{"all", "default"} {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+scope+"/disable_ipv6", []byte("1"), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // of a kernel without IPv6
			return err
		}
	}
	return nil
}

// furnish opens what a sidecar needs of the device in the namespace of the calling thread.
func (t *tap) furnish() (err error) {
	if t.ns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	packets, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // it hears nothing until it is bound
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	t.packets = os.NewFile(uintptr(packets), "packets")
	events, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	t.events = os.NewFile(uintptr(events), "events")
	if err := unix.Bind(events, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	index, err := raise(packets)
	if err != nil {
		return err
	}
	for _, o := range []struct{ level, name, value int }{
		// Firecracker lets guests leave checksums and the cutting of segments to the host. So frames come with a header that says what is
		// still to do.
		{unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1},
		{unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1},
		{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, tapBuffer},
	} {
		if err := unix.SetsockoptInt(packets, o.level, o.name, o.value); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
	return os.NewSyscallError("bind", unix.Bind(packets, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}))
}

// makeTap makes the device, which stays when nobody has it open.
func makeTap() error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(TapName)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return os.NewSyscallError("TUNSETIFF", err)
	}
	return os.NewSyscallError("TUNSETPERSIST", unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1))
}

// raise brings the device up by way of a socket in its namespace, and answers its index.
func raise(fd int) (int, error) {
	req, err := unix.NewIfreq(TapName)
	if err != nil {
		return 0, err
	}
	req.SetUint32(tapQueue)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFTXQLEN, req); err != nil {
		return 0, os.NewSyscallError("SIOCSIFTXQLEN", err)
	}
	req.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return 0, os.NewSyscallError("SIOCSIFFLAGS", err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req); err != nil {
		return 0, os.NewSyscallError("SIOCGIFINDEX", err)
	}
	return int(req.Uint32()), nil
}
