package node

import (
	"context"

	"github.com/sporevm/spore"
)

// Diff says what differs between two frozen states.
func (n *Node) Diff(ctx context.Context, from, to string, limit int) (*spore.Diff, error) {
	return nil, spore.Errorf(spore.CodeUnsupported, "not yet")
}
