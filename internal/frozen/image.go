package frozen

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// Image is a frozen VM opened for a thaw. Its pieces cannot be swept until Close.
type Image struct {
	Manifest   *Manifest
	BaseMemory string    // for vmm.Config.Memory
	VM         vmm.Image // for vmm.Engine.Thaw; valid until Close

	store  *Store
	lease  *lease
	memory *view
	disk   *view // nil when there is none
}

// OpenImage opens a frozen VM for a thaw: every piece is checked against the manifest, small ones in full, base files
// as Verifier does, layers as they are read. It fails with CodeNotFound or, naming the piece, with CodeDamaged.
func (s *Store) OpenImage(ctx context.Context, id string) (*Image, error) {
	return s.openImage(ctx, func() (*Manifest, error) { return s.Manifest(id) }, false)
}

// OpenDisk is OpenImage for the disk alone: memory and device state may be damaged, and are not there to be read or
// thawed. It fails with CodeConflict when the VM has no disk.
func (s *Store) OpenDisk(ctx context.Context, id string) (*Image, error) {
	return s.openImage(ctx, func() (*Manifest, error) {
		m, err := s.Manifest(id)
		if err == nil && m.Disk == nil {
			err = spore.Errorf(spore.CodeConflict, "%s has no disk", id)
		}
		return m, err
	}, true)
}

// OpenManifest is OpenImage for a manifest that may have been removed or flattened since, but is pinned or leased.
func (s *Store) OpenManifest(ctx context.Context, m *Manifest) (*Image, error) {
	return s.openImage(ctx, func() (*Manifest, error) { return m, m.validate() }, false)
}

func (s *Store) openImage(ctx context.Context, find func() (*Manifest, error), diskOnly bool) (_ *Image, err error) {
	img := &Image{store: s}
	err = s.publishing(func() error {
		var err error
		if img.Manifest, err = find(); err != nil {
			return err
		}
		img.lease, err = s.newLease("image of "+img.Manifest.ID, img.Manifest.PieceIDs())
		return err
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, img.Close())
		}
	}()
	m := img.Manifest
	if m.Disk != nil {
		if img.disk, err = s.openChain(ctx, m, m.Disk); err != nil {
			return nil, err
		}
	}
	if diskOnly {
		return img, nil
	}
	if img.memory, err = s.openChain(ctx, m, &m.Memory); err != nil {
		return nil, err
	}
	if img.VM.State, err = s.openState(m); err != nil {
		return nil, err
	}
	img.BaseMemory = s.dataPath(m.Memory.Base.ID)
	if len(m.Memory.Layers) > 0 {
		img.VM.Patches = img.memory
	}
	return img, nil
}

// openChain is openView with the base file verified.
func (s *Store) openChain(ctx context.Context, m *Manifest, c *Chain) (*view, error) {
	v, err := s.openView(m, c)
	if err != nil {
		return nil, err
	}
	if err := s.verifyRaw(ctx, c.Base); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

func (s *Store) verifyRaw(ctx context.Context, p Piece) error {
	err := s.verifier.Verify(ctx, s.dataPath(p.ID), p.Digest)
	return namePiece(p, err)
}

// namePiece makes a refusal of a file called "data" one of the piece it belongs to.
func namePiece(p Piece, err error) error {
	var e *spore.Error
	if errors.As(err, &e) && e.Code == spore.CodeDamaged {
		return damaged("piece "+p.ID, e.Cause)
	}
	if err != nil {
		return fmt.Errorf("verify piece %s: %w", p.ID, err)
	}
	return nil
}

func (s *Store) openState(m *Manifest) (*os.File, error) {
	f, err := s.openPiece(m, m.State)
	if err != nil {
		return nil, err
	}
	capture, digest, err := readState(f)
	if err == nil && capture != m.State.Capture {
		err = fmt.Errorf("it says it is of capture %s, but %s is of capture %s", capture, m.ID, m.State.Capture)
	}
	if err == nil && digest != m.State.Digest {
		err = fmt.Errorf("it has digest %s, not %s", digest, m.State.Digest)
	}
	if err != nil {
		f.Close()
		return nil, damaged("piece "+m.State.ID, err)
	}
	return f, nil
}

// CloneDisk writes the disk of the frozen VM to dst, which must not exist: a reflink where the filesystem can, else a
// sparse copy. On error dst is not left behind. CodeConflict when the VM has no disk.
func (i *Image) CloneDisk(ctx context.Context, dst string) error {
	if i.disk == nil {
		return spore.Errorf(spore.CodeConflict, "%s has no disk", i.Manifest.ID)
	}
	return cloneView(ctx, i.disk, dst)
}

// CloneMemory writes the whole memory of the frozen VM to dst, which must not exist, for engines that cannot take
// patches: a reflink with the layers written over it where the file system can.
func (i *Image) CloneMemory(ctx context.Context, dst string) error {
	return cloneView(ctx, i.memory, dst)
}

func cloneView(ctx context.Context, v *view, dst string) (err error) {
	f, err := os.OpenFile(dst, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("clone: %w", err)
	}
	base := v.base.(*os.File)
	defer func() {
		if err == nil {
			err = f.Close()
		} else {
			err = ioError("clone", dst, allocated(base)-allocated(f), err)
			err = errors.Join(err, f.Close(), os.Remove(dst))
		}
	}()
	if _, err := cloneFile(ctx, f, base); err != nil {
		return err
	}
	return v.applyTo(ctx, f)
}

// Memory reads guest RAM as it was frozen, at any offset, from any goroutine. It is valid until Close.
func (i *Image) Memory() io.ReaderAt { return i.memory }

// Disk reads the disk as it was frozen; nil when there is none. It is valid until Close.
func (i *Image) Disk() io.ReaderAt {
	if i.disk == nil {
		return nil
	}
	return i.disk
}

// DiskBytes is about how much a copy of the disk takes up where blocks cannot be shared; 0 when there is no disk.
func (i *Image) DiskBytes() int64 {
	if i.disk == nil {
		return 0
	}
	return allocated(i.disk.base.(*os.File)) + totalLength(i.disk.covered())
}

// Close lets go of the pieces. It may be called twice.
func (i *Image) Close() error {
	var errs []error
	for _, v := range []*view{i.memory, i.disk} {
		if v != nil {
			errs = append(errs, v.Close())
		}
	}
	if i.VM.State != nil {
		errs = append(errs, i.VM.State.Close())
		i.VM.State = nil
	}
	errs = append(errs, i.lease.release())
	i.lease = nil
	return errors.Join(errs...)
}
