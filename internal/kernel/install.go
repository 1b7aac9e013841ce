package kernel

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
)

// DefaultPackage is the package that Install takes when the source names none: the kernel that Debian builds for
// virtual machines.
const DefaultPackage = "linux-image-cloud-amd64"

// maxKernel bounds the kernel file, against a path that leads to something else.
const maxKernel = 512 << 20

// Source says what a bundle is made from: a package, or a kernel and its modules, and spore-init.
type Source struct {
	// Package is the name of a kernel package of the distribution, or the path of a .deb file (which has a slash or
	// ends in ".deb"). A package that is only a name for the latest kernel is followed to that kernel. The default is
	// DefaultPackage, unless Kernel is set.
	Package string

	Kernel  string // path of a bzImage; needs Modules
	Modules string // directory of its modules: lib/modules/RELEASE

	// Init is spore-init: a static executable for x86-64. AgentVersion is the version it was built as; the bundle adds
	// its digest, so "" is fine.
	Init         []byte
	AgentVersion string
}

// Install makes a bundle and returns it. The host is left as it is: a package is downloaded and unpacked aside, never
// installed. Installing what is there already makes no second copy, but makes it the default again. report, which may
// be nil, is told in a short sentence what begins.
//
// It fails with spore.CodeInvalid naming the field (package, kernel, modules, init) when a part is missing or unfit,
// with spore.CodeUnsupported on a host without the tools for packages, and with spore.CodeUnreachable when the package
// cannot be downloaded.
func (s *Store) Install(ctx context.Context, src Source, report func(string)) (*Bundle, error) {
	if report == nil {
		report = func(string) {}
	}
	if err := checkInit(src.Init); err != nil {
		return nil, err
	}
	switch {
	case src.Kernel == "" && src.Modules != "":
		return nil, spore.Invalidf("kernel", "a modules directory without its kernel").WithHint("give both, or a package")
	case src.Kernel != "" && src.Modules == "":
		return nil, spore.Invalidf("modules", "a kernel without its modules directory").WithHint("give both, or a package")
	case src.Kernel != "" && src.Package != "":
		return nil, spore.Invalidf("package", "both a package and a kernel file were given").WithHint("give one of them")
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the directory of kernel bundles: %w", err)
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := s.sweep(); err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp(s.dir, asidePrefix)
	if err != nil {
		return nil, noSpace(err, "making a working directory")
	}
	defer os.RemoveAll(work)

	from := src.Kernel
	if src.Kernel == "" {
		if src.Package == "" {
			src.Package = DefaultPackage
		}
		deb, err := fetchPackage(ctx, src.Package, work, report)
		if err != nil {
			return nil, err
		}
		from = filepath.Base(deb)
		report("unpacking " + from)
		if src.Kernel, src.Modules, err = unpackPackage(ctx, deb, filepath.Join(work, "package")); err != nil {
			return nil, err
		}
	}
	report("building the initramfs")
	b, err := s.build(ctx, src, filepath.Join(work, "bundle"))
	if err != nil {
		return nil, err
	}
	b.Source = from
	return s.admit(b, filepath.Join(work, "bundle"))
}

// build writes the bundle's kernel and initramfs into dir.
func (s *Store) build(ctx context.Context, src Source, dir string) (*Bundle, error) {
	vmlinuz, err := readKernel(src.Kernel)
	if err != nil {
		return nil, err
	}
	release, err := kernelRelease(vmlinuz)
	if err != nil {
		return nil, err
	}
	tree, err := openModules(src.Modules)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	modules, err := tree.resolve()
	if err != nil {
		return nil, err
	}
	b := &Bundle{KernelVersion: release, AgentVersion: agentVersion(src), InstalledAt: time.Now().UTC()}
	for _, m := range modules {
		if m.release != release {
			return nil, spore.Invalidf("modules", "module %s is for kernel %q, but the kernel is %q", m.name, m.release, release).
				WithHint("give the modules directory that belongs to the kernel: lib/modules/%s", release)
		}
		b.Modules = append(b.Modules, m.name)
	}
	initrd, err := initramfs(src.Init, modules)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, noSpace(err, "making the bundle")
	}
	for _, f := range []struct {
		name string
		data []byte
		file *File
	}{{vmlinuzName, vmlinuz, &b.Vmlinuz}, {initrdName, initrd, &b.Initrd}} {
		sum := sha256.Sum256(f.data)
		*f.file = File{SHA256: hex.EncodeToString(sum[:]), Size: int64(len(f.data))}
		if err := writeSynced(filepath.Join(dir, f.name), f.data); err != nil {
			return nil, err
		}
	}
	b.ID = bundleID(b.Vmlinuz, b.Initrd)
	return b, nil
}

// admit puts a built bundle under its name. The rename is the commit: before it, nothing is listed.
func (s *Store) admit(b *Bundle, built string) (*Bundle, error) {
	record, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := writeSynced(filepath.Join(built, recordName), append(record, '\n')); err != nil {
		return nil, err
	}
	if err := syncDir(built); err != nil {
		return nil, err
	}
	final := filepath.Join(s.dir, b.ID)
	_, err = s.Get(b.ID)
	switch spore.CodeOf(err) {
	case "": // there already: only its record is newer
		err = os.Rename(filepath.Join(built, recordName), filepath.Join(final, recordName))
	case spore.CodeDamaged:
		if err := s.moveAside(b.ID); err != nil {
			return nil, err
		}
		err = os.Rename(built, final)
	case spore.CodeNotFound:
		err = os.Rename(built, final)
	}
	if err != nil {
		return nil, fmt.Errorf("installing kernel bundle %s: %w", b.ID, err)
	}
	if err := errors.Join(syncDir(final), syncDir(s.dir)); err != nil {
		return nil, err
	}
	return s.Get(b.ID)
}

// agentVersion tells two builds of one version apart by their bytes.
func agentVersion(src Source) string {
	sum := sha256.Sum256(src.Init)
	version := src.AgentVersion
	if version == "" {
		version = "dev"
	}
	return version + "+" + hex.EncodeToString(sum[:6])
}

func readKernel(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, spore.Invalidf("kernel", "cannot read the kernel: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxKernel {
		return nil, spore.Invalidf("kernel", "%s is not a kernel: it is no regular file, or larger than %d MiB", path, maxKernel>>20)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, spore.Invalidf("kernel", "cannot read the kernel: %w", err)
	}
	return data, nil
}

// asidePrefix begins the names of what is not, or no longer, a bundle.
const asidePrefix = ".aside-"

// sweep removes what an install or removal left behind when it was killed. The lock is held.
func (s *Store) sweep() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("sweeping the directory of kernel bundles: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), asidePrefix) {
			if err := os.RemoveAll(filepath.Join(s.dir, e.Name())); err != nil {
				return fmt.Errorf("sweeping the directory of kernel bundles: %w", err)
			}
		}
	}
	return nil
}

// moveAside takes a bundle from under its name; the next sweep removes it.
func (s *Store) moveAside(id string) error {
	aside, err := os.MkdirTemp(s.dir, asidePrefix)
	if err != nil {
		return noSpace(err, "moving a damaged bundle aside")
	}
	if err := os.Rename(filepath.Join(s.dir, id), filepath.Join(aside, id)); err != nil {
		return fmt.Errorf("moving the damaged bundle %s aside: %w", id, err)
	}
	return os.RemoveAll(aside)
}

// lock makes the caller the only one who changes the store, on this machine. It waits for that until ctx ends.
func (s *Store) lock(ctx context.Context) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking the kernel bundles: %w", err)
	}
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("locking the kernel bundles: %w", err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		case <-retry.C:
		}
	}
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return noSpace(err, "writing "+filepath.Base(path))
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return noSpace(err, "writing "+filepath.Base(path))
	}
	return nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// noSpace gives a full disk its own code.
func noSpace(err error, doing string) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return spore.Errorf(spore.CodeNoSpace, "%s: the disk is full", doing).WithCause(err).
			WithHint("free about 200 MiB in the data directory")
	}
	return fmt.Errorf("%s: %w", doing, err)
}
