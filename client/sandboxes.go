package client

import (
	"context"
	"io"
	"iter"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
)

// CreateSandbox starts a sandbox and answers when the agent in it does. When ctx ends first, the sandbox is made all the
// same; repeat the request under the same idempotency key to learn its id.
func (c *Client) CreateSandbox(ctx context.Context, req api.CreateRequest) (*api.Sandbox, error) {
	return answer[api.Sandbox](c.api.CreateSandbox(ctx, nil, req))
}

// PreviewSandbox says what CreateSandbox would do, and makes nothing. What would fail the create is told in the answer:
// see PreviewError.
func (c *Client) PreviewSandbox(ctx context.Context, req api.CreateRequest) (*api.Preview, error) {
	return answer[api.Preview](c.api.PreviewSandbox(ctx, req))
}

// PreviewError is why the sandbox that was previewed would not start, nil when it would.
func PreviewError(p *api.Preview) error { return wireError(p.Error) }

// SandboxRefs lists what a sandbox stands on, newest first; with all, what it stood on before too. limit 0 is the server's
// default.
func (c *Client) SandboxRefs(ctx context.Context, id string, all bool, limit int) (*api.RefList, error) {
	return answer[api.RefList](c.api.ListSandboxRefs(ctx, id, &api.ListSandboxRefsParams{All: all, Limit: limit}))
}

// GetSandbox shows a sandbox.
func (c *Client) GetSandbox(ctx context.Context, id string) (*api.Sandbox, error) {
	return answer[api.Sandbox](c.api.GetSandbox(ctx, id))
}

// ListSandboxes lists sandboxes, newest first. params.Limit is the size of a page, not of the list. An error ends the list.
func (c *Client) ListSandboxes(ctx context.Context, params api.ListSandboxesParams) iter.Seq2[api.Sandbox, error] {
	return func(yield func(api.Sandbox, error) bool) {
		page(yield, func(token string) ([]api.Sandbox, string, error) {
			params.PageToken = token
			l, err := answer[api.SandboxList](c.api.ListSandboxes(ctx, &params))
			if err != nil {
				return nil, "", err
			}
			return l.Sandboxes, l.NextPageToken, nil
		})
	}
}

// DeleteSandbox ends a sandbox at once and removes its disk.
func (c *Client) DeleteSandbox(ctx context.Context, id string) error {
	return done(c.api.DeleteSandbox(ctx, id))
}

// PauseSandbox freezes a sandbox to disk, where it holds no memory.
func (c *Client) PauseSandbox(ctx context.Context, id string) (*api.Sandbox, error) {
	return answer[api.Sandbox](c.api.PauseSandbox(ctx, id))
}

// ResumeSandbox brings a paused sandbox back. With ttl its time is up that long from now, 0 being never; without, its
// end stays as it was. Lengths of time are counted in whole seconds, rounded up.
func (c *Client) ResumeSandbox(ctx context.Context, id string, ttl *time.Duration) (*api.Sandbox, error) {
	var req api.ResumeRequest
	if ttl != nil {
		s := Seconds(*ttl)
		req.TTLSeconds = &s
	}
	return answer[api.Sandbox](c.api.ResumeSandbox(ctx, id, req))
}

// ExtendSandbox sets a sandbox's end to ttl from now, 0 being never. onEnd says what happens then; "" leaves that as it is.
func (c *Client) ExtendSandbox(ctx context.Context, id string, ttl time.Duration, onEnd spore.EndAction) (*api.Sandbox, error) {
	return answer[api.Sandbox](c.api.ExtendSandbox(ctx, id, api.ExtendRequest{TTLSeconds: Seconds(ttl), OnEnd: onEnd}))
}

// UpdateSandbox changes labels, policy and limits of a sandbox. What is left out of req stays as it is.
func (c *Client) UpdateSandbox(ctx context.Context, id string, req api.SandboxUpdate) (*api.Sandbox, error) {
	return answer[api.Sandbox](c.api.UpdateSandbox(ctx, id, req))
}

// ListPorts lists the ports of a sandbox that are published on the host.
func (c *Client) ListPorts(ctx context.Context, id string) ([]api.Port, error) {
	return ports(answer[api.PortList](c.api.ListPorts(ctx, id)))
}

// PublishPorts publishes more ports of a sandbox, all or none, and answers all that it publishes then. A host port of 0 is
// picked by the server.
func (c *Client) PublishPorts(ctx context.Context, id string, add ...api.PortSpec) ([]api.Port, error) {
	return ports(answer[api.PortList](c.api.PublishPorts(ctx, id, api.PortRequest{Ports: add})))
}

// UnpublishPort stops publishing what is at a port of the host, and answers what is left. address "" is every address.
func (c *Client) UnpublishPort(ctx context.Context, id, address string, port int) ([]api.Port, error) {
	return ports(answer[api.PortList](c.api.UnpublishPort(ctx, id, &api.UnpublishPortParams{HostAddress: address, HostPort: port})))
}

func ports(l *api.PortList, err error) ([]api.Port, error) {
	if err != nil {
		return nil, err
	}
	return l.Ports, nil
}

// Seconds is a length of time as the API counts it: whole seconds, rounded up so that a short time is not taken for none.
func Seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

// SandboxLogs copies to w the newest limit bytes of what the image's own process printed or, with console, of the
// guest's serial console. A limit of 0 is the server's default.
func (c *Client) SandboxLogs(ctx context.Context, id string, console bool, limit int, w io.Writer) error {
	resp, err := c.api.GetSandboxLogs(ctx, id, &api.GetSandboxLogsParams{Console: console, Limit: limit})
	if err := settle(resp, err); err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(w, resp.Body)
	return err
}

// Rollback brings a sandbox back to a snapshot, given by id or name. What the sandbox did since is lost.
func (c *Client) Rollback(ctx context.Context, sandboxID, snapshot string) (*api.Sandbox, error) {
	return answer[api.Sandbox](c.api.RollbackSandbox(ctx, sandboxID, nil, api.RollbackRequest{Snapshot: snapshot}))
}

// Fork starts sandboxes that go on from where a sandbox or a snapshot stands. Each result is a sandbox or an error.
func (c *Client) Fork(ctx context.Context, req api.ForkRequest) ([]api.ForkResult, error) {
	l, err := answer[api.ForkList](c.api.Fork(ctx, nil, req))
	if err != nil {
		return nil, err
	}
	return l.Forks, nil
}

// ForkError is the error of a fork that failed, nil for one that runs.
func ForkError(r api.ForkResult) error { return wireError(r.Error) }

// wireError is an error that came as part of an answer, nil when there is none.
func wireError(e *api.Error) error {
	if e == nil {
		return nil
	}
	return sporeError(e)
}
