package frozen

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// Commit writes out what was captured and publishes the manifest. Until it returns nothing is listed; after an error
// nothing ever is, and the draft is over. It fails with CodeNoSpace, or CodeConflict when the id was taken meanwhile.
func (d *Draft) Commit(ctx context.Context) (*Manifest, error) {
	if d.phase != phaseCaptured {
		return nil, spore.Errorf(spore.CodeInternal, "commit of a draft that holds no capture")
	}
	defer d.Discard()
	start := time.Now()
	m, err := d.commit(ctx)
	if err != nil {
		return nil, ioError("commit "+d.spec.ID, d.store.dir, d.unwritten(), err)
	}
	d.timings.Settle = time.Since(start)
	return m, nil
}

// unwritten is about how much Commit had still to write when it failed.
func (d *Draft) unwritten() int64 {
	staged, err := allocatedBytes(d.dir)
	if err != nil {
		return 0
	}
	return max(0, totalLength(d.caught.dirty)+totalLength(d.caught.differs)-staged)
}

func (d *Draft) commit(ctx context.Context) (*Manifest, error) {
	m := &Manifest{
		Format: Format, ID: d.spec.ID, Kind: d.spec.Kind, Capture: d.capture, Epoch: 1, Created: now(), Shape: d.spec.Shape,
	}
	if p := d.spec.Parent; p != nil {
		m.Parent, m.Epoch = p.ID, p.Epoch+1
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		m.Memory, err = d.settleMemory(gctx)
		return err
	})
	g.Go(func() (err error) {
		m.Disk, err = d.settleDisk(gctx)
		return err
	})
	g.Go(func() (err error) {
		m.State, err = d.workshop.state(d.caught.state)
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	made := []Piece{m.Memory.Top(), m.State}
	if m.Disk != nil {
		made = append(made, m.Disk.Top())
	}
	if err := d.workshop.publish(m, made); err != nil {
		return nil, err
	}
	for _, p := range made {
		n, err := allocatedBytes(d.store.path(dirPieces, p.ID))
		if err != nil {
			return nil, err
		}
		d.timings.StoredBytes += n
	}
	return m, nil
}

// settleMemory makes a base of the RAM file of a boot, or a layer of the pages copied from a thawed VM.
func (d *Draft) settleMemory(ctx context.Context) (Chain, error) {
	if d.caught.booted != nil {
		return d.settleBase(ctx)
	}
	parent := d.spec.Parent.Memory
	piece, err := d.workshop.layer(MemoryLayer, parent.Size, func(lw *layerWriter) error {
		return d.diffMemory(ctx, lw)
	})
	return Chain{Size: parent.Size, Base: parent.Base, Layers: extend(parent.Layers, piece)}, err
}

func (d *Draft) settleBase(ctx context.Context) (Chain, error) {
	select {
	case <-d.caught.booted.Done():
	default:
		return Chain{}, spore.Errorf(spore.CodeInternal, "commit of %s while its VM, which could still write to the base, is alive", d.spec.ID)
	}
	path := d.BaseMemoryPath()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return Chain{}, spore.Errorf(spore.CodeConflict, "the VM left no RAM file").WithCause(err)
	}
	if err != nil {
		return Chain{}, err
	}
	if os.Geteuid() == 0 {
		err = f.Chown(0, 0) // an engine may have run the hypervisor, and so made the file, as someone else
	}
	if err == nil {
		err = punchZeros(ctx, f)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return Chain{}, err
	}
	piece, err := d.workshop.raw(ctx, BaseMemory, path)
	return Chain{Size: piece.Size, Base: piece}, err
}

// diffMemory adds the pages in which the VM differs from its parent. Guest RAM is what the VM held for itself over the
// bare base file. So where the parent has layers but the VM holds nothing (it gave the page back), it is the base's
// content that counts.
func (d *Draft) diffMemory(ctx context.Context, lw *layerWriter) error {
	var bare []span
	for _, r := range split(subtract(d.memory.covered(), d.caught.dirty), frameSize) {
		bare = append(bare, span{Range: r, pos: fromBase})
	}
	mine, theirs := make([]byte, frameSize), make([]byte, frameSize)
	for _, s := range mergeSpans(d.caught.spans, bare) {
		if err := ctx.Err(); err != nil {
			return err
		}
		content, err := d.content(s, mine)
		if err != nil {
			return err
		}
		below := theirs[:s.Length]
		if err := readFull(d.memory, below, s.Offset); err != nil {
			return fmt.Errorf("read the parent's memory: %w", err)
		}
		if err := lw.addDifference(s.Offset, content, below); err != nil {
			return err
		}
	}
	return nil
}

// fromBase marks a span that was not copied because the VM showed the base file there.
const fromBase = math.MinInt64

func (d *Draft) content(s span, buf []byte) ([]byte, error) {
	if s.mem == nil && s.pos == fromBase {
		buf = buf[:s.Length]
		return buf, readFull(d.memory.base, buf, s.Offset)
	}
	return d.caught.arena.bytes(s, buf)
}

// settleDisk keeps the clone of the disk, or what differs from the parent's disk if that takes less room.
func (d *Draft) settleDisk(ctx context.Context) (*Chain, error) {
	if d.caught.disk == "" {
		return nil, nil
	}
	if d.caught.isDiff {
		chain, err := d.settleDiskLayer(ctx)
		if err != nil || chain != nil {
			return chain, err
		}
		if err := d.completeDisk(ctx); err != nil {
			return nil, err
		}
	}
	piece, err := d.workshop.raw(ctx, DiskImage, d.caught.disk)
	return &Chain{Size: piece.Size, Base: piece}, err
}

// errTooBig ends the making of a layer that saves nothing.
var errTooBig = errors.New("layer is no smaller than the image")

// settleDiskLayer writes what differs as a layer. It returns nil when a whole image would be no bigger.
func (d *Draft) settleDiskLayer(ctx context.Context) (*Chain, error) {
	diff, err := os.Open(d.caught.disk)
	if err != nil {
		return nil, err
	}
	defer diff.Close()
	parent := d.spec.Parent.Disk
	below, err := d.parentDiskData()
	if err != nil {
		return nil, err
	}
	whole := totalLength(union(below, d.caught.differs))
	piece, err := d.workshop.layer(DiskLayer, parent.Size, func(lw *layerWriter) error {
		mine, theirs := make([]byte, frameSize), make([]byte, frameSize)
		for _, r := range split(d.caught.differs, frameSize) {
			if err := ctx.Err(); err != nil {
				return err
			}
			x, y := mine[:r.Length], theirs[:r.Length]
			if err := errors.Join(readFull(diff, x, r.Offset), readFull(d.disk, y, r.Offset)); err != nil {
				return err
			}
			if err := lw.addDifference(r.Offset, x, y); err != nil {
				return err
			}
			if lw.place+int64(len(lw.frame)) >= whole {
				return errTooBig
			}
		}
		return nil
	})
	if errors.Is(err, errTooBig) {
		return nil, os.RemoveAll(filepath.Join(d.dir, piece.ID))
	}
	if err != nil {
		return nil, err
	}
	return &Chain{Size: parent.Size, Base: parent.Base, Layers: extend(parent.Layers, piece)}, nil
}

// completeDisk makes a whole image of the blocks that differ, by adding those that do not.
func (d *Draft) completeDisk(ctx context.Context) error {
	below, err := d.parentDiskData()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(d.caught.disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	buf := make([]byte, frameSize)
	fill := func() error {
		for _, r := range split(subtract(below, d.caught.differs), frameSize) {
			if err := ctx.Err(); err != nil {
				return err
			}
			x := buf[:r.Length]
			if err := readFull(d.disk, x, r.Offset); err != nil {
				return err
			}
			if _, err := f.WriteAt(x, r.Offset); err != nil {
				return err
			}
		}
		return nil
	}
	return errors.Join(fill(), f.Close())
}

// extend is append that never writes into the array of its first argument.
func extend(layers []Piece, top Piece) []Piece {
	return append(append(make([]Piece, 0, len(layers)+1), layers...), top)
}

var _ vmm.Patches = (*view)(nil)
