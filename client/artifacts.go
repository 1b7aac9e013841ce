package client

import (
	"context"
	"iter"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
)

// ListArtifacts lists root filesystems, newest first. params.Limit is the size of a page, not of the list. An error ends
// the list.
func (c *Client) ListArtifacts(ctx context.Context, params api.ListArtifactsParams) iter.Seq2[api.Artifact, error] {
	return pages(func(token string) ([]api.Artifact, string, error) {
		params.PageToken = token
		l, err := answer[api.ArtifactList](c.api.ListArtifacts(ctx, &params))
		if err != nil {
			return nil, "", err
		}
		return l.Artifacts, l.NextPageToken, nil
	})
}

// GetArtifact shows an artifact, with the nodes that were given it.
func (c *Client) GetArtifact(ctx context.Context, id string) (*api.Artifact, error) {
	return answer[api.Artifact](c.api.GetArtifact(ctx, id))
}

// VerifyArtifact has the nodes look for an artifact, with full reading every byte, and answers what each found.
func (c *Client) VerifyArtifact(ctx context.Context, id string, full bool) (*api.ArtifactVerdict, error) {
	return answer[api.ArtifactVerdict](c.api.VerifyArtifact(ctx, id, api.VerifyRequest{Full: full}))
}

// VerdictError is what a node found wrong with an artifact, nil when nothing is.
func VerdictError(v api.NodeVerdict) error {
	if v.OK {
		return nil
	}
	if v.Error == nil {
		return spore.Errorf(spore.CodeInternal, "node %s does not say what is wrong", v.NodeID)
	}
	return sporeError(v.Error)
}

// ArtifactToken makes a token with which the bytes of one artifact can be read, and nothing else. A ttl of 0 is the server's
// default.
func (c *Client) ArtifactToken(ctx context.Context, id string, ttl time.Duration) (*api.ArtifactToken, error) {
	return answer[api.ArtifactToken](c.api.CreateArtifactToken(ctx, id, api.ArtifactTokenRequest{TTLSeconds: int(Seconds(ttl))}))
}
