package image

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	spore "github.com/sporevm/spore"
)

// ResolveOptions say how to reach an image.
type ResolveOptions struct {
	Insecure bool // allow plain HTTP to this registry; loopback addresses never need it
}

// Resolved is an image for this platform: what it says, and what it consists of.
type Resolved struct {
	Image   Image
	Config  Config
	DiffIDs []string // digests of the uncompressed layers, bottom first

	layers []layer
	source source
}

// layer is one layer in the form in which its source has it.
type layer struct {
	desc   v1.Descriptor
	diffID v1.Hash
}

// Resolve finds out what ref stands for right now, for this machine's architecture. It fetches manifests and the
// config, which are small, and nothing that the store has already.
//
// It fails with CodeInvalid when the reference, or the image, is not one that can be used; with CodeNotFound when there
// is no such image; with CodeUnreachable when its registry does not answer; with CodeDamaged when a digest is wrong.
func (s *Store) Resolve(ctx context.Context, ref string, o ResolveOptions) (*Resolved, error) {
	parsed, err := ParseReference(ref)
	if err != nil {
		return nil, err
	}
	src, err := s.newSource(parsed, o)
	if err != nil {
		return nil, err
	}
	root, err := src.root(ctx)
	if err != nil {
		return nil, err
	}
	return s.resolveManifest(ctx, parsed, src, root)
}

func (s *Store) resolveManifest(ctx context.Context, ref Reference, src source, d v1.Descriptor) (*Resolved, error) {
	data, d, err := s.manifestFor(ctx, ref, src, d, 0)
	if err != nil {
		return nil, err
	}
	var m v1.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, notAnImage(ref, "its manifest is malformed").WithCause(err)
	}
	switch m.Config.MediaType {
	case types.OCIConfigJSON, types.DockerConfigJSON:
	default:
		return nil, notAnImage(ref, "its config is of type "+string(m.Config.MediaType))
	}
	m.Config.Data = nil
	rawConfig, err := s.document(ctx, src, m.Config)
	if err != nil {
		return nil, err
	}
	var config v1.ConfigFile
	if err := json.Unmarshal(rawConfig, &config); err != nil {
		return nil, notAnImage(ref, "its config is malformed").WithCause(err)
	}
	have := v1.Platform{OS: config.OS, Architecture: config.Architecture, Variant: config.Variant}
	if !suits(have) {
		return nil, wrongPlatform(ref, []string{have.String()})
	}
	if len(config.RootFS.DiffIDs) != len(m.Layers) {
		return nil, notAnImage(ref, "its manifest and its config list different layers")
	}
	r := &Resolved{
		Image: Image{
			Reference:      ref.String(),
			ManifestDigest: d.Digest.String(),
			ConfigDigest:   m.Config.Digest.String(),
			Platform:       have.String(),
		},
		Config: processConfig(config.Config),
		source: src,
	}
	for i, l := range m.Layers {
		if _, err := compressionOf(l); err != nil {
			return nil, err
		}
		if _, err := s.blobs.path(l.Digest); err != nil {
			return nil, err
		}
		diffID := config.RootFS.DiffIDs[i]
		if _, err := s.blobs.path(diffID); err != nil {
			return nil, err
		}
		r.layers = append(r.layers, layer{l, diffID})
		r.DiffIDs = append(r.DiffIDs, diffID.String())
	}
	return r, nil
}

// manifestFor returns the manifest that d describes, or the one of this platform in the index that it describes.
func (s *Store) manifestFor(ctx context.Context, ref Reference, src source, d v1.Descriptor, depth int) ([]byte, v1.Descriptor, error) {
	data, err := s.document(ctx, src, d)
	if err != nil {
		return nil, d, err
	}
	// The media type inside counts where the outside gives none, as when a manifest comes from the cache.
	var head struct {
		MediaType     types.MediaType `json:"mediaType"`
		SchemaVersion int             `json:"schemaVersion"`
		Manifests     json.RawMessage `json:"manifests"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, d, notAnImage(ref, "its manifest is not JSON").WithCause(err)
	}
	if d.MediaType == "" {
		d.MediaType = head.MediaType
	}
	if head.SchemaVersion == 1 {
		return nil, d, notAnImage(ref, "its manifest is of the obsolete schema 1")
	}
	if !d.MediaType.IsIndex() && head.Manifests == nil {
		if d.MediaType != "" && !d.MediaType.IsImage() {
			return nil, d, notAnImage(ref, "its manifest is of type "+string(d.MediaType))
		}
		return data, d, nil
	}
	if depth == 3 {
		return nil, d, notAnImage(ref, "its indexes are nested too deeply")
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, d, notAnImage(ref, "its index is malformed").WithCause(err)
	}
	child, err := choosePlatform(ref, index.Manifests)
	if err != nil {
		return nil, d, err
	}
	return s.manifestFor(ctx, ref, src, child, depth+1)
}

// choosePlatform finds the manifest of this machine's platform. Of several, the first that wants no special variant.
func choosePlatform(ref Reference, all []v1.Descriptor) (v1.Descriptor, error) {
	var (
		names []string
		found []v1.Descriptor
	)
	for _, d := range all {
		switch {
		case d.Platform == nil:
			if d.MediaType.IsIndex() || len(all) == 1 {
				found = append(found, d)
			}
		case d.Platform.OS == "unknown": // attestations
		case suits(*d.Platform):
			found = append(found, d)
		default:
			names = append(names, d.Platform.String())
		}
	}
	if len(found) == 0 {
		return v1.Descriptor{}, wrongPlatform(ref, names)
	}
	found[0].Data = nil // embedded by whoever made the index, so not to be trusted
	return found[0], nil
}

// suits says whether a platform's programs run here.
func suits(p v1.Platform) bool {
	if p.OS != "linux" || p.Architecture != runtime.GOARCH {
		return false
	}
	switch runtime.GOARCH {
	case "amd64":
		return p.Variant == "" || p.Variant == "v1"
	case "arm64":
		return p.Variant == "" || p.Variant == "v8"
	}
	return true
}

// document returns a manifest or config, verified, from the store or else from the source.
func (s *Store) document(ctx context.Context, src source, d v1.Descriptor) ([]byte, error) {
	if d.Size > maxDocument {
		return nil, errTooLarge(d)
	}
	open := func() (io.ReadCloser, error) { return src.open(ctx, d) }
	if d.Data != nil {
		digest, _, err := v1.SHA256(bytes.NewReader(d.Data))
		if err != nil || digest != d.Digest {
			return d.Data, err // made up by the source, so there is nothing to verify or to keep
		}
		open = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(d.Data)), nil }
	}
	if data, err := s.blobs.read(d.Digest, maxDocument); err == nil {
		return data, nil
	}
	if err := s.blobs.ensure(ctx, d, "document", open, func(int64) {}); err != nil {
		return nil, err
	}
	return s.blobs.read(d.Digest, maxDocument)
}

func notAnImage(ref Reference, why string) *spore.Error {
	return spore.Invalidf("image", "%s is not a container image that Spore can use: %s", ref, why).
		WithHint("build it again with a current tool")
}

func wrongPlatform(ref Reference, available []string) error {
	slices.Sort(available)
	available = slices.Compact(available)
	if len(available) == 0 {
		available = []string{"none"}
	}
	return spore.Invalidf("image", "%s is not available for linux/%s", ref, runtime.GOARCH).
		WithHint("it is available for: %s", strings.Join(available, ", "))
}

func processConfig(c v1.Config) Config {
	return Config{
		Entrypoint:   c.Entrypoint,
		Cmd:          c.Cmd,
		Env:          c.Env,
		User:         c.User,
		WorkingDir:   c.WorkingDir,
		StopSignal:   c.StopSignal,
		ExposedPorts: slices.Sorted(maps.Keys(c.ExposedPorts)),
		Labels:       c.Labels,
		Volumes:      slices.Sorted(maps.Keys(c.Volumes)),
	}
}
