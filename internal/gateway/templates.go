package gateway

import (
	"cmp"
	"context"
	"strings"

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
	if _, err := n.lifetime(r.Body.Defaults.TTLSeconds, r.Body.Defaults.OnEnd); err != nil {
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
	t, j, err := n.svc.CommitSandbox(ctx, key, r.ID, center.CommitRequest{
		Name: r.Body.Name, Labels: r.Body.Labels, DisplayName: r.Body.DisplayName, Author: r.Body.Author, Reason: r.Body.Reason, Retain: r.Body.Retain,
		Policy: r.Body.CompatPolicy, Replicas: replicaPolicy(r.Body.Replicas),
	})
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
		Kind: p.Kind, Status: status(p.Status), ID: p.ID, Name: p.Name, OriginSandbox: p.OriginSandbox, ParentID: p.Parent, ArtifactID: p.Artifact,
		All: p.All, Limit: p.Limit, PageToken: p.PageToken,
	}, p.Label)
	if err != nil {
		return nil, err
	}
	return api.ListTemplates200JSONResponse{Templates: each(found, template), NextPageToken: next}, nil
}

// status reads a status that may be in lower case.
func status(s string) spore.TemplateStatus { return spore.TemplateStatus(strings.ToUpper(s)) }

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
	d, err := n.svc.TemplateDetails(ctx, r.Ref)
	if err != nil {
		return nil, err
	}
	return api.GetTemplate200JSONResponse(templateDetails(d, r.Params.IncludeRequest)), nil
}

func (n *native) UpdateTemplate(ctx context.Context, r api.UpdateTemplateRequestObject) (api.UpdateTemplateResponseObject, error) {
	req := center.TemplateUpdate{DisplayName: r.Body.DisplayName, Retain: r.Body.Retain}
	if r.Body.Labels != nil {
		req.Labels = dict(*r.Body.Labels)
	}
	if p := r.Body.CompatPolicy; p != "" {
		req.Policy = &p
	}
	if r.Body.Replicas != nil {
		p := replicaPolicy(*r.Body.Replicas)
		req.Replicas = &p
	}
	t, err := n.svc.UpdateTemplate(ctx, r.Ref, req)
	if err != nil {
		return nil, err
	}
	return api.UpdateTemplate200JSONResponse(template(t)), nil
}

func (n *native) ListReplicas(ctx context.Context, r api.ListReplicasRequestObject) (api.ListReplicasResponseObject, error) {
	found, err := n.svc.Replicas(ctx, r.Ref)
	if err != nil {
		return nil, err
	}
	return api.ListReplicas200JSONResponse{Replicas: each(found, replica)}, nil
}

func (n *native) ListTemplateRefs(ctx context.Context, r api.ListTemplateRefsRequestObject) (api.ListTemplateRefsResponseObject, error) {
	found, err := n.refs(ctx, center.RefQuery{Template: r.Ref, All: r.Params.All, Limit: r.Params.Limit})
	if err != nil {
		return nil, err
	}
	return api.ListTemplateRefs200JSONResponse(*found), nil
}

func (n *native) refs(ctx context.Context, q center.RefQuery) (_ *api.RefList, err error) {
	if q.Limit, err = pageLimit(q.Limit); err != nil {
		return nil, err
	}
	found, total, err := n.svc.Refs(ctx, q)
	if err != nil {
		return nil, err
	}
	return &api.RefList{Refs: each(found, runtimeRef), Total: total}, nil
}

func (n *native) ListReadyNodes(ctx context.Context, r api.ListReadyNodesRequestObject) (api.ListReadyNodesResponseObject, error) {
	s, err := n.svc.ReadyNodes(ctx, r.Ref)
	if err != nil {
		return nil, err
	}
	return api.ListReadyNodes200JSONResponse{TemplateID: s.TemplateID, Nodes: list(s.Ready), Stale: list(s.Stale)}, nil
}

func (n *native) RedoTemplate(ctx context.Context, r api.RedoTemplateRequestObject) (api.RedoTemplateResponseObject, error) {
	key, err := n.idempotency(ctx, r.Params.IdempotencyKey)
	if err != nil {
		return nil, err
	}
	req := center.RedoRequest{Mode: spore.RedoAll}
	if r.Body != nil {
		req.Mode, req.Nodes, req.AddNetwork = cmp.Or(r.Body.Mode, spore.RedoAll), r.Body.Nodes, r.Body.AddNetwork
	}
	scoped := req.Mode == spore.RedoNodes || req.Mode == spore.RedoFailedNodes
	switch {
	case scoped && len(req.Nodes) == 0:
		return nil, spore.Invalidf("nodes", "is missing").WithHint("%s is about the nodes that are named", req.Mode)
	case !scoped && len(req.Nodes) > 0:
		return nil, spore.Invalidf("nodes", "does not go with %s", req.Mode).WithHint("use %s or %s", spore.RedoNodes, spore.RedoFailedNodes)
	}
	j, err := n.svc.RedoTemplate(ctx, key, r.Ref, req)
	if err != nil {
		return nil, err
	}
	return api.RedoTemplate202JSONResponse(job(j)), nil
}

func (n *native) DeleteTemplate(ctx context.Context, r api.DeleteTemplateRequestObject) (api.DeleteTemplateResponseObject, error) {
	key, err := n.idempotency(ctx, r.Params.IdempotencyKey)
	if err != nil {
		return nil, err
	}
	d, err := n.svc.DeleteTemplate(ctx, key, r.Ref, center.DeleteRequest{DryRun: r.Params.DryRun, Force: r.Params.Force})
	if err != nil {
		return nil, err
	}
	return api.DeleteTemplate200JSONResponse(deletion(d)), nil
}

func (n *native) DeleteTemplates(ctx context.Context, r api.DeleteTemplatesRequestObject) (api.DeleteTemplatesResponseObject, error) {
	out := api.DeleteTemplates200JSONResponse{Results: make([]api.BatchDeletionResult, 0, len(r.Body.Refs))}
	for _, ref := range r.Body.Refs {
		result := api.BatchDeletionResult{Ref: ref}
		d, err := n.svc.DeleteTemplate(ctx, center.Idempotency{}, ref, center.DeleteRequest{DryRun: r.Body.DryRun, Force: r.Body.Force})
		if err != nil {
			shown := shownError(ctx, err)
			result.Error = &shown
		} else {
			wire := deletion(d)
			result.Deletion = &wire
		}
		out.Results = append(out.Results, result)
	}
	return out, nil
}
