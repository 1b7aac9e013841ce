package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/image/rootfs"
)

// BuildOptions say how to build an artifact.
type BuildOptions struct {
	ResolveOptions
	EgressCA []byte         // certificate in PEM form to make the system trust, nil for none
	Progress func(Progress) // called from one goroutine at a time, and should be quick
	// Reserve, unless nil, is asked for room on the disk before that many bytes are written; release follows when they
	// are, or will not be. Its error ends the build.
	Reserve func(bytes int64) (release func(), err error)
}

// Identity says which artifact an image would become, and what the image says.
type Identity struct {
	ArtifactID    string
	Image         Image
	Config        Config
	CAFingerprint string // of the certificate that would be baked in; empty for none
}

// Identify finds out which artifact Build would make of an image right now. It makes nothing, and fails as Resolve does.
func (s *Store) Identify(ctx context.Context, ref string, o BuildOptions) (*Identity, error) {
	p, err := s.plan(ctx, ref, o)
	if err != nil {
		return nil, err
	}
	return &Identity{ArtifactID: p.id, Image: p.image.Image, Config: p.image.Config, CAFingerprint: p.fingerprint()}, nil
}

// plan resolves what to build.
func (s *Store) plan(ctx context.Context, ref string, o BuildOptions) (*build, error) {
	b := &build{store: s, track: newTracker(o.Progress), room: o.Reserve}
	var err error
	if o.EgressCA != nil {
		if b.ca, err = rootfs.ParseCA(o.EgressCA); err != nil {
			return nil, err
		}
	}
	if b.image, err = s.Resolve(ctx, ref, o.ResolveOptions); err != nil {
		return nil, err
	}
	if b.room == nil {
		b.room = func(int64) (func(), error) { return func() {}, nil }
	}
	b.id = artifactID(b.image.DiffIDs, runtime.GOARCH, b.fingerprint())
	return b, nil
}

func (b *build) fingerprint() string {
	if b.ca == nil {
		return ""
	}
	return b.ca.Fingerprint
}

// Build resolves an image and makes the artifact for it, unless the store has it: then it does no more than to ask
// whether the image is unchanged. Of several builds of one artifact at once, one does the work and all get the result.
//
// Beside the errors of Resolve it fails with CodeInvalid when a layer is hostile, malformed or beyond a limit, with
// CodeNoSpace when the disk is full, and with CodeDamaged when a layer is not what its digest says. After an error, or a
// crash, nothing of the artifact is left.
func (s *Store) Build(ctx context.Context, ref string, o BuildOptions) (*Result, error) {
	b, err := s.plan(ctx, ref, o)
	if err != nil {
		return nil, err
	}
	unlock, err := s.lockArtifact(ctx, b.id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	result := &Result{Image: b.image.Image, Config: b.image.Config}
	if a, err := s.reuse(ctx, b.id, b.image); err != nil || a != nil {
		result.Artifact, result.Reused = a, true
		return result, err
	}
	if result.Artifact, err = b.run(ctx); err != nil {
		return nil, err
	}
	return result, nil
}

// reuse returns the artifact if the store has it, intact. A damaged one is discarded, and nil returned.
func (s *Store) reuse(ctx context.Context, id string, r *Resolved) (*Artifact, error) {
	a, err := s.Get(id)
	if err == nil {
		err = s.VerifyQuick(ctx, id)
	}
	switch spore.CodeOf(err) {
	case "":
		return a, s.remember(s.artifactDir(id), r)
	case spore.CodeNotFound:
		return nil, nil
	case spore.CodeDamaged:
		s.log.Warn("building a damaged artifact again", "artifact", id, "err", err)
		return nil, s.discard(id)
	}
	return nil, err
}

// build is the making of one artifact.
type build struct {
	store *Store
	id    string
	image *Resolved
	ca    *rootfs.CA
	track *tracker
	room  func(bytes int64) (release func(), err error)
}

func (b *build) run(ctx context.Context) (*Artifact, error) {
	if err := b.pull(ctx); err != nil {
		return nil, err
	}
	tree, targets, err := b.unpack(ctx)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(b.store.tmp(), scratchPrefix+b.id)
	defer os.RemoveAll(dir) // gone already, after a success
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(filepath.Join(dir, imagesDir), 0o755)); err != nil {
		return nil, diskError(err, b.store.tmp(), 4096)
	}
	a := &Artifact{
		ID:            b.id,
		Architecture:  runtime.GOARCH,
		FormatVersion: FormatVersion,
		DiffIDs:       b.image.DiffIDs,
		CreatedAt:     time.Now().UTC().Truncate(time.Millisecond),
	}
	if b.ca != nil {
		a.EgressCA = &EgressCA{Fingerprint: b.ca.Fingerprint, Targets: targets}
	}
	if err := b.writeImage(ctx, tree, dir, a); err != nil {
		return nil, err
	}
	return a, b.commit(dir, a)
}

// pull fetches the layers that the store lacks, several at once.
func (b *build) pull(ctx context.Context) error {
	var total, missing int64
	for _, l := range b.image.layers {
		size := max(l.desc.Size, 0)
		total += size
		if !b.store.blobs.has(l.desc.Digest, l.desc.Size) {
			missing += size
		}
	}
	if err := checkSpace(b.store.blobs.dir, missing); err != nil {
		return err
	}
	release, err := b.room(missing)
	if err != nil {
		return err
	}
	defer release()
	b.track.begin(PhasePulling, len(b.image.layers), total)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for _, l := range b.image.layers {
		group.Go(func() error {
			if err := b.fetch(ctx, l, b.track.add); err != nil {
				return err
			}
			b.track.layer()
			return nil
		})
	}
	return group.Wait()
}

// commit adds the records to the directory and moves it to where artifacts are. That move is what makes it one.
func (b *build) commit(dir string, a *Artifact) error {
	s := b.store
	if err := s.remember(dir, b.image); err != nil {
		return err
	}
	record, err := json.MarshalIndent(a, "", "\t")
	if err != nil {
		return err
	}
	if err := s.writeFile(filepath.Join(dir, recordFile), record); err != nil {
		return err
	}
	final := s.artifactDir(b.id)
	if err := os.Rename(dir, final); err != nil {
		return fmt.Errorf("commit artifact %s: %w", b.id, err)
	}
	a.Path = filepath.Join(final, artifactFile)
	return syncDir(filepath.Dir(final))
}
