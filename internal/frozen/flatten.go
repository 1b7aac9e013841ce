package frozen

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/sporevm/spore"
)

// FlattenOptions say how far to merge.
type FlattenOptions struct {
	// ToBase merges all into a new base memory file and a whole disk image, even where a layer would be smaller: for
	// commits, which many sandboxes will map.
	ToBase bool
	// Reserve, unless nil, is asked for room on the disk before that many bytes are written; release follows when they
	// are, or will not be. Its error ends the merge.
	Reserve func(bytes int64) (release func(), err error)
}

// baseShare: a merged layer of more than 1/baseShare of the whole becomes a new base, because patching that much into
// each thawed VM would cost more than mapping it.
const baseShare = 2

// NeedsFlatten says whether a chain of m has grown beyond Options.MaxLayers.
func (s *Store) NeedsFlatten(m *Manifest) bool {
	return len(m.Memory.Layers) > s.opts.MaxLayers || m.Disk != nil && len(m.Disk.Layers) > s.opts.MaxLayers
}

// Flatten merges the diff layers of a frozen VM into one, or into a new base when that is the better choice, and puts
// the new manifest in place of the old one in one step. Old pieces stay for whoever holds them. It can be cancelled at
// any time and run beside anything else; if the manifest was removed or replaced meanwhile it answers CodeNotFound or
// CodeConflict and changes nothing. The manifest it returns is the old one when there was nothing to do.
func (s *Store) Flatten(ctx context.Context, id string, opts FlattenOptions) (*Manifest, error) {
	img, err := s.OpenImage(ctx, id)
	if err != nil {
		return nil, err
	}
	defer func() { s.tidy("image of "+id, img.Close()) }()
	old := img.Manifest
	if !old.Memory.flattens(opts) && !(old.Disk != nil && old.Disk.flattens(opts)) {
		return old, nil
	}
	if opts.Reserve != nil {
		release, err := opts.Reserve(img.mergedBytes(opts))
		if err != nil {
			return nil, err
		}
		defer release()
	}
	w, err := s.newWorkshop(id, old.Capture)
	if err != nil {
		return nil, err
	}
	defer w.close()
	m := *old
	m.Revision++
	var made []Piece
	g, gctx := errgroup.WithContext(ctx)
	if old.Memory.flattens(opts) {
		g.Go(func() (err error) {
			m.Memory, err = w.merge(gctx, old.Memory, img.memory, BaseMemory, MemoryLayer, opts)
			return err
		})
	}
	if old.Disk != nil && old.Disk.flattens(opts) {
		g.Go(func() error {
			disk, err := w.merge(gctx, *old.Disk, img.disk, DiskImage, DiskLayer, opts)
			m.Disk = &disk
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, ioError("flatten "+id, s.dir, 0, err)
	}
	if m.Memory.Top() != old.Memory.Top() {
		made = append(made, m.Memory.Top())
	}
	if m.Disk != nil && m.Disk.Top() != old.Disk.Top() {
		made = append(made, m.Disk.Top())
	}
	if err := w.replace(old, &m, made); err != nil {
		return nil, ioError("flatten "+id, s.dir, 0, err)
	}
	return &m, nil
}

// flattens says whether there is anything to merge.
func (c *Chain) flattens(opts FlattenOptions) bool {
	return len(c.Layers) > 1 || opts.ToBase && len(c.Layers) > 0
}

// mergedBytes is the most that merging may write.
func (i *Image) mergedBytes(opts FlattenOptions) int64 {
	var sum int64
	for _, part := range []side{{&i.Manifest.Memory, i.memory}, {i.Manifest.Disk, i.disk}} {
		if part.view == nil || !part.flattens(opts) {
			continue
		}
		sum += totalLength(part.covered())
		if part.becomesBase(opts) {
			sum += allocated(part.base.(*os.File))
		}
	}
	return sum
}

// becomesBase says whether merging makes a new base rather than one layer.
func (s side) becomesBase(opts FlattenOptions) bool {
	return opts.ToBase || totalLength(s.covered()) > s.Size/baseShare
}

// merge makes one piece of what the layers of a chain add up to.
func (w *workshop) merge(ctx context.Context, c Chain, v *view, base, layer PieceKind, opts FlattenOptions) (Chain, error) {
	if !(side{&c, v}).becomesBase(opts) {
		piece, err := w.layer(layer, c.Size, func(lw *layerWriter) error { return mergeLayers(ctx, v, lw) })
		return Chain{Size: c.Size, Base: c.Base, Layers: []Piece{piece}}, err
	}
	path := filepath.Join(w.dir, "merged-"+string(base))
	if err := cloneView(ctx, v, path); err != nil {
		return Chain{}, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return Chain{}, err
	}
	if err := errors.Join(punchZeros(ctx, f), f.Close()); err != nil {
		return Chain{}, err
	}
	piece, err := w.raw(ctx, base, path)
	return Chain{Size: c.Size, Base: piece}, err
}

// mergeLayers adds what shows of the layers, except where that has come to equal the base again.
func mergeLayers(ctx context.Context, v *view, lw *layerWriter) error {
	mine, theirs := make([]byte, frameSize), make([]byte, frameSize)
	for _, r := range split(v.covered(), frameSize) {
		if err := ctx.Err(); err != nil {
			return err
		}
		x, y := mine[:r.Length], theirs[:r.Length]
		if err := readFull(v, x, r.Offset); err != nil {
			return fmt.Errorf("read the chain: %w", err)
		}
		if err := readFull(v.base, y, r.Offset); err != nil {
			return fmt.Errorf("read the base: %w", err)
		}
		if err := lw.addDifference(r.Offset, x, y); err != nil {
			return err
		}
	}
	return nil
}

func changed(id string) error {
	return spore.Errorf(spore.CodeConflict, "%s was replaced meanwhile", id)
}
