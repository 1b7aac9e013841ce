package frozen

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/sporevm/spore"
)

// Promote gives the frozen VM from the id to, in one step, in place of what has that id now, if anything. From then on
// there is no from. What is open or pinned of the one that was replaced goes on to work; its pieces go with the next
// sweep unless something else holds them.
//
// It can be repeated, also after a crash: when from is gone and to was made of it, that is the answer. Any other from
// that is not there is CodeNotFound; CodeConflict says that from was replaced or flattened while it was being promoted.
func (s *Store) Promote(ctx context.Context, from, to string) (*Manifest, error) {
	if err := errors.Join(checkID(from), checkID(to)); err != nil {
		return nil, err
	}
	if from == to {
		return nil, spore.Errorf(spore.CodeInternal, "promotion of %s to itself", from)
	}
	old, err := s.Manifest(from)
	if spore.CodeOf(err) == spore.CodeNotFound {
		is, readErr := s.Manifest(to)
		if readErr == nil && is.MadeAs == from {
			return is, nil
		}
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	m := *old
	m.ID, m.MadeAs = to, from
	w, err := s.newWorkshop(to, m.Capture)
	if err != nil {
		return nil, err
	}
	defer w.close()
	if err := w.rename(ctx, old, &m); err != nil {
		return nil, ioError("promote "+from, s.dir, 0, err)
	}
	return &m, nil
}

// rename puts m in the place of whatever has its id and takes old away, if that is still what is there. Between the two
// both are listed, over the same pieces; whoever repeats the promotion then takes old away.
func (w *workshop) rename(ctx context.Context, old, m *Manifest) error {
	aside, err := w.manifest(m)
	if err != nil {
		return err
	}
	s := w.store
	return s.alone(func() error {
		is, err := s.Manifest(old.ID)
		if err != nil {
			return err
		}
		if is.Capture != old.Capture || is.Revision != old.Revision {
			return changed(old.ID)
		}
		if err := ctx.Err(); err != nil { // the last moment at which nothing has happened
			return err
		}
		dir := s.path(dirManifests)
		s.step("promote.manifest")
		if err := os.Rename(aside, s.path(dirManifests, m.ID)); err != nil {
			return err
		}
		s.step("promote.manifest.sync")
		if err := syncDir(dir); err != nil {
			return err
		}
		s.step("promote.unlink")
		if err := os.Remove(s.path(dirManifests, old.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove manifest %s: %w", old.ID, err)
		}
		s.step("promote.unlink.sync")
		return syncDir(dir)
	})
}
