package frozen

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// resumeTimeout bounds how long we try to set a VM going again whose capture failed.
const resumeTimeout = 30 * time.Second

// CaptureBoot freezes a VM that was booted on BaseMemoryPath: it pauses the VM, saves its device state and clones its
// disk (disk is the path of the image; "" when there is none). The VM stays paused; the caller must Kill it before
// Commit, since its RAM file becomes the base.
func (d *Draft) CaptureBoot(ctx context.Context, vm vmm.VM, disk string) (Timings, error) {
	if d.phase != phaseOpen || d.spec.Parent != nil {
		return d.timings, spore.Errorf(spore.CodeInternal, "this draft is not for a boot, or is used up")
	}
	return d.timings, d.captured(d.captureBoot(ctx, vm, disk))
}

// captured moves the draft on, or ends it.
func (d *Draft) captured(err error) error {
	if err != nil {
		d.Discard()
		return err
	}
	d.phase = phaseCaptured
	return nil
}

func (d *Draft) captureBoot(ctx context.Context, vm vmm.VM, disk string) (err error) {
	start := time.Now()
	d.caught.booted = vm
	src, err := d.openDisk(disk)
	if err != nil {
		return err
	}
	defer src.close()
	if err := vm.Pause(ctx); err != nil {
		return fmt.Errorf("pause: %w", err)
	}
	d.timings.Pause = time.Since(start)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.takeState(gctx, vm) })
	g.Go(func() error { return d.takeDisk(gctx, src) })
	err = g.Wait()
	d.timings.Paused = time.Since(start)
	return ioError("capture", d.store.dir, src.missing(), err)
}

// CaptureLive freezes a VM that was thawed from Spec.Parent. The guest stands still only while device state, the pages
// written since the copy began, and the disk are taken. On error the VM is as it was before, and the draft is of no
// more use; CodeNoSpace when the host's disk is full, CodeConflict when the VM is gone.
func (d *Draft) CaptureLive(ctx context.Context, vm vmm.VM, disk string, after After) (Timings, error) {
	if d.phase != phaseOpen || d.spec.Parent == nil {
		return d.timings, spore.Errorf(spore.CodeInternal, "this draft is for a boot, or is used up")
	}
	return d.timings, d.captured(d.captureLive(ctx, vm, disk, after))
}

func (d *Draft) captureLive(ctx context.Context, vm vmm.VM, disk string, after After) error {
	if (disk != "") != (d.disk != nil) {
		return spore.Errorf(spore.CodeInternal, "the VM and its parent %s differ in whether they have a disk", d.spec.Parent.ID)
	}
	mem, err := vm.Memory()
	if err != nil {
		return fmt.Errorf("guest memory: %w", err)
	}
	if mem.Size() != d.memory.size {
		return spore.Errorf(spore.CodeConflict, "the VM has %d bytes of RAM, its parent %s has %d", mem.Size(), d.spec.Parent.ID, d.memory.size)
	}
	src, err := d.openDisk(disk)
	if err != nil {
		return err
	}
	defer src.close()
	d.caught.arena = newArena(d.store.buffers, d.dir)

	wasRunning := vm.State() == vmm.StateRunning
	before := time.Now()
	early, err := d.precopy(ctx, mem, src, wasRunning)
	if err != nil {
		return err
	}
	d.timings.Precopy = time.Since(before)

	d.store.step("capture.pause")
	start := time.Now()
	err = d.window(ctx, vm, mem, src, early)
	if wasRunning && (err != nil || after == Resume) {
		resuming := time.Now()
		rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resumeTimeout)
		defer cancel()
		if rerr := vm.Resume(rctx); rerr != nil {
			err = errors.Join(err, fmt.Errorf("resume: %w", rerr))
		}
		d.timings.Resume = time.Since(resuming)
	}
	d.timings.Paused = time.Since(start)
	return ioError("capture", d.store.dir, src.missing(), err)
}

// earlyCopy is what was taken while the guest still ran.
type earlyCopy struct {
	tracked bool // the engine can tell what was written since
	spans   []span
}

// precopy does what need not be done while the guest stands still: it makes room, copies the pages if later writes to
// them can be told, and the disk if the file system cannot clone it.
func (d *Draft) precopy(ctx context.Context, mem vmm.Memory, src *diskSource, running bool) (earlyCopy, error) {
	var early earlyCopy
	if running {
		err := mem.Track(ctx)
		if err != nil && spore.CodeOf(err) != spore.CodeUnsupported {
			return early, fmt.Errorf("track writes: %w", err)
		}
		early.tracked = err == nil
	}
	dirty, err := privatePages(ctx, mem)
	if running && !early.tracked && spore.CodeOf(err) == spore.CodeConflict {
		dirty, err = nil, nil // it tells only once it stands still: the arena grows as it must
	}
	if err != nil {
		return early, err
	}
	// Room for what the guest may write until it stands, on top of what there is. Beyond that the arena grows as it
	// must, only slower.
	bytes := totalLength(dirty)
	if err := d.caught.arena.reserve(bytes + bytes/8 + blockSize); err != nil {
		return early, err
	}
	if early.tracked {
		if early.spans, err = d.caught.arena.copy(ctx, mem, dirty); err != nil {
			return early, ioError("copy memory", d.store.dir, bytes, err)
		}
	}
	return early, ioError("copy disk", d.store.dir, src.missing(), d.precopyDisk(ctx, src))
}

// window is what happens while the guest stands still.
func (d *Draft) window(ctx context.Context, vm vmm.VM, mem vmm.Memory, src *diskSource, early earlyCopy) error {
	start := time.Now()
	if err := vm.Pause(ctx); err != nil {
		return fmt.Errorf("pause: %w", err)
	}
	d.timings.Pause = time.Since(start)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.takeDisk(gctx, src) })
	g.Go(func() error {
		// Memory after the state: devices may still write to guest RAM as they are saved.
		if err := d.takeState(gctx, vm); err != nil {
			return err
		}
		return d.takeMemory(gctx, mem, early)
	})
	return g.Wait()
}

func (d *Draft) takeState(ctx context.Context, vm vmm.VM) error {
	start := time.Now()
	defer func() { d.timings.State = time.Since(start) }()
	d.store.step("capture.state")
	d.caught.state = filepath.Join(d.dir, "state")
	f, err := os.OpenFile(d.caught.state, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := vm.SaveState(ctx, f); err != nil {
		f.Close()
		return fmt.Errorf("save device state: %w", err)
	}
	return f.Close()
}

// takeMemory completes the copy of what the VM holds for itself.
func (d *Draft) takeMemory(ctx context.Context, mem vmm.Memory, early earlyCopy) error {
	start := time.Now()
	dirty, err := privatePages(ctx, mem)
	if err != nil {
		return err
	}
	var kept []span
	late := dirty
	if early.tracked {
		written, err := mem.Written(ctx)
		if err != nil {
			return fmt.Errorf("pages written: %w", err)
		}
		if !checkRanges(written, mem.Size()) {
			return errors.New("pages written: the engine lists ranges that cannot be")
		}
		// What was private then and is so no longer (a balloon gave it back) reads as the base again: not kept.
		kept = cut(early.spans, subtract(dirty, written))
		late = subtract(dirty, spanRanges(kept))
	}
	d.timings.Scan = time.Since(start)
	start = time.Now()
	spans, err := d.caught.arena.copy(ctx, mem, late)
	d.timings.Copy = time.Since(start)
	if err != nil {
		return fmt.Errorf("copy memory: %w", err)
	}
	d.caught.spans = mergeSpans(kept, spans)
	d.caught.dirty = dirty
	d.timings.DirtyBytes, d.timings.PausedBytes = totalLength(dirty), totalLength(late)
	return nil
}

// privatePages lists what the VM holds for itself: all of its RAM when the engine cannot tell.
func privatePages(ctx context.Context, mem vmm.Memory) ([]vmm.Range, error) {
	pages, err := mem.Private(ctx)
	if err != nil {
		if spore.CodeOf(err) == spore.CodeUnsupported {
			return []vmm.Range{{Offset: 0, Length: mem.Size()}}, nil
		}
		return nil, fmt.Errorf("private pages: %w", err)
	}
	if !checkRanges(pages, mem.Size()) {
		return nil, errors.New("private pages: the engine lists ranges that cannot be")
	}
	return pages, nil
}

func spanRanges(spans []span) []vmm.Range {
	var out []vmm.Range
	for _, s := range spans {
		out = appendRange(out, s.Range)
	}
	return out
}

// mergeSpans joins two lists that do not overlap into one in ascending order.
func mergeSpans(a, b []span) []span {
	if len(a) == 0 {
		return b
	}
	out := append(a, b...)
	sort.Slice(out, func(i, j int) bool { return out[i].Offset < out[j].Offset })
	return out
}
