package node

import (
	"context"
	"io"

	"github.com/sporevm/spore"
)

// Rebake boots anew on the disk of a frozen state and freezes that under the id as.
func (n *Node) Rebake(ctx context.Context, t *spore.Template, as string, note func(string)) (*spore.Frozen, error) {
	return nil, spore.Errorf(spore.CodeUnsupported, "not yet")
}

// Fetch answers that machines do not reach each other.
func (n *Node) Fetch(ctx context.Context, t *spore.Template, as string, from []string, note func(string)) (*spore.Frozen, error) {
	return nil, spore.Errorf(spore.CodeUnsupported, "not yet")
}

// Probe thaws a frozen state once and ends it.
func (n *Node) Probe(ctx context.Context, t *spore.Template, frozenID string) error {
	return spore.Errorf(spore.CodeUnsupported, "not yet")
}

// Promote gives a frozen state another id.
func (n *Node) Promote(ctx context.Context, from, to string) (*spore.Frozen, error) {
	return nil, spore.Errorf(spore.CodeUnsupported, "not yet")
}

// VerifyFrozen says whether a frozen state is whole.
func (n *Node) VerifyFrozen(ctx context.Context, frozenID string, full bool) error {
	return spore.Errorf(spore.CodeUnsupported, "not yet")
}

// Diff says what differs between two frozen states.
func (n *Node) Diff(ctx context.Context, from, to string, limit int) (*spore.Diff, error) {
	return nil, spore.Errorf(spore.CodeUnsupported, "not yet")
}

// ResolveArtifact says which artifact an image would become.
func (n *Node) ResolveArtifact(ctx context.Context, spec spore.ArtifactSpec) (*spore.Artifact, error) {
	return nil, spore.Errorf(spore.CodeUnsupported, "not yet")
}

// VerifyArtifact says whether an artifact is what it should be.
func (n *Node) VerifyArtifact(ctx context.Context, id string, full bool) error {
	return spore.Errorf(spore.CodeUnsupported, "not yet")
}

// DropArtifact removes an artifact.
func (n *Node) DropArtifact(ctx context.Context, id string) error {
	return spore.Errorf(spore.CodeUnsupported, "not yet")
}

// OpenArtifact opens an artifact's filesystem image.
func (n *Node) OpenArtifact(ctx context.Context, id string) (interface {
	io.ReadSeekCloser
	Size() int64
	Digest() string
}, error) {
	return nil, spore.Errorf(spore.CodeUnsupported, "not yet")
}
