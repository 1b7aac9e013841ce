package frozen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// diskSource is the live disk of a VM and what is being taken of it. nil stands for a VM without a disk.
//
// Where the file system can clone, a clone is taken while the guest stands still. Elsewhere the disk is compared with
// the parent's while the guest runs, and what differs is copied. Once the guest stands still, either the times of the
// file say that nothing was written since, or each block is read once more, and those that do not hash as they did are
// copied too.
type diskSource struct {
	f    *os.File
	copy *os.File // the clone, or a sparse file of the blocks that differ

	size    int64
	early   bool             // the comparison was made
	seen    sighting         // how f looked before
	sums    map[int64]uint64 // of the blocks then, by offset; a block that is not listed was a hole
	differs []vmm.Range      // what copy holds: ascending once the guest stands
}

// blockOfDisk is the unit in which changes of a disk are looked for while the guest stands still.
const blockOfDisk = 64 << 10

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
		src.size = info.Size()
		d.caught.disk = filepath.Join(d.dir, "disk")
		src.copy, err = os.OpenFile(d.caught.disk, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
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
		s.copy.Close()
	}
}

// missing is about what is still to be written to complete the copy of the disk.
func (s *diskSource) missing() int64 {
	if s == nil {
		return 0
	}
	return max(0, allocated(s.f)-allocated(s.copy))
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
// wait for. Where the file system cannot clone, the disk is compared and copied now.
func (d *Draft) precopyDisk(ctx context.Context, src *diskSource) error {
	if src == nil {
		return nil
	}
	if err := unix.Fdatasync(int(src.f.Fd())); err != nil {
		return fmt.Errorf("write back the disk: %w", err)
	}
	err := unix.IoctlFileClone(int(src.copy.Fd()), int(src.f.Fd()))
	if err == nil {
		return src.copy.Truncate(0) // it can; the one that counts is made while the guest stands still
	}
	if !cannotClone(err) {
		return fmt.Errorf("clone the disk: %w", err)
	}
	if src.seen, err = settled(ctx, src.f); err != nil {
		return err
	}
	src.early = true
	if err := d.compareDisk(ctx, src); err != nil {
		return err
	}
	// Catching up is quicker than the comparison, so that a guest that writes now and then is likely to let it stand.
	for range 2 {
		now, err := settled(ctx, src.f)
		if err != nil || now == src.seen {
			return err
		}
		src.seen = now
		if err := src.catchUp(ctx); err != nil {
			return err
		}
	}
	return nil
}

// compareDisk notes how each block of the live disk hashes and copies the pages that differ from the parent's.
func (d *Draft) compareDisk(ctx context.Context, src *diskSource) error {
	blocks, err := diskBlocks(src.f)
	if err != nil {
		return err
	}
	below, err := d.parentDiskData()
	if err != nil {
		return err
	}
	if err := src.copy.Truncate(d.disk.size); err != nil {
		return err
	}
	src.sums = make(map[int64]uint64, len(blocks))
	mine, theirs := make([]byte, blockOfDisk), make([]byte, blockOfDisk)
	for _, r := range blocks {
		if err := ctx.Err(); err != nil {
			return err
		}
		x, y := mine[:r.Length], theirs[:r.Length]
		if err := readFull(src.f, x, r.Offset); err != nil {
			return err
		}
		src.sums[r.Offset] = xxhash.Sum64(x)
		if err := readFull(d.disk, y, r.Offset); err != nil {
			return err
		}
		if err := src.copyPages(r.Offset, x, y); err != nil {
			return err
		}
	}
	// Where the live disk has holes and the parent's has not: reads as zeros now.
	src.differs = union(src.differs, subtract(below, blocks))
	return nil
}

// copyPages copies the pages in which mine differs from theirs.
func (s *diskSource) copyPages(offset int64, mine, theirs []byte) error {
	if bytes.Equal(mine, theirs) {
		return nil
	}
	for i := 0; i < len(mine); i += pageSize {
		page := mine[i : i+pageSize]
		if bytes.Equal(page, theirs[i:i+pageSize]) {
			continue
		}
		if _, err := s.copy.WriteAt(page, offset+int64(i)); err != nil {
			return err
		}
		s.differs = appendRange(s.differs, vmm.Range{Offset: offset + int64(i), Length: pageSize})
	}
	return nil
}

// diskBlocks lists the blocks of a disk that hold data.
func diskBlocks(f *os.File) ([]vmm.Range, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	extents, err := dataExtents(f)
	if err != nil {
		return nil, err
	}
	var out []vmm.Range
	for _, r := range extents {
		start := r.Offset / blockOfDisk * blockOfDisk
		if n := len(out); n > 0 {
			start = max(start, out[n-1].Offset+blockOfDisk)
		}
		for ; start < r.End(); start += blockOfDisk {
			out = append(out, vmm.Range{Offset: start, Length: min(blockOfDisk, info.Size()-start)})
		}
	}
	return out, nil
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

// takeDisk makes the copy of the disk complete while the guest stands still.
func (d *Draft) takeDisk(ctx context.Context, src *diskSource) error {
	if src == nil {
		return nil
	}
	start := time.Now()
	defer func() { d.timings.Disk = time.Since(start) }()
	d.store.step("capture.disk")
	if !src.early {
		var err error
		d.caught.shared, err = cloneFile(ctx, src.copy, src.f)
		return err
	}
	now, err := look(src.f)
	if err == nil && now != src.seen {
		err = src.catchUp(ctx)
	}
	d.caught.differs, d.caught.isDiff = src.differs, true
	return err
}

// catchUp copies the blocks that were written since they were last hashed.
func (s *diskSource) catchUp(ctx context.Context) error {
	blocks, err := diskBlocks(s.f)
	if err != nil {
		return err
	}
	late := make([]bool, len(blocks))
	found := make([]uint64, len(blocks))
	var next atomic.Int64
	g, gctx := errgroup.WithContext(ctx)
	for range min(runtime.GOMAXPROCS(0), 4, len(blocks)) {
		g.Go(func() error {
			buf := make([]byte, blockOfDisk)
			for {
				i := int(next.Add(1)) - 1
				if i >= len(blocks) {
					return nil
				}
				if err := gctx.Err(); err != nil {
					return err
				}
				r := blocks[i]
				x := buf[:r.Length]
				if err := readFull(s.f, x, r.Offset); err != nil {
					return err
				}
				found[i] = xxhash.Sum64(x)
				if sum, was := s.sums[r.Offset]; was && sum == found[i] {
					continue
				}
				if _, err := s.copy.WriteAt(x, r.Offset); err != nil {
					return err
				}
				late[i] = true
			}
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	var written, was []vmm.Range
	sums := make(map[int64]uint64, len(blocks))
	for i, r := range blocks {
		if late[i] {
			written = appendRange(written, r)
		}
		sums[r.Offset] = found[i]
	}
	// What was data and is a hole now.
	for off := range s.sums {
		if _, still := sums[off]; !still {
			was = append(was, vmm.Range{Offset: off, Length: min(blockOfDisk, s.size-off)})
		}
	}
	s.sums = sums
	sort.Slice(was, func(i, j int) bool { return was[i].Offset < was[j].Offset })
	for _, r := range was {
		if err := punch(s.copy, r); err != nil {
			return err
		}
	}
	s.differs = union(union(s.differs, written), was)
	return nil
}

// parentDiskData lists where the parent's disk may hold anything but zeros.
func (d *Draft) parentDiskData() ([]vmm.Range, error) {
	base, err := dataExtents(d.disk.base.(*os.File))
	if err != nil {
		return nil, err
	}
	return union(base, d.disk.covered()), nil
}
