package testbed

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Names of the images that Image makes.
const (
	// DebianPython is a Debian userland with Python 3 in two layers. Its user is app (1000:1000), its working
	// directory /srv/app, its environment has GREETING=hello, its command is a small HTTP server on port 8000 that
	// answers / with "hello from python".
	DebianPython = "debian-python"
	// Busybox is a userland of busybox alone. It runs as root in / and its command is a shell.
	Busybox = "busybox"
	// Static is one static binary in no userland at all: it serves HTTP on port 8080 and answers / with "hello from
	// nowhere". Its entrypoint is /server and its user the number 65532.
	Static = "static"
)

// imageRecipe is part of the cache's file names: another number makes every image anew.
const imageRecipe = "1"

// Image returns the directory of an OCI image layout with one image, tagged "latest". Nobody may change it.
func Image(t testing.TB, name string) string {
	t.Helper()
	recipes := map[string]func(testing.TB) v1.Image{
		DebianPython: debianPython,
		Busybox:      busybox,
		Static:       static,
	}
	recipe := recipes[name]
	if recipe == nil {
		t.Fatalf("testbed: no image %q", name)
	}
	return made(t, "image-"+name+"-"+imageRecipe, func(aside string) {
		image := recipe(t)
		path, err := layout.Write(aside, empty.Index)
		must(t, err)
		must(t, path.AppendImage(image,
			layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "latest"}),
			layout.WithPlatform(v1.Platform{OS: "linux", Architecture: "amd64"})))
	})
}

// NewImage makes an image for linux/amd64 of the layers, which are tar archives, with config.
func NewImage(t testing.TB, config v1.Config, layers ...[]byte) v1.Image {
	t.Helper()
	var made []v1.Layer
	for _, data := range layers {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
		must(t, err)
		made = append(made, layer)
	}
	return newImage(t, config, made...)
}

func newImage(t testing.TB, config v1.Config, layers ...v1.Layer) v1.Image {
	t.Helper()
	image, err := mutate.AppendLayers(empty.Image, layers...)
	must(t, err)
	file, err := image.ConfigFile()
	must(t, err)
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", "amd64", config
	image, err = mutate.ConfigFile(image, file)
	must(t, err)
	return image
}

// WriteLayout writes image, tagged "latest", as an OCI layout in dir, which it makes.
func WriteLayout(t testing.TB, dir string, image v1.Image) {
	t.Helper()
	path, err := layout.Write(dir, empty.Index)
	must(t, err)
	must(t, path.AppendImage(image, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "latest"})))
}

// Tar returns an archive of the entries. An entry with a body is a regular file unless its header says otherwise.
func Tar(t testing.TB, entries ...Entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := e.Header
		h.Size = int64(len(e.Body))
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		must(t, w.WriteHeader(&h))
		_, err := w.Write(e.Body)
		must(t, err)
	}
	must(t, w.Close())
	return buf.Bytes()
}

// Entry is one entry of an archive for Tar.
type Entry struct {
	Header tar.Header
	Body   []byte
}

func file(name string, mode int64, body string) Entry {
	return Entry{Header: tar.Header{Name: name, Mode: mode}, Body: []byte(body)}
}

func directory(name string, mode int64) Entry {
	return Entry{Header: tar.Header{Name: name + "/", Mode: mode, Typeflag: tar.TypeDir}}
}

const pythonServer = `import http.server, os

class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = (os.environ.get("GREETING", "?") + " from python\n").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

print("listening on 8000", flush=True)
http.server.ThreadingHTTPServer(("", 8000), Hello).serve_forever()
`

func debianPython(t testing.TB) v1.Image {
	t.Helper()
	tool(t, "mmdebstrap", "mmdebstrap")
	base := made(t, "debian-python-"+imageRecipe+".tar", func(aside string) {
		// mmdebstrap tells the format from the name, so the name must end as tar archives do.
		target := aside + ".tar"
		run(t, nil, Cache(t), "mmdebstrap", "--quiet", "--variant=minbase", "--include=python3-minimal,libpython3-stdlib,ca-certificates",
			"--customize-hook=chroot \"$1\" useradd --create-home --uid 1000 --shell /bin/bash app", "bookworm", target)
		must(t, os.Rename(target, aside))
	})
	layer, err := tarball.LayerFromFile(base)
	must(t, err)
	owned := func(e Entry) Entry { e.Header.Uid, e.Header.Gid = 1000, 1000; return e }
	app, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(Tar(t,
			owned(directory("srv/app", 0o755)),
			owned(file("srv/app/server.py", 0o644, pythonServer)),
		))), nil
	})
	must(t, err)
	return newImage(t, v1.Config{
		User:         "app",
		WorkingDir:   "/srv/app",
		Env:          []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "GREETING=hello"},
		Cmd:          []string{"python3", "/srv/app/server.py"},
		ExposedPorts: map[string]struct{}{"8000/tcp": {}},
	}, layer, app)
}

func busybox(t testing.TB) v1.Image {
	t.Helper()
	binary := tool(t, "busybox", "busybox-static")
	data, err := os.ReadFile(binary)
	must(t, err)
	if bytes.Contains(data, []byte("/lib64/ld-linux-x86-64.so")) {
		t.Fatalf("testbed: %s is not static: run `make deps`, or install the Debian package busybox-static", binary)
	}
	var entries []Entry
	for _, dir := range []string{"bin", "dev", "etc", "lib", "proc", "sbin", "sys", "usr", "usr/bin", "usr/sbin", "var"} {
		entries = append(entries, directory(dir, 0o755))
	}
	entries = append(entries, directory("root", 0o700), directory("tmp", 0o1777), directory("home", 0o755),
		file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1000:guest:/home/guest:/bin/sh\n"),
		file("etc/group", 0o644, "root:x:0:\nguest:x:1000:\n"),
		Entry{Header: tar.Header{Name: "bin/busybox", Mode: 0o755}, Body: data})
	for applet := range strings.FieldsSeq(run(t, nil, "/", binary, "--list-full")) {
		if applet != "bin/busybox" {
			entries = append(entries, Entry{Header: tar.Header{Name: applet, Typeflag: tar.TypeSymlink, Linkname: "/bin/busybox", Mode: 0o777}})
		}
	}
	return NewImage(t, v1.Config{
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Cmd: []string{"/bin/sh"},
	}, Tar(t, entries...))
}

func static(t testing.TB) v1.Image {
	t.Helper()
	data, err := os.ReadFile(buildStatic(t, "static-server", "./internal/testbed/testdata/static"))
	must(t, err)
	return NewImage(t, v1.Config{
		User:         "65532:65532",
		Entrypoint:   []string{"/server"},
		ExposedPorts: map[string]struct{}{"8080/tcp": {}},
	}, Tar(t, Entry{Header: tar.Header{Name: "server", Mode: 0o755}, Body: data}))
}

// Ref is what Spore calls the image in a layout directory: "oci:DIR:latest".
func Ref(dir string) string { return fmt.Sprintf("oci:%s:latest", filepath.Clean(dir)) }
