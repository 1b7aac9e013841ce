// Package foreign opens the files and block devices that belong to the caller and that a guest gets as drives.
//
// What is opened is looked at before anything else is done with it, and handed on as an open file: an engine that runs
// without rights, or in a root directory of its own, needs no way to the path.
package foreign

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
)

// Field is what the API calls the path of a foreign drive; errors of this package name it.
const Field = "disks.path"

// sector is the unit in which guests see a drive. Behind the end of a file that is not made of whole ones, a guest's write would
// make it longer.
const sector = 512

// Open opens a regular file or block device at path, for writing unless readOnly, and tells its size in bytes. The caller closes
// it; as long as it or a duplicate is open, a block device that is written is claimed: it can be neither mounted nor claimed by
// another.
//
// It fails with spore.CodeNotFound when nothing is there, spore.CodeInUse when another process writes it, or it is mounted, and
// spore.CodeInvalid when it is something else, is empty, is not made of whole sectors, or the server may not open it. That
// nobody comes to write later a regular file is left to the engine's locks.
func Open(path string, readOnly bool) (*os.File, int64, error) {
	if err := check(path); err != nil {
		return nil, 0, err
	}
	// Looking once more for writers of a file needs a descriptor of its own, opened before the one that writes.
	f, err := open(path, unix.O_RDONLY)
	if err != nil {
		return nil, 0, err
	}
	kind, size, err := inspect(f, path)
	if err == nil && kind == regular {
		err = refuseWriters(f, path)
	}
	if err != nil || readOnly {
		if err != nil {
			return nil, 0, errors.Join(err, f.Close())
		}
		return f, size, nil
	}
	defer f.Close()
	flags := unix.O_RDWR
	if kind == device {
		flags |= unix.O_EXCL
	}
	// By way of the descriptor: it is the same file, whatever the path leads to by now.
	w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), flags|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, refusal(path, true, err)
	}
	if err := blocking(w); err != nil {
		return nil, 0, errors.Join(err, w.Close())
	}
	return w, size, nil
}

// Size tells the size of what Open would open, without a claim on it. Its errors are those of Open but for spore.CodeInUse.
func Size(path string) (int64, error) {
	if err := check(path); err != nil {
		return 0, err
	}
	f, err := open(path, unix.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	_, size, err := inspect(f, path)
	return size, err
}

// check refuses what should not even be opened: some devices act on it.
func check(path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return refusal(path, false, err)
	}
	_, err = kindOf(fi, path)
	return err
}

func open(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, refusal(path, flags != unix.O_RDONLY, err)
	}
	if err := blocking(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// blocking takes back O_NONBLOCK, which was only there so that the open of something unexpected would not hang.
func blocking(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("foreign: %w", err)
	}
	var flagErr error
	err = raw.Control(func(fd uintptr) { flagErr = unix.SetNonblock(int(fd), false) })
	if err = errors.Join(err, flagErr); err != nil {
		return fmt.Errorf("foreign: %w", err)
	}
	return nil
}

type kind int

const (
	regular kind = iota
	device
)

func kindOf(fi os.FileInfo, path string) (kind, error) {
	what := "of no kind that can be a disk"
	switch mode := fi.Mode(); {
	case mode.IsRegular():
		return regular, nil
	case mode.IsDir():
		what = "a directory"
	case mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0:
		return device, nil
	case mode&fs.ModeCharDevice != 0:
		what = "a character device"
	case mode&fs.ModeNamedPipe != 0:
		what = "a named pipe"
	case mode&fs.ModeSocket != 0:
		what = "a socket"
	}
	return 0, spore.Invalidf(Field, "%s is %s", path, what).WithHint("a disk is a regular file or a block device")
}

// inspect says what an open file is and how large.
func inspect(f *os.File, path string) (kind, int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, 0, fmt.Errorf("foreign: %w", err)
	}
	kind, err := kindOf(fi, path)
	if err != nil {
		return 0, 0, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, 0, fmt.Errorf("foreign: the size of %s: %w", path, err)
	}
	switch {
	case size == 0:
		return 0, 0, spore.Invalidf(Field, "%s is empty", path).WithHint("a disk is never resized; make it as large as the guest shall see it")
	case size%sector != 0:
		return 0, 0, spore.Invalidf(Field, "%s is of %d bytes, which is not a multiple of %d", path, size, sector)
	}
	return kind, size, nil
}

// refuseWriters looks whether any process has the file open for writing: while one has, the kernel grants no read lease. The
// lease itself is given back at once. File systems without leases, and files of others for a server without rights, cannot be
// asked so.
func refuseWriters(f *os.File, path string) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("foreign: %w", err)
	}
	var leaseErr, giveErr error
	if err := raw.Control(func(fd uintptr) {
		if _, leaseErr = unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_RDLCK); leaseErr == nil {
			_, giveErr = unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_UNLCK)
		}
	}); err != nil {
		return fmt.Errorf("foreign: %w", err)
	}
	if errors.Is(leaseErr, unix.EAGAIN) {
		return inUse(path)
	}
	if giveErr != nil {
		return fmt.Errorf("foreign: give back the lease on %s: %w", path, giveErr)
	}
	return nil
}

func inUse(path string) *spore.Error {
	e := spore.Errorf(spore.CodeInUse, "%s is mounted, or another VM or process writes it", path).
		WithHint("a disk that is written belongs to one sandbox at a time")
	e.Field = Field
	return e
}

// refusal says in the caller's terms why a file could not be opened.
func refusal(path string, writing bool, err error) error {
	named := func(e *spore.Error) error {
		e.Field = Field
		return e.WithCause(err)
	}
	act := "read"
	if writing {
		act = "write"
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return named(spore.Errorf(spore.CodeNotFound, "there is no %s", path))
	case errors.Is(err, syscall.ENXIO), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENOMEDIUM):
		return named(spore.Errorf(spore.CodeNotFound, "there is no device behind %s", path))
	case errors.Is(err, syscall.EBUSY), errors.Is(err, syscall.ETXTBSY):
		return inUse(path).WithCause(err)
	case errors.Is(err, syscall.EROFS):
		return named(spore.Errorf(spore.CodeInvalid, "%s cannot be written: it is read-only", path).WithHint("ask for it read-only"))
	case errors.Is(err, fs.ErrPermission):
		return named(spore.Errorf(spore.CodeInvalid, "the server may not %s %s", act, path).WithHint("give the server's user the right, or ask for another disk"))
	case errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENAMETOOLONG):
		return named(spore.Errorf(spore.CodeInvalid, "%s leads nowhere", path))
	}
	return fmt.Errorf("foreign: open %s: %w", path, err)
}
