package image

import (
	"context"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// source is a place that one image comes from.
type source interface {
	// root describes the manifest or index that the reference names. Data, where it is set, is the document itself.
	root(ctx context.Context) (v1.Descriptor, error)

	// open returns the bytes of a manifest, config or layer. Nobody has verified them yet. It fails with
	// spore.CodeNotFound when the source does not have them.
	open(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
}

// newSource returns the source that ref names. It does not look at it yet.
func (s *Store) newSource(ref Reference, o ResolveOptions) (source, error) {
	switch ref.Transport {
	case OCILayout:
		return &layoutSource{ref: ref, files: dirFiles(ref.Path)}, nil
	case OCIArchive:
		return &layoutSource{ref: ref, files: &tarFiles{path: ref.Path}}, nil
	case DockerArchive:
		return &dockerSource{ref: ref, files: &tarFiles{path: ref.Path}}, nil
	}
	return newRegistrySource(ref, o.Insecure || s.opts.Insecure, s.opts.Keychain, s.blobs)
}
