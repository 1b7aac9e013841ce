package testbed

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func TestKernelTree(t *testing.T) {
	vmlinuz, modules := KernelFiles(t)
	for _, path := range []string{vmlinuz, filepath.Join(modules, "modules.builtin")} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
}

func TestImages(t *testing.T) {
	for _, image := range []string{Static, Busybox, DebianPython} {
		t.Run(image, func(t *testing.T) {
			got := LayoutImage(t, Image(t, image))
			if err := validate.Image(got, validate.Fast); err != nil {
				t.Error(err)
			}
			config, err := got.ConfigFile()
			if err != nil {
				t.Fatal(err)
			}
			if config.OS != "linux" || config.Architecture != "amd64" || len(config.Config.Cmd)+len(config.Config.Entrypoint) == 0 {
				t.Errorf("config = %+v", config)
			}
		})
	}
}

func TestRegistry(t *testing.T) {
	host := Registry(t)
	Push(t, Image(t, Static), host+"/static:1")
	ref, err := name.ParseReference(host + "/static:1")
	if err != nil {
		t.Fatal(err)
	}
	got, err := remote.Head(ref)
	if err != nil {
		t.Fatal(err)
	}
	want, err := LayoutImage(t, Image(t, Static)).Digest()
	if err != nil {
		t.Fatal(err)
	}
	if got.Digest != want {
		t.Errorf("pushed %s, the registry has %s", want, got.Digest)
	}
	resp, err := http.Get("http://" + host + "/v2/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("%s: %v", resp.Status, err)
	}
}

func TestMountFS(t *testing.T) {
	for kind, size := range map[string]int{"ext4": 32, "xfs": 320, "btrfs": 128} {
		t.Run(kind, func(t *testing.T) {
			dir := MountFS(t, kind, size)
			if err := os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o644); err != nil {
				t.Error(err)
			}
			if free := FreeMiB(t, dir); free <= 0 || free > size {
				t.Errorf("FreeMiB = %d of %d", free, size)
			}
		})
	}
}
