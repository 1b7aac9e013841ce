package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Where things are before the switch to the image's root.
const (
	lowerDir = "/rootfs" // the image, read-only
	diskDir  = "/disk"   // the sandbox's own disk
	newRoot  = "/newroot"
)

// stateDir is the agent's own corner, on a file system in memory.
const stateDir = "/run/spore"

// Serials of the two drives.
const (
	driveRootfs = "rootfs"
	driveDisk   = "disk"
)

type mount struct {
	source, target, kind string
	flags                uintptr
	data                 string
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.kind, m.target, err)
	}
	return nil
}

const noDev = unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV

// mountEarly mounts what the rest of the way up needs.
func mountEarly() error {
	for _, m := range []mount{
		{"proc", "/proc", "proc", noDev, ""},
		{"sysfs", "/sys", "sysfs", noDev, ""},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
	} {
		if err := m.do(); err != nil && !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	return nil
}

// mountRoot puts the image's root together and makes it ours. A machine without any drive keeps the initramfs for its
// root: that is how an engine is tried out. order is the names of the drives where they have no serials.
func mountRoot(order []string) error {
	drives, err := findDrives(order, driveRootfs, driveDisk)
	if err != nil {
		return err
	}
	root := "/"
	if drives != nil {
		root = newRoot
		for _, m := range []mount{
			{drives[driveRootfs], lowerDir, "ext4", unix.MS_RDONLY, ""},
			{drives[driveDisk], diskDir, "ext4", 0, "noinit_itable"},
		} {
			if err := m.do(); err != nil {
				return err
			}
		}
		for _, d := range []string{"upper", "work"} {
			if err := os.MkdirAll(filepath.Join(diskDir, d), 0o755); err != nil {
				return err
			}
		}
		over := mount{"overlay", newRoot, "overlay", 0,
			"lowerdir=" + lowerDir + ",upperdir=" + diskDir + "/upper,workdir=" + diskDir + "/work,redirect_dir=on"}
		if err := over.do(); err != nil {
			return err
		}
	}
	if err := mountKernel(root); err != nil {
		return err
	}
	if root != "/" {
		if err := switchRoot(root); err != nil {
			return err
		}
	}
	unix.Umask(0o022)
	return furnish()
}

// mountKernel mounts the kernel's file systems below root.
func mountKernel(root string) error {
	at := func(p string) string { return filepath.Join(root, p) }
	if root != "/" {
		for _, dir := range []string{"/proc", "/sys", "/dev"} {
			target, err := directory(root, dir)
			if err != nil {
				return err
			}
			if err := unix.Mount(dir, target, "", unix.MS_MOVE, ""); err != nil {
				return fmt.Errorf("move %s: %w", dir, err)
			}
		}
	}
	for _, dir := range []string{"/run", "/tmp", "/etc"} {
		if _, err := directory(root, dir); err != nil {
			return err
		}
	}
	for _, m := range []mount{
		{"tmpfs", at("/run"), "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		{"devpts", at("/dev/pts"), "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"},
		{"tmpfs", at("/dev/shm"), "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"mqueue", at("/dev/mqueue"), "mqueue", noDev, ""},
		{"cgroup2", at("/sys/fs/cgroup"), "cgroup2", noDev, "nsdelegate"},
	} {
		err := m.do()
		if errors.Is(err, unix.ENODEV) { // not in this kernel
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// directory makes sure that root has a real directory at dir: an image may have none, or a symbolic link that leads
// out of root while root is not yet ours.
func directory(root, dir string) (string, error) {
	path := filepath.Join(root, dir)
	info, err := os.Lstat(path)
	if err == nil && !info.IsDir() {
		if err := os.Remove(path); err != nil {
			return "", err
		}
		err = fs.ErrNotExist
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = os.Mkdir(path, 0o755)
		if err == nil && dir == "/tmp" {
			err = os.Chmod(path, 0o1777)
		}
	}
	return path, err
}

// switchRoot makes root the root of everything. The initramfs stays below it, out of reach, with nothing but us in it.
func switchRoot(root string) error {
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// findDrives finds block devices by their serials or, where order names them, by their order, waiting a while for them. It
// returns nil when the machine has no virtio drive at all.
func findDrives(order []string, serials ...string) (map[string]string, error) {
	for deadline := time.Now().Add(deviceWait); ; time.Sleep(5 * time.Millisecond) {
		found, any, err := scanDrives("/sys/block")
		if err != nil {
			return nil, err
		}
		if !any && len(order) == 0 {
			return nil, nil
		}
		if len(order) > 0 {
			found = inOrder(order)
		}
		drives := map[string]string{}
		for _, s := range serials {
			if dev := found[s]; dev != "" {
				if _, err := os.Stat(dev); err == nil {
					drives[s] = dev
				}
			}
		}
		if len(drives) == len(serials) {
			return drives, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("drives %s are wanted, the machine has %v", strings.Join(serials, " and "), found)
		}
	}
}

// inOrder maps names to the devices in whose order they are: vda, vdb and so on.
func inOrder(names []string) map[string]string {
	found := map[string]string{}
	for i, name := range names {
		if i < 26 { // more than any machine of ours has
			found[name] = "/dev/vd" + string(rune('a'+i))
		}
	}
	return found
}

// scanDrives maps serials of virtio drives to their devices.
func scanDrives(sysBlock string) (found map[string]string, any bool, err error) {
	entries, err := os.ReadDir(sysBlock)
	if err != nil {
		return nil, false, err
	}
	found = map[string]string{}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "vd") {
			continue
		}
		any = true
		serial, err := os.ReadFile(filepath.Join(sysBlock, e.Name(), "serial"))
		if err != nil {
			return nil, true, err
		}
		found[strings.TrimSpace(string(serial))] = "/dev/" + e.Name()
	}
	return found, any, nil
}
