package client

import (
	"context"
	"iter"

	"github.com/sporevm/spore/api"
)

// CompatSummary counts over all templates and nodes.
func (c *Client) CompatSummary(ctx context.Context) (*api.CompatSummary, error) {
	m, err := answer[api.CompatMatrix](c.api.GetCompatMatrix(ctx, &api.GetCompatMatrixParams{Limit: 1}))
	if err != nil {
		return nil, err
	}
	return &m.Summary, nil
}

// CompatRows lists templates and snapshots with how they fit the nodes; template, an id, name or alias, asks for one only.
// An error ends the list.
func (c *Client) CompatRows(ctx context.Context, template string) iter.Seq2[api.CompatRow, error] {
	return pages(func(token string) ([]api.CompatRow, string, error) {
		m, err := c.CompatPage(ctx, api.GetCompatMatrixParams{Template: template, PageToken: token})
		if err != nil {
			return nil, "", err
		}
		return m.Templates, m.NextPageToken, nil
	})
}

// CompatPage answers one page of the matrix, with the summary over all of it.
func (c *Client) CompatPage(ctx context.Context, params api.GetCompatMatrixParams) (*api.CompatMatrix, error) {
	return answer[api.CompatMatrix](c.api.GetCompatMatrix(ctx, &params))
}

// ScanCompat judges the replicas on some nodes anew; no nodes means all.
func (c *Client) ScanCompat(ctx context.Context, nodes ...string) (*api.CompatScan, error) {
	return answer[api.CompatScan](c.api.ScanCompat(ctx, api.NodeSelection{Nodes: nodes}))
}

// AdoptBaseline declares that UNKNOWN replicas were frozen with what their nodes have now, and answers how many. An empty
// template means all of them, and no nodes means all.
func (c *Client) AdoptBaseline(ctx context.Context, template string, nodes ...string) (int, error) {
	a, err := answer[api.Adoption](c.api.AdoptBaseline(ctx, api.AdoptRequest{Template: template, Nodes: nodes}))
	if err != nil {
		return 0, err
	}
	return a.Adopted, nil
}
