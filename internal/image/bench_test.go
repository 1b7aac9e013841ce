package image

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// userland packs about size bytes of this machine's own programs and libraries into a layer: real files of a real
// distribution in their real proportions.
func userland(b *testing.B, size int64) v1.Layer {
	b.Helper()
	path := filepath.Join(b.TempDir(), "layer.tar")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	full := errors.New("full")
	for _, dir := range []string{"etc", "usr/lib/python3", "usr/lib/python3.11", "usr/share/perl", "usr/share/zoneinfo", "usr/bin", "usr/lib/x86_64-linux-gnu", "usr/share"} {
		err := filepath.WalkDir("/"+dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil // not there, or not readable: any userland will do
			}
			info, err := d.Info()
			if err != nil || info.Size() > 1500<<10 || info.Mode()&(fs.ModeSocket|fs.ModeDevice) != 0 {
				return nil
			}
			if at, err := f.Seek(0, io.SeekCurrent); err != nil || at > size {
				return full
			}
			target := ""
			if info.Mode()&fs.ModeSymlink != 0 {
				if target, err = os.Readlink(path); err != nil {
					return nil
				}
			}
			h, err := tar.FileInfoHeader(info, target)
			if err != nil {
				return err
			}
			h.Name = path[1:]
			var data []byte
			if info.Mode().IsRegular() {
				if data, err = os.ReadFile(path); err != nil || int64(len(data)) != info.Size() {
					return nil
				}
			}
			if err := w.WriteHeader(h); err != nil {
				return err
			}
			_, err = w.Write(data)
			return err
		})
		if err != nil && err != full {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	l, err := tarball.LayerFromFile(path, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		b.Fatal(err)
	}
	return l
}

// BenchmarkBuild compares the way from an image in an OCI layout to a filesystem image with that of public tools: umoci
// unpack followed by mkfs.ext4 -d. Both end with the file on the disk; Spore's also hashes it.
func BenchmarkBuild(b *testing.B) {
	img := testImage(b, userland(b, 200<<20), gzipLayer(b, testFiles{"app": "program"}.tar(b)))
	dir := writeLayout(b, map[string]v1.Image{"v1": img})
	b.Run("spore", func(b *testing.B) {
		for b.Loop() {
			mustBuild(b, openStore(b, Options{}), "oci:"+dir, BuildOptions{})
		}
	})
	b.Run("spore-unchanged", func(b *testing.B) {
		s := openStore(b, Options{})
		mustBuild(b, s, "oci:"+dir, BuildOptions{})
		for b.Loop() {
			mustBuild(b, s, "oci:"+dir, BuildOptions{})
		}
	})
	b.Run("umoci-mkfs", func(b *testing.B) {
		umoci, err := exec.LookPath("umoci")
		if err != nil {
			b.Skip("umoci is not installed")
		}
		mkfs, err := mkfsPath()
		if err != nil || os.Geteuid() != 0 {
			b.Skip("needs mkfs.ext4 and root")
		}
		for b.Loop() {
			bundle, image := filepath.Join(b.TempDir(), "bundle"), filepath.Join(b.TempDir(), "image")
			if out, err := exec.Command(umoci, "unpack", "--image", dir+":v1", bundle).CombinedOutput(); err != nil {
				b.Fatalf("umoci: %v %s", err, out)
			}
			f, err := os.Create(image)
			if err != nil {
				b.Fatal(err)
			}
			if err := f.Truncate(1 << 30); err != nil {
				b.Fatal(err)
			}
			if out, err := exec.Command(mkfs, "-q", "-d", filepath.Join(bundle, "rootfs"), image).CombinedOutput(); err != nil {
				b.Fatalf("mkfs.ext4: %v %s", err, out)
			}
			if err := errors.Join(f.Sync(), f.Close()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
