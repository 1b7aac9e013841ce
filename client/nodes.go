package client

import (
	"context"

	"github.com/sporevm/spore/api"
)

// ListNodes lists the nodes in the order of their ids; with all, the forgotten ones too.
func (c *Client) ListNodes(ctx context.Context, all bool) ([]api.Node, error) {
	l, err := answer[api.NodeList](c.api.ListNodes(ctx, &api.ListNodesParams{All: all}))
	if err != nil {
		return nil, err
	}
	return l.Nodes, nil
}

// GetNode shows a node.
func (c *Client) GetNode(ctx context.Context, id string) (*api.Node, error) {
	return answer[api.Node](c.api.GetNode(ctx, id))
}

// LabelNode gives a node these labels, and no others.
func (c *Client) LabelNode(ctx context.Context, id string, labels map[string]string) (*api.Node, error) {
	if labels == nil {
		labels = map[string]string{}
	}
	return answer[api.Node](c.api.UpdateNode(ctx, id, api.NodeUpdate{Labels: labels}))
}

// DrainNode gives a node no new sandboxes and replicas, and has its replicas made elsewhere. What runs there goes on.
func (c *Client) DrainNode(ctx context.Context, id string) (*api.Node, error) {
	return answer[api.Node](c.api.DrainNode(ctx, id))
}

// UndrainNode uses a node again.
func (c *Client) UndrainNode(ctx context.Context, id string) (*api.Node, error) {
	return answer[api.Node](c.api.UndrainNode(ctx, id))
}

// ForgetNode gives up a node that is not coming back; one that answers is spore.CodeConflict. With dryRun it only says what
// would be lost.
func (c *Client) ForgetNode(ctx context.Context, id string, dryRun bool) (*api.Forgetting, error) {
	return answer[api.Forgetting](c.api.ForgetNode(ctx, id, &api.ForgetNodeParams{DryRun: dryRun}))
}

// NodeStorage says how full the nodes' disks are. With refresh the nodes are asked now. A node that cannot be asked says
// why in its LastError.
func (c *Client) NodeStorage(ctx context.Context, refresh bool) ([]api.NodeStorageStatus, error) {
	l, err := answer[api.NodeStorageList](c.api.GetNodeStorage(ctx, &api.GetNodeStorageParams{Refresh: refresh}))
	if err != nil {
		return nil, err
	}
	return l.Nodes, nil
}
