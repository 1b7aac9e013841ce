package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"strconv"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
)

// GetJob shows a job.
func (c *Client) GetJob(ctx context.Context, id string) (*api.Job, error) {
	return answer[api.Job](c.api.GetJob(ctx, id))
}

// GetOperation shows a job as seen from its snapshot, also after the snapshot is gone. A job that is not about a snapshot is
// spore.CodeNotFound.
func (c *Client) GetOperation(ctx context.Context, id string) (*api.SnapshotOperation, error) {
	return answer[api.SnapshotOperation](c.api.GetOperation(ctx, id))
}

// ListJobs lists jobs, newest first. params.Limit is the size of a page, not of the list. An error ends the list.
func (c *Client) ListJobs(ctx context.Context, params api.ListJobsParams) iter.Seq2[api.Job, error] {
	return func(yield func(api.Job, error) bool) {
		page(yield, func(token string) ([]api.Job, string, error) {
			params.PageToken = token
			l, err := answer[api.JobList](c.api.ListJobs(ctx, &params))
			if err != nil {
				return nil, "", err
			}
			return l.Jobs, l.NextPageToken, nil
		})
	}
}

// CancelJob asks a job to end at its next safe point. One that has ended is spore.CodeConflict.
func (c *Client) CancelJob(ctx context.Context, id string) (*api.Job, error) {
	return answer[api.Job](c.api.CancelJob(ctx, id))
}

// JobLog lists the lines of a job's log that come after the one with sequence number after. An error ends the list.
func (c *Client) JobLog(ctx context.Context, id string, after int64) iter.Seq2[api.LogLine, error] {
	const size = 1000
	return func(yield func(api.LogLine, error) bool) {
		for {
			l, err := answer[api.JobLog](c.api.GetJobLog(ctx, id, &api.GetJobLogParams{After: after, Limit: size}))
			if err != nil {
				yield(api.LogLine{}, err)
				return
			}
			for _, line := range l.Lines {
				after = line.Seq
				if !yield(line, nil) {
					return
				}
			}
			if len(l.Lines) < size {
				return
			}
		}
	}
}

// JobEvent is one thing that happened to a job: exactly one of Job and Line is set.
type JobEvent struct {
	Job  *api.Job     // the job as it now stands
	Line *api.LogLine // a new line of its log
}

// Waits between attempts to find a server again that went away during a watch.
const (
	firstRetry  = 100 * time.Millisecond
	maxRetry    = 2 * time.Second
	maxAttempts = 30
)

// WatchJob calls fn with each event of a job, from its first log line on, until the job has ended. Jobs survive a restart
// of the server, and so does a watch: it asks again, for about a minute, and misses no line. It ends early with the
// error of fn, or when ctx ends.
func (c *Client) WatchJob(ctx context.Context, id string, fn func(JobEvent) error) error {
	var lastLine int64
	wait, failures := firstRetry, 0
	for {
		ended, progressed, err := c.watchOnce(ctx, id, &lastLine, fn)
		var stop *final
		switch {
		case ended:
			return nil
		case errors.As(err, &stop):
			return stop.err
		case ctx.Err() != nil:
			return canceled(ctx.Err())
		case err != nil && spore.CodeOf(err) != spore.CodeUnreachable:
			return err // what the server sent makes no sense
		}
		if progressed {
			wait, failures = firstRetry, 0
		}
		if failures++; failures > maxAttempts {
			if err == nil {
				err = spore.Errorf(spore.CodeUnreachable, "the server ends the watch of job %s again and again", id)
			}
			return err
		}
		select {
		case <-ctx.Done():
			return canceled(ctx.Err())
		case <-time.After(wait):
			wait = min(2*wait, maxRetry)
		}
	}
}

// final is an error after which a watch is not tried again.
type final struct{ err error }

func (e *final) Error() string { return e.err.Error() }

// watchOnce follows one event stream. progressed says whether it brought anything.
func (c *Client) watchOnce(ctx context.Context, id string, lastLine *int64, fn func(JobEvent) error) (ended, progressed bool, _ error) {
	params := &api.WatchJobParams{}
	if *lastLine > 0 {
		params.LastEventID = strconv.FormatInt(*lastLine, 10)
	}
	resp, err := c.api.WatchJob(ctx, id, params)
	if settled := settle(resp, err); settled != nil {
		if err == nil {
			settled = &final{settled} // the server has answered; asking again changes nothing
		}
		return false, false, settled
	}
	defer resp.Body.Close()
	events := newEventReader(resp.Body)
	for {
		ev, err := events.next()
		if err == io.EOF {
			return false, progressed, nil
		}
		if err != nil {
			return false, progressed, err
		}
		switch ev.name {
		case "log":
			var line api.LogLine
			if err := ev.decode(&line); err != nil {
				return false, progressed, err
			}
			*lastLine = line.Seq
			err = fn(JobEvent{Line: &line})
		case "job":
			var job api.Job
			if err := ev.decode(&job); err != nil {
				return false, progressed, err
			}
			err = fn(JobEvent{Job: &job})
			ended = !job.Status.Active()
		case "error":
			return false, progressed, &final{ev.asError()}
		}
		progressed = true
		if err != nil {
			return false, progressed, &final{err}
		}
		if ended {
			return true, progressed, nil
		}
	}
}

// WaitJob waits until a job has ended. fn, which may be nil, is called with each event meanwhile. A job that FAILED or was
// CANCELLED is an error: the job's own, with its code. The job itself is answered either way, once it is known.
func (c *Client) WaitJob(ctx context.Context, id string, fn func(JobEvent)) (*api.Job, error) {
	var last *api.Job
	err := c.WatchJob(ctx, id, func(ev JobEvent) error {
		if ev.Job != nil {
			last = ev.Job
		}
		if fn != nil {
			fn(ev)
		}
		return nil
	})
	if err != nil {
		return last, err
	}
	return last, JobError(last)
}

// JobError is why a job did not end well: nil for one that is READY or still under way.
func JobError(j *api.Job) error {
	switch {
	case j.Status == spore.JobFailed && j.Error != nil:
		return sporeError(j.Error)
	case j.Status == spore.JobFailed:
		return spore.Errorf(spore.CodeInternal, "job %s failed and does not say why", j.ID)
	case j.Status == spore.JobCancelled:
		return spore.Errorf(spore.CodeCanceled, "job %s was cancelled", j.ID)
	}
	return nil
}

// JobResult reads what came of a job into v.
func JobResult(j *api.Job, v any) error {
	if len(j.Result) == 0 {
		return spore.Errorf(spore.CodeNotFound, "job %s has no result", j.ID)
	}
	return json.Unmarshal(j.Result, v)
}
