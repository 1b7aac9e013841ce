package pager

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
)

// Names in a pager's directory.
const (
	nameControl = "pager.control"
	nameLog     = "pager.log"
)

// Config is what a pager is started with, and adopted.
type Config struct {
	ID     string // the sandbox's; appears in process titles and logs
	Dir    string // of the VM; the pager's control socket and log are kept there, with names that begin with "pager."
	Socket string // where the VMM connects to; it must not exist. Only UID can connect
	UID    int    // of the VMM's process
	GID    int

	// HotSet is the file of the memory that the guest touches first. If it is there the pager brings that memory ahead of
	// any fault; if it is not, the hot set of this run is recorded and saved there. "" is neither.
	HotSet string

	Connect time.Duration // how long the VMM has to connect; 0 is a minute
	Record  time.Duration // how long to record, from the first fault on; 0 is ten seconds
	Command []string      // what enters Main; nil is this program's own hidden subcommand
	Logger  *slog.Logger  // nil is slog.Default
}

func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" || c.Socket == "" {
		return c, spore.Invalidf("dir", "a pager needs a directory and a socket")
	}
	if c.Connect <= 0 {
		c.Connect = time.Minute
	}
	if c.Record <= 0 {
		c.Record = 10 * time.Second
	}
	if c.Command == nil {
		c.Command = []string{"/proc/self/exe", "pager"}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c, nil
}

// Start starts a pager for one VM and returns when the VMM may connect. It outlives this process. It fails with
// spore.CodeConflict when a pager lives in cfg.Dir already and with spore.CodeDamaged, naming the file, when what it is to
// serve cannot be read. On error nothing is left. Spec may be closed afterwards.
func Start(ctx context.Context, cfg Config, spec *Spec) (_ *Handle, err error) {
	if cfg, err = cfg.withDefaults(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := vacate(cfg.Dir); err != nil {
		return nil, err
	}
	var undo []func() error
	defer func() {
		for _, fn := range slices.Backward(undo) {
			if err != nil {
				err = errors.Join(err, fn())
			}
		}
	}()
	var passed []*os.File // closed here in any case
	defer func() {
		for _, f := range passed {
			err = errors.Join(err, f.Close())
		}
	}()
	log, err := os.OpenFile(filepath.Join(cfg.Dir, nameLog), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("pager: %w", err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pager: %w", err), log.Close())
	}
	passed = append(passed, null, log)
	mine, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	passed = append(passed, theirs)
	undo = append(undo, func() error {
		if err := mine.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	for _, path := range []string{cfg.Socket, filepath.Join(cfg.Dir, nameControl)} {
		uid, gid := os.Geteuid(), os.Getegid()
		if path == cfg.Socket {
			uid, gid = cfg.UID, cfg.GID
		}
		f, err := bind(path, uid, gid)
		if err != nil {
			return nil, err
		}
		passed = append(passed, f)
		undo = append(undo, func() error { return os.Remove(path) })
	}
	set := setup{
		ID: cfg.ID, Size: spec.size, Base: spec.name, Kind: spec.kind, Names: spec.names, UID: cfg.UID, Connect: cfg.Connect.Milliseconds(),
	}
	files := []*os.File{passed[0], passed[1], passed[1], passed[2], passed[3], passed[4], spec.base}
	files = append(files, spec.layers...)
	if cfg.HotSet != "" {
		switch f, err := os.Open(cfg.HotSet); {
		case err == nil:
			passed = append(passed, f)
			files = append(files, f)
			set.HotSet = true
		case errors.Is(err, fs.ErrNotExist):
			set.Record = cfg.Record.Milliseconds()
		default:
			return nil, fmt.Errorf("pager: hot set: %w", err)
		}
	}
	h, err := spawn(cfg, mine, files)
	if err != nil {
		return nil, err
	}
	if err := h.begin(ctx, set); err != nil {
		return nil, errors.Join(err, h.kill())
	}
	return h, nil
}

// spawn starts the process.
func spawn(cfg Config, conn *net.UnixConn, files []*os.File) (*Handle, error) {
	pidfd := -1
	argv := append(slices.Clone(cfg.Command), cfg.ID)
	argv[0] = "spore"
	child, err := os.StartProcess(cfg.Command[0], argv, &os.ProcAttr{
		Dir: "/", Files: files,
		// Few pages are brought at once, and a runtime for many processors is a waste of memory.
		Env: []string{"GOMAXPROCS=4", "GOTRACEBACK=single", "GOGC=50"},
		Sys: &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
	})
	if err != nil {
		return nil, fmt.Errorf("pager: start: %w", err)
	}
	if pidfd < 0 {
		if pidfd, err = unix.PidfdOpen(child.Pid, 0); err != nil {
			killErr := child.Kill()
			_, waitErr := child.Wait()
			return nil, errors.Join(fmt.Errorf("pager: %w", err), killErr, waitErr)
		}
	}
	return newHandle(cfg, child.Pid, child, pidfd, conn)
}

// vacate clears the way for a pager in dir. A socket that nobody listens on any more is removed.
func vacate(dir string) error {
	conn, err := dial(filepath.Join(dir, nameControl))
	switch {
	case err == nil:
		return errors.Join(spore.Errorf(spore.CodeConflict, "a page server still runs in %s", dir), conn.Close())
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, unix.ECONNREFUSED):
		return os.Remove(filepath.Join(dir, nameControl))
	}
	return fmt.Errorf("pager: %w", err)
}

// short calls fn with an address for path that fits into a socket address, however long path is.
func short(path string, fn func(address string) error) error {
	dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	err = fn(fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
	return errors.Join(err, dir.Close())
}

func dial(path string) (conn *net.UnixConn, err error) {
	err = short(path, func(address string) error {
		conn, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: address, Net: "unix"})
		return err
	})
	return conn, err
}

// bind makes a socket at path that only uid can connect to, once somebody listens on it.
func bind(path string, uid, gid int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("pager: %w", err)
	}
	// The mode of the socket's file is that of the socket, so that there is no moment in which others could connect.
	err = unix.Fchmod(fd, 0o600)
	if err == nil {
		err = short(path, func(address string) error {
			if err := unix.Bind(fd, &unix.SockaddrUnix{Name: address}); err != nil {
				return err
			}
			if uid == os.Geteuid() && gid == os.Getegid() {
				return nil
			}
			if err := os.Lchown(address, uid, gid); err != nil {
				return errors.Join(err, os.Remove(address))
			}
			return nil
		})
	}
	if errors.Is(err, unix.EADDRINUSE) {
		err = spore.Errorf(spore.CodeConflict, "the socket %s exists already", path).WithCause(err)
	} else if err != nil {
		err = fmt.Errorf("pager: socket %s: %w", path, err)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), path), nil
}

func socketPair() (mine *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("pager: %w", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "pager control")
	f := os.NewFile(uintptr(fds[0]), "pager control")
	conn, err := net.FileConn(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("pager: %w", err), theirs.Close())
	}
	return conn.(*net.UnixConn), theirs, nil
}

// lastWords is the end of a pager's log, for errors.
func lastWords(dir string) string {
	b, err := os.ReadFile(filepath.Join(dir, nameLog))
	if err != nil {
		return ""
	}
	text := strings.TrimSpace(string(b[max(0, len(b)-2048):]))
	// A Go program that crashes says why first and then where at length.
	if i := strings.Index(text, "\n\ngoroutine"); i >= 0 {
		text = text[:i]
	}
	return text[strings.LastIndexByte(text, '\n')+1:]
}
