package gateway

import (
	"cmp"
	"context"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/center"
)

func node(m *spore.Node) api.Node {
	out := api.Node{
		ID: m.ID, Address: m.Address, State: m.State, StateReason: m.StateReason, Draining: m.Draining, Labels: dict(m.Labels), Engine: m.Engine,
		Components: components(m.Components), Installed: make([]api.Components, 0, len(m.Installed)),
		Networks: make([]api.NodeNetwork, 0, len(m.Networks)),
		VCPUs:    m.VCPUs, MemoryMiB: m.MemoryMiB, MemoryPromisedMiB: m.MemoryPromisedMiB, Sandboxes: m.Sandboxes, Storage: nodeStorage(m.Storage),
		CreatedAt: m.CreatedAt.UTC(), UpdatedAt: m.UpdatedAt.UTC(), SeenAt: utc(m.SeenAt),
	}
	for _, c := range m.Installed {
		out.Installed = append(out.Installed, components(c))
	}
	for _, has := range m.Networks {
		out.Networks = append(out.Networks, api.NodeNetwork{Mode: has.Mode, WhyNot: has.WhyNot})
	}
	return out
}

func nodeStorage(s spore.NodeStorage) api.NodeStorage {
	return api.NodeStorage{
		Mode: cmp.Or(s.Mode, spore.StorageUnknown), UsagePct: s.UsagePct(), TotalBytes: s.TotalBytes, UsedBytes: s.UsedBytes, ReservedBytes: s.ReservedBytes,
		Limits:    api.StorageLimits{Warn: s.Limits.Warn, Reject: s.Limits.Reject, DeleteOnly: s.Limits.DeleteOnly},
		LastError: s.LastError, LastUpdatedAt: utc(s.MeasuredAt),
	}
}

func (n *native) ListNodes(ctx context.Context, r api.ListNodesRequestObject) (api.ListNodesResponseObject, error) {
	found, err := n.svc.Nodes(ctx, r.Params.All)
	if err != nil {
		return nil, err
	}
	return api.ListNodes200JSONResponse{Nodes: each(found, node)}, nil
}

func (n *native) GetNode(ctx context.Context, r api.GetNodeRequestObject) (api.GetNodeResponseObject, error) {
	m, err := n.svc.Node(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return api.GetNode200JSONResponse(node(m)), nil
}

func (n *native) UpdateNode(ctx context.Context, r api.UpdateNodeRequestObject) (api.UpdateNodeResponseObject, error) {
	m, err := n.svc.UpdateNode(ctx, r.ID, center.NodeUpdate{Labels: dict(r.Body.Labels)})
	if err != nil {
		return nil, err
	}
	return api.UpdateNode200JSONResponse(node(m)), nil
}

func (n *native) DrainNode(ctx context.Context, r api.DrainNodeRequestObject) (api.DrainNodeResponseObject, error) {
	m, err := n.svc.DrainNode(ctx, r.ID, true)
	if err != nil {
		return nil, err
	}
	return api.DrainNode200JSONResponse(node(m)), nil
}

func (n *native) UndrainNode(ctx context.Context, r api.UndrainNodeRequestObject) (api.UndrainNodeResponseObject, error) {
	m, err := n.svc.DrainNode(ctx, r.ID, false)
	if err != nil {
		return nil, err
	}
	return api.UndrainNode200JSONResponse(node(m)), nil
}

func (n *native) ForgetNode(ctx context.Context, r api.ForgetNodeRequestObject) (api.ForgetNodeResponseObject, error) {
	f, err := n.svc.ForgetNode(ctx, r.ID, r.Params.DryRun)
	if err != nil {
		return nil, err
	}
	return api.ForgetNode200JSONResponse{NodeID: f.NodeID, DryRun: f.DryRun, Replicas: f.Replicas, Lost: list(f.Lost), Sandboxes: list(f.Sandboxes)}, nil
}

func (n *native) GetNodeStorage(ctx context.Context, r api.GetNodeStorageRequestObject) (api.GetNodeStorageResponseObject, error) {
	found, err := n.svc.NodeStorage(ctx, r.Params.Refresh)
	if err != nil {
		return nil, err
	}
	out := api.GetNodeStorage200JSONResponse{Nodes: make([]api.NodeStorageStatus, 0, len(found))}
	for _, s := range found {
		out.Nodes = append(out.Nodes, api.NodeStorageStatus{NodeID: s.NodeID, Address: s.Address, Storage: nodeStorage(s.NodeStorage)})
	}
	return out, nil
}
