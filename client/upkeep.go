package client

import (
	"context"
	"io"

	"github.com/sporevm/spore/api"
)

// ListKernels lists the installed kernels.
func (c *Client) ListKernels(ctx context.Context) ([]api.Kernel, error) {
	l, err := answer[api.KernelList](c.api.ListKernels(ctx))
	if err != nil {
		return nil, err
	}
	return l.Kernels, nil
}

// InstallKernel installs the distribution's kernel, or one from files on the server's machine. progress may be nil.
func (c *Client) InstallKernel(ctx context.Context, req api.KernelRequest, progress func(api.Progress)) (*api.Kernel, error) {
	resp, err := c.api.InstallKernel(ctx, req)
	return follow[api.Kernel](resp, err, progress)
}

// DeleteKernel removes a kernel. One that a template or snapshot was frozen with is spore.CodeInUse.
func (c *Client) DeleteKernel(ctx context.Context, id string) error {
	return done(c.api.DeleteKernel(ctx, id))
}

// Check looks for damage; full reads every stored byte. It changes nothing, and ends with ctx. progress may be nil.
func (c *Client) Check(ctx context.Context, full bool, progress func(api.Progress)) (*api.CheckReport, error) {
	resp, err := c.api.Check(ctx, &api.CheckParams{Full: full})
	return follow[api.CheckReport](resp, err, progress)
}

// CollectGarbage removes what retention policies no longer keep, and frees bytes that nothing holds. With dryRun it only
// says which.
func (c *Client) CollectGarbage(ctx context.Context, dryRun bool) (*api.GarbageReport, error) {
	return answer[api.GarbageReport](c.api.CollectGarbage(ctx, &api.CollectGarbageParams{DryRun: dryRun}))
}

// Explain says what an id or name is, what it stands on, who holds it and what deleting it would free.
func (c *Client) Explain(ctx context.Context, id string) (*api.Explanation, error) {
	return answer[api.Explanation](c.api.Explain(ctx, id))
}

// Info says what the server is.
func (c *Client) Info(ctx context.Context) (*api.Info, error) {
	return answer[api.Info](c.api.GetInfo(ctx))
}

// Healthy says whether the server answers; nil means that it does.
func (c *Client) Healthy(ctx context.Context) error {
	return done(c.api.Healthz(ctx))
}

// Metrics copies to w what the server counts, as Prometheus text exposition.
func (c *Client) Metrics(ctx context.Context, w io.Writer) error {
	resp, err := c.api.GetMetrics(ctx)
	if err := settle(resp, err); err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(w, resp.Body)
	return err
}
