// Package kernel keeps kernel bundles: a guest kernel and the initramfs that holds its virtio modules and spore-init.
//
// A bundle is named by the digest of its bytes and never changes, so several live side by side and a frozen VM goes on
// using the one it was frozen with.
package kernel

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sporevm/spore"
)

// Names of the files of a bundle.
const (
	vmlinuzName = "vmlinuz"
	initrdName  = "initrd"
	recordName  = "bundle.json"
)

// Bundle describes one installed kernel bundle.
type Bundle struct {
	ID            string    `json:"id"`            // "krn-" and 24 hex digits, from the digests below
	KernelVersion string    `json:"kernelVersion"` // release of the kernel, such as "6.1.0-56-cloud-amd64"
	AgentVersion  string    `json:"agentVersion"`  // of spore-init: the version it was built as, and its digest
	Vmlinuz       File      `json:"vmlinuz"`
	Initrd        File      `json:"initrd"`
	Modules       []string  `json:"modules"` // in load order
	Source        string    `json:"source"`  // where the kernel came from, for people
	InstalledAt   time.Time `json:"installedAt"`

	dir string
}

// File is a file of a bundle.
type File struct {
	SHA256 string `json:"sha256"` // hex
	Size   int64  `json:"size"`   // bytes
}

// VmlinuzPath is the absolute path of the kernel, a bzImage.
func (b *Bundle) VmlinuzPath() string { return filepath.Join(b.dir, vmlinuzName) }

// InitrdPath is the absolute path of the initramfs.
func (b *Bundle) InitrdPath() string { return filepath.Join(b.dir, initrdName) }

// Size is how many bytes the kernel and the initramfs take on disk.
func (b *Bundle) Size() int64 { return b.Vmlinuz.Size + b.Initrd.Size }

// Store is a directory of kernel bundles. Its methods may be called from many goroutines and processes at once.
type Store struct {
	dir string
}

// Open returns the store in dir, an absolute path that need not exist yet.
func Open(dir string) *Store { return &Store{dir: dir} }

var idForm = regexp.MustCompile(`^` + spore.KernelPrefix + `[0-9a-f]{24}$`)

// bundleID names a bundle by its bytes.
func bundleID(vmlinuz, initrd File) string {
	sum := sha256.Sum256([]byte("vmlinuz " + vmlinuz.SHA256 + "\ninitrd " + initrd.SHA256 + "\n"))
	return spore.KernelPrefix + hex.EncodeToString(sum[:12])
}

// Get returns the bundle named id. It fails with spore.CodeNotFound when there is none, and with spore.CodeDamaged when
// its record is unreadable or a file is missing or has another size. It does not read the files: see Verify.
func (s *Store) Get(id string) (*Bundle, error) {
	if !idForm.MatchString(id) {
		return nil, spore.Invalidf("kernel", "%q is not the id of a kernel bundle", id).
			WithHint("ids look like krn- and 24 hex digits; `spore kernel ls` lists them")
	}
	dir := filepath.Join(s.dir, id)
	record, err := os.ReadFile(filepath.Join(dir, recordName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, spore.Errorf(spore.CodeNotFound, "no kernel bundle %s", id).
			WithHint("`spore kernel ls` lists the bundles, `spore kernel install` makes one")
	}
	if err != nil {
		return nil, fmt.Errorf("reading the record of kernel bundle %s: %w", id, err)
	}
	b, err := parseRecord(record)
	if err != nil {
		return nil, damaged(id, "%v", err)
	}
	if b.ID != id {
		return nil, damaged(id, "the record belongs to %s", b.ID)
	}
	b.dir = dir
	for path, want := range map[string]int64{b.VmlinuzPath(): b.Vmlinuz.Size, b.InitrdPath(): b.Initrd.Size} {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, damaged(id, "%s is missing", filepath.Base(path))
		}
		if err != nil {
			return nil, fmt.Errorf("kernel bundle %s: %w", id, err)
		}
		if info.Size() != want {
			return nil, damaged(id, "%s has %d bytes instead of %d", filepath.Base(path), info.Size(), want)
		}
	}
	return b, nil
}

func damaged(id, format string, args ...any) error {
	return spore.Errorf(spore.CodeDamaged, "kernel bundle %s: %s", id, fmt.Sprintf(format, args...)).
		WithHint("`spore kernel rm %s`, then `spore kernel install` makes it anew from the same kernel", id)
}

// parseRecord reads bundle.json and refuses one that does not describe the bundle it names.
func parseRecord(data []byte) (*Bundle, error) {
	var b Bundle
	if err := json.Unmarshal(data, &b); err != nil {
		return nil, fmt.Errorf("unreadable record: %w", err)
	}
	for name, f := range map[string]File{vmlinuzName: b.Vmlinuz, initrdName: b.Initrd} {
		if len(f.SHA256) != 2*sha256.Size || f.Size <= 0 {
			return nil, fmt.Errorf("the record lacks the digest or size of %s", name)
		}
	}
	if b.ID != bundleID(b.Vmlinuz, b.Initrd) {
		return nil, fmt.Errorf("the id %q does not follow from the digests", b.ID)
	}
	return &b, nil
}

// List returns every bundle, the latest installed first. A damaged bundle does not hide the others: the error joins
// what is wrong with each, and the list holds the sound ones.
func (s *Store) List() ([]*Bundle, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing kernel bundles: %w", err)
	}
	var bundles []*Bundle
	var broken []error
	for _, e := range entries {
		if !idForm.MatchString(e.Name()) {
			continue
		}
		b, err := s.Get(e.Name())
		switch {
		case spore.CodeOf(err) == spore.CodeNotFound: // removed meanwhile
		case err != nil:
			broken = append(broken, err)
		default:
			bundles = append(bundles, b)
		}
	}
	slices.SortFunc(bundles, func(a, b *Bundle) int {
		if c := b.InstalledAt.Compare(a.InstalledAt); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return bundles, errors.Join(broken...)
}

// Default returns the bundle that new templates use: the one installed, or installed again, last. It fails with
// spore.CodeNotFound when there is none.
func (s *Store) Default() (*Bundle, error) {
	bundles, err := s.List()
	if len(bundles) > 0 {
		return bundles[0], nil
	}
	if err != nil {
		return nil, err
	}
	return nil, spore.Errorf(spore.CodeNotFound, "no kernel bundle is installed").WithHint("run `spore kernel install`")
}

// Verify reads the bundle's files in full and fails with spore.CodeDamaged when they are not the bytes that were
// installed.
func (s *Store) Verify(ctx context.Context, id string) error {
	b, err := s.Get(id)
	if err != nil {
		return err
	}
	for path, want := range map[string]File{b.VmlinuzPath(): b.Vmlinuz, b.InitrdPath(): b.Initrd} {
		got, err := digest(ctx, path)
		if err != nil {
			return fmt.Errorf("verifying kernel bundle %s: %w", id, err)
		}
		if got != want {
			return damaged(id, "%s is not the file that was installed", filepath.Base(path))
		}
	}
	return nil
}

// Remove deletes the bundle named id, damaged or not. Whether something still stands on it is the caller's to know. It
// fails with spore.CodeNotFound when there is none.
func (s *Store) Remove(ctx context.Context, id string) error {
	if !idForm.MatchString(id) {
		return spore.Invalidf("kernel", "%q is not the id of a kernel bundle", id)
	}
	unlock, err := s.lock(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return spore.Errorf(spore.CodeNotFound, "no kernel bundle %s", id)
	}
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.sweep(); err != nil {
		return err
	}
	// Renamed first, so that a half-deleted bundle is never seen under its name.
	gone := filepath.Join(s.dir, asidePrefix+"rm-"+id)
	err = os.Rename(filepath.Join(s.dir, id), gone)
	if errors.Is(err, fs.ErrNotExist) {
		return spore.Errorf(spore.CodeNotFound, "no kernel bundle %s", id)
	}
	if err != nil {
		return fmt.Errorf("removing kernel bundle %s: %w", id, err)
	}
	if err := errors.Join(syncDir(s.dir), os.RemoveAll(gone)); err != nil {
		return fmt.Errorf("removing kernel bundle %s: %w", id, err)
	}
	return nil
}

// digest hashes the file at path.
func digest(ctx context.Context, path string) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, readerFunc(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return f.Read(p)
	}))
	return File{SHA256: hex.EncodeToString(h.Sum(nil)), Size: n}, err
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
