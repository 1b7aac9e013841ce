package gateway

import (
	"context"
	"errors"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/center"
)

func (n *native) ListSnapshots(ctx context.Context, r api.ListSnapshotsRequestObject) (api.ListSnapshotsResponseObject, error) {
	p := r.Params
	found, next, err := n.templates(ctx, center.TemplateQuery{
		Kind: spore.KindSnapshot, Status: status(p.Status), ID: p.ID, Name: p.Name, OriginSandbox: p.OriginSandbox, ParentID: p.Parent,
		All: p.All, Limit: p.Limit, PageToken: p.PageToken,
	}, p.Label)
	if err != nil {
		return nil, err
	}
	return api.ListSnapshots200JSONResponse{Snapshots: each(found, template), NextPageToken: next}, nil
}

// mustBeSnapshot takes nothing else for a snapshot.
func mustBeSnapshot(ref string, t *spore.Template) error {
	if t.Kind != spore.KindSnapshot {
		return spore.Errorf(spore.CodeNotFound, "%s is a %s, not a snapshot", ref, t.Kind).Because(spore.ReasonSnapshotNotFound)
	}
	return nil
}

// snapshotError tells that it was a snapshot that was looked for.
func snapshotError(err error) error {
	var e *spore.Error
	if errors.As(err, &e) && e.Reason == spore.ReasonTemplateNotFound {
		told := *e
		return told.Because(spore.ReasonSnapshotNotFound)
	}
	return err
}

func (n *native) GetSnapshot(ctx context.Context, r api.GetSnapshotRequestObject) (api.GetSnapshotResponseObject, error) {
	d, err := n.svc.TemplateDetails(ctx, r.Ref)
	if err != nil {
		return nil, snapshotError(err)
	}
	if err := mustBeSnapshot(r.Ref, d.Template); err != nil {
		return nil, err
	}
	return api.GetSnapshot200JSONResponse(templateDetails(d, r.Params.IncludeRequest)), nil
}

func (n *native) DeleteSnapshot(ctx context.Context, r api.DeleteSnapshotRequestObject) (api.DeleteSnapshotResponseObject, error) {
	key, err := n.idempotency(ctx, r.Params.IdempotencyKey)
	if err != nil {
		return nil, err
	}
	ref := r.Ref
	t, err := n.svc.Template(ctx, ref)
	switch {
	case err == nil:
		if err := mustBeSnapshot(ref, t); err != nil {
			return nil, err
		}
		ref = t.ID // the name may pass to a template in the meantime
	case key.Key != "" && spore.CodeOf(err) == spore.CodeNotFound:
		// It may be gone because of an earlier request with the same key, which is then answered again.
	default:
		return nil, snapshotError(err)
	}
	d, err := n.svc.DeleteTemplate(ctx, key, ref, center.DeleteRequest{DryRun: r.Params.DryRun, Force: r.Params.Force})
	if err != nil {
		return nil, snapshotError(err)
	}
	return api.DeleteSnapshot200JSONResponse(deletion(d)), nil
}

func (n *native) CreateSnapshot(ctx context.Context, r api.CreateSnapshotRequestObject) (api.CreateSnapshotResponseObject, error) {
	key, err := n.idempotency(ctx, r.Params.IdempotencyKey)
	if err != nil {
		return nil, err
	}
	var req center.SnapshotRequest
	if r.Body != nil {
		req = center.SnapshotRequest{
			Name: r.Body.Name, Labels: r.Body.Labels, DisplayName: r.Body.DisplayName, Author: r.Body.Author, Reason: r.Body.Reason, Retain: r.Body.Retain,
		}
	}
	if r.Body != nil && r.Body.HoldSeconds > 0 {
		t, err := n.svc.HoldSnapshot(ctx, key, r.ID, req, time.Duration(r.Body.HoldSeconds)*time.Second)
		if err != nil {
			return nil, err
		}
		return api.CreateSnapshot201JSONResponse(template(t)), nil
	}
	t, err := n.svc.CreateSnapshot(ctx, key, r.ID, req)
	if err != nil {
		return nil, err
	}
	return api.CreateSnapshot201JSONResponse(template(t)), nil
}

func (n *native) ReleaseSnapshot(ctx context.Context, r api.ReleaseSnapshotRequestObject) (api.ReleaseSnapshotResponseObject, error) {
	t, err := n.svc.ReleaseSnapshot(ctx, r.Ref, r.Body == nil || !r.Body.Discard)
	if err != nil {
		return nil, err
	}
	return api.ReleaseSnapshot200JSONResponse(template(t)), nil
}
