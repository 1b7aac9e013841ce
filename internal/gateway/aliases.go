package gateway

import (
	"context"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/center"
)

func alias(a *spore.Alias) api.Alias {
	return api.Alias{
		Name: a.Name, Tag: a.Tag, Label: a.Label(), TemplateID: a.TemplateID, Author: a.Author, Reason: a.Reason, UpdatedAt: a.UpdatedAt.UTC(),
	}
}

func (n *native) ListAliases(ctx context.Context, r api.ListAliasesRequestObject) (api.ListAliasesResponseObject, error) {
	limit, err := pageLimit(r.Params.Limit)
	if err != nil {
		return nil, err
	}
	if name := r.Params.Name; name != "" {
		if err := spore.ValidateName("name", name); err != nil {
			return nil, err
		}
	}
	found, next, err := n.svc.Aliases(ctx, center.AliasQuery{Name: r.Params.Name, Template: r.Params.Template, Limit: limit, PageToken: r.Params.PageToken})
	if err != nil {
		return nil, err
	}
	return api.ListAliases200JSONResponse{Aliases: each(found, alias), NextPageToken: next}, nil
}

func (n *native) GetAlias(ctx context.Context, r api.GetAliasRequestObject) (api.GetAliasResponseObject, error) {
	name, tag, err := spore.ParseAlias("alias", r.Alias)
	if err != nil {
		return nil, err
	}
	a, err := n.svc.Alias(ctx, name, tag)
	if err != nil {
		return nil, err
	}
	return api.GetAlias200JSONResponse(alias(a)), nil
}

func (n *native) PutAlias(ctx context.Context, r api.PutAliasRequestObject) (api.PutAliasResponseObject, error) {
	name, tag, err := spore.ParseAlias("alias", r.Alias)
	if err != nil {
		return nil, err
	}
	a, err := n.svc.PutAlias(ctx, name, tag, center.AliasRequest{Template: r.Body.Template, Author: r.Body.Author, Reason: r.Body.Reason})
	if err != nil {
		return nil, err
	}
	return api.PutAlias200JSONResponse(alias(a)), nil
}

func (n *native) DeleteAlias(ctx context.Context, r api.DeleteAliasRequestObject) (api.DeleteAliasResponseObject, error) {
	name, tag, err := spore.ParseAlias("alias", r.Alias)
	if err != nil {
		return nil, err
	}
	if err := n.svc.DeleteAlias(ctx, name, tag, r.Params.Author, r.Params.Reason); err != nil {
		return nil, err
	}
	return api.DeleteAlias204Response{}, nil
}

func (n *native) ListAliasHistory(ctx context.Context, r api.ListAliasHistoryRequestObject) (api.ListAliasHistoryResponseObject, error) {
	name, tag, err := spore.ParseAlias("alias", r.Alias)
	if err != nil {
		return nil, err
	}
	limit, err := pageLimit(r.Params.Limit)
	if err != nil {
		return nil, err
	}
	if r.Params.AllTags {
		tag = ""
	}
	changes, err := n.svc.AliasHistory(ctx, name, tag, limit)
	if err != nil {
		return nil, err
	}
	out := api.ListAliasHistory200JSONResponse{Changes: make([]api.AliasChange, 0, len(changes))}
	for _, c := range changes {
		out.Changes = append(out.Changes, api.AliasChange{
			Seq: c.Seq, Name: c.Name, Tag: c.Tag, TemplateID: c.TemplateID, Author: c.Author, Reason: c.Reason, At: c.UpdatedAt.UTC(),
		})
	}
	return out, nil
}
