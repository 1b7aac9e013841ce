package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// SaveState has Firecracker take a snapshot and keeps its device state; see vmm.VM. Of a booted VM the memory goes to the
// memory file. Of a thawed one only what was written since the last time comes along, to a file in memory.
func (m *machine) SaveState(ctx context.Context, out *os.File) error {
	end, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if m.State() == vmm.StateRunning {
		return spore.Errorf(spore.CodeConflict, "the VM %s runs; it must be paused to save its state", m.cfg.ID)
	}
	payload, err := m.snapshot(ctx)
	if err != nil {
		return err
	}
	return writeState(out, envelope{Format: m.format, Writer: m.jail.binary.Version.String(), Shape: m.shape, Tap: m.tap, Limits: m.limits}, payload)
}

// snapshot takes a snapshot and returns the device state. The caller has the turn.
func (m *machine) snapshot(ctx context.Context) (payload []byte, err error) {
	p := snapshotCreateParams{SnapshotPath: filepath.Join(nameScratch, nameState)}
	if m.booted {
		p.SnapshotType, p.MemFilePath = snapshotFull, nameMemory
	} else {
		p.SnapshotType, p.MemFilePath = snapshotDiff, filepath.Join(nameScratch, nameDiff)
	}
	spent := []string{nameState}
	defer func() {
		err = errors.Join(err, m.dropScratch(spent...))
	}()
	if err := m.jail.api.createSnapshot(ctx, p); err != nil {
		// Given up in the middle it may go on; the next one waits for it, since Firecracker takes one request at a time.
		var refused *APIError
		if errors.As(err, &refused) {
			return nil, spore.Errorf(spore.CodeInternal, "Firecracker did not take the snapshot: %s", refused.Message).WithCause(err)
		}
		return nil, m.settle(err)
	}
	m.saved = true
	// The snapshot has cut the guest off, which this side would only learn once it sends something.
	m.hangUp()
	if m.pageServer() != nil {
		if err := m.ownDiff(); err != nil {
			return nil, err
		}
	}
	// Only now: Firecracker tells once what was written. It adds to a file that is there, so what comes of a snapshot that
	// was given up or went wrong, be it after this side has left, is in that of the next one.
	spent = append(spent, nameDiff)
	if m.booted {
		if err := punchZeros(ctx, m.cfg.Memory); err != nil {
			return nil, err
		}
	}
	f, err := m.jail.openScratch(nameState)
	if err != nil {
		return nil, m.settle(err)
	}
	defer f.Close()
	payload, err = io.ReadAll(io.NewSectionReader(f, 0, maxStateSize+1))
	if err != nil {
		return nil, fmt.Errorf("firecracker: read the device state: %w", err)
	}
	if len(payload) == 0 || len(payload) > maxStateSize {
		return nil, fmt.Errorf("firecracker: the device state is of %d bytes", len(payload))
	}
	return payload, nil
}

// dropScratch removes what Firecracker has written.
func (m *machine) dropScratch(names ...string) error {
	root, err := m.jail.openRoot()
	if errors.Is(err, errGone) {
		return nil // and with it the directory
	}
	if err != nil {
		return err
	}
	defer unix.Close(root)
	dir, err := unix.Openat2(root, nameScratch, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH,
	})
	if err != nil {
		return fmt.Errorf("firecracker: %s: %w", nameScratch, err)
	}
	defer unix.Close(dir)
	for _, name := range names {
		if err := unix.Unlinkat(dir, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("firecracker: remove %s: %w", name, err)
		}
	}
	return nil
}

// askWritten brings the list of the VM's own pages up to now. Firecracker tells by way of a snapshot, whose state nobody
// wants, and only while the VM stands still.
func (m *machine) askWritten(ctx context.Context) error {
	end, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if m.State() == vmm.StateRunning {
		return spore.Errorf(spore.CodeConflict, "the VM %s runs; it must be paused to tell which memory it has written", m.cfg.ID)
	}
	_, err = m.snapshot(ctx)
	return err
}

// ownDiff adds the pages of the diff snapshot that was just taken to the VM's own.
func (m *machine) ownDiff() error {
	f, err := m.jail.openScratch(nameDiff)
	if err != nil {
		return m.settle(err)
	}
	defer f.Close()
	ranges, err := extents(f, ramBytes(m.cfg))
	if err != nil {
		return err
	}
	return m.own(ranges)
}

// extents lists the parts of a sparse file that are there, widened to whole pages.
func extents(f *os.File, size int64) ([]vmm.Range, error) {
	var set rangeSet
	for off := int64(0); off < size; {
		from, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("firecracker: the diff snapshot: %w", err)
		}
		end, err := unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("firecracker: the diff snapshot: %w", err)
		}
		from -= from % vmm.PageSize
		end = min(end+(vmm.PageSize-end%vmm.PageSize)%vmm.PageSize, size)
		if end <= from { // it lies past the memory's end
			break
		}
		set.add(vmm.Range{Offset: from, Length: end - from})
		off = end
	}
	return set, nil
}

// punchZeros gives the pages of zeros in a memory file back to the file system: a snapshot writes all of RAM, and most of
// a young guest's has never been touched.
func punchZeros(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("firecracker: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return fmt.Errorf("firecracker: %w", err)
	}
	buf := make([]byte, 1<<20)
	var zeros vmm.Range
	flush := func() error {
		if zeros.Length == 0 {
			return nil
		}
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, zeros.Offset, zeros.Length)
		zeros = vmm.Range{}
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil // then it stays as large as it is
		}
		return err
	}
	for off := int64(0); off < fi.Size(); off += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.ReadAt(buf, off)
		if err != nil && err != io.EOF {
			return fmt.Errorf("firecracker: read the memory file: %w", err)
		}
		for at := 0; at < n; at += vmm.PageSize {
			page := buf[at:min(at+vmm.PageSize, n)]
			if !allZero(page) {
				if err := flush(); err != nil {
					return fmt.Errorf("firecracker: %w", err)
				}
				continue
			}
			if zeros.Length == 0 {
				zeros.Offset = off + int64(at)
			}
			zeros.Length += int64(len(page))
		}
	}
	if err := flush(); err != nil {
		return fmt.Errorf("firecracker: %w", err)
	}
	return nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
