package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"log"
	"log/slog"
)

// files is the content of a test layer by name. A name that ends in a slash is a directory.
type testFiles map[string]string

func (f testFiles) tar(t testing.TB) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for name, data := range f {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: time.Unix(1700000000, 0)}
		if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gzipLayer(t testing.TB, data []byte) v1.Layer {
	t.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// zstdLayer is a layer whose library form knows no diff id, which the config of testImage supplies.
func zstdLayer(t testing.TB, data []byte) v1.Layer {
	t.Helper()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	return rawLayer(t, enc.EncodeAll(data, nil), data, types.OCILayerZStd)
}

// rawLayer is a layer with given compressed and uncompressed bytes.
func rawLayer(t testing.TB, stored, data []byte, typ types.MediaType) v1.Layer {
	t.Helper()
	diffID, _, err := v1.SHA256(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return diffLayer{static.NewLayer(stored, typ), diffID}
}

type diffLayer struct {
	v1.Layer
	diffID v1.Hash
}

func (l diffLayer) DiffID() (v1.Hash, error) { return l.diffID, nil }

// testImage is an image for this platform that runs /app.
func testImage(t testing.TB, layers ...v1.Layer) v1.Image {
	t.Helper()
	return platformImage(t, runtime.GOARCH, layers...)
}

func platformImage(t testing.TB, arch string, layers ...v1.Layer) v1.Image {
	t.Helper()
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, layers...)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	config.Config = v1.Config{
		Entrypoint: []string{"/app"}, Cmd: []string{"--help"}, Env: []string{"A=b"}, User: "7", WorkingDir: "/w",
		StopSignal: "SIGINT", ExposedPorts: map[string]struct{}{"80/tcp": {}}, Labels: map[string]string{"l": "v"},
		Volumes: map[string]struct{}{"/data": {}},
	}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	return img
}

// writeLayout puts images into an OCI layout below dir and returns its path. The tag "" stands for none.
func writeLayout(t testing.TB, images map[string]v1.Image) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for tag, img := range images {
		var opts []layout.Option
		if tag != "" {
			opts = append(opts, layout.WithAnnotations(map[string]string{refNameAnnotation: tag}))
		}
		if err := p.AppendImage(img, opts...); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// tarDir makes an archive of a directory's files.
func tarDir(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "archive.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// dockerSave writes images the way docker save does. Layers are stored uncompressed, or as they are.
func dockerSave(t testing.TB, compressed bool, images map[string]v1.Image) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "docker.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	put := func(name string, data []byte) {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	var list []dockerImage
	for tag, img := range images {
		config, err := img.RawConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		entry := dockerImage{Config: fmt.Sprintf("%d.json", len(list)), RepoTags: []string{tag}}
		put(entry.Config, config)
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		for i, l := range layers {
			open := l.Uncompressed
			if compressed {
				open = l.Compressed
			}
			rc, err := open()
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(rc)
			rc.Close()
			if err != nil {
				t.Fatal(err)
			}
			name := fmt.Sprintf("%d/%d/layer.tar", len(list), i)
			put(name, data)
			entry.Layers = append(entry.Layers, name)
		}
		list = append(list, entry)
	}
	data, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	put("manifest.json", data)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// startRegistry serves an empty registry and returns its host.
func startRegistry(t testing.TB) string {
	t.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func push(t testing.TB, ref string, img v1.Image) {
	t.Helper()
	n, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(n, img); err != nil {
		t.Fatal(err)
	}
}

func openStore(t testing.TB, opts Options) *Store {
	t.Helper()
	opts.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	s, err := Open(t.TempDir(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustBuild(t testing.TB, s *Store, ref string, o BuildOptions) *Result {
	t.Helper()
	r, err := s.Build(context.Background(), ref, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// checkFilesystem lets e2fsck judge an artifact, and debugfs read a file of it.
func checkFilesystem(t testing.TB, a *Artifact, files testFiles) {
	t.Helper()
	tool, err := mkfsPath()
	if err != nil {
		t.Skip(err)
	}
	sbin := filepath.Dir(tool)
	if out, err := exec.Command(filepath.Join(sbin, "e2fsck"), "-fn", a.Path).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	for name, want := range files {
		got, err := exec.Command(filepath.Join(sbin, "debugfs"), "-R", "cat /"+name, a.Path).Output()
		if err != nil || string(got) != want {
			t.Errorf("%s holds %q, want %q (%v)", name, got, want, err)
		}
	}
}

// leftovers returns what lies below a store's tmp directory.
func leftovers(t testing.TB, s *Store) []string {
	t.Helper()
	entries, err := os.ReadDir(s.tmp())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
