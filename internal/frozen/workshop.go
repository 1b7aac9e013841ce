package frozen

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// workshop is a staging directory in which the pieces of one manifest are made.
type workshop struct {
	store   *Store
	forID   string // of the manifest
	capture string
	dir     string
	owner   *os.File
}

func (s *Store) newWorkshop(forID, capture string) (workshop, error) {
	dir, owner, err := s.newDir()
	return workshop{store: s, forID: forID, capture: capture, dir: dir, owner: owner}, err
}

// close removes what was not published. The owner's lock goes last: until then nobody else touches the directory.
func (w *workshop) close() {
	w.store.step("stage.remove")
	w.store.tidy(w.dir, os.RemoveAll(w.dir))
	w.store.tidy("owner of "+w.dir, w.owner.Close())
}

// layer makes a layer piece; fill adds the runs.
func (w *workshop) layer(kind PieceKind, size int64, fill func(lw *layerWriter) error) (_ Piece, err error) {
	p := Piece{ID: newPieceID(kind), Kind: kind, Capture: w.capture}
	f, err := w.create(p.ID)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	lw, err := newLayerWriter(f, kind, w.capture, size)
	if err != nil {
		return p, err
	}
	if err := fill(lw); err != nil {
		return p, err
	}
	if p.Digest, p.Size, err = lw.finish(); err != nil {
		return p, err
	}
	return p, w.seal(p, f)
}

// raw makes a piece of the file at path, which is on the same file system; it reads it in full.
func (w *workshop) raw(ctx context.Context, kind PieceKind, path string) (_ Piece, err error) {
	p := Piece{ID: newPieceID(kind), Kind: kind, Capture: w.capture}
	if err := os.Mkdir(filepath.Join(w.dir, p.ID), 0o711); err != nil {
		return p, err
	}
	data := filepath.Join(w.dir, p.ID, fileData)
	if err := os.Rename(path, data); err != nil {
		return p, err
	}
	f, err := os.Open(data)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// Mode and content are final before the file is measured: either would change the times it is known by.
	if err := f.Chmod(0o444); err != nil {
		return p, err
	}
	if err := f.Sync(); err != nil {
		return p, fmt.Errorf("sync %s: %w", p.ID, err)
	}
	info, err := f.Stat()
	if err != nil {
		return p, err
	}
	p.Size = info.Size()
	w.store.step("piece.admit")
	if p.Digest, err = w.store.verifier.Admit(ctx, data); err != nil {
		return p, err
	}
	return p, w.seal(p, f)
}

// state makes a device state piece of what the engine wrote to path.
func (w *workshop) state(path string) (_ Piece, err error) {
	p := Piece{ID: newPieceID(DeviceState), Kind: DeviceState, Capture: w.capture}
	info, err := os.Stat(path)
	if err != nil {
		return p, err
	}
	if info.Size() > maxState-stateHeader {
		return p, fmt.Errorf("a device state of %d bytes is more than can be kept", info.Size())
	}
	state, err := os.ReadFile(path)
	if err != nil {
		return p, err
	}
	file, digest, err := sealState(w.capture, state)
	if err != nil {
		return p, err
	}
	p.Digest, p.Size = digest, int64(len(file))
	f, err := w.create(p.ID)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(file); err != nil {
		return p, err
	}
	return p, w.seal(p, f)
}

func (w *workshop) create(id string) (*os.File, error) {
	if err := os.Mkdir(filepath.Join(w.dir, id), 0o711); err != nil {
		return nil, err
	}
	return os.OpenFile(filepath.Join(w.dir, id, fileData), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o444)
}

// seal writes the stamp of a piece and makes its data and names durable.
func (w *workshop) seal(p Piece, data *os.File) error {
	doc, err := seal(whatStamp, 1, stamp{Piece: p, For: w.forID, Created: now()})
	if err != nil {
		return err
	}
	w.store.step("piece.stamp")
	dir := filepath.Join(w.dir, p.ID)
	if err := writeSynced(filepath.Join(dir, fileStamp), doc); err != nil {
		return err
	}
	w.store.step("piece.sync")
	if err := data.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", p.ID, err)
	}
	return syncDir(dir)
}

// manifest writes the manifest aside and returns its path.
func (w *workshop) manifest(m *Manifest) (string, error) {
	if err := m.validate(); err != nil {
		return "", fmt.Errorf("manifest of %s: %w", m.ID, err)
	}
	doc, err := seal(whatManifest, Format, m)
	if err != nil {
		return "", err
	}
	aside := filepath.Join(w.dir, "manifest")
	w.store.step("manifest.write")
	return aside, writeSynced(aside, doc)
}

// moveIn puts the pieces that were made here into the store. It is called while publishing; on error the pieces that
// made it are taken out again.
func (w *workshop) moveIn(pieces []Piece) (err error) {
	var moved []string
	defer func() {
		if err != nil {
			w.takeOut(moved)
		}
	}()
	for _, p := range pieces {
		w.store.step("publish.piece")
		to := w.store.path(dirPieces, p.ID)
		if err := os.Rename(filepath.Join(w.dir, p.ID), to); err != nil {
			return err
		}
		moved = append(moved, p.ID)
	}
	w.store.step("publish.pieces.sync")
	return syncDir(w.store.path(dirPieces))
}

// takeOut moves pieces back that are not to be published after all.
func (w *workshop) takeOut(ids []string) {
	for _, id := range ids {
		w.store.tidy(id, os.Rename(w.store.path(dirPieces, id), filepath.Join(w.dir, id)))
	}
}

// publish makes a new manifest appear, with its pieces.
func (w *workshop) publish(m *Manifest, pieces []Piece) error {
	aside, err := w.manifest(m)
	if err != nil {
		return err
	}
	return w.store.publishing(func() error {
		if err := w.store.vacant(m.ID); err != nil {
			return err
		}
		if err := w.moveIn(pieces); err != nil {
			return err
		}
		w.store.step("publish.manifest")
		path := w.store.path(dirManifests, m.ID)
		err := os.Link(aside, path)
		if errors.Is(err, fs.ErrExist) {
			err = taken(m.ID).WithCause(err)
		} else if err == nil {
			w.store.step("publish.manifest.sync")
			if err = syncDir(w.store.path(dirManifests)); err != nil {
				w.store.tidy(path, os.Remove(path))
			}
		}
		if err != nil {
			w.takeOut(pieceIDs(pieces))
		}
		return err
	})
}

// replace puts a new manifest in the place of old, with its new pieces, if old is still what is there.
func (w *workshop) replace(old, m *Manifest, pieces []Piece) error {
	aside, err := w.manifest(m)
	if err != nil {
		return err
	}
	return w.store.alone(func() error {
		is, err := w.store.Manifest(old.ID)
		if err != nil {
			return err
		}
		if is.Capture != old.Capture || is.Revision != old.Revision {
			return changed(old.ID)
		}
		if err := w.moveIn(pieces); err != nil {
			return err
		}
		w.store.step("replace.manifest")
		if err := os.Rename(aside, w.store.path(dirManifests, m.ID)); err != nil {
			w.takeOut(pieceIDs(pieces))
			return err
		}
		w.store.step("replace.manifest.sync")
		return syncDir(w.store.path(dirManifests))
	})
}

func pieceIDs(pieces []Piece) []string {
	ids := make([]string, len(pieces))
	for i, p := range pieces {
		ids[i] = p.ID
	}
	return ids
}

func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }
