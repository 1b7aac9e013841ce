package gatewaytest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
)

// artifact is an artifact and its bytes; nil bytes are lost.
type artifact struct {
	*spore.Artifact
	content []byte
}

// AddArtifact adds an artifact with these bytes that is READY. The same bytes make the same artifact.
func (s *Service) AddArtifact(content string) *spore.Artifact {
	s.mu.Lock()
	defer s.mu.Unlock()
	return clone(s.addArtifact(content))
}

func (s *Service) addArtifact(content string) *spore.Artifact {
	digest := fmt.Sprintf("%x", sha256.Sum256([]byte(content)))
	id := spore.ArtifactPrefix + digest[:24]
	if a, err := s.artifact(id); err == nil {
		return a.Artifact
	}
	a := &spore.Artifact{
		ID: id, Status: spore.ArtifactReady, Digest: "sha256:" + digest, SizeBytes: int64(len(content)),
		Image: spore.Image{Reference: "example.test/image:1", Digest: "sha256:00", Platform: "linux/amd64"}, CreatedAt: Start, UpdatedAt: Start,
	}
	s.artifacts = append(s.artifacts, &artifact{a, []byte(content)})
	return a
}

// LoseArtifact takes an artifact's bytes away behind everybody's back.
func (s *Service) LoseArtifact(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a, err := s.artifact(id); err == nil {
		a.content = nil
	}
}

func (s *Service) artifact(id string) (*artifact, error) {
	for _, a := range s.artifacts {
		if a.ID == id {
			return a, nil
		}
	}
	return nil, spore.Errorf(spore.CodeNotFound, "there is no artifact %q", id).WithHint("spore artifact ls")
}

func (s *Service) Artifact(_ context.Context, id string) (*center.ArtifactDetails, error) {
	if err := s.enter("Artifact"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	a, err := s.artifact(id)
	if err != nil {
		return nil, err
	}
	d := &center.ArtifactDetails{Artifact: clone(a.Artifact), Placements: []spore.Placement{{ArtifactID: id, NodeID: "local", VerifiedAt: Start, CreatedAt: Start}}}
	for _, t := range s.templates {
		if t.ArtifactID == id && t.Status != spore.TemplateDeleted {
			d.Users++
		}
	}
	return d, nil
}

func (s *Service) Artifacts(_ context.Context, q center.ArtifactQuery) ([]*spore.Artifact, string, error) {
	if err := s.enter("Artifacts"); err != nil {
		return nil, "", err
	}
	defer s.mu.Unlock()
	var found []*spore.Artifact
	for _, a := range s.artifacts {
		if len(q.Statuses) == 0 || slices.Contains(q.Statuses, a.Status) {
			found = append(found, clone(a.Artifact))
		}
	}
	return page(found, q.Limit, q.PageToken)
}

func (s *Service) OpenArtifact(_ context.Context, id string) (center.ArtifactFile, error) {
	if err := s.enter("OpenArtifact"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	a, err := s.artifact(id)
	if err != nil {
		return nil, err
	}
	if a.content == nil {
		a.Status, a.LastError = spore.ArtifactFailed, "its bytes are gone"
		return nil, spore.Errorf(spore.CodeNotFound, "the bytes of artifact %s are gone", id).WithHint("build the template again")
	}
	return &artifactFile{Reader: bytes.NewReader(a.content), digest: a.Digest, fail: s.Fail}, nil
}

// artifactFile is an open artifact. With Fail it breaks in its middle.
type artifactFile struct {
	*bytes.Reader
	digest string
	fail   func(string) error
}

func (f *artifactFile) Digest() string { return f.digest }
func (f *artifactFile) Close() error   { return nil }

// WriteTo is hidden, so that what is read goes through Read.
func (f *artifactFile) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, struct{ io.Reader }{f}) }

func (f *artifactFile) Read(p []byte) (int, error) {
	if f.fail != nil && f.Len() <= int(f.Size())/2 {
		if err := f.fail("OpenArtifact/read"); err != nil {
			return 0, err
		}
	}
	return f.Reader.Read(p[:min(len(p), 1+f.Len()/2)])
}

func (s *Service) VerifyArtifact(_ context.Context, id string, full bool) (*center.ArtifactVerdict, error) {
	if err := s.enter("VerifyArtifact"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	a, err := s.artifact(id)
	if err != nil {
		return nil, err
	}
	verdict := center.NodeVerdict{NodeID: "local"}
	a.Status = spore.ArtifactReady
	if a.content == nil {
		a.Status = spore.ArtifactFailed
		verdict.Err = spore.Errorf(spore.CodeNotFound, "artifact %s is not on the node", id)
	}
	return &center.ArtifactVerdict{ArtifactID: id, Status: a.Status, Full: full, Nodes: []center.NodeVerdict{verdict}}, nil
}
