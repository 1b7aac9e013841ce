package gateway

import (
	"context"
	"net/http"
	"strconv"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/center"
)

const (
	defaultLogLines = 1000
	maxLogLines     = 10000
)

var operations = map[spore.Operation]bool{
	spore.OpCreate: true, spore.OpRedo: true, spore.OpCommit: true, spore.OpLegacy: true, spore.OpDelete: true, spore.OpSnapshotCreate: true,
	spore.OpSnapshotRollback: true, spore.OpSnapshotDelete: true, spore.OpFork: true, spore.OpFlatten: true,
}

func (n *native) ListJobs(ctx context.Context, r api.ListJobsRequestObject) (api.ListJobsResponseObject, error) {
	p := r.Params
	if err := oneOf("status", spore.JobTransitions, p.Status...); err != nil {
		return nil, err
	}
	if err := oneOf("operation", operations, p.Operation); err != nil {
		return nil, err
	}
	limit, err := pageLimit(p.Limit)
	if err != nil {
		return nil, err
	}
	found, next, err := n.svc.Jobs(ctx, center.JobQuery{
		Statuses: p.Status, Operation: p.Operation, Resource: p.Resource, Sandbox: p.Sandbox, Limit: limit, PageToken: p.PageToken,
	})
	if err != nil {
		return nil, err
	}
	return api.ListJobs200JSONResponse{Jobs: each(found, job), NextPageToken: next}, nil
}

func (n *native) GetJob(ctx context.Context, r api.GetJobRequestObject) (api.GetJobResponseObject, error) {
	j, err := n.svc.Job(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return api.GetJob200JSONResponse(job(j)), nil
}

func (n *native) CancelJob(ctx context.Context, r api.CancelJobRequestObject) (api.CancelJobResponseObject, error) {
	j, err := n.svc.CancelJob(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return api.CancelJob200JSONResponse(job(j)), nil
}

func (n *native) GetJobLog(ctx context.Context, r api.GetJobLogRequestObject) (api.GetJobLogResponseObject, error) {
	limit, err := inRange("limit", r.Params.Limit, defaultLogLines, maxLogLines)
	if err != nil {
		return nil, err
	}
	if r.Params.After < 0 {
		return nil, spore.Invalidf("after", "%d is out of range", r.Params.After)
	}
	lines, err := n.svc.JobLog(ctx, r.ID, r.Params.After, limit)
	if err != nil {
		return nil, err
	}
	out := api.GetJobLog200JSONResponse{Lines: make([]api.LogLine, 0, len(lines))}
	for _, l := range lines {
		out.Lines = append(out.Lines, logLine(l))
	}
	return out, nil
}

func (n *native) WatchJob(ctx context.Context, r api.WatchJobRequestObject) (api.WatchJobResponseObject, error) {
	var after int64
	if id := r.Params.LastEventID; id != "" {
		var err error
		if after, err = strconv.ParseInt(id, 10, 64); err != nil || after < 0 {
			return nil, spore.Invalidf("Last-Event-ID", "%q is not the id of an event", id)
		}
	}
	return streamed(func(w http.ResponseWriter) error {
		ctx, cancel := n.untilClosing(ctx)
		defer cancel()
		events := newEventStream(w, n.opt.Heartbeat)
		err := n.svc.WatchJob(ctx, r.ID, after, func(j *spore.Job, lines []spore.LogLine) error {
			for _, l := range lines {
				if err := events.send("log", strconv.FormatInt(l.Seq, 10), logLine(l)); err != nil {
					return err
				}
			}
			return events.send("job", "", job(j))
		})
		events.close()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil && events.begun():
			return nil // the client left, or will find its way back with Last-Event-ID
		}
		return events.fail(ctx, err)
	}), nil
}
