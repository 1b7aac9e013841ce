package gateway

import (
	"context"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/center"
)

var templateKinds = map[spore.TemplateKind]bool{spore.KindTemplate: true, spore.KindSnapshot: true}

func (n *native) BuildTemplate(ctx context.Context, r api.BuildTemplateRequestObject) (api.BuildTemplateResponseObject, error) {
	key, err := n.idempotency(ctx, r.Params.IdempotencyKey)
	if err != nil {
		return nil, err
	}
	t, j, err := n.svc.BuildTemplate(ctx, key, buildRequest(r.Body))
	if err != nil {
		return nil, err
	}
	return api.BuildTemplate202JSONResponse{Template: template(t), Job: job(j)}, nil
}

func (n *native) CommitSandbox(ctx context.Context, r api.CommitSandboxRequestObject) (api.CommitSandboxResponseObject, error) {
	key, err := n.idempotency(ctx, r.Params.IdempotencyKey)
	if err != nil {
		return nil, err
	}
	t, j, err := n.svc.CommitSandbox(ctx, key, r.ID, center.CommitRequest{Name: r.Body.Name, Labels: r.Body.Labels})
	if err != nil {
		return nil, err
	}
	return api.CommitSandbox202JSONResponse{Template: template(t), Job: job(j)}, nil
}

func (n *native) ListTemplates(ctx context.Context, r api.ListTemplatesRequestObject) (api.ListTemplatesResponseObject, error) {
	p := r.Params
	if err := oneOf("kind", templateKinds, p.Kind); err != nil {
		return nil, err
	}
	found, next, err := n.templates(ctx, center.TemplateQuery{
		Kind: p.Kind, Status: p.Status, Name: p.Name, OriginSandbox: p.OriginSandbox, All: p.All, Limit: p.Limit, PageToken: p.PageToken,
	}, p.Label)
	if err != nil {
		return nil, err
	}
	return api.ListTemplates200JSONResponse{Templates: each(found, template), NextPageToken: next}, nil
}

func (n *native) templates(ctx context.Context, q center.TemplateQuery, labels []string) (_ []*spore.Template, next string, err error) {
	if err := oneOf("status", spore.TemplateTransitions, q.Status); err != nil {
		return nil, "", err
	}
	if q.Limit, err = pageLimit(q.Limit); err != nil {
		return nil, "", err
	}
	if q.Labels, err = labelFilter(labels); err != nil {
		return nil, "", err
	}
	return n.svc.Templates(ctx, q)
}

func (n *native) GetTemplate(ctx context.Context, r api.GetTemplateRequestObject) (api.GetTemplateResponseObject, error) {
	t, err := n.svc.Template(ctx, r.Ref)
	if err != nil {
		return nil, err
	}
	return api.GetTemplate200JSONResponse(template(t)), nil
}

func (n *native) DeleteTemplate(ctx context.Context, r api.DeleteTemplateRequestObject) (api.DeleteTemplateResponseObject, error) {
	d, err := n.svc.DeleteTemplate(ctx, r.Ref, r.Params.DryRun)
	if err != nil {
		return nil, err
	}
	return api.DeleteTemplate200JSONResponse(deletion(d)), nil
}

func (n *native) ListSnapshots(ctx context.Context, r api.ListSnapshotsRequestObject) (api.ListSnapshotsResponseObject, error) {
	p := r.Params
	found, next, err := n.templates(ctx, center.TemplateQuery{
		Kind: spore.KindSnapshot, Status: p.Status, Name: p.Name, OriginSandbox: p.OriginSandbox, All: p.All, Limit: p.Limit, PageToken: p.PageToken,
	}, p.Label)
	if err != nil {
		return nil, err
	}
	return api.ListSnapshots200JSONResponse{Snapshots: each(found, template), NextPageToken: next}, nil
}

// snapshot finds a snapshot and takes nothing else for one.
func (n *native) snapshot(ctx context.Context, ref string) (*spore.Template, error) {
	t, err := n.svc.Template(ctx, ref)
	if err != nil {
		return nil, err
	}
	if t.Kind != spore.KindSnapshot {
		return nil, spore.Errorf(spore.CodeNotFound, "%s is a %s, not a snapshot", ref, t.Kind)
	}
	return t, nil
}

func (n *native) GetSnapshot(ctx context.Context, r api.GetSnapshotRequestObject) (api.GetSnapshotResponseObject, error) {
	t, err := n.snapshot(ctx, r.Ref)
	if err != nil {
		return nil, err
	}
	return api.GetSnapshot200JSONResponse(template(t)), nil
}

func (n *native) DeleteSnapshot(ctx context.Context, r api.DeleteSnapshotRequestObject) (api.DeleteSnapshotResponseObject, error) {
	t, err := n.snapshot(ctx, r.Ref)
	if err != nil {
		return nil, err
	}
	// By id: the name may have passed to a template in the meantime.
	d, err := n.svc.DeleteTemplate(ctx, t.ID, r.Params.DryRun)
	if err != nil {
		return nil, err
	}
	return api.DeleteSnapshot200JSONResponse(deletion(d)), nil
}

func (n *native) ListLineage(ctx context.Context, r api.ListLineageRequestObject) (api.ListLineageResponseObject, error) {
	found, next, err := n.templates(ctx, center.TemplateQuery{All: true, Limit: r.Params.Limit, PageToken: r.Params.PageToken}, nil)
	if err != nil {
		return nil, err
	}
	return api.ListLineage200JSONResponse{Entries: each(found, lineage), NextPageToken: next}, nil
}

func (n *native) CreateSnapshot(ctx context.Context, r api.CreateSnapshotRequestObject) (api.CreateSnapshotResponseObject, error) {
	key, err := n.idempotency(ctx, r.Params.IdempotencyKey)
	if err != nil {
		return nil, err
	}
	var req center.SnapshotRequest
	if r.Body != nil {
		req = center.SnapshotRequest{Name: r.Body.Name, Labels: r.Body.Labels}
	}
	t, err := n.svc.CreateSnapshot(ctx, key, r.ID, req)
	if err != nil {
		return nil, err
	}
	return api.CreateSnapshot201JSONResponse(template(t)), nil
}
