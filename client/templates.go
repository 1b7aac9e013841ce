package client

import (
	"context"
	"iter"

	"github.com/sporevm/spore/api"
)

// BuildTemplate starts the building of a template from an image. It answers at once; WaitJob tells when it is done.
// Files that the image reference names are on the server's machine.
func (c *Client) BuildTemplate(ctx context.Context, req api.BuildRequest) (*api.TemplateJob, error) {
	return answer[api.TemplateJob](c.api.BuildTemplate(ctx, nil, req))
}

// CommitSandbox starts the making of a template out of a sandbox. It answers at once; WaitJob tells when it is done.
func (c *Client) CommitSandbox(ctx context.Context, id string, req api.CommitRequest) (*api.TemplateJob, error) {
	return answer[api.TemplateJob](c.api.CommitSandbox(ctx, id, nil, req))
}

// GetTemplate shows a template or snapshot, by id, name or alias, with its replicas, aliases, artifact, latest job and the
// sandboxes that stand on it.
func (c *Client) GetTemplate(ctx context.Context, ref string) (*api.Template, error) {
	return answer[api.Template](c.api.GetTemplate(ctx, ref, nil))
}

// GetTemplateWithRequest is GetTemplate with what sandboxes inherit from it.
func (c *Client) GetTemplateWithRequest(ctx context.Context, ref string) (*api.Template, error) {
	return answer[api.Template](c.api.GetTemplate(ctx, ref, &api.GetTemplateParams{IncludeRequest: true}))
}

// UpdateTemplate changes what may change of a template or snapshot. What is nil in req stays as it is.
func (c *Client) UpdateTemplate(ctx context.Context, ref string, req api.TemplateUpdate) (*api.Template, error) {
	return answer[api.Template](c.api.UpdateTemplate(ctx, ref, req))
}

// ListReplicas lists the replicas of a template or snapshot, in the order of node ids.
func (c *Client) ListReplicas(ctx context.Context, ref string) ([]api.Replica, error) {
	l, err := answer[api.ReplicaList](c.api.ListReplicas(ctx, ref))
	if err != nil {
		return nil, err
	}
	return l.Replicas, nil
}

// TemplateRefs lists the sandboxes that stand on a template or snapshot, newest first; with all, the history too.
func (c *Client) TemplateRefs(ctx context.Context, ref string, all bool, limit int) (*api.RefList, error) {
	return answer[api.RefList](c.api.ListTemplateRefs(ctx, ref, &api.ListTemplateRefsParams{All: all, Limit: limit}))
}

// ReadyNodes says on which nodes sandboxes can start from a template or snapshot. With none it is spore.CodeConflict or
// spore.CodeStale.
func (c *Client) ReadyNodes(ctx context.Context, ref string) (*api.NodeScope, error) {
	return answer[api.NodeScope](c.api.ListReadyNodes(ctx, ref))
}

// RedoTemplate starts to make replicas again, beside those that serve. It answers at once; WaitJob tells when it is done.
func (c *Client) RedoTemplate(ctx context.Context, ref string, req api.RedoRequest) (*api.Job, error) {
	return answer[api.Job](c.api.RedoTemplate(ctx, ref, nil, req))
}

// ListTemplates lists templates and snapshots, newest first; params.Kind keeps them apart. params.Limit is the size of a page, not of the list.
// An error ends the list.
func (c *Client) ListTemplates(ctx context.Context, params api.ListTemplatesParams) iter.Seq2[api.Template, error] {
	return func(yield func(api.Template, error) bool) {
		page(yield, func(token string) ([]api.Template, string, error) {
			params.PageToken = token
			l, err := answer[api.TemplateList](c.api.ListTemplates(ctx, &params))
			if err != nil {
				return nil, "", err
			}
			return l.Templates, l.NextPageToken, nil
		})
	}
}

// DeleteOptions say how to delete. With DryRun nothing changes. Without Force, what running sandboxes stand on is
// spore.CodeInUse; with it, they go on running.
type DeleteOptions struct{ DryRun, Force bool }

// DeleteTemplate deletes a template or snapshot, by id, name or alias.
func (c *Client) DeleteTemplate(ctx context.Context, ref string, opt DeleteOptions) (*api.Deletion, error) {
	return answer[api.Deletion](c.api.DeleteTemplate(ctx, ref, &api.DeleteTemplateParams{DryRun: opt.DryRun, Force: opt.Force}))
}

// DeleteTemplates deletes several templates or snapshots. There is one result for each, in order: a deletion or an error.
func (c *Client) DeleteTemplates(ctx context.Context, refs []string, opt DeleteOptions) ([]api.BatchDeletionResult, error) {
	l, err := answer[api.BatchDeletion](c.api.DeleteTemplates(ctx, api.BatchDeleteRequest{Refs: refs, DryRun: opt.DryRun, Force: opt.Force}))
	if err != nil {
		return nil, err
	}
	return l.Results, nil
}

// DeletionError is why one delete of several was not done, nil when it was.
func DeletionError(r api.BatchDeletionResult) error { return wireError(r.Error) }

// CreateSnapshot snapshots a running sandbox and answers when the snapshot is safe.
func (c *Client) CreateSnapshot(ctx context.Context, sandboxID string, req api.SnapshotRequest) (*api.Template, error) {
	return answer[api.Template](c.api.CreateSnapshot(ctx, sandboxID, nil, req))
}

// ReleaseSnapshot lets the sandbox of a snapshot go on that was asked for with HoldSeconds, and answers when the snapshot is safe.
// With discard there is to be none.
func (c *Client) ReleaseSnapshot(ctx context.Context, id string, discard bool) (*api.Template, error) {
	return answer[api.Template](c.api.ReleaseSnapshot(ctx, id, api.ReleaseRequest{Discard: discard}))
}

// GetSnapshot shows a snapshot, by id or name. A template is spore.CodeNotFound.
func (c *Client) GetSnapshot(ctx context.Context, ref string) (*api.Template, error) {
	return answer[api.Template](c.api.GetSnapshot(ctx, ref, nil))
}

// GetSnapshotWithRequest is GetSnapshot with what sandboxes inherit from it.
func (c *Client) GetSnapshotWithRequest(ctx context.Context, ref string) (*api.Template, error) {
	return answer[api.Template](c.api.GetSnapshot(ctx, ref, &api.GetSnapshotParams{IncludeRequest: true}))
}

// ListSnapshots lists snapshots, newest first. params.Limit is the size of a page, not of the list. An error ends the list.
func (c *Client) ListSnapshots(ctx context.Context, params api.ListSnapshotsParams) iter.Seq2[api.Template, error] {
	return func(yield func(api.Template, error) bool) {
		page(yield, func(token string) ([]api.Template, string, error) {
			params.PageToken = token
			l, err := answer[api.SnapshotList](c.api.ListSnapshots(ctx, &params))
			if err != nil {
				return nil, "", err
			}
			return l.Snapshots, l.NextPageToken, nil
		})
	}
}

// DeleteSnapshot deletes a snapshot, by id, name or alias. A template is spore.CodeNotFound, and stays.
func (c *Client) DeleteSnapshot(ctx context.Context, ref string, opt DeleteOptions) (*api.Deletion, error) {
	return answer[api.Deletion](c.api.DeleteSnapshot(ctx, ref, &api.DeleteSnapshotParams{DryRun: opt.DryRun, Force: opt.Force}))
}

// ListLineage lists templates and snapshots with their parents, deleted ones too, newest first. An error ends the list.
func (c *Client) ListLineage(ctx context.Context) iter.Seq2[api.LineageEntry, error] {
	return func(yield func(api.LineageEntry, error) bool) {
		page(yield, func(token string) ([]api.LineageEntry, string, error) {
			l, err := answer[api.LineageList](c.api.ListLineage(ctx, &api.ListLineageParams{Limit: 1000, PageToken: token}))
			if err != nil {
				return nil, "", err
			}
			return l.Entries, l.NextPageToken, nil
		})
	}
}

// LineageOptions say which part of a history is told. With neither Ancestors nor Descendants it is both. Limit 0 is the
// server's default.
type LineageOptions struct {
	Ancestors, Descendants bool
	Limit                  int
}

// Lineage tells what a template or snapshot came of and what came of it, deleted ones too.
func (c *Client) Lineage(ctx context.Context, ref string, opt LineageOptions) (*api.Lineage, error) {
	return answer[api.Lineage](c.api.GetLineage(ctx, ref, &api.GetLineageParams{Ancestors: opt.Ancestors, Descendants: opt.Descendants, Limit: opt.Limit}))
}

// Diff says what differs between two templates or snapshots; at most limit files, 0 being the server's default.
func (c *Client) Diff(ctx context.Context, from, to string, limit int) (*api.Diff, error) {
	return answer[api.Diff](c.api.Diff(ctx, &api.DiffParams{From: from, To: to, Limit: limit}))
}
