package gateway

import (
	"context"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/center"
)

const (
	defaultDiffFiles = 1000
	maxDiffFiles     = 10000
)

// lineage is a template as an entry of the history of all.
func lineage(t *spore.Template) api.LineageEntry {
	return api.LineageEntry{
		ID: t.ID, Name: t.Name, Kind: t.Kind, Status: t.Status, ParentID: t.ParentID, OriginSandbox: t.OriginSandbox,
		Author: t.Author, Reason: t.Reason, Ephemeral: t.Ephemeral, Labels: dict(t.Labels), CreatedAt: t.CreatedAt.UTC(),
	}
}

func lineageEntry(e *spore.LineageEntry) api.LineageEntry {
	return api.LineageEntry{
		ID: e.ID, Name: e.Name, Kind: e.Kind, Status: e.Status, ParentID: e.ParentID, OriginSandbox: e.OriginSandbox,
		Author: e.Author, Reason: e.Reason, Aliases: e.Aliases, Labels: dict(e.Labels), CreatedAt: e.CreatedAt.UTC(),
	}
}

func (n *native) ListLineage(ctx context.Context, r api.ListLineageRequestObject) (api.ListLineageResponseObject, error) {
	found, next, err := n.templates(ctx, center.TemplateQuery{All: true, Limit: r.Params.Limit, PageToken: r.Params.PageToken}, nil)
	if err != nil {
		return nil, err
	}
	return api.ListLineage200JSONResponse{Entries: each(found, lineage), NextPageToken: next}, nil
}

func (n *native) GetLineage(ctx context.Context, r api.GetLineageRequestObject) (api.GetLineageResponseObject, error) {
	p := r.Params
	limit, err := pageLimit(p.Limit)
	if err != nil {
		return nil, err
	}
	both := !p.Ancestors && !p.Descendants
	l, err := n.svc.Lineage(ctx, r.Ref, center.LineageQuery{Ancestors: p.Ancestors || both, Descendants: p.Descendants || both, Limit: limit})
	if err != nil {
		return nil, err
	}
	return api.GetLineage200JSONResponse{
		Self: lineageEntry(&l.Self), Ancestors: entries(l.Ancestors), Descendants: entries(l.Descendants), Omitted: l.Omitted,
	}, nil
}

func entries(found []spore.LineageEntry) []api.LineageEntry {
	out := make([]api.LineageEntry, 0, len(found))
	for i := range found {
		out = append(out, lineageEntry(&found[i]))
	}
	return out
}

func (n *native) Diff(ctx context.Context, r api.DiffRequestObject) (api.DiffResponseObject, error) {
	limit, err := inRange("limit", r.Params.Limit, defaultDiffFiles, maxDiffFiles)
	if err != nil {
		return nil, err
	}
	d, err := n.svc.Diff(ctx, r.Params.From, r.Params.To, limit)
	if err != nil {
		return nil, err
	}
	out := api.Diff200JSONResponse{
		From: d.From, To: d.To, Files: make([]api.FileChange, 0, len(d.Files)), FilesOmitted: d.FilesOmitted,
		MemoryChangedBytes: d.MemoryChanged, MemoryTotalBytes: d.MemoryTotal, DiskChangedBytes: d.DiskChanged,
	}
	for _, f := range d.Files {
		out.Files = append(out.Files, api.FileChange{Path: f.Path, Kind: f.Kind, SizeFrom: f.SizeFrom, SizeTo: f.SizeTo, Directory: f.Directory})
	}
	return out, nil
}
