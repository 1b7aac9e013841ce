package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/vmm"
)

// flatten writes base with the patches over it to a file at path, which it makes, and returns what the patches touched.
func flatten(ctx context.Context, base, path string, patches vmm.Patches) (ranges rangeSet, err error) {
	src, err := os.Open(base)
	if err != nil {
		return nil, fmt.Errorf("firecracker: %w", err)
	}
	defer src.Close()
	fi, err := src.Stat()
	if err != nil {
		return nil, fmt.Errorf("firecracker: %w", err)
	}
	dst, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, diskError("put the memory patches together", err)
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	if err := copySparse(ctx, dst, src, fi.Size()); err != nil {
		return nil, diskError("put the memory patches together", err)
	}
	note := ranges.note(fi.Size())
	err = patches.Each(ctx, func(off int64, data []byte) error {
		if err := note(off, data); err != nil {
			return err
		}
		if _, err := dst.WriteAt(data, off); err != nil {
			return diskError("put the memory patches together", err)
		}
		return nil
	})
	return ranges, err
}

// copySparse shares the blocks of src with dst where the file system can, and else copies what is not a hole.
func copySparse(ctx context.Context, dst, src *os.File, size int64) error {
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		return nil
	}
	if err := dst.Truncate(size); err != nil {
		return err
	}
	for off := int64(0); off < size; {
		from, err := unix.Seek(int(src.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(src.Fd()), from, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for from < end {
			if err := ctx.Err(); err != nil {
				return err
			}
			n, err := io.Copy(io.NewOffsetWriter(dst, from), io.NewSectionReader(src, from, min(end-from, 16<<20)))
			if err != nil {
				return err
			}
			if n == 0 {
				return io.ErrUnexpectedEOF
			}
			from += n
		}
		off = end
	}
	return nil
}
