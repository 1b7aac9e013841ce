package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/image/rootfs"
)

// Options are what a Store is opened with. The zero value is fine.
type Options struct {
	Limits   rootfs.Limits  // what an image may ask for
	Insecure bool           // allow plain HTTP to every registry
	Keychain authn.Keychain // credentials; default: those of docker or podman of the user that runs the process
	Logger   *slog.Logger   // default: slog.Default
}

// Store keeps blobs and artifacts below one directory. Its methods may be called from many goroutines at once.
type Store struct {
	dir   string
	opts  Options
	log   *slog.Logger
	blobs *blobStore
	locks keyedMutex
}

const (
	artifactFile = "rootfs.ext4"
	recordFile   = "artifact.json"
	verifiedFile = "verified.json"
	imagesDir    = "images"
)

var artifactName = regexp.MustCompile(`^` + spore.ArtifactPrefix + `[0-9a-f]{24}$`)

// Open opens the store below dir, making it if need be, and removes what an earlier process left half-made.
func Open(dir string, opts Options) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	opts.Limits = opts.Limits.WithDefaults()
	s := &Store{dir: dir, opts: opts, log: opts.Logger}
	if s.log == nil {
		s.log = slog.Default()
	}
	s.blobs = &blobStore{dir: filepath.Join(dir, "blobs", "sha256"), tmp: s.tmp()}
	for _, d := range []string{s.blobs.dir, filepath.Join(dir, "artifacts"), s.tmp()} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("open image store: %w", diskError(err, dir, 4096))
		}
	}
	return s, s.Sweep()
}

func (s *Store) tmp() string { return filepath.Join(s.dir, "tmp") }

func (s *Store) artifactDir(id string) string { return filepath.Join(s.dir, "artifacts", id) }

// Sweep removes what builds and downloads that no longer run have left below tmp. Those that run are not disturbed.
func (s *Store) Sweep() error {
	if err := sweepScratch(s.tmp(), scratchPrefix); err != nil {
		return fmt.Errorf("sweep image store: %w", err)
	}
	return nil
}

// Get returns an artifact by its id. It fails with CodeNotFound if there is none, and with CodeDamaged if its record
// cannot be read or its file is missing.
func (s *Store) Get(id string) (*Artifact, error) {
	if !artifactName.MatchString(id) {
		return nil, spore.Errorf(spore.CodeNotFound, "%q is not the id of an artifact", id).WithHint("artifact ids begin with rfs-")
	}
	dir := s.artifactDir(id)
	data, err := os.ReadFile(filepath.Join(dir, recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		if _, statErr := os.Stat(dir); errors.Is(statErr, fs.ErrNotExist) {
			return nil, spore.Errorf(spore.CodeNotFound, "there is no artifact %s", id)
		}
	}
	if err != nil {
		return nil, artifactDamaged(id, "its record cannot be read").WithCause(err)
	}
	a := &Artifact{}
	if err := json.Unmarshal(data, a); err != nil || a.ID != id {
		return nil, artifactDamaged(id, "its record is malformed").WithCause(err)
	}
	a.Path = filepath.Join(dir, artifactFile)
	st, err := os.Stat(a.Path)
	if err != nil {
		return nil, artifactDamaged(id, "its file is missing").WithCause(err)
	}
	if st.Size() != a.SizeBytes {
		return nil, artifactDamaged(id, fmt.Sprintf("its file has %d bytes instead of %d", st.Size(), a.SizeBytes))
	}
	return a, nil
}

// File is an open artifact. It stays readable when the artifact is removed meanwhile.
type File struct {
	*os.File
	artifact *Artifact
}

// Size is the length of the file in bytes.
func (f *File) Size() int64 { return f.artifact.SizeBytes }

// Digest is what the SHA-256 of the whole file should be, "sha256:...".
func (f *File) Digest() string { return f.artifact.Digest }

// OpenFile opens the filesystem image of an artifact as it is; Verify says whether that is what it should be. It fails
// as Get does.
func (s *Store) OpenFile(id string) (*File, error) {
	a, err := s.Get(id)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(a.Path)
	if errors.Is(err, fs.ErrNotExist) { // removed since
		return nil, spore.Errorf(spore.CodeNotFound, "there is no artifact %s", id).WithCause(err)
	}
	if err != nil {
		return nil, artifactDamaged(id, "its file cannot be opened").WithCause(err)
	}
	return &File{f, a}, nil
}

func artifactDamaged(id, how string) *spore.Error {
	return spore.Errorf(spore.CodeDamaged, "artifact %s is damaged: %s", id, how).
		WithHint("build the template again from its image; that replaces the artifact")
}

// List returns all artifacts in the order of their ids. An artifact that is damaged is among the errors that it joins,
// and the others are returned all the same.
func (s *Store) List() ([]*Artifact, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "artifacts"))
	if err != nil {
		return nil, fmt.Errorf("list artifacts: %w", err)
	}
	var (
		all  []*Artifact
		errs []error
	)
	for _, e := range entries {
		if !artifactName.MatchString(e.Name()) {
			continue
		}
		a, err := s.Get(e.Name())
		if spore.CodeOf(err) == spore.CodeNotFound {
			continue // removed in the meantime
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, a)
	}
	return all, errors.Join(errs...)
}

// Remove deletes an artifact, damaged or not. The caller knows that nothing stands on it. It fails with CodeNotFound
// if there is none.
func (s *Store) Remove(ctx context.Context, id string) error {
	if !artifactName.MatchString(id) {
		return spore.Errorf(spore.CodeNotFound, "%q is not the id of an artifact", id)
	}
	unlock, err := s.lockArtifact(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	return s.discard(id)
}

// discard takes an artifact out of sight in one step, then deletes it. The caller holds its lock.
func (s *Store) discard(id string) error {
	trash, err := os.MkdirTemp(s.tmp(), scratchPrefix+"trash-*")
	if err != nil {
		return fmt.Errorf("remove artifact %s: %w", id, err)
	}
	defer os.RemoveAll(trash)
	err = os.Rename(s.artifactDir(id), filepath.Join(trash, id))
	if errors.Is(err, fs.ErrNotExist) {
		return spore.Errorf(spore.CodeNotFound, "there is no artifact %s", id)
	}
	if err != nil {
		return fmt.Errorf("remove artifact %s: %w", id, err)
	}
	return syncDir(filepath.Join(s.dir, "artifacts"))
}

// lockArtifact keeps others, in this process and elsewhere, from building or removing an artifact.
func (s *Store) lockArtifact(ctx context.Context, id string) (unlock func(), err error) {
	release, err := s.locks.lock(ctx, id)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(s.tmp(), scratchPrefix+id+".lock")
	f, err := waitLock(ctx, path)
	if err != nil {
		release()
		return nil, diskError(err, s.tmp(), 4096)
	}
	return func() {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("cannot remove lock file", "path", path, "err", err)
		}
		f.Close()
		release()
	}, nil
}

// ImageRecord is what the store remembers of an image that an artifact was built for.
type ImageRecord struct {
	Image
	Config Config   `json:"config"`
	Blobs  []string `json:"blobs"` // digests of its manifest, config and layers
}

// Images returns the images that led to an artifact, in the order of their manifests' digests.
func (s *Store) Images(id string) ([]ImageRecord, error) {
	if _, err := s.Get(id); err != nil {
		return nil, err
	}
	paths, err := filepath.Glob(filepath.Join(s.artifactDir(id), imagesDir, "*.json"))
	if err != nil {
		return nil, err
	}
	slices.Sort(paths)
	var records []ImageRecord
	for _, path := range paths {
		var r ImageRecord
		data, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(data, &r)
		}
		if err != nil {
			return nil, artifactDamaged(id, "the record of an image cannot be read").WithCause(err)
		}
		records = append(records, r)
	}
	return records, nil
}

// remember records the image for which an artifact was built, or found. A record that says the same is left alone.
func (s *Store) remember(dir string, r *Resolved) error {
	_, hex, _ := strings.Cut(r.Image.ManifestDigest, ":")
	path := filepath.Join(dir, imagesDir, hex+".json")
	record := ImageRecord{Image: r.Image, Config: r.Config, Blobs: []string{r.Image.ManifestDigest, r.Image.ConfigDigest}}
	for _, l := range r.layers {
		record.Blobs = append(record.Blobs, l.desc.Digest.String())
	}
	data, err := json.MarshalIndent(record, "", "\t")
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(path); err == nil && string(old) == string(data) {
		return nil
	}
	return s.writeFile(path, data)
}

// writeFile replaces a small file as a whole, or not at all.
func (s *Store) writeFile(path string, data []byte) error {
	f, err := createScratch(s.tmp(), scratchPrefix+"file-*")
	if err != nil {
		return diskError(err, s.tmp(), int64(len(data)))
	}
	defer os.Remove(f.Name()) // fails once renamed
	defer f.Close()
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync()); err != nil {
		return diskError(err, s.tmp(), int64(len(data)))
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// SweepBlobs deletes the blobs for which keep is false, and returns how many bytes that freed. Manifests and configs
// of the images that artifacts were built for stay in any case, so that an unchanged image needs no work. It does not
// disturb builds: a blob that a build has opened stays readable, and one that it still needs is fetched again.
func (s *Store) SweepBlobs(keep func(digest string) bool) (freed int64, err error) {
	documents := map[string]bool{}
	artifacts, err := s.List()
	if err != nil {
		s.log.Warn("damaged artifacts do not protect their blobs", "err", err)
	}
	for _, a := range artifacts {
		records, err := s.Images(a.ID)
		if err != nil {
			s.log.Warn("a damaged artifact does not protect its blobs", "artifact", a.ID, "err", err)
			continue
		}
		for _, r := range records {
			documents[r.ManifestDigest], documents[r.ConfigDigest] = true, true
		}
	}
	entries, err := os.ReadDir(s.blobs.dir)
	if err != nil {
		return 0, fmt.Errorf("sweep blobs: %w", err)
	}
	var errs []error
	for _, e := range entries {
		digest := "sha256:" + e.Name()
		if documents[digest] || keep(digest) {
			continue
		}
		st, err := e.Info()
		if err == nil {
			err = os.Remove(filepath.Join(s.blobs.dir, e.Name()))
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		freed += st.Size()
	}
	return freed, errors.Join(errs...)
}
