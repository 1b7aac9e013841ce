package frozen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// diskSource is the live disk of a VM and, where the file system cannot clone, the copy of it that was begun while the
// guest ran. nil stands for a VM without a disk.
type diskSource struct {
	f     *os.File
	clone *os.File // being made
	early bool     // clone holds a copy that was begun while the guest ran
	seen  sighting // how f looked before that copy
}

func (d *Draft) openDisk(path string) (*diskSource, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, spore.Errorf(spore.CodeNotFound, "the disk of the VM is gone").WithCause(err)
	}
	if err != nil {
		return nil, fmt.Errorf("open the disk: %w", err)
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() == 0 || info.Size()%pageSize != 0) {
		err = spore.Errorf(spore.CodeConflict, "the disk of the VM is not a file of whole %d byte blocks", pageSize)
	}
	if err == nil && d.disk != nil && info.Size() != d.disk.size {
		err = spore.Errorf(spore.CodeConflict, "the disk has %d bytes, that of its parent %s has %d", info.Size(), d.spec.Parent.ID, d.disk.size)
	}
	src := &diskSource{f: f}
	if err == nil {
		d.caught.disk = filepath.Join(d.dir, "disk")
		src.clone, err = os.OpenFile(d.caught.disk, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return src, nil
}

func (s *diskSource) close() {
	if s != nil {
		s.f.Close()
		s.clone.Close()
	}
}

// missing is about what is still to be written to complete the copy of the disk.
func (s *diskSource) missing() int64 {
	if s == nil {
		return 0
	}
	return max(0, allocated(s.f)-allocated(s.clone))
}

// allocated is what an open file takes up on disk; 0 when that cannot be told.
func allocated(f *os.File) int64 {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

// precopyDisk shortens the paused window. Dirty pages are written back now, which pausing and cloning would otherwise
// wait for. Where the file system cannot clone, the disk is copied now; an idle guest's copy needs nothing more.
func (d *Draft) precopyDisk(ctx context.Context, src *diskSource) error {
	if src == nil {
		return nil
	}
	if err := unix.Fdatasync(int(src.f.Fd())); err != nil {
		return fmt.Errorf("write back the disk: %w", err)
	}
	err := unix.IoctlFileClone(int(src.clone.Fd()), int(src.f.Fd()))
	if err == nil {
		return src.clone.Truncate(0) // it can; the one that counts is made while the guest stands still
	}
	if !cannotClone(err) {
		return fmt.Errorf("clone the disk: %w", err)
	}
	if free, ferr := freeBytes(d.dir); ferr == nil && free < allocated(src.f) {
		return noSpace(allocated(src.f) - free)
	}
	if src.seen, err = settled(ctx, src.f); err != nil {
		return err
	}
	src.early = true
	return copySparse(ctx, src.clone, src.f)
}

// settled waits until a further write to f is sure to show in its times, and returns how it looks. A guest that never
// stops writing is not waited for: its disk is compared anyway.
func settled(ctx context.Context, f *os.File) (sighting, error) {
	for range 3 {
		s, err := look(f)
		if err != nil {
			return s, err
		}
		age := time.Since(time.Unix(0, max(s.Mtime, s.Ctime)))
		if age < 0 || age >= tick {
			return s, nil
		}
		select {
		case <-time.After(tick - age):
		case <-ctx.Done():
			return s, ctx.Err()
		}
	}
	return sighting{}, nil
}

// takeDisk makes the clone of the disk while the guest stands still.
func (d *Draft) takeDisk(ctx context.Context, src *diskSource) error {
	if src == nil {
		return nil
	}
	start := time.Now()
	defer func() { d.timings.Disk = time.Since(start) }()
	d.store.step("capture.disk")
	if src.early {
		now, err := look(src.f)
		if err == nil && now != src.seen {
			err = copyChanges(ctx, src.clone, src.f)
		}
		d.caught.diskBytes = allocated(src.clone)
		return err
	}
	var err error
	d.caught.shared, err = cloneFile(ctx, src.clone, src.f)
	return err
}

// copyChanges makes dst, an older copy of src, equal to it. Reading and comparing cached blocks is several times
// cheaper than writing them, which is why the older copy was made.
func copyChanges(ctx context.Context, dst, src *os.File) error {
	live, err := dataExtents(src)
	if err != nil {
		return err
	}
	old, err := dataExtents(dst)
	if err != nil {
		return err
	}
	for _, gone := range subtract(old, live) {
		if err := punch(dst, gone); err != nil {
			return err
		}
	}
	a, b := make([]byte, frameSize), make([]byte, frameSize)
	for _, r := range split(live, frameSize) {
		if err := ctx.Err(); err != nil {
			return err
		}
		x, y := a[:r.Length], b[:r.Length]
		if err := readFull(src, x, r.Offset); err != nil {
			return err
		}
		if err := readFull(dst, y, r.Offset); err != nil {
			return err
		}
		if bytes.Equal(x, y) {
			continue
		}
		if _, err := dst.WriteAt(x, r.Offset); err != nil {
			return err
		}
	}
	return nil
}

// diffDisk writes the blocks in which the clone differs from the parent's disk as a layer. It gives up, with ok false,
// when the layer would not be smaller than the limit.
func (d *Draft) diffDisk(ctx context.Context, clone *os.File, lw *layerWriter, limit int64) (ok bool, err error) {
	extents, err := dataExtents(clone)
	if err != nil {
		return false, err
	}
	below, err := d.parentDiskData()
	if err != nil {
		return false, err
	}
	mine, theirs := make([]byte, frameSize), make([]byte, frameSize)
	for _, r := range split(union(extents, below), frameSize) {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		x, y := mine[:r.Length], theirs[:r.Length]
		if err := readFull(clone, x, r.Offset); err != nil {
			return false, err
		}
		if err := readFull(d.disk, y, r.Offset); err != nil {
			return false, err
		}
		if err := lw.addDifference(r.Offset, x, y); err != nil {
			return false, err
		}
		if lw.place > limit {
			return false, nil
		}
	}
	return true, nil
}

// parentDiskData lists where the parent's disk may hold anything but zeros.
func (d *Draft) parentDiskData() ([]vmm.Range, error) {
	base, err := dataExtents(d.disk.base.(*os.File))
	if err != nil {
		return nil, err
	}
	return union(base, d.disk.covered()), nil
}
