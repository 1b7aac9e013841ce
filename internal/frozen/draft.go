package frozen

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// Spec is what a draft is about.
type Spec struct {
	ID    string // of the manifest: tpl-..., snap-..., or a sandbox's id for KindPause
	For   string // the id that it is to be promoted to, which its pieces will be known by; empty if to none
	Kind  Kind
	Shape Shape
	// Parent is what the VM was thawed from (from Image.Manifest or Pinned), or a later capture of the same VM; nil
	// for a template boot. Its base memory must be the one that the VM maps.
	Parent *Manifest
}

// Draft is a frozen VM in the making. Use it from one goroutine. It ends with Commit or Discard; Discard after Commit
// does nothing, so it can be deferred.
type Draft struct {
	workshop
	spec  Spec
	lease *lease // of the parent's pieces

	memory *view // the parent's, nil for a template boot
	disk   *view // the parent's, nil when it has none
	baseID string

	phase   phase
	caught  capture
	timings Timings
}

type phase int

const (
	phaseOpen phase = iota
	phaseCaptured
	phaseOver
)

// Timings says where the time of a capture went.
type Timings struct {
	Precopy time.Duration // copying while the guest ran
	Paused  time.Duration // how long the guest stood still, all in all
	Pause   time.Duration // of that: until it stood still
	State   time.Duration // of that: saving device state
	Scan    time.Duration // of that: finding the pages
	Copy    time.Duration // of that: copying the pages
	Disk    time.Duration // of that: cloning the disk (beside state, scan and copy)
	Resume  time.Duration // of that: until it ran again
	Settle  time.Duration // Commit: comparing, checksums, syncing, publishing

	DirtyBytes  int64 // RAM that the VM held for itself
	PausedBytes int64 // of that: copied while the guest stood still
	StoredBytes int64 // bytes of the new pieces, as allocated on disk (after Commit)
}

// Begin opens a draft. It fails with CodeConflict when the id is taken. The pieces of Spec.Parent are held until the
// draft ends, and checked as far as that needs no reading of big files.
func (s *Store) Begin(ctx context.Context, spec Spec) (_ *Draft, err error) {
	if err := spec.validate(); err != nil {
		return nil, err
	}
	d := &Draft{spec: spec, baseID: newPieceID(BaseMemory)}
	if d.workshop, err = s.newWorkshop(cmp.Or(spec.For, spec.ID), randomHex(16)); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			d.Discard()
		}
	}()
	err = s.publishing(func() error {
		if err := s.vacant(spec.ID); err != nil || spec.Parent == nil {
			return err
		}
		if err := s.present(spec.Parent); err != nil {
			return err
		}
		d.lease, err = s.newLease("capture of "+spec.ID, spec.Parent.PieceIDs())
		return err
	})
	if err != nil {
		return nil, err
	}
	if spec.Parent == nil {
		return d, ioError("open a draft", s.dir, 1<<12, os.Mkdir(filepath.Join(d.dir, d.baseID), 0o711))
	}
	if d.memory, err = s.openView(spec.Parent, &spec.Parent.Memory); err != nil {
		return nil, err
	}
	if spec.Parent.Disk != nil {
		if d.disk, err = s.openView(spec.Parent, spec.Parent.Disk); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func (spec Spec) validate() error {
	if err := errors.Join(checkID(spec.ID), checkID(cmp.Or(spec.For, spec.ID))); err != nil {
		return err
	}
	switch spec.Kind {
	case KindTemplate, KindSnapshot, KindPause:
	default:
		return spore.Invalidf("kind", "%q is not a kind of frozen VM", spec.Kind)
	}
	if len(spec.Shape.Extra) > 0 && !json.Valid(spec.Shape.Extra) {
		return spore.Invalidf("shape", "extra is not valid JSON")
	}
	if spec.Parent != nil {
		if err := spec.Parent.validate(); err != nil {
			return spore.Errorf(spore.CodeInternal, "parent: %w", err)
		}
	}
	return nil
}

// vacant says whether the id is free for a new manifest.
func (s *Store) vacant(id string) error {
	_, err := os.Lstat(s.path(dirManifests, id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return taken(id)
}

func taken(id string) *spore.Error {
	return spore.Errorf(spore.CodeConflict, "there is a frozen VM %s already", id)
}

// BaseMemoryPath is where a template boot is to create its RAM file (vmm.Config.Memory).
func (d *Draft) BaseMemoryPath() string { return filepath.Join(d.dir, d.baseID, fileData) }

// Timings are those of the capture and, after Commit, of settling.
func (d *Draft) Timings() Timings { return d.timings }

// Discard drops the draft and everything it wrote.
func (d *Draft) Discard() {
	if d.phase == phaseOver {
		return
	}
	d.phase = phaseOver
	d.caught.arena.release()
	for _, v := range []*view{d.memory, d.disk} {
		if v != nil {
			d.store.tidy("files of the parent", v.Close())
		}
	}
	d.workshop.close()
	d.store.tidy("lease of "+d.dir, d.lease.release())
}

// After says what becomes of a VM once it is captured.
type After int

const (
	Resume     After = iota // it runs on, unless it was paused before
	StayPaused              // it stays paused
)

// capture is what was taken in the paused window.
type capture struct {
	booted vmm.VM // of a template boot
	state  string // path of what the engine wrote
	disk   string // path of the copy, "" when there is no disk
	shared bool   // the copy is a clone that shares its blocks with the live disk
	arena  *arena
	spans  []span      // copied guest RAM, ascending
	dirty  []vmm.Range // what the VM held for itself: spans, as ranges

	isDiff  bool        // the copy of the disk holds nothing but differs
	differs []vmm.Range // where the disk may differ from the parent's
}
