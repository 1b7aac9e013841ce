package image

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	spore "github.com/sporevm/spore"
)

// dockerSource is an image in an archive as "docker save" writes it. Such an archive has no OCI manifest, so that one is
// made up; its digest then is the image id, which is the digest of the config.
type dockerSource struct {
	ref   Reference
	files files

	names map[string]string // digest to name in the archive
}

// dockerImage is an element of the archive's manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (s *dockerSource) root(ctx context.Context) (v1.Descriptor, error) {
	img, err := s.choose()
	if err != nil {
		return v1.Descriptor{}, err
	}
	config, err := readFile(s.files, img.Config)
	if err != nil {
		return v1.Descriptor{}, s.missing(img.Config, err)
	}
	id, size, err := v1.SHA256(bytes.NewReader(config))
	if err != nil {
		return v1.Descriptor{}, err
	}
	var parsed v1.ConfigFile
	if err := json.Unmarshal(config, &parsed); err != nil {
		return v1.Descriptor{}, notArchive(s.ref.Path, "holds a malformed image config").WithCause(err)
	}
	if len(parsed.RootFS.DiffIDs) != len(img.Layers) {
		return v1.Descriptor{}, notArchive(s.ref.Path, "lists other layers than its image config")
	}
	s.names = map[string]string{id.String(): img.Config}
	manifest := v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		Config:        v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: id, Size: size},
	}
	for i, name := range img.Layers {
		d, err := s.layer(ctx, name, parsed.RootFS.DiffIDs[i])
		if err != nil {
			return v1.Descriptor{}, err
		}
		s.names[d.Digest.String()] = name
		manifest.Layers = append(manifest.Layers, d)
	}
	data, err := json.Marshal(manifest)
	if err != nil {
		return v1.Descriptor{}, err
	}
	return v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: id, Size: int64(len(data)), Data: data}, nil
}

// choose reads the list of images and finds the one that the tag names.
func (s *dockerSource) choose() (dockerImage, error) {
	data, err := readFile(s.files, "manifest.json")
	if isMissing(err) {
		return dockerImage{}, spore.Invalidf("image", "%s was not written by docker save: it has no manifest.json", s.ref.Path).WithCause(err).
			WithHint("for an OCI archive use oci-archive:")
	}
	if err != nil {
		return dockerImage{}, err
	}
	var images []dockerImage
	if err := json.Unmarshal(data, &images); err != nil {
		return dockerImage{}, notArchive(s.ref.Path, "has a malformed manifest.json").WithCause(err)
	}
	var tags []string
	matched := images[:0:0]
	for _, img := range images {
		tags = append(tags, img.RepoTags...)
		if s.ref.Tag == "" || slices.ContainsFunc(img.RepoTags, s.tagMatches) {
			matched = append(matched, img)
		}
	}
	switch {
	case len(matched) == 1:
		return matched[0], nil
	case len(matched) == 0 && s.ref.Tag != "":
		return dockerImage{}, spore.Errorf(spore.CodeNotFound, "%s holds no image tagged %q", s.ref.Path, s.ref.Tag).WithHint("%s", tagHint(tags))
	case len(matched) == 0:
		return dockerImage{}, spore.Errorf(spore.CodeNotFound, "%s holds no image", s.ref.Path).WithHint("save the image again")
	}
	return dockerImage{}, spore.Invalidf("image", "%s holds several images", s.ref.Path).WithHint("%s", tagHint(tags))
}

// tagMatches compares "debian:12" with itself, with "12", and with the longer names that tools write for it.
func (s *dockerSource) tagMatches(tag string) bool {
	return tag == s.ref.Tag || strings.HasSuffix(tag, ":"+s.ref.Tag) || strings.HasSuffix(tag, "/"+s.ref.Tag)
}

// layer describes a layer by what it really is: uncompressed ones have the digest that the config names, those in an
// OCI layout are named by theirs, and for others there is no way but to read them.
func (s *dockerSource) layer(ctx context.Context, name string, diffID v1.Hash) (v1.Descriptor, error) {
	rc, err := s.files.open(name)
	if err != nil {
		return v1.Descriptor{}, s.missing(name, err)
	}
	defer rc.Close()
	r := bufio.NewReader(ctxReader{ctx, rc})
	magic, err := r.Peek(4)
	if err != nil && err != io.EOF {
		return v1.Descriptor{}, s.missing(name, err)
	}
	d := v1.Descriptor{MediaType: types.OCIUncompressedLayer, Digest: diffID, Size: -1}
	switch {
	case bytes.HasPrefix(magic, gzipMagic):
		d.MediaType = types.OCILayer
	case bytes.HasPrefix(magic, zstdMagic):
		d.MediaType = types.OCILayerZStd
	default:
		return d, nil
	}
	if hex, ok := strings.CutPrefix(path.Clean(name), "blobs/sha256/"); ok {
		if d.Digest, err = v1.NewHash("sha256:" + hex); err == nil {
			return d, nil
		}
	}
	d.Digest, d.Size, err = v1.SHA256(r)
	return d, err
}

func (s *dockerSource) missing(name string, err error) error {
	if isMissing(err) {
		return notArchive(s.ref.Path, "lacks its member "+name).WithCause(err)
	}
	return err
}

func (s *dockerSource) open(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	name, ok := s.names[d.Digest.String()]
	if !ok {
		return nil, spore.Errorf(spore.CodeNotFound, "%s does not have %s", s.ref.Path, d.Digest)
	}
	return s.files.open(name)
}
