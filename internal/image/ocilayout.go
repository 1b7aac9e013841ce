package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	spore "github.com/sporevm/spore"
)

// maxDocument bounds manifests, indexes and configs.
const maxDocument = 8 << 20

const refNameAnnotation = "org.opencontainers.image.ref.name"

// layoutSource is an image in an OCI layout, be that a directory or an archive.
type layoutSource struct {
	ref   Reference
	files files
}

func (s *layoutSource) root(ctx context.Context) (v1.Descriptor, error) {
	data, err := readFile(s.files, "index.json")
	if isMissing(err) {
		return v1.Descriptor{}, spore.Invalidf("image", "%s holds no OCI image: it has no index.json", s.ref.Path).WithCause(err).
			WithHint("for the output of docker save use docker-archive:")
	}
	if err != nil {
		return v1.Descriptor{}, err
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(data, &index); err != nil {
		return v1.Descriptor{}, spore.Invalidf("image", "the index.json of %s is malformed", s.ref.Path).WithCause(err).WithHint("save the image again")
	}
	return s.choose(data, index.Manifests)
}

// choose finds what the tag names. Without a tag there must be one image only, though it may have several platforms.
func (s *layoutSource) choose(data []byte, all []v1.Descriptor) (v1.Descriptor, error) {
	if len(all) == 0 {
		return v1.Descriptor{}, spore.Errorf(spore.CodeNotFound, "%s holds no image", s.ref.Path).WithHint("save the image again")
	}
	var tags []string
	matched := all[:0:0]
	for _, d := range all {
		tag := d.Annotations[refNameAnnotation]
		if tag != "" && !slices.Contains(tags, tag) {
			tags = append(tags, tag)
		}
		if s.ref.Tag == "" || tag == s.ref.Tag || strings.HasSuffix(tag, ":"+s.ref.Tag) {
			matched = append(matched, d)
		}
	}
	switch {
	case len(matched) == 1:
		matched[0].Data = nil
		return matched[0], nil
	case len(matched) == 0:
		return v1.Descriptor{}, spore.Errorf(spore.CodeNotFound, "%s holds no image tagged %q", s.ref.Path, s.ref.Tag).
			WithHint("%s", tagHint(tags))
	case s.ref.Tag == "" && len(tags) > 1:
		return v1.Descriptor{}, spore.Invalidf("image", "%s holds several images", s.ref.Path).WithHint("%s", tagHint(tags))
	}
	// Several manifests under one name, or under none, are the platforms of one image.
	part, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: matched})
	if err != nil {
		return v1.Descriptor{}, err
	}
	digest, size, err := v1.SHA256(strings.NewReader(string(part)))
	return v1.Descriptor{MediaType: types.OCIImageIndex, Digest: digest, Size: size, Data: part}, err
}

func tagHint(tags []string) string {
	if len(tags) == 0 {
		return "leave the tag out"
	}
	slices.Sort(tags)
	return "append one of these tags: " + strings.Join(tags, ", ")
}

func (s *layoutSource) open(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	rc, err := s.files.open("blobs/" + d.Digest.Algorithm + "/" + d.Digest.Hex)
	if isMissing(err) {
		return nil, spore.Errorf(spore.CodeNotFound, "%s does not have %s, which the image consists of", s.ref.Path, d.Digest).WithCause(err).
			WithHint("save the image again")
	}
	return rc, err
}

// readFile returns a document of limited size.
func readFile(f files, name string) ([]byte, error) {
	rc, err := f.open(name)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	data, err := io.ReadAll(io.LimitReader(rc, maxDocument+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxDocument {
		return nil, spore.Invalidf("image", "%s is larger than %d bytes", name, maxDocument).WithHint("this is not an image that Spore can read")
	}
	return data, nil
}

// errTooLarge is for documents that come from elsewhere.
func errTooLarge(d v1.Descriptor) error {
	return spore.Errorf(spore.CodeInvalid, "the document %s claims %d bytes, more than the allowed %d", d.Digest, d.Size, maxDocument).
		WithCause(fmt.Errorf("media type %q", d.MediaType))
}
