package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// furnish gives the root what programs expect of any Linux machine, whatever the image has left out.
func furnish() error {
	for link, target := range map[string]string{
		"/dev/fd":     "/proc/self/fd",
		"/dev/stdin":  "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1",
		"/dev/stderr": "/proc/self/fd/2",
		"/dev/core":   "/proc/kcore",
	} {
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	// The device node of the kernel's own terminal multiplexer is not the one of our devpts.
	if err := os.Remove("/dev/ptmx"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink("pts/ptmx", "/dev/ptmx"); err != nil {
		return err
	}
	if err := os.MkdirAll(stateDir, 0o755); err != nil {
		return err
	}
	for _, f := range []struct{ path, fallback string }{
		{"/etc/machine-id", ""},
		{"/etc/hostname", "sandbox\n"},
		{"/etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"},
		{"/etc/resolv.conf", ""},
	} {
		if err := overlayFile(f.path, f.fallback); err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
	}
	return unix.Sethostname([]byte("sandbox"))
}

// overlayFile covers a file of the image with one in memory that begins with the same content. What identifies a
// sandbox is written there: it costs no disk, and no disk carries it into another sandbox.
func overlayFile(path, fallback string) error {
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(content) == 0 {
		content = []byte(fallback)
	}
	info, err := os.Lstat(path)
	switch {
	case err == nil && info.Mode()&fs.ModeSymlink != 0: // often into a /run that is not there any more
		if err := os.Remove(path); err != nil {
			return err
		}
		fallthrough
	case errors.Is(err, fs.ErrNotExist):
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	own := filepath.Join(stateDir, filepath.Base(path))
	if err := os.WriteFile(own, content, 0o644); err != nil {
		return err
	}
	return unix.Mount(own, path, "", unix.MS_BIND, "")
}

// loopbackUp brings the loopback interface up; its addresses come by themselves.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
		return err
	}
	req.SetUint16(req.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}
