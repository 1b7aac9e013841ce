package frozen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/vmm"
)

const pageSize = vmm.PageSize

var zeroFrame [frameSize]byte

func isZero(b []byte) bool {
	for len(b) > len(zeroFrame) {
		if !bytes.Equal(b[:len(zeroFrame)], zeroFrame[:]) {
			return false
		}
		b = b[len(zeroFrame):]
	}
	return bytes.Equal(b, zeroFrame[:len(b)])
}

// dataExtents lists the parts of the file that are not holes, widened to whole pages. A file system that knows no holes
// has one part.
func dataExtents(f *os.File) ([]vmm.Range, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	var out []vmm.Range
	for off := int64(0); off < st.Size(); {
		start, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("find data in %s: %w", f.Name(), err)
		}
		end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("find holes in %s: %w", f.Name(), err)
		}
		off = end
		if start -= start % pageSize; len(out) > 0 { // file system blocks may be smaller than pages
			start = max(start, out[len(out)-1].End())
		}
		if end = min((end+pageSize-1)/pageSize*pageSize, st.Size()); start < end {
			out = appendRange(out, vmm.Range{Offset: start, Length: end - start})
		}
	}
	return out, nil
}

// cloneFile makes dst, which must be new and empty, have the content of src: by sharing blocks where the file system
// can (then shared is true), else by copying what is allocated.
func cloneFile(ctx context.Context, dst, src *os.File) (shared bool, err error) {
	err = unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
	if err == nil {
		return true, nil
	}
	if !cannotClone(err) {
		return false, fmt.Errorf("clone %s: %w", src.Name(), err)
	}
	return false, copySparse(ctx, dst, src)
}

// Reflinks says whether the file system that dir lies on lets files share blocks, so that a clone takes up no room.
func Reflinks(dir string) bool {
	var files [2]*os.File
	for i := range files {
		fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return false // a file system without nameless files is none that can share
		}
		files[i] = os.NewFile(uintptr(fd), dir)
		defer files[i].Close()
	}
	if _, err := files[0].Write(zeroFrame[:pageSize]); err != nil {
		return false
	}
	return unix.IoctlFileClone(int(files[1].Fd()), int(files[0].Fd())) == nil
}

// cannotClone tells a file system that has no reflinks, or not between these two files, from one that failed.
func cannotClone(err error) bool {
	for _, e := range []error{unix.EOPNOTSUPP, unix.EXDEV, unix.EINVAL, unix.ENOTTY, unix.ENOSYS, unix.EPERM, unix.ETXTBSY} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func copySparse(ctx context.Context, dst, src *os.File) error {
	st, err := src.Stat()
	if err != nil {
		return err
	}
	if err := dst.Truncate(st.Size()); err != nil {
		return err
	}
	extents, err := dataExtents(src)
	if err != nil {
		return err
	}
	for _, r := range extents {
		if err := copyRange(ctx, dst, src, r); err != nil {
			return err
		}
	}
	return nil
}

// copyRange copies one range to the same place in dst, inside the kernel if it can.
func copyRange(ctx context.Context, dst, src *os.File, r vmm.Range) error {
	const step = 16 << 20 // so that ctx is looked at now and then
	off := r.Offset
	for off < r.End() {
		if err := ctx.Err(); err != nil {
			return err
		}
		in, out := off, off
		n, err := unix.CopyFileRange(int(src.Fd()), &in, int(dst.Fd()), &out, int(min(step, r.End()-off)), 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil && cannotClone(err):
			return copyThrough(ctx, dst, src, vmm.Range{Offset: off, Length: r.End() - off})
		case err != nil:
			return fmt.Errorf("copy %s: %w", src.Name(), err)
		case n == 0:
			return nil // src was cut off: what is not there reads as zeros
		}
		off += int64(n)
	}
	return nil
}

func copyThrough(ctx context.Context, dst, src *os.File, r vmm.Range) error {
	buf := make([]byte, 1<<20)
	for off := r.Offset; off < r.End(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := src.ReadAt(buf[:min(int64(len(buf)), r.End()-off)], off)
		if n > 0 {
			if _, werr := dst.WriteAt(buf[:n], off); werr != nil {
				return werr
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// punch makes a range a hole.
func punch(f *os.File, r vmm.Range) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, r.Offset, r.Length)
	if err != nil {
		return fmt.Errorf("punch a hole in %s: %w", f.Name(), err)
	}
	return nil
}

// punchZeros turns pages of zeros into holes; the content stays the same. It is worth it from 16 KiB on: smaller holes
// would cost more in extents than they give back.
func punchZeros(ctx context.Context, f *os.File) error {
	extents, err := dataExtents(f)
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for _, ext := range extents {
		var hole vmm.Range
		flush := func() error {
			if hole.Length < 4*pageSize {
				hole = vmm.Range{}
				return nil
			}
			err := punch(f, hole)
			hole = vmm.Range{}
			return err
		}
		for off := ext.Offset; off < ext.End(); {
			if err := ctx.Err(); err != nil {
				return err
			}
			n, err := f.ReadAt(buf[:min(int64(len(buf)), ext.End()-off)], off)
			if err != nil && err != io.EOF {
				return err
			}
			if n == 0 {
				break
			}
			for i := 0; i < n; i += pageSize {
				page := buf[i:min(i+pageSize, n)]
				if !isZero(page) {
					if err := flush(); err != nil {
						return err
					}
					continue
				}
				if hole.Length == 0 {
					hole.Offset = off + int64(i)
				}
				hole.Length += int64(len(page))
			}
			off += int64(n)
		}
		if err := flush(); err != nil {
			return err
		}
	}
	return nil
}
