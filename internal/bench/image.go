package bench

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/sporevm/spore"
)

// smallImage is what Scope.Image says of the image that makeImage makes.
const smallImage = "a busybox userland"

// makeImage writes an OCI layout with a userland of busybox alone into dir, which it makes, and answers its reference.
func makeImage(dir string) (string, error) {
	binary, err := exec.LookPath("busybox")
	if err != nil {
		return "", spore.Errorf(spore.CodeUnsupported, "busybox is missing, of which the image is made").
			WithHint("install the Debian package busybox-static, or name an image with --image")
	}
	archive, err := busyboxTar(binary)
	if err != nil {
		return "", err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil })
	if err != nil {
		return "", err
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return "", err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return "", err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", "amd64"
	file.Config = v1.Config{Env: []string{"PATH=/bin"}}
	// A process that waits, so that the guest is idle for a reason and not for want of anything to run.
	file.Config.Cmd = []string{"/bin/sleep", "2147483647"}
	if image, err = mutate.ConfigFile(image, file); err != nil {
		return "", err
	}
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return "", err
	}
	if err := path.AppendImage(image, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "latest"})); err != nil {
		return "", err
	}
	return "oci:" + dir + ":latest", nil
}

// busyboxTar is the one layer of the image.
func busyboxTar(binary string) ([]byte, error) {
	data, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	program, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", binary, err)
	}
	if slices.ContainsFunc(program.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return nil, spore.Errorf(spore.CodeUnsupported, "%s is not static", binary).
			WithHint("install the Debian package busybox-static, or name an image with --image")
	}
	applets, err := exec.Command(binary, "--list").Output()
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	put := func(h tar.Header, body []byte) error {
		h.Size = int64(len(body))
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		_, err := w.Write(body)
		return err
	}
	for _, dir := range []string{"bin/", "dev/", "etc/", "proc/", "root/", "sys/", "tmp/"} {
		if err := put(tar.Header{Name: dir, Mode: 0o755, Typeflag: tar.TypeDir}, nil); err != nil {
			return nil, err
		}
	}
	if err := put(tar.Header{Name: "etc/passwd", Mode: 0o644, Typeflag: tar.TypeReg}, []byte("root:x:0:0:root:/root:/bin/sh\n")); err != nil {
		return nil, err
	}
	if err := put(tar.Header{Name: "bin/busybox", Mode: 0o755, Typeflag: tar.TypeReg}, data); err != nil {
		return nil, err
	}
	for name := range strings.FieldsSeq(string(applets)) {
		if name == "busybox" || name != filepath.Base(name) {
			continue
		}
		if err := put(tar.Header{Name: "bin/" + name, Mode: 0o777, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), w.Close()
}
