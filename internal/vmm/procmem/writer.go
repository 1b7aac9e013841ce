package procmem

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// stageSize is how much Writer gathers before it writes; a run at least as long is written by itself.
	stageSize = 256 << 10
	// iovMax is the kernel's limit on runs per call (UIO_MAXIOV).
	iovMax = 1024
)

// Writer writes many runs of guest RAM with few system calls. Runs take effect in the order they were given, at the
// latest when Flush returns. It is for one goroutine.
type Writer struct {
	m      *Memory
	stage  []byte
	remote []unix.RemoteIovec
	total  int64
}

// NewWriter returns a Writer of m.
func (m *Memory) NewWriter() *Writer { return &Writer{m: m} }

// Add writes data at off, now or later; data may be reused when it returns.
func (w *Writer) Add(off int64, data []byte) error {
	if off < 0 || off > w.m.size || int64(len(data)) > w.m.size-off {
		return fmt.Errorf("procmem: write of %d bytes at %d is outside of RAM of %d bytes", len(data), off, w.m.size)
	}
	if len(data) >= stageSize {
		if err := w.Flush(); err != nil {
			return err
		}
		n, err := w.m.WriteAt(data, off)
		w.total += int64(n)
		return err
	}
	if len(w.stage)+len(data) > stageSize {
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if w.stage == nil {
		w.stage = make([]byte, 0, stageSize)
	}
	for len(data) > 0 {
		if len(w.remote) == iovMax {
			if err := w.Flush(); err != nil {
				return err
			}
		}
		addr, room := w.m.resolve(off)
		n := min(int64(len(data)), room)
		w.stage = append(w.stage, data[:n]...)
		if k := len(w.remote); k > 0 && w.remote[k-1].Base+uintptr(w.remote[k-1].Len) == uintptr(addr) {
			w.remote[k-1].Len += int(n)
		} else {
			w.remote = append(w.remote, unix.RemoteIovec{Base: uintptr(addr), Len: int(n)})
		}
		off, data = off+n, data[n:]
	}
	return nil
}

// Flush writes what Add has gathered.
func (w *Writer) Flush() error {
	release, err := w.m.hold()
	if err != nil {
		return err
	}
	defer release()
	local, remote := w.stage, w.remote
	for len(local) > 0 {
		iov := unix.Iovec{Base: &local[0]}
		iov.SetLen(len(local))
		n, err := unix.ProcessVMWritev(w.m.pid, []unix.Iovec{iov}, remote, 0)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EPERM || err == syscall.ENOSYS || err == syscall.EFAULT:
			// One run through /proc/PID/mem, then try the fast way again for the rest.
			if n, err = w.m.mem.WriteAt(local[:remote[0].Len], int64(remote[0].Base)); n == 0 {
				return w.m.explain("write the memory", err)
			}
		case err != nil:
			return w.m.explain("write the memory", err)
		case n == 0:
			return w.m.explain("write the memory", syscall.EFAULT)
		}
		local = local[n:]
		w.total += int64(n)
		remote = advance(remote, n)
	}
	w.stage, w.remote = w.stage[:0], w.remote[:0]
	if !w.m.alive() {
		return gone(w.m.pid, nil)
	}
	return nil
}

// Written is how many bytes have reached the guest's RAM so far.
func (w *Writer) Written() int64 { return w.total }

func advance(iov []unix.RemoteIovec, n int) []unix.RemoteIovec {
	for n > 0 {
		if n < iov[0].Len {
			iov[0].Base += uintptr(n)
			iov[0].Len -= n
			return iov
		}
		n -= iov[0].Len
		iov = iov[1:]
	}
	return iov
}
