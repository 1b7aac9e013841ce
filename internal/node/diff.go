package node

import (
	"context"
	"errors"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/frozen"
	"github.com/sporevm/spore/internal/image"
	"github.com/sporevm/spore/internal/image/ext4"
	"github.com/sporevm/spore/internal/image/overlay"
)

// contentFactor is how many times the bytes of a comparison's images may be read as contents of files: hard links are
// read once for each name.
const contentFactor = 8

// Diff says what differs between two frozen states: pages, blocks of the disk, and files as they lie on the disk, at most
// limit of them. The disks are what guests wrote; nothing of them is mounted.
func (n *Node) Diff(ctx context.Context, from, to string, limit int) (_ *spore.Diff, err error) {
	var sides [2]*diffSide
	for i, id := range []string{from, to} {
		if sides[i], err = n.openSide(ctx, id); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, sides[i].close()) }()
	}
	changed, err := frozen.Compare(ctx, sides[0].image, sides[1].image)
	if err != nil {
		return nil, err
	}
	d := &spore.Diff{From: from, To: to, MemoryChanged: changed.MemoryBytes, MemoryTotal: changed.MemorySize, DiskChanged: changed.DiskBytes}
	differ := make([]overlay.Range, len(changed.Disk))
	for i, r := range changed.Disk {
		differ[i] = overlay.Range(r)
	}
	files, err := overlay.Compare(ctx, sides[0].tree, sides[1].tree, overlay.Options{
		Disk: differ, Limit: limit, MaxBytes: contentFactor * (sides[0].bytes + sides[1].bytes),
	})
	if err != nil {
		return nil, unreadable(ctx, from+" or "+to, err)
	}
	d.Files, d.FilesOmitted = files.Files, files.Omitted
	return d, nil
}

// diffSide is one frozen state that is compared.
type diffSide struct {
	image    *frozen.Image
	artifact *image.File
	tree     *overlay.Tree
	bytes    int64 // of artifact and disk
}

func (n *Node) openSide(ctx context.Context, id string) (_ *diffSide, err error) {
	s := &diffSide{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.image, err = n.opt.Frozen.OpenImage(ctx, id); err != nil {
		return nil, err
	}
	if s.artifact, err = n.opt.Images.OpenFile(s.image.Manifest.Shape.Artifact); err != nil {
		return nil, err
	}
	disk := s.image.Disk()
	if disk == nil {
		return nil, spore.Errorf(spore.CodeUnsupported, "%s has no disk whose files could be compared", id)
	}
	s.bytes = s.artifact.Size() + s.image.Manifest.Disk.Size
	lower, err := ext4.NewReader(s.artifact, s.artifact.Size())
	if err != nil {
		return nil, unreadable(ctx, s.image.Manifest.Shape.Artifact, err)
	}
	upper, err := ext4.NewReader(disk, s.image.Manifest.Disk.Size)
	if err != nil {
		return nil, unreadable(ctx, "the disk of "+id, err)
	}
	if s.tree, err = overlay.Open(s.image.Manifest.Shape.Artifact, lower, upper); err != nil {
		return nil, unreadable(ctx, id, err)
	}
	return s, nil
}

// unreadable says that a filesystem is not one that can be compared. A guest may write what it likes to its disk, so
// that this is no damage.
func unreadable(ctx context.Context, what string, err error) error {
	var typed *spore.Error
	if ctx.Err() != nil || errors.As(err, &typed) {
		return err
	}
	return spore.Errorf(spore.CodeUnsupported, "the files of %s cannot be compared: %v", what, err).WithCause(err).
		WithHint("the guest has written something else than files to its disk")
}

func (s *diffSide) close() error {
	var errs []error
	if s.image != nil {
		errs = append(errs, s.image.Close())
	}
	if s.artifact != nil {
		errs = append(errs, s.artifact.Close())
	}
	return errors.Join(errs...)
}
