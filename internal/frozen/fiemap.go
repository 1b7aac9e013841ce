package frozen

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The FIEMAP ioctl of Linux: where the parts of a file lie on the device, and whether other files lie there too.
const (
	fiemapRequest = 0xC020660B // FS_IOC_FIEMAP
	fiemapLast    = 0x1
	fiemapShared  = 0x2000
	fiemapBatch   = 256
)

type fiemapExtent struct {
	Logical, Physical, Length uint64
	_                         [2]uint64
	Flags                     uint32
	_                         [3]uint32
}

type fiemapQuery struct {
	Start, Length uint64
	Flags, Mapped uint32
	Count         uint32
	_             uint32
	Extents       [fiemapBatch]fiemapExtent
}

// sharedBytes is how much of a file lies in blocks that other files share; 0 where the file system cannot tell.
func sharedBytes(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var sum int64
	q := new(fiemapQuery)
	for start := uint64(0); ; {
		*q = fiemapQuery{Start: start, Length: ^uint64(0) - start, Count: fiemapBatch}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fiemapRequest, uintptr(unsafe.Pointer(q)))
		switch {
		case errno == unix.EINTR:
			continue
		case errors.Is(errno, unix.EOPNOTSUPP) || errno == unix.ENOTTY:
			return 0, nil
		case errno != 0:
			return 0, errno
		}
		for _, e := range q.Extents[:min(q.Mapped, fiemapBatch)] {
			if e.Flags&fiemapShared != 0 {
				sum += int64(e.Length)
			}
			if e.Flags&fiemapLast != 0 {
				return sum, nil
			}
			start = e.Logical + e.Length
		}
		if q.Mapped == 0 {
			return sum, nil
		}
	}
}
