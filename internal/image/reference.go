package image

import (
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	spore "github.com/sporevm/spore"
)

// Transport is the kind of place that an image comes from.
type Transport string

const (
	Registry      Transport = "registry"
	OCILayout     Transport = "oci"
	OCIArchive    Transport = "oci-archive"
	DockerArchive Transport = "docker-archive"
)

// Reference names an image: a registry reference as container tools take it ("debian:12", "host:5000/app@sha256:..."),
// or a local one: "oci:DIR[:TAG]", "oci-archive:FILE[:TAG]", "docker-archive:FILE[:TAG]". A local path ends at the first
// colon.
type Reference struct {
	Transport Transport
	Path      string // of the directory or file; empty for a registry
	Tag       string // which of the images at Path; empty when there is only one

	remote name.Reference
	text   string
}

// ParseReference reads a reference. It looks at nothing but the text. The error is CodeInvalid on the field image.
func ParseReference(s string) (Reference, error) {
	refuse := func(format string, args ...any) (Reference, error) {
		return Reference{}, spore.Invalidf("image", format, args...).
			WithHint("use NAME[:TAG], NAME@DIGEST, oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:TAG]")
	}
	switch {
	case s == "":
		return refuse("the image reference is empty")
	case strings.HasPrefix(s, "-"):
		return refuse("%q begins with a dash, so it reads like an option", s)
	case len(s) > 4096:
		return refuse("the image reference is longer than 4096 bytes")
	}
	for _, c := range s {
		if c < ' ' || c == 0x7f {
			return refuse("%q holds a control character", s)
		}
	}
	for _, t := range []Transport{OCILayout, OCIArchive, DockerArchive} {
		rest, ok := strings.CutPrefix(s, string(t)+":")
		if !ok {
			continue
		}
		path, tag, tagged := strings.Cut(rest, ":")
		if path == "" {
			return refuse("%q names no path", s)
		}
		if tagged && tag == "" {
			return refuse("%q ends in a colon but names no tag", s)
		}
		return Reference{Transport: t, Path: path, Tag: tag, text: s}, nil
	}
	for _, scheme := range []string{"docker://", "http://", "https://", "containers-storage:", "docker-daemon:", "dir:"} {
		if strings.HasPrefix(s, scheme) {
			return refuse("%q: references that begin with %q are not supported", s, scheme)
		}
	}
	ref, err := name.ParseReference(s)
	if err != nil {
		return refuse("%q is not a valid image reference", s)
	}
	for part := range strings.SplitSeq(ref.Context().RepositoryStr(), "/") {
		if strings.Trim(part, "._-") != part || part == "" {
			return refuse("%q is not a valid image reference: %q cannot be a part of a repository's name", s, part)
		}
	}
	return Reference{Transport: Registry, remote: ref, text: s}, nil
}

// String returns the reference as it was given.
func (r Reference) String() string { return r.text }
