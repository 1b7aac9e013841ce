package kernel

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/sporevm/spore"
)

// maxUnpacked bounds what a package may unpack to.
const maxUnpacked = 4 << 30

var (
	kernelFile  = regexp.MustCompile(`^boot/vmlinuz-[^/]+$`)
	modulesFile = regexp.MustCompile(`^(?:usr/)?lib/modules/([^/]+)/(.+)$`)
)

// unpackPackage takes the kernel and the modules out of a .deb, into dir, which it makes. It returns the path of the
// kernel and of the modules directory.
func unpackPackage(ctx context.Context, deb, dir string) (vmlinuz, modules string, err error) {
	tool, err := exec.LookPath("dpkg-deb")
	if err != nil {
		return "", "", spore.Errorf(spore.CodeUnsupported, "this host has no dpkg-deb to unpack the kernel package with").WithCause(err).
			WithHint("unpack it elsewhere and use --kernel FILE --modules DIR")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, tool, "--fsys-tarfile", deb)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", "", err
	}
	if err := cmd.Start(); err != nil {
		return "", "", fmt.Errorf("starting dpkg-deb: %w", err)
	}
	vmlinuz, modules, err = unpackKernel(out, dir)
	if err != nil {
		cancel()
		return "", "", errors.Join(err, ignoreKilled(cmd.Wait()))
	}
	// What follows the end of the archive must be read, or dpkg-deb dies of a broken pipe.
	_, drained := io.Copy(io.Discard, out)
	if err := errors.Join(cmd.Wait(), drained); err != nil {
		return "", "", spore.Invalidf("package", "%s is not a sound package: %s", filepath.Base(deb), strings.TrimSpace(errs.String())).WithCause(err)
	}
	if vmlinuz == "" || modules == "" {
		return "", "", spore.Invalidf("package", "%s holds no kernel with its modules", filepath.Base(deb)).
			WithHint("use a kernel package, such as %s", DefaultPackage)
	}
	return vmlinuz, modules, nil
}

// ignoreKilled drops the error of a process that was ended because its output was not wanted any more.
func ignoreKilled(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

// unpackKernel writes the kernel and modules of a package's file tree under dir and nothing else. Names that lead out
// of the tree are refused.
func unpackKernel(r io.Reader, dir string) (vmlinuz, modules string, err error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", "", noSpace(err, "unpacking the package")
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", "", err
	}
	defer root.Close()
	left := int64(maxUnpacked)
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return vmlinuz, modules, nil
		}
		if err != nil {
			return "", "", spore.Invalidf("package", "the package's archive is damaged: %w", err)
		}
		name := path.Clean(strings.TrimPrefix(h.Name, "./"))
		if !fs.ValidPath(name) {
			return "", "", spore.Invalidf("package", "the package holds a file with a hostile name: %q", h.Name)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		target := ""
		if kernelFile.MatchString(name) {
			target = "vmlinuz"
			vmlinuz = filepath.Join(dir, target)
		} else if m := modulesFile.FindStringSubmatch(name); m != nil {
			target = path.Join("modules", m[1], m[2])
			modules = filepath.Join(dir, "modules", m[1])
		} else {
			continue
		}
		if left -= h.Size; left < 0 {
			return "", "", spore.Invalidf("package", "the package unpacks to more than %d GiB", maxUnpacked>>30)
		}
		if err := unpackFile(root, target, tr); err != nil {
			return "", "", err
		}
	}
}

func unpackFile(root *os.Root, name string, r io.Reader) error {
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return noSpace(err, "unpacking the package")
	}
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return spore.Invalidf("package", "the package holds more than one %s", name)
	}
	if err != nil {
		return noSpace(err, "unpacking the package")
	}
	_, err = io.Copy(f, r)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = spore.Invalidf("package", "the package's archive ends within %s", name).WithCause(err)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return noSpace(err, "unpacking the package")
	}
	return nil
}
