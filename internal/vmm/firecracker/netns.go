package firecracker

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/thread"
	"github.com/sporevm/spore/internal/vmm"
)

const (
	ifaceID = "eth0" // Firecracker's name for the network device
	// unpluggedTap is the TAP device of a VM whose cable leads nowhere. It is alone in the VM's own network namespace.
	unpluggedTap = "tap0"
)

// startIn starts a program, in another network namespace if one is named.
func startIn(netns, path string, argv []string, attr *os.ProcAttr) (child *os.Process, err error) {
	start := func() error {
		child, err = os.StartProcess(path, argv, attr)
		if err != nil {
			return fmt.Errorf("firecracker: start %s: %w", path, err)
		}
		return nil
	}
	if netns == "" {
		err = start()
		return child, err
	}
	ns, err := os.Open(netns)
	if err != nil {
		return nil, fmt.Errorf("firecracker: network namespace: %w", err)
	}
	defer ns.Close()
	err = thread.Apart(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("firecracker: enter the network namespace: %w", err)
		}
		return start()
	})
	return child, err
}

// tapName is the device that a VM's network device is on.
func tapName(nic vmm.NIC) string {
	if nic.Tap == "" {
		return unpluggedTap
	}
	return nic.Tap
}

// checkTap looks whether the TAP device is there: Firecracker would make one that is missing, and it would lead nowhere.
func checkTap(nic vmm.NIC) error {
	look := func() error {
		_, err := net.InterfaceByName(nic.Tap)
		switch {
		case err != nil && strings.Contains(err.Error(), "no such network interface"):
			return spore.Errorf(spore.CodeNotFound, "nic.tap: there is no network device %s", nic.Tap).WithCause(err)
		case err != nil:
			return fmt.Errorf("firecracker: look for %s: %w", nic.Tap, err)
		}
		return nil
	}
	if nic.NetNS == "" {
		return look()
	}
	ns, err := os.Open(nic.NetNS)
	if errors.Is(err, fs.ErrNotExist) {
		return spore.Errorf(spore.CodeNotFound, "nic.netNS: there is no network namespace %s", nic.NetNS).WithCause(err)
	}
	if err != nil {
		return fmt.Errorf("firecracker: %w", err)
	}
	defer ns.Close()
	return thread.Apart(func() error {
		err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		switch {
		case errors.Is(err, unix.EINVAL):
			return spore.Errorf(spore.CodeNotFound, "nic.netNS: %s is not a network namespace (any more)", nic.NetNS).WithCause(err)
		case errors.Is(err, unix.EPERM):
			return spore.Errorf(spore.CodeUnsupported, "only root can enter the network namespace %s", nic.NetNS).WithCause(err)
		case err != nil:
			return fmt.Errorf("firecracker: enter the network namespace %s: %w", nic.NetNS, err)
		}
		return look()
	})
}

// plug makes sure that the VM's TAP device is there and returns its name. The one of a cable that leads nowhere is made
// in the process's own network namespace, with which it ends.
func (j *jail) plug(nic *vmm.NIC) (string, error) {
	if nic.Tap != "" {
		return nic.Tap, nil
	}
	if os.Geteuid() != 0 {
		return "", spore.Errorf(spore.CodeUnsupported, "a VM with a network device needs root under Firecracker").
			WithHint("run the server as root, or use the QEMU engine")
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", j.proc.pid))
	if err != nil {
		return "", fmt.Errorf("firecracker: the VM's network namespace: %w", err)
	}
	defer ns.Close()
	if j.proc.ended() {
		return "", errGone
	}
	return unpluggedTap, thread.Apart(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("firecracker: enter the VM's network namespace: %w", err)
		}
		return makeTap(unpluggedTap, j.uid)
	})
}

// makeTap makes a TAP device that stays, for uid to open, in the network namespace of the calling thread.
func makeTap(name string, uid int) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("firecracker: make a TAP device: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("firecracker: make a TAP device: %w", err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return fmt.Errorf("firecracker: make a TAP device: %w", err)
	}
	if uid >= 0 {
		if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, uid); err != nil {
			return fmt.Errorf("firecracker: make a TAP device: %w", err)
		}
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("firecracker: make a TAP device: %w", err)
	}
	return nil
}
