package frozen

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
)

// lease holds pieces for as long as this process lives or until it is released.
type lease struct {
	f    *os.File
	path string
}

type leaseDoc struct {
	PID    int      `json:"pid"`
	Why    string   `json:"why"`
	Pieces []string `json:"pieces"`
}

// newLease is called while publishing, so that no sweep can come between the decision to use pieces and the lease.
func (s *Store) newLease(why string, pieces []string) (*lease, error) {
	doc, err := seal(whatLease, 1, leaseDoc{PID: os.Getpid(), Why: why, Pieces: pieces})
	if err != nil {
		return nil, err
	}
	name := randomHex(12)
	aside, path := s.path(dirStaging, "lease-"+name), s.path(dirLeases, name)
	f, err := lockFile(aside, unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		s.tidy(aside, os.Remove(aside))
		return nil, ioError("take a lease", s.dir, 1<<12, err)
	}
	// Whoever looks for leases finds it whole, and held.
	if _, err = f.Write(doc); err == nil {
		err = os.Rename(aside, path)
	}
	if err != nil {
		return nil, errors.Join(ioError("take a lease", s.dir, 1<<12, err), f.Close(), os.Remove(aside))
	}
	return &lease{f: f, path: path}, nil
}

func (l *lease) release() error {
	if l == nil || l.f == nil {
		return nil
	}
	err := os.Remove(l.path)
	err = errors.Join(err, l.f.Close())
	l.f = nil
	return err
}

// liveLeases lists the leases whose holders live and removes the others. It is called while alone.
func (s *Store) liveLeases() ([]Root, error) { return s.leases(true) }

func (s *Store) leases(removeDead bool) ([]Root, error) {
	files, err := os.ReadDir(s.path(dirLeases))
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	var roots []Root
	for _, e := range files {
		path := s.path(dirLeases, e.Name())
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read lease: %w", err)
		}
		err = flock(f, unix.LOCK_SH|unix.LOCK_NB)
		f.Close()
		if err == nil { // nobody holds it
			if removeDead {
				if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
					return nil, fmt.Errorf("remove dead lease: %w", err)
				}
			}
			continue
		}
		if err != unix.EWOULDBLOCK {
			return nil, fmt.Errorf("read lease: %w", err)
		}
		data, err := readSmall(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		var doc leaseDoc
		if err == nil {
			err = unseal(whatLease, 1, data, &doc)
		}
		if err != nil {
			return nil, damaged("lease "+e.Name(), err)
		}
		roots = append(roots, Root{ID: fmt.Sprintf("%s (process %d)", doc.Why, doc.PID), Pieces: doc.Pieces, Why: "lease"})
	}
	return roots, nil
}

type pinDoc struct {
	Name     string    `json:"name"`
	Manifest *Manifest `json:"manifest"`
}

// Pin holds every piece of m for a running VM, across restarts, until Unpin; and keeps m itself, so that the VM can be
// captured even after m was removed. name is a sandbox's id, or made from one; a second Pin under one name replaces
// the first. Pin while the Image is still open. It fails with CodeConflict when a piece is already gone.
func (s *Store) Pin(name string, m *Manifest) error {
	if !pinForm.MatchString(name) {
		return spore.Invalidf("name", "%q cannot name a pin", name)
	}
	if err := m.validate(); err != nil {
		return spore.Errorf(spore.CodeInternal, "pin %s: %w", name, err)
	}
	doc, err := seal(whatPin, 1, pinDoc{Name: name, Manifest: m})
	if err != nil {
		return err
	}
	return s.publishing(func() error {
		if err := s.present(m); err != nil {
			return err
		}
		aside := s.path(dirStaging, "pin-"+randomHex(12))
		s.step("pin.write")
		if err := writeSynced(aside, doc); err != nil {
			s.tidy(aside, os.Remove(aside))
			return ioError("pin "+name, s.dir, int64(len(doc)), err)
		}
		s.step("pin.rename")
		if err := os.Rename(aside, s.path(dirPins, name)); err != nil {
			s.tidy(aside, os.Remove(aside))
			return fmt.Errorf("pin %s: %w", name, err)
		}
		s.step("pin.sync")
		return syncDir(s.path(dirPins))
	})
}

// present says whether all pieces of m are still in place.
func (s *Store) present(m *Manifest) error {
	for _, p := range m.Pieces() {
		if _, err := os.Stat(s.dataPath(p.ID)); err != nil {
			if errors.Is(err, os.ErrNotExist) {
				return spore.Errorf(spore.CodeConflict, "piece %s of %s is gone", p.ID, m.ID).WithCause(err)
			}
			return err
		}
	}
	return nil
}

// Unpin drops a pin; it is no error when there is none.
func (s *Store) Unpin(name string) error {
	if err := checkFileName("name", name); err != nil {
		return err
	}
	s.step("unpin.unlink")
	err := os.Remove(s.path(dirPins, name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("unpin %s: %w", name, err)
	}
	s.step("unpin.sync")
	return syncDir(s.path(dirPins))
}

// Pinned is the manifest that Pin kept under name; CodeNotFound when there is none.
func (s *Store) Pinned(name string) (*Manifest, error) {
	if !pinForm.MatchString(name) {
		return nil, spore.Invalidf("name", "%q cannot name a pin", name)
	}
	data, err := readSmall(s.path(dirPins, name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, spore.Errorf(spore.CodeNotFound, "nothing is pinned as %s", name).WithCause(err)
	}
	if err != nil {
		return nil, damaged("pin "+name, err)
	}
	m, err := parsePin(name, data)
	if err != nil {
		return nil, damaged("pin "+name, err)
	}
	return m, nil
}

func parsePin(name string, data []byte) (*Manifest, error) {
	var doc pinDoc
	if err := unseal(whatPin, 1, data, &doc); err != nil {
		return nil, err
	}
	if doc.Name != name || doc.Manifest == nil {
		return nil, fmt.Errorf("it is the pin of %q", doc.Name)
	}
	return doc.Manifest, doc.Manifest.validate()
}

// Pins lists the names that are pinned.
func (s *Store) Pins() ([]string, error) {
	files, err := os.ReadDir(s.path(dirPins))
	if err != nil {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	names := make([]string, len(files))
	for i, f := range files {
		names[i] = filepath.Base(f.Name())
	}
	return names, nil
}
