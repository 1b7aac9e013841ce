package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/thread"
	"github.com/sporevm/spore/internal/vmm"
)

// nicOptions leave the device with what it can do by itself: whatever a backend would have to help with is off, so that
// one device state fits every backend and none. Without a control queue the features that need it must be off too.
const nicOptions = ",romfile=,disable-legacy=on,mq=off,rss=off,hash=off" +
	",csum=off,gso=off,host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off" +
	",guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,guest_announce=off" +
	",ctrl_vq=off,ctrl_rx=off,ctrl_vlan=off,ctrl_rx_extra=off,ctrl_mac_addr=off,ctrl_guest_offloads=off"

// What a network device with a socket for a cable hangs on.
const (
	hub          = 0
	netdevFrames = "net0"  // the socket
	netdevCable  = "cable" // the hub's port that it is on
	netdevPlug   = "plug"  // the one that the device is on
)

// nicArgs are the options for the network device; fd is the descriptor of its cable, if it has one.
func nicArgs(nic vmm.NIC, fd int) []string {
	device := fmt.Sprintf("virtio-net-pci,id=nic,bus=pcie.0,addr=%d,mac=%s%s", slotNIC, strings.ToLower(nic.MAC), nicOptions)
	switch {
	case nic.Tap != "":
		return []string{"-netdev", fmt.Sprintf("tap,id=net0,fd=%d,vhost=off", fd), "-device", device + ",netdev=net0"}
	case nic.Socket != "":
		// The backend "stream" would take the same bytes, but it connects behind the guest's back and loses what the
		// guest sends before. The device is not on the backend itself but on a hub with these two on it: QEMU takes a backend from a
		// hub and puts another there while the guest runs, and never from a device; see Replug. With two on it a hub passes on
		// that one side takes no more.
		return []string{
			"-netdev", fmt.Sprintf("socket,id=%s,fd=%d", netdevFrames, fd),
			"-netdev", fmt.Sprintf("hubport,id=%s,hubid=%d,netdev=%s", netdevCable, hub, netdevFrames),
			"-netdev", fmt.Sprintf("hubport,id=%s,hubid=%d", netdevPlug, hub),
			"-device", device + ",netdev=" + netdevPlug,
		}
	}
	return []string{"-device", device}
}

var tapForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$`)

func checkNIC(nic vmm.NIC) error {
	mac, err := net.ParseMAC(nic.MAC)
	switch {
	case err != nil || len(mac) != 6 || mac[0]&1 != 0 || len(nic.MAC) != len("00:00:00:00:00:00") || nic.MAC[2] != ':':
		return spore.Invalidf("nic.mac", "%q is not the address of a network device", nic.MAC).WithHint("such as 02:00:00:00:00:01")
	case nic.Tap != "" && nic.Socket != "":
		return spore.Invalidf("nic", "a network device has one cable, not two")
	case nic.Tap != "" && !tapForm.MatchString(nic.Tap):
		return spore.Invalidf("nic.tap", "%q is not the name of a TAP device", nic.Tap)
	case nic.NetNS != "" && nic.Tap == "":
		return spore.Invalidf("nic.netNS", "a network namespace is of no use without a TAP device")
	}
	return nil
}

func nicWords(mac string) string {
	if mac == "" {
		return "no network device"
	}
	return "the network device " + mac
}

// openCable opens the backend of a network device; nil when it is unplugged.
func openCable(nic vmm.NIC) (*os.File, error) {
	switch {
	case nic.Tap != "":
		return openTap(nic.NetNS, nic.Tap)
	case nic.Socket != "":
		return dialFrames(nic.Socket)
	}
	return nil, nil
}

func dialFrames(path string) (*os.File, error) {
	refused := func(err error) error {
		code := spore.CodeUnreachable
		if errors.Is(err, fs.ErrNotExist) {
			code = spore.CodeNotFound
		}
		return spore.Errorf(code, "nic.socket: nothing takes the VM's network traffic at %s", path).WithCause(err)
	}
	// By way of the directory, since a socket's address is shorter than paths may be.
	dir, name := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		d, err := os.Open(path[:i+1])
		if err != nil {
			return nil, refused(err)
		}
		defer d.Close()
		dir, name = fmt.Sprintf("/proc/self/fd/%d/", d.Fd()), path[i+1:]
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("qemu: socket: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: dir + name}); err != nil {
		return nil, errors.Join(refused(err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "nic"), nil
}

// openTap opens a TAP device that exists, in a network namespace.
func openTap(netns, name string) (tap *os.File, err error) {
	attach := func() (err error) {
		tap, err = attachTap(name)
		return err
	}
	if netns == "" {
		err = attach()
		return tap, err
	}
	ns, err := os.Open(netns)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, spore.Errorf(spore.CodeNotFound, "nic.netNS: there is no network namespace %s", netns).WithCause(err)
	}
	if err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	defer ns.Close()
	inside := false
	err = thread.InNetwork(ns, func() error {
		inside = true
		return attach()
	})
	switch {
	case err == nil || inside:
		return tap, err
	case errors.Is(err, syscall.EINVAL):
		return nil, spore.Errorf(spore.CodeNotFound, "nic.netNS: %s is not a network namespace (any more)", netns).WithCause(err)
	case errors.Is(err, syscall.EPERM):
		return nil, spore.Errorf(spore.CodeUnsupported, "only root can enter the network namespace %s", netns).WithCause(err)
	}
	return nil, fmt.Errorf("qemu: enter the network namespace %s: %w", netns, err)
}

func attachTap(name string) (*os.File, error) {
	// A device that is missing would be made by being opened, and lead nowhere.
	switch _, err := net.InterfaceByName(name); {
	case err != nil && strings.Contains(err.Error(), "no such network interface"):
		return nil, spore.Errorf(spore.CodeNotFound, "nic.tap: there is no network device %s", name).WithCause(err)
	case err != nil:
		return nil, fmt.Errorf("qemu: look for %s: %w", name, err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, spore.Errorf(spore.CodeUnsupported, "this host has no TAP devices: %w", err).WithHint("load the kernel module tun")
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err == nil {
		return os.NewFile(uintptr(fd), "nic"), nil
	}
	unix.Close(fd)
	switch {
	case errors.Is(err, syscall.EBUSY):
		err = spore.Errorf(spore.CodeConflict, "nic.tap: another VM is on the TAP device %s", name).WithCause(err)
	case errors.Is(err, syscall.EINVAL):
		err = spore.Invalidf("nic.tap", "%s is not a TAP device, or of another kind", name).WithCause(err)
	default:
		err = fmt.Errorf("qemu: open the TAP device %s: %w", name, err)
	}
	return nil, err
}
