package gateway

import (
	"bytes"
	"context"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/center"
)

const (
	defaultLogBytes = 1 << 20
	maxLogBytes     = 16 << 20
	maxForks        = 1000
)

func (n *native) CreateSandbox(ctx context.Context, r api.CreateSandboxRequestObject) (api.CreateSandboxResponseObject, error) {
	key, err := n.idempotency(ctx, r.Params.IdempotencyKey)
	if err != nil {
		return nil, err
	}
	req, err := n.createRequest(r.Body)
	if err != nil {
		return nil, err
	}
	s, err := n.svc.CreateSandbox(ctx, key, req)
	if err != nil {
		return nil, err
	}
	return api.CreateSandbox201JSONResponse(sandbox(s)), nil
}

func (n *native) createRequest(b *api.CreateRequest) (center.CreateRequest, error) {
	life, err := n.lifetime(b.TTLSeconds, b.OnEnd)
	if err != nil {
		return center.CreateRequest{}, err
	}
	return center.CreateRequest{
		Template: b.Template, TTL: life, OnEnd: b.OnEnd, Env: b.Env, Labels: b.Labels, Nodes: b.Nodes, PreferredNode: b.PreferredNode,
		Wiring: wiringRequest(b.Network, b.Ports, b.Limits), Disks: disksOf(b.Disks),
	}, nil
}

func (n *native) PreviewSandbox(ctx context.Context, r api.PreviewSandboxRequestObject) (api.PreviewSandboxResponseObject, error) {
	req, err := n.createRequest(r.Body)
	if err != nil {
		return nil, err
	}
	p, err := n.svc.PreviewSandbox(ctx, req)
	if err != nil {
		return nil, err
	}
	return api.PreviewSandbox200JSONResponse(preview(ctx, p)), nil
}

// preview is what a create would do, on the wire.
func preview(ctx context.Context, p *center.Preview) api.Preview {
	out := api.Preview{NodeID: p.NodeID, Candidates: make([]api.Candidate, 0, len(p.Candidates)), Stages: make([]api.StageTime, 0, len(p.Stages))}
	for _, c := range p.Candidates {
		out.Candidates = append(out.Candidates, api.Candidate{NodeID: c.NodeID, Address: c.Address, Fits: c.Fits, Why: c.Why, CompatStatus: c.Compat})
	}
	for _, s := range p.Stages {
		out.Stages = append(out.Stages, api.StageTime{Stage: s.Stage, Microseconds: s.Took.Microseconds()})
	}
	if p.Template != nil {
		t := template(p.Template)
		out.Template = &t
		asked := p.Request.Wiring
		out.Request = &api.CreateRequest{
			Template: p.Request.Template, TTLSeconds: int64(p.Request.TTL / time.Second), OnEnd: p.Request.OnEnd, Env: p.Request.Env,
			Labels: p.Request.Labels, Nodes: p.Request.Nodes, PreferredNode: p.Request.PreferredNode,
			Network: network(asked.Network()), Ports: askedPorts(asked.Ports), Limits: limits(asked.Limits), Disks: disks(p.Request.Disks),
		}
	}
	if p.Err != nil {
		shown := shownError(ctx, p.Err)
		out.Error = &shown
	}
	return out
}

func (n *native) ListSandboxRefs(ctx context.Context, r api.ListSandboxRefsRequestObject) (api.ListSandboxRefsResponseObject, error) {
	found, err := n.refs(ctx, center.RefQuery{Sandbox: r.ID, All: r.Params.All, Limit: r.Params.Limit})
	if err != nil {
		return nil, err
	}
	return api.ListSandboxRefs200JSONResponse(*found), nil
}

func (n *native) ListSandboxes(ctx context.Context, r api.ListSandboxesRequestObject) (api.ListSandboxesResponseObject, error) {
	p := r.Params
	if err := oneOf("state", spore.SandboxTransitions, p.State...); err != nil {
		return nil, err
	}
	q := center.SandboxQuery{States: p.State, Template: p.Template, Node: p.Node, All: p.All, PageToken: p.PageToken}
	var err error
	if q.Limit, err = pageLimit(p.Limit); err != nil {
		return nil, err
	}
	if q.Labels, err = labelFilter(p.Label); err != nil {
		return nil, err
	}
	found, next, err := n.svc.Sandboxes(ctx, q)
	if err != nil {
		return nil, err
	}
	return api.ListSandboxes200JSONResponse{Sandboxes: each(found, sandbox), NextPageToken: next}, nil
}

func (n *native) GetSandbox(ctx context.Context, r api.GetSandboxRequestObject) (api.GetSandboxResponseObject, error) {
	s, err := n.svc.Sandbox(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return api.GetSandbox200JSONResponse(sandbox(s)), nil
}

func (n *native) DeleteSandbox(ctx context.Context, r api.DeleteSandboxRequestObject) (api.DeleteSandboxResponseObject, error) {
	if err := n.svc.KillSandbox(ctx, r.ID); err != nil {
		return nil, err
	}
	return api.DeleteSandbox204Response{}, nil
}

func (n *native) PauseSandbox(ctx context.Context, r api.PauseSandboxRequestObject) (api.PauseSandboxResponseObject, error) {
	s, err := n.svc.PauseSandbox(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return api.PauseSandbox200JSONResponse(sandbox(s)), nil
}

func (n *native) ResumeSandbox(ctx context.Context, r api.ResumeSandboxRequestObject) (api.ResumeSandboxResponseObject, error) {
	var life *time.Duration
	if r.Body != nil && r.Body.TTLSeconds != nil {
		d, err := ttl(*r.Body.TTLSeconds)
		if err != nil {
			return nil, err
		}
		life = &d
	}
	s, err := n.svc.ResumeSandbox(ctx, r.ID, life)
	if err != nil {
		return nil, err
	}
	return api.ResumeSandbox200JSONResponse(sandbox(s)), nil
}

func (n *native) ExtendSandbox(ctx context.Context, r api.ExtendSandboxRequestObject) (api.ExtendSandboxResponseObject, error) {
	life, err := n.lifetime(r.Body.TTLSeconds, r.Body.OnEnd)
	if err != nil {
		return nil, err
	}
	s, err := n.svc.ExtendSandbox(ctx, r.ID, life, r.Body.OnEnd)
	if err != nil {
		return nil, err
	}
	return api.ExtendSandbox200JSONResponse(sandbox(s)), nil
}

func (n *native) GetSandboxLogs(ctx context.Context, r api.GetSandboxLogsRequestObject) (api.GetSandboxLogsResponseObject, error) {
	limit, err := inRange("limit", r.Params.Limit, defaultLogBytes, maxLogBytes)
	if err != nil {
		return nil, err
	}
	out, err := n.svc.SandboxLogs(ctx, r.ID, r.Params.Console, limit)
	if err != nil {
		return nil, err
	}
	return api.GetSandboxLogs200ApplicationOctetStreamResponse{Body: bytes.NewReader(out), ContentLength: int64(len(out))}, nil
}

func (n *native) RollbackSandbox(ctx context.Context, r api.RollbackSandboxRequestObject) (api.RollbackSandboxResponseObject, error) {
	key, err := n.idempotency(ctx, r.Params.IdempotencyKey)
	if err != nil {
		return nil, err
	}
	s, err := n.svc.Rollback(ctx, key, r.ID, r.Body.Snapshot)
	if err != nil {
		return nil, err
	}
	return api.RollbackSandbox200JSONResponse(sandbox(s)), nil
}

func (n *native) Fork(ctx context.Context, r api.ForkRequestObject) (api.ForkResponseObject, error) {
	key, err := n.idempotency(ctx, r.Params.IdempotencyKey)
	if err != nil {
		return nil, err
	}
	life, err := n.lifetime(r.Body.TTLSeconds, r.Body.OnEnd)
	if err != nil {
		return nil, err
	}
	count, err := inRange("count", r.Body.Count, 1, maxForks)
	if err != nil {
		return nil, err
	}
	forks, err := n.svc.Fork(ctx, key, r.Body.Source, center.ForkRequest{
		Count: count, TTL: life, OnEnd: r.Body.OnEnd, Env: r.Body.Env, Labels: r.Body.Labels,
		Wiring: wiringRequest(r.Body.Network, r.Body.Ports, r.Body.Limits),
	})
	if err != nil {
		return nil, err
	}
	out := api.Fork201JSONResponse{Forks: make([]api.ForkResult, 0, len(forks))}
	for _, f := range forks {
		var result api.ForkResult
		if f.Err != nil {
			shown := shownError(ctx, f.Err)
			result.Error = &shown
		} else {
			s := sandbox(f.Sandbox)
			result.Sandbox = &s
		}
		out.Forks = append(out.Forks, result)
	}
	return out, nil
}
