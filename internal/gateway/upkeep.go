package gateway

import (
	"context"
	"net/http"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/center"
)

func (n *native) ListKernels(ctx context.Context, _ api.ListKernelsRequestObject) (api.ListKernelsResponseObject, error) {
	found, err := n.svc.Kernels(ctx)
	if err != nil {
		return nil, err
	}
	out := api.ListKernels200JSONResponse{Kernels: make([]api.Kernel, 0, len(found))}
	for i := range found {
		out.Kernels = append(out.Kernels, kernel(&found[i]))
	}
	return out, nil
}

func (n *native) InstallKernel(ctx context.Context, r api.InstallKernelRequestObject) (api.InstallKernelResponseObject, error) {
	var src center.KernelSource
	if r.Body != nil {
		src = center.KernelSource{Package: r.Body.Package, Kernel: r.Body.Kernel, Modules: r.Body.Modules}
	}
	switch {
	case src.Package != "" && (src.Kernel != "" || src.Modules != ""):
		return nil, spore.Invalidf("package", "cannot be combined with kernel and modules")
	case src.Kernel != "" && src.Modules == "":
		return nil, spore.Invalidf("modules", "is missing").WithHint("a kernel needs the tree of its modules")
	case src.Kernel == "" && src.Modules != "":
		return nil, spore.Invalidf("kernel", "is missing").WithHint("modules need the kernel that they belong to")
	}
	return streamed(func(w http.ResponseWriter) error {
		return n.stream(ctx, w, func(progress func(string, int64, int64)) (any, error) {
			k, err := n.svc.InstallKernel(ctx, src, progress)
			if err != nil {
				return nil, err
			}
			return kernel(k), nil
		})
	}), nil
}

func (n *native) DeleteKernel(ctx context.Context, r api.DeleteKernelRequestObject) (api.DeleteKernelResponseObject, error) {
	if err := n.svc.RemoveKernel(ctx, r.ID); err != nil {
		return nil, err
	}
	return api.DeleteKernel204Response{}, nil
}

func (n *native) Check(ctx context.Context, r api.CheckRequestObject) (api.CheckResponseObject, error) {
	return streamed(func(w http.ResponseWriter) error {
		ctx, cancel := n.untilClosing(ctx)
		defer cancel()
		return n.stream(ctx, w, func(progress func(string, int64, int64)) (any, error) {
			report, err := n.svc.Check(ctx, r.Params.Full, progress)
			if err != nil {
				return nil, err
			}
			return checkReport(report), nil
		})
	}), nil
}

// progressEvery is often enough for eyes and seldom enough for the wire.
const progressEvery = 100 * time.Millisecond

// stream runs work and writes its progress and its result as events.
func (n *native) stream(ctx context.Context, w http.ResponseWriter, work func(progress func(step string, done, total int64)) (any, error)) error {
	events := newEventStream(w, n.opt.Heartbeat)
	var last time.Time
	var lastStep string
	gone := false
	result, err := work(func(step string, done, total int64) {
		now := time.Now()
		if gone || step == lastStep && done < total && now.Sub(last) < progressEvery {
			return
		}
		last, lastStep = now, step
		if err := events.send("progress", "", api.Progress{Step: step, Done: done, Total: total}); err != nil {
			gone = true // the work goes on; it ends with ctx if it should
			logOf(ctx).Debug("progress not delivered", "err", err)
		}
	})
	events.close()
	if err != nil {
		return events.fail(ctx, err)
	}
	if err := events.send("result", "", result); err != nil {
		logOf(ctx).Debug("result not delivered", "err", err)
	}
	return nil
}

func (n *native) CollectGarbage(ctx context.Context, r api.CollectGarbageRequestObject) (api.CollectGarbageResponseObject, error) {
	g, err := n.svc.CollectGarbage(ctx, r.Params.DryRun)
	if err != nil {
		return nil, err
	}
	return api.CollectGarbage200JSONResponse(garbageReport(g)), nil
}

func (n *native) Explain(ctx context.Context, r api.ExplainRequestObject) (api.ExplainResponseObject, error) {
	e, err := n.svc.Explain(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return api.Explain200JSONResponse(explanation(e)), nil
}

func (n *native) GetInfo(ctx context.Context, _ api.GetInfoRequestObject) (api.GetInfoResponseObject, error) {
	i, err := n.svc.Info(ctx)
	if err != nil {
		return nil, err
	}
	return api.GetInfo200JSONResponse(info(i)), nil
}

func (n *native) Healthz(context.Context, api.HealthzRequestObject) (api.HealthzResponseObject, error) {
	return api.Healthz200JSONResponse{Status: "ok"}, nil
}
