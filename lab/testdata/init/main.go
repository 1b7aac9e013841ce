// Command init is the first process of both guests of the lab. It loads the modules of its initramfs; then, with
// lab.root=DISK and lab.cargo=DISK on the kernel's command line, it goes on as /cargo/main with the one as root and the
// other on /cargo, and else says that it is up and powers off.
package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	err := run()
	fmt.Println("lab init:", err)
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println("lab init: power off:", err)
	}
	select {}
}

func run() error {
	for _, m := range []struct{ kind, dir string }{{"proc", "/proc"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", m.kind, err)
		}
	}
	order, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	for path := range strings.FieldsSeq(string(order)) {
		if err := load(path); err != nil {
			return fmt.Errorf("loading %s: %w", path, err)
		}
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	disks := map[string]string{}
	for arg := range strings.FieldsSeq(string(cmdline)) {
		if key, value, ok := strings.Cut(arg, "="); ok {
			disks[key] = value
		}
	}
	if disks["lab.root"] != "" {
		return enter(disks["lab.root"], disks["lab.cargo"])
	}
	uptime, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return err
	}
	seconds, _, _ := strings.Cut(string(uptime), " ")
	return fmt.Errorf("inner guest up after %s s", seconds)
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// enter makes one disk the root, mounts the other and goes on as its program.
func enter(root, cargo string) error {
	if err := mountDisk(root, "/root"); err != nil {
		return err
	}
	if err := mountDisk(cargo, "/root/cargo"); err != nil {
		return err
	}
	if err := unix.Mount("/dev", "/root/dev", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving /dev: %w", err)
	}
	if err := os.Chdir("/root"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("changing the root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return unix.Exec("/cargo/main", []string{"/cargo/main"},
		[]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=dumb"})
}

// mountDisk waits for a disk to appear and mounts it.
func mountDisk(device, dir string) error {
	for range 1000 {
		if _, err := os.Stat(device); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(device, dir, "ext4", unix.MS_NOATIME, ""); err != nil {
		return fmt.Errorf("mounting %s: %w", device, err)
	}
	return nil
}
