package gateway

import (
	"cmp"
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
	spore.OpReplicate: true, spore.OpCreate: true, spore.OpRedo: true, spore.OpCommit: true, spore.OpLegacy: true, spore.OpDelete: true, spore.OpSnapshotCreate: true,
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
		Statuses: p.Status, Operation: p.Operation, Resource: p.Resource, Sandbox: p.Sandbox, Node: p.Node, Owner: p.Owner, Limit: limit, PageToken: p.PageToken,
	})
	if err != nil {
		return nil, err
	}
	return api.ListJobs200JSONResponse{Jobs: each(found, job), NextPageToken: next}, nil
}

func (n *native) GetJob(ctx context.Context, r api.GetJobRequestObject) (api.GetJobResponseObject, error) {
	d, err := n.svc.JobDetails(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	out := job(d.Job)
	out.TemplateStatus, out.ArtifactStatus = d.TemplateStatus, d.ArtifactStatus
	return api.GetJob200JSONResponse(out), nil
}

// snapshotOperations are the jobs that can be looked at as operations, and what they are called there.
var snapshotOperations = map[spore.Operation]string{
	spore.OpSnapshotCreate: "CREATE", spore.OpSnapshotRollback: "ROLLBACK", spore.OpSnapshotDelete: "DELETE",
}

func (n *native) GetOperation(ctx context.Context, r api.GetOperationRequestObject) (api.GetOperationResponseObject, error) {
	unknown := spore.Errorf(spore.CodeNotFound, "there is no operation %q", r.ID).WithHint("spore job ls").Because(spore.ReasonOperationNotFound)
	j, err := n.svc.Job(ctx, r.ID)
	if spore.CodeOf(err) == spore.CodeNotFound {
		return nil, unknown.WithCause(err)
	}
	if err != nil {
		return nil, err
	}
	name, ok := snapshotOperations[j.Operation]
	if !ok {
		return nil, unknown
	}
	out := api.GetOperation200JSONResponse{
		OperationID: j.ID, SnapshotID: j.ResourceID, SandboxID: j.SandboxID, RequestID: j.RequestID, Operation: name, Status: j.Status, Phase: j.Phase,
		Progress: min(max(j.Progress, 0), 100), AttemptNo: j.AttemptNo, RetryOfJobID: j.RetryOfJobID,
		ResourceType: cmp.Or(j.ResourceType, spore.KindSnapshot), ResourceID: j.ResourceID,
	}
	if e := job(j).Error; e != nil {
		out.ErrorMessage = e.Message
	}
	return out, nil
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
