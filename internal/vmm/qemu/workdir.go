package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// Names in the working directory. Links to what QEMU opens, sockets it answers on, and the engine's own records.
const (
	nameMemory  = "memory"
	nameKernel  = "kernel"
	nameInitrd  = "initrd"
	nameRecord  = "vm.json"
	nameOutput  = "output" // QEMU's standard output and error: a pipe that the server copies to the log
	nameLog     = "qemu.log"
	nameConsole = "console.log" // the guest's serial console

	socketMonitor = "qmp"
	socketConsole = "console"
	socketControl = "control"
	socketData    = "data"
)

// sockets in the order in which their descriptors are passed to QEMU.
var sockets = []string{socketMonitor, socketConsole, socketControl, socketData}

func driveName(id string) string { return "drive-" + id }

// workdir is DIR/qemu: QEMU's working directory and root. It is held open, since socket paths may be longer than a
// socket address: they are reached through /proc/self/fd.
type workdir struct {
	path  string
	dir   *os.File
	close func() error // lets go of the directory; idempotent
}

func workPath(vmDir string) (string, error) {
	abs, err := filepath.Abs(vmDir)
	if err != nil {
		return "", fmt.Errorf("qemu: %w", err)
	}
	return filepath.Join(abs, "qemu"), nil
}

// newWorkdir makes the directory with its links. What an earlier VM left there, which has ended, is removed.
func newWorkdir(cfg vmm.Config, thaw bool) (*workdir, error) {
	path, err := workPath(cfg.Dir)
	if err != nil {
		return nil, err
	}
	err = os.Mkdir(path, 0o700)
	if errors.Is(err, fs.ErrExist) {
		if pid := findProcess(path); pid != 0 {
			return nil, spore.Errorf(spore.CodeConflict, "a VM (process %d) still runs in %s", pid, cfg.Dir)
		}
		if err = os.RemoveAll(path); err == nil {
			err = os.Mkdir(path, 0o700)
		}
	}
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, spore.Invalidf("dir", "there is no directory %s", cfg.Dir).WithCause(err)
		}
		return nil, diskError("make the VM's directory", err)
	}
	w, err := openWorkdir(path)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(path))
	}
	links := map[string]string{nameMemory: cfg.Memory}
	if !thaw {
		links[nameKernel] = cfg.Kernel
		if cfg.Initrd != "" {
			links[nameInitrd] = cfg.Initrd
		}
	}
	for _, d := range cfg.Drives {
		if !d.Foreign {
			links[driveName(d.ID)] = d.Path
		}
	}
	for name, target := range links {
		if target, err = filepath.Abs(target); err == nil {
			err = os.Symlink(target, w.join(name))
		}
		if err != nil {
			return nil, errors.Join(diskError("link the VM's files", err), w.discard())
		}
	}
	return w, nil
}

func openWorkdir(path string) (*workdir, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	return &workdir{path: path, dir: dir, close: sync.OnceValue(dir.Close)}, nil
}

func (w *workdir) join(name string) string { return filepath.Join(w.path, name) }

// discard removes the directory.
func (w *workdir) discard() error { return errors.Join(w.close(), os.RemoveAll(w.path)) }

func (w *workdir) address(socket string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s.sock", w.dir.Fd(), socket)
}

// backlog is how many clients may come and go before QEMU, whose main loop can be busy for long, takes the first of them.
const backlog = 128

// listen makes a socket for QEMU to answer on. As it listens before QEMU runs, a client never has to try again.
func (w *workdir) listen(socket string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("qemu: socket: %w", err)
	}
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: w.address(socket)}); err == nil {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		unix.Close(fd)
		return nil, diskError("make a socket", err)
	}
	return os.NewFile(uintptr(fd), socket), nil
}

// dial connects to a socket. It does not block: QEMU's backlog takes the connection.
func (w *workdir) dial(socket string) (*net.UnixConn, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: w.address(socket)})
	if err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	return conn, nil
}

// diskError tells a full disk from a defect.
func diskError(what string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return spore.Errorf(spore.CodeNoSpace, "no room on the disk to %s", what).WithCause(err)
	}
	return fmt.Errorf("qemu: %s: %w", what, err)
}
