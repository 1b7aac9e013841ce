package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/vmm/firecracker/fcdouble/rust"
)

// chroot makes path the root of this thread, in a mount namespace of its own.
func chroot(path string) error {
	const oldRoot = "old_root"
	for _, s := range []struct {
		kind, text string
		do         func() error
	}{
		{"UnshareNewNs", "Failed to unshare into new mount namespace", func() error { return unix.Unshare(unix.CLONE_NEWNS) }},
		{"MountPropagationSlave", "Failed to change the propagation type to slave", func() error { return unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, "") }},
		{"MountBind", "Failed to bind mount the jail root directory", func() error { return unix.Mount(path, path, "", unix.MS_BIND|unix.MS_REC, "") }},
		{"SetCurrentDir", "Failed to change current directory", func() error { return unix.Chdir(path) }},
		{"MkdirOldRoot", "Failed to create the jail root directory before pivoting root", func() error { return unix.Mkdir(oldRoot, 0o600) }},
		{"PivotRoot", "Failed to pivot root", func() error { return unix.PivotRoot(".", oldRoot) }},
		{"ChdirNewRoot", "Failed to chdir into chroot directory", func() error { return unix.Chdir("/") }},
		{"UmountOldRoot", "Failed to unmount the old jail root", func() error { return unix.Unmount(oldRoot, unix.MNT_DETACH) }},
		{"RmOldRootDir", "Failed to remove old jail root directory", func() error { return unix.Rmdir(oldRoot) }},
	} {
		if err := s.do(); err != nil {
			return failed(s.kind, err, s.text)
		}
	}
	return nil
}

// become runs the program in the jail: in this process, or in a child when it is to be a daemon or the first of its PID namespace.
func (j *jail) become(path string, start time.Time, null *os.File) error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return err
	}
	micros := now.Nano() / 1000
	argv := append([]string{path, "--id", j.id, "--start-time-us", strconv.FormatInt(micros-time.Since(start).Microseconds(), 10),
		"--start-time-cpu-us", "1000", "--parent-cpu-time-us", "1000"}, j.extra...)
	if !j.daemonize && !j.newPID {
		if err := savePID(path, os.Getpid()); err != nil {
			return err
		}
		if err := j.drop(); err != nil {
			return failed("Exec", err, "Failed to exec into Firecracker")
		}
		err := syscall.Exec(path, argv, nil)
		return failed("Exec", err, "Failed to exec into Firecracker")
	}
	attr := &syscall.ProcAttr{Dir: "/", Env: []string{}, Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uint32(j.uid), Gid: uint32(j.gid)},
	}}
	if j.daemonize {
		attr.Files = []uintptr{null.Fd(), null.Fd(), null.Fd()}
		attr.Sys.Setsid = true
	} else if leader, err := unix.Getsid(0); err == nil && leader == os.Getpid() {
		attr.Sys.Setsid = true
	}
	if j.newPID {
		attr.Sys.Cloneflags = syscall.CLONE_NEWPID
	}
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return failed("Exec", err, "Failed to exec into Firecracker")
	}
	runtime.KeepAlive(null)
	return savePID(path, pid)
}

func savePID(exec string, pid int) error {
	path := exec + ".pid"
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return refuse(fmt.Sprintf("FileOpen(%q, %s)", path, rust.Debug(err)), "Failed to open file %s: %s", path, rust.Message(err))
	}
	if _, err := f.WriteString(strconv.Itoa(pid)); err != nil {
		return failed("Write", err, "Failed to write to %s", path)
	}
	return f.Close()
}

// drop gives up the rights of root, for the whole process.
func (j *jail) drop() error {
	if err := syscall.Setgroups(nil); err != nil {
		return err
	}
	if err := syscall.Setgid(j.gid); err != nil {
		return err
	}
	return syscall.Setuid(j.uid)
}
