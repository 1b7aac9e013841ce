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

// GetTemplate shows a template or snapshot, by id or name.
func (c *Client) GetTemplate(ctx context.Context, ref string) (*api.Template, error) {
	return answer[api.Template](c.api.GetTemplate(ctx, ref))
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

// DeleteTemplate deletes a template or snapshot, by id or name. With dryRun nothing changes.
func (c *Client) DeleteTemplate(ctx context.Context, ref string, dryRun bool) (*api.Deletion, error) {
	return answer[api.Deletion](c.api.DeleteTemplate(ctx, ref, &api.DeleteTemplateParams{DryRun: dryRun}))
}

// CreateSnapshot snapshots a running sandbox and answers when the snapshot is safe.
func (c *Client) CreateSnapshot(ctx context.Context, sandboxID string, req api.SnapshotRequest) (*api.Template, error) {
	return answer[api.Template](c.api.CreateSnapshot(ctx, sandboxID, nil, req))
}

// GetSnapshot shows a snapshot, by id or name. A template is spore.CodeNotFound.
func (c *Client) GetSnapshot(ctx context.Context, ref string) (*api.Template, error) {
	return answer[api.Template](c.api.GetSnapshot(ctx, ref))
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

// DeleteSnapshot deletes a snapshot, by id or name. With dryRun nothing changes. A template is spore.CodeNotFound, and stays.
func (c *Client) DeleteSnapshot(ctx context.Context, ref string, dryRun bool) (*api.Deletion, error) {
	return answer[api.Deletion](c.api.DeleteSnapshot(ctx, ref, &api.DeleteSnapshotParams{DryRun: dryRun}))
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
