package testbed

import (
	"io"
	"log"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Registry starts an image registry on a loopback port, in memory, and returns its host and port. It ends with the test.
func Registry(t testing.TB) string {
	t.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// Push pushes the image of an OCI layout directory to ref, such as Registry's answer and "/debian-python:1".
func Push(t testing.TB, dir, ref string) {
	t.Helper()
	PushImage(t, LayoutImage(t, dir), ref)
}

// PushImage pushes image to ref.
func PushImage(t testing.TB, image v1.Image, ref string) {
	t.Helper()
	to, err := name.ParseReference(ref, name.Insecure)
	must(t, err)
	must(t, remote.Write(to, image))
}

// LayoutImage opens the first image of an OCI layout directory.
func LayoutImage(t testing.TB, dir string) v1.Image {
	t.Helper()
	index, err := layout.ImageIndexFromPath(dir)
	must(t, err)
	manifest, err := index.IndexManifest()
	must(t, err)
	if len(manifest.Manifests) == 0 {
		t.Fatalf("testbed: the layout %s holds no image", dir)
	}
	image, err := index.Image(manifest.Manifests[0].Digest)
	must(t, err)
	return image
}
