package pager

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
)

// The kernel's interface to userfaultfd, from linux/userfaultfd.h.
const (
	ioctlNew      = 0xaa00     // on /dev/userfaultfd
	ioctlAPI      = 0xc018aa3f // api, features, ioctls
	ioctlRegister = 0xc020aa00 // start, length, mode, ioctls
	ioctlWake     = 0x8010aa02 // start, length
	ioctlCopy     = 0xc028aa03 // to, from, length, mode, done
	ioctlZero     = 0xc020aa04 // start, length, mode, done

	uffdAPI         = 0xaa
	featureRemove   = 1 << 3
	registerMissing = 1

	eventFault  = 0x12
	eventRemove = 0x15

	messageSize = 32
)

// uffd is a userfaultfd.
type uffd int

func (u uffd) ioctl(op uintptr, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(u), op, uintptr(arg))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

// copyTo fills missing pages at addr, wakes who waits for them, and returns how many bytes it filled before it stopped. It
// stops with EEXIST at a page that is there already, and with EAGAIN while a removal has not been read.
func (u uffd) copyTo(addr uint64, data []byte) (int64, error) {
	arg := new([5]uint64)
	arg[0], arg[1], arg[2] = addr, uint64(uintptr(unsafe.Pointer(&data[0]))), uint64(len(data))
	err := u.ioctl(ioctlCopy, unsafe.Pointer(arg))
	runtime.KeepAlive(data)
	return filled(int64(len(data)), int64(arg[4]), err)
}

// zero is copyTo with zeros that take up no memory. The kernel has it for small pages only.
func (u uffd) zero(addr uint64, n int64) (int64, error) {
	arg := &[4]uint64{addr, uint64(n), 0, 0}
	err := u.ioctl(ioctlZero, unsafe.Pointer(arg))
	return filled(n, int64(arg[3]), err)
}

// filled reads the kernel's answer: after a failure, done is what was filled before it or else a negative error number.
func filled(want, done int64, err error) (int64, error) {
	switch {
	case err == nil:
		return want, nil
	case done > 0 && done < want:
		return done, nil // the rest is tried again, and says for itself why it fails
	}
	return 0, err
}

// wake lets those go on who wait for the pages.
func (u uffd) wake(addr uint64, n int64) error {
	return u.ioctl(ioctlWake, unsafe.Pointer(&[2]uint64{addr, uint64(n)}))
}

// event is a message of the kernel: a fault at an address, or the removal of a range.
type event struct {
	remove     bool
	start, end uint64 // end: of removals only
}

// parseEvent reads one message.
func parseEvent(b []byte) (event, error) {
	if len(b) != messageSize {
		return event{}, fmt.Errorf("a message of %d bytes", len(b))
	}
	first, second := binary.NativeEndian.Uint64(b[8:]), binary.NativeEndian.Uint64(b[16:])
	switch b[0] {
	case eventFault:
		return event{start: second}, nil // first holds flags
	case eventRemove:
		if second < first {
			return event{}, fmt.Errorf("a removal that ends at %#x, before its start %#x", second, first)
		}
		return event{remove: true, start: first, end: second}, nil
	}
	return event{}, fmt.Errorf("an event of kind %#x", b[0])
}

// newUffd makes a userfaultfd that sees the faults of the kernel too, as KVM's are, in this process.
func newUffd() (uffd, error) {
	flags := unix.O_CLOEXEC | unix.O_NONBLOCK
	var fd uintptr
	var errno unix.Errno
	dev, err := os.OpenFile("/dev/userfaultfd", os.O_RDWR, 0)
	if err == nil {
		fd, _, errno = unix.Syscall(unix.SYS_IOCTL, dev.Fd(), ioctlNew, uintptr(flags))
		err = dev.Close()
	} else if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		fd, _, errno = unix.Syscall(unix.SYS_USERFAULTFD, uintptr(flags), 0, 0)
		err = nil
	}
	switch {
	case err != nil:
		return -1, fmt.Errorf("pager: userfaultfd: %w", err)
	case errno == unix.EPERM:
		return -1, spore.Errorf(spore.CodeUnsupported, "this host does not let Spore use userfaultfd").WithCause(errno).
			WithHint("give the server's user access to /dev/userfaultfd, or run the server as root")
	case errno == unix.ENOSYS:
		return -1, spore.Errorf(spore.CodeUnsupported, "this kernel has no userfaultfd").WithCause(errno)
	case errno != 0:
		return -1, fmt.Errorf("pager: userfaultfd: %w", errno)
	}
	u := uffd(fd)
	if err := u.ioctl(ioctlAPI, unsafe.Pointer(&[3]uint64{uffdAPI, featureRemove, 0})); err != nil {
		refused := spore.Errorf(spore.CodeUnsupported, "the userfaultfd of this kernel does not tell of removed pages").WithCause(err)
		return -1, errors.Join(refused, u.close())
	}
	return u, nil
}

// register makes the descriptor see the missing pages of mem.
func (u uffd) register(mem []byte) error {
	return u.ioctl(ioctlRegister, unsafe.Pointer(&[4]uint64{addressOf(mem), uint64(len(mem)), registerMissing, 0}))
}

func addressOf(mem []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&mem[0]))) }

func (u uffd) close() error { return unix.Close(int(u)) }
