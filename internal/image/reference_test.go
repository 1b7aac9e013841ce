package image

import (
	"strings"
	"testing"

	spore "github.com/sporevm/spore"
)

func TestParseReference(t *testing.T) {
	digest := "sha256:" + strings.Repeat("ab", 32)
	for _, tt := range []struct {
		in        string
		transport Transport
		path, tag string
		remote    string
	}{
		{in: "debian", transport: Registry, remote: "index.docker.io/library/debian:latest"},
		{in: "debian:12", transport: Registry, remote: "index.docker.io/library/debian:12"},
		{in: "localhost:5000/a/b:c", transport: Registry, remote: "localhost:5000/a/b:c"},
		{in: "ghcr.io/a/b@" + digest, transport: Registry, remote: "ghcr.io/a/b@" + digest},
		{in: "oci:/images/x", transport: OCILayout, path: "/images/x"},
		{in: "oci:dir:v1", transport: OCILayout, path: "dir", tag: "v1"},
		{in: "oci-archive:/x.tar:name:tag", transport: OCIArchive, path: "/x.tar", tag: "name:tag"},
		{in: "docker-archive:x.tar", transport: DockerArchive, path: "x.tar"},
	} {
		ref, err := ParseReference(tt.in)
		if err != nil {
			t.Errorf("%s: %v", tt.in, err)
			continue
		}
		if ref.Transport != tt.transport || ref.Path != tt.path || ref.Tag != tt.tag || ref.String() != tt.in {
			t.Errorf("%s: %+v", tt.in, ref)
		}
		if tt.remote != "" && ref.remote.Name() != tt.remote {
			t.Errorf("%s: %s, want %s", tt.in, ref.remote.Name(), tt.remote)
		}
	}
	for _, in := range []string{
		"", "-v", "--help", " ", "UPPER", "a b", "a\nb", "a\x00b", "oci:", "oci-archive:", "oci::tag", "docker-archive:x:", "docker://x",
		"https://x/y", "x@sha256:12", "x:" + strings.Repeat("t", 200), strings.Repeat("a/", 3000), "a/../b", "dir:/x",
	} {
		_, err := ParseReference(in)
		if e := spore.AsError(err); spore.CodeOf(err) != spore.CodeInvalid || e.Field != "image" || e.Hint == "" {
			t.Errorf("%q: %#v", in, err)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"debian:12", "oci:dir:tag", "oci-archive:f", "docker-archive:f:a:b", "-x", "h:5000/a@sha256:00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseReference(s)
		if err != nil {
			if spore.CodeOf(err) != spore.CodeInvalid {
				t.Fatal(err)
			}
			return
		}
		if ref.String() != s || strings.HasPrefix(s, "-") || (ref.Transport == Registry) == (ref.remote == nil) || (ref.Path == "") == (ref.remote == nil) {
			t.Fatalf("%q: %+v", s, ref)
		}
	})
}
