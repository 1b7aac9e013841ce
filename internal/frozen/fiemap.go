package frozen

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/vmm"
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

// fiemapVague marks extents whose place is not known, or where other bytes lie than the file has: unknown, delayed,
// encoded, encrypted, not aligned, inline, packed, unwritten.
const fiemapVague = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800

// eachExtent yields the extents of a file; none where the file system cannot tell.
func eachExtent(f *os.File, yield func(fiemapExtent)) error {
	q := new(fiemapQuery)
	for start := uint64(0); ; {
		*q = fiemapQuery{Start: start, Length: ^uint64(0) - start, Count: fiemapBatch}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fiemapRequest, uintptr(unsafe.Pointer(q)))
		switch {
		case errno == unix.EINTR:
			continue
		case errors.Is(errno, unix.EOPNOTSUPP) || errno == unix.ENOTTY:
			return nil
		case errno != 0:
			return errno
		}
		for _, e := range q.Extents[:min(q.Mapped, fiemapBatch)] {
			yield(e)
			if e.Flags&fiemapLast != 0 {
				return nil
			}
			start = e.Logical + e.Length
		}
		if q.Mapped == 0 {
			return nil
		}
	}
}

// sharedBytes is how much of a file lies in blocks that other files share; 0 where the file system cannot tell.
func sharedBytes(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var sum int64
	err = eachExtent(f, func(e fiemapExtent) {
		if e.Flags&fiemapShared != 0 {
			sum += int64(e.Length)
		}
	})
	return sum, err
}

// sameBlocks lists where two immutable files of one file system lie in the same blocks, and so are equal.
func sameBlocks(a, b *os.File) ([]vmm.Range, error) {
	var lists [2][]fiemapExtent
	for i, f := range []*os.File{a, b} {
		err := eachExtent(f, func(e fiemapExtent) {
			if e.Flags&fiemapShared != 0 && e.Flags&fiemapVague == 0 {
				lists[i] = append(lists[i], e)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	var out []vmm.Range
	x, y := lists[0], lists[1]
	for len(x) > 0 && len(y) > 0 {
		start, end := max(x[0].Logical, y[0].Logical), min(x[0].end(), y[0].end())
		if start < end && start-x[0].Logical+x[0].Physical == start-y[0].Logical+y[0].Physical {
			// Blocks may be smaller than pages.
			if from, to := (start+pageSize-1)/pageSize*pageSize, end/pageSize*pageSize; from < to {
				out = appendRange(out, vmm.Range{Offset: int64(from), Length: int64(to - from)})
			}
		}
		if x[0].end() < y[0].end() {
			x = x[1:]
		} else {
			y = y[1:]
		}
	}
	return out, nil
}

func (e fiemapExtent) end() uint64 { return e.Logical + e.Length }
