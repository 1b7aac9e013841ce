package gateway

import (
	"cmp"
	"context"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/center"
)

func components(c spore.Components) api.Components {
	return api.Components{GuestImage: c.GuestImage, Agent: c.Agent, Kernel: c.Kernel, Engine: c.Engine, EngineVersion: c.EngineVersion, StateFormat: c.StateFormat, CPU: c.CPU}
}

func (n *native) GetCompatMatrix(ctx context.Context, r api.GetCompatMatrixRequestObject) (api.GetCompatMatrixResponseObject, error) {
	limit, err := pageLimit(r.Params.Limit)
	if err != nil {
		return nil, err
	}
	m, err := n.svc.CompatMatrix(ctx, center.CompatQuery{Template: r.Params.Template, Limit: limit, PageToken: r.Params.PageToken})
	if err != nil {
		return nil, err
	}
	s := m.Summary
	out := api.GetCompatMatrix200JSONResponse{
		Summary: api.CompatSummary{
			StaleTemplates: s.StaleTemplates, StaleReplicas: s.StaleReplicas, AffectedNodes: s.AffectedNodes,
			MissingReplicas: s.MissingReplicas, UnknownReplicas: s.UnknownReplicas,
		},
		Templates:     make([]api.CompatRow, 0, len(m.Templates)),
		NextPageToken: m.Next,
	}
	for i := range m.Templates {
		out.Templates = append(out.Templates, compatRow(&m.Templates[i]))
	}
	return out, nil
}

func compatRow(r *spore.CompatRow) api.CompatRow {
	out := api.CompatRow{
		TemplateID: r.TemplateID, Name: r.Name, Kind: r.Kind, Engine: r.Engine, Overall: cmp.Or(r.Overall, spore.CompatUnknown),
		Nodes: make([]api.NodeCompat, 0, len(r.Nodes)),
	}
	for _, c := range r.Nodes {
		out.Nodes = append(out.Nodes, api.NodeCompat{
			NodeID: c.NodeID, NodeAddress: c.NodeAddress, Status: cmp.Or(c.Status, spore.CompatUnknown), Policy: c.Policy,
			Bound: components(c.Bound), Current: components(c.Current), Why: c.Gap.Why, Cure: c.Gap.Cure, CheckedAt: utc(c.CheckedAt),
		})
	}
	return out
}

func (n *native) ScanCompat(ctx context.Context, r api.ScanCompatRequestObject) (api.ScanCompatResponseObject, error) {
	var nodes []string
	if r.Body != nil {
		nodes = r.Body.Nodes
	}
	s, err := n.svc.ScanCompat(ctx, nodes)
	if err != nil {
		return nil, err
	}
	return api.ScanCompat200JSONResponse{Nodes: list(s.Nodes), Replicas: s.Replicas, Changed: s.Changed, Stale: s.Stale}, nil
}

func (n *native) AdoptBaseline(ctx context.Context, r api.AdoptBaselineRequestObject) (api.AdoptBaselineResponseObject, error) {
	var req center.AdoptRequest
	if r.Body != nil {
		req = center.AdoptRequest{Template: r.Body.Template, Nodes: r.Body.Nodes}
	}
	adopted, err := n.svc.AdoptBaseline(ctx, req)
	if err != nil {
		return nil, err
	}
	return api.AdoptBaseline200JSONResponse{Adopted: adopted}, nil
}
