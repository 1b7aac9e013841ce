package client

import (
	"context"
	"iter"

	"github.com/sporevm/spore/api"
)

// PutAlias points an alias, name or name:tag, at a template or snapshot in one step.
func (c *Client) PutAlias(ctx context.Context, alias string, req api.AliasRequest) (*api.Alias, error) {
	return answer[api.Alias](c.api.PutAlias(ctx, alias, req))
}

// GetAlias shows an alias, name or name:tag.
func (c *Client) GetAlias(ctx context.Context, alias string) (*api.Alias, error) {
	return answer[api.Alias](c.api.GetAlias(ctx, alias))
}

// DeleteAlias removes an alias. What it pointed at stays. author and reason go into its history and may be empty.
func (c *Client) DeleteAlias(ctx context.Context, alias, author, reason string) error {
	return done(c.api.DeleteAlias(ctx, alias, &api.DeleteAliasParams{Author: author, Reason: reason}))
}

// ListAliases lists aliases in the order of name and tag. params.Limit is the size of a page, not of the list. An error
// ends the list.
func (c *Client) ListAliases(ctx context.Context, params api.ListAliasesParams) iter.Seq2[api.Alias, error] {
	return pages(func(token string) ([]api.Alias, string, error) {
		params.PageToken = token
		l, err := answer[api.AliasList](c.api.ListAliases(ctx, &params))
		if err != nil {
			return nil, "", err
		}
		return l.Aliases, l.NextPageToken, nil
	})
}

// AliasHistory tells what an alias pointed at, newest first; with allTags, what any tag of its name did. limit 0 is the
// server's default.
func (c *Client) AliasHistory(ctx context.Context, alias string, allTags bool, limit int) ([]api.AliasChange, error) {
	l, err := answer[api.AliasHistory](c.api.ListAliasHistory(ctx, alias, &api.ListAliasHistoryParams{AllTags: allTags, Limit: limit}))
	if err != nil {
		return nil, err
	}
	return l.Changes, nil
}
