// Package testbed makes the real things that tests run on: a guest kernel, images, a registry, file systems.
//
// Only tests import it. What takes long is made once and kept in a cache directory (.cache/testbed of the checkout, or
// SPORE_TEST_CACHE), under a lock, so that test processes that run at once share it. What is missing on the machine
// ends the test with the name of the Debian package; `make deps` installs them all.
package testbed

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/kernel"
)

// Cache is the directory where made things are kept. It exists.
func Cache(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("SPORE_TEST_CACHE")
	if dir == "" {
		dir = filepath.Join(repo(t), ".cache", "testbed")
	}
	dir, err := filepath.Abs(dir)
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err != nil {
		t.Fatalf("testbed: the cache directory: %v (SPORE_TEST_CACHE names another)", err)
	}
	return dir
}

// repo is the root of the checkout.
func repo(t testing.TB) string {
	t.Helper()
	_, file, _, ok := runtime.Caller(0)
	root := filepath.Dir(filepath.Dir(filepath.Dir(file)))
	if _, err := os.Stat(filepath.Join(root, "go.mod")); !ok || err != nil {
		t.Fatalf("testbed: no checkout at %s: tests that use the testbed run from source", root)
	}
	return root
}

// made returns the path of name in the cache. What is not there yet is made by create, which is given a path beside it
// to make a file or directory at; it appears under its name only when create is done.
func made(t testing.TB, name string, create func(aside string)) string {
	t.Helper()
	path := filepath.Join(Cache(t), name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	defer lock(t, name)()
	if _, err := os.Stat(path); err == nil {
		return path
	}
	aside := path + ".aside"
	must(t, os.RemoveAll(aside))
	create(aside)
	if t.Failed() {
		t.FailNow()
	}
	must(t, os.Rename(aside, path))
	return path
}

// lock makes the caller the only one on this machine to make name, until unlock is called.
func lock(t testing.TB, name string) (unlock func()) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(Cache(t), name+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	must(t, err)
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	must(t, err)
	return func() { f.Close() }
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("testbed: %v", err)
	}
}

// tool ends the test when a program is missing, with the Debian package that has it.
func tool(t testing.TB, name, debianPackage string) string {
	t.Helper()
	for _, dir := range []string{"", "/usr/sbin/", "/sbin/", "/bin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path
		}
	}
	t.Fatalf("testbed: %s is missing: run `make deps`, or install the Debian package %s", name, debianPackage)
	return ""
}

// run runs a program and ends the test with its output when it fails.
func run(t testing.TB, env []string, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("testbed: %s %s: %v\n%s%s", name, strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String()
}

// KernelTree returns a directory with the unpacked kernel package of the distribution: boot/vmlinuz-RELEASE and
// lib/modules/RELEASE. Nobody may change it.
func KernelTree(t testing.TB) string {
	t.Helper()
	return made(t, "kernel-tree", func(aside string) {
		tool(t, "apt-get", "apt")
		tool(t, "dpkg-deb", "dpkg")
		must(t, os.MkdirAll(aside, 0o755))
		deb, err := kernel.FetchPackage(context.Background(), kernel.DefaultPackage, aside)
		must(t, err)
		run(t, nil, aside, "dpkg-deb", "-x", deb, aside)
		if matches, _ := filepath.Glob(filepath.Join(aside, "usr/lib/modules/*")); len(matches) > 0 {
			must(t, os.Rename(filepath.Join(aside, "usr/lib"), filepath.Join(aside, "lib")))
		}
		must(t, os.Remove(deb))
	})
}

// KernelFiles returns the paths of the kernel and of the modules directory in KernelTree.
func KernelFiles(t testing.TB) (vmlinuz, modules string) {
	t.Helper()
	tree := KernelTree(t)
	kernels, err := filepath.Glob(filepath.Join(tree, "boot/vmlinuz-*"))
	must(t, err)
	if len(kernels) != 1 {
		t.Fatalf("testbed: %s holds %d kernels; remove it and it is made anew", tree, len(kernels))
	}
	release := strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	return kernels[0], filepath.Join(tree, "lib/modules", release)
}

var sporeInit = struct {
	sync.Mutex
	path string
}{}

// SporeInit builds spore-init from the checkout and returns its path. The path differs for each content. SPORE_TEST_INIT
// names one that was returned before, for test binaries that were carried to a machine without the checkout.
func SporeInit(t testing.TB) string {
	t.Helper()
	sporeInit.Lock()
	defer sporeInit.Unlock()
	if sporeInit.path == "" {
		sporeInit.path = os.Getenv("SPORE_TEST_INIT")
	}
	if sporeInit.path == "" {
		sporeInit.path = buildStatic(t, "spore-init", "./cmd/spore-init")
	}
	return sporeInit.path
}

// buildStatic builds a static executable into the cache and returns its path, which holds a digest of it.
func buildStatic(t testing.TB, name, pkg string) string {
	t.Helper()
	defer lock(t, name)()
	aside := filepath.Join(Cache(t), name+".aside")
	// With the go command's own cache this costs little when nothing has changed, and it is always right.
	run(t, []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=-buildvcs=false"}, repo(t),
		"go", "build", "-trimpath", "-ldflags=-s -w", "-o", aside, pkg)
	data, err := os.ReadFile(aside)
	must(t, err)
	sum := sha256.Sum256(data)
	path := filepath.Join(Cache(t), name+"-"+hex.EncodeToString(sum[:6]))
	must(t, os.Rename(aside, path))
	return path
}

// Bundle returns a kernel bundle made from KernelTree and the current SporeInit.
func Bundle(t testing.TB) *kernel.Bundle {
	t.Helper()
	init := SporeInit(t)
	store := kernel.Open(filepath.Join(Cache(t), "kernels"))
	// The record of which bundle came of which init is only a shortcut: installing again gives the same bundle.
	record := made(t, "bundle-of-"+filepath.Base(init), func(aside string) {
		must(t, os.WriteFile(aside, []byte(install(t, store, init).ID), 0o644))
	})
	id, err := os.ReadFile(record)
	must(t, err)
	if b, err := store.Get(string(id)); err == nil {
		return b
	}
	return install(t, store, init)
}

func install(t testing.TB, store *kernel.Store, init string) *kernel.Bundle {
	t.Helper()
	prune(t, store)
	data, err := os.ReadFile(init)
	must(t, err)
	vmlinuz, modules := KernelFiles(t)
	b, err := store.Install(context.Background(), kernel.Source{Kernel: vmlinuz, Modules: modules, Init: data}, nil)
	must(t, err)
	return b
}

// prune removes what was made of earlier states of spore-init, once it is too old for a running test to hold it.
func prune(t testing.TB, store *kernel.Store) {
	t.Helper()
	const old = 24 * time.Hour
	bundles, err := store.List()
	if err != nil {
		t.Logf("testbed: damaged bundles are made anew: %v", err)
	}
	for _, b := range bundles {
		if time.Since(b.InstalledAt) > old {
			if err := store.Remove(context.Background(), b.ID); err != nil && spore.CodeOf(err) != spore.CodeNotFound {
				t.Fatalf("testbed: %v", err)
			}
		}
	}
	for _, pattern := range []string{"spore-init-*", "bundle-of-*"} {
		files, err := filepath.Glob(filepath.Join(Cache(t), pattern))
		must(t, err)
		for _, file := range files {
			info, err := os.Stat(file)
			if err == nil && time.Since(info.ModTime()) > old {
				err = os.Remove(file)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("testbed: %v", err)
			}
		}
	}
}

// Kernel returns the paths of the kernel and initramfs of Bundle.
func Kernel(t testing.TB) (vmlinuz, initrd string) {
	t.Helper()
	b := Bundle(t)
	return b.VmlinuzPath(), b.InitrdPath()
}
