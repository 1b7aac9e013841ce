package center

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// newJob makes the record of one operation. A job that runs at once, with its caller waiting, is born RUNNING.
func (c *Center) newJob(op spore.Operation, kind spore.TemplateKind, resourceID, sandboxID string, request any) (*spore.Job, error) {
	raw, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	return &spore.Job{
		ID: spore.NewJobID(), Operation: op, ResourceType: kind, ResourceID: resourceID, SandboxID: sandboxID,
		Status: spore.JobPending, AttemptNo: 1, Owner: c.opt.Controller, Request: raw, CreatedAt: c.opt.Now(),
	}, nil
}

func (c *Center) begin(j *spore.Job, phase spore.JobPhase) {
	j.Status, j.Phase, j.StartedAt = spore.JobRunning, phase, c.opt.Now()
}

// finish writes the end of a job into its record; the caller stores it, together with what the job changed.
func (c *Center) finish(j *spore.Job, err error) {
	j.FinishedAt = c.opt.Now()
	switch {
	case err == nil:
		j.Status, j.Phase, j.Progress, j.Error = spore.JobReady, spore.PhaseReady, 100, nil
	case j.CancelAsked && canceled(err):
		j.Status, j.Error = spore.JobCancelled, &spore.JobError{Code: spore.CodeCanceled, Message: "cancelled on request"}
	default:
		j.Status, j.Error = spore.JobFailed, jobError(err)
	}
}

func jobError(err error) *spore.JobError {
	e := spore.AsError(err)
	return &spore.JobError{Code: e.Code, Message: e.Message, Field: e.Field, Hint: e.Hint, Reason: e.Reason}
}

// note adds one line to a job's log. A log line is never worth failing the job for.
func (c *Center) note(ctx context.Context, jobID, level, format string, args ...any) {
	line := spore.LogLine{Time: c.opt.Now(), Level: level, Message: fmt.Sprintf(format, args...)}
	err := c.update(context.WithoutCancel(ctx), func(tx store.Tx) error { return tx.AppendJobLog(jobID, line) })
	if err != nil {
		c.log.Error("job log", "job", jobID, "err", err)
	}
}

// progress moves a job's phase and percentage, and its pull counters when pull is not nil.
func (c *Center) progress(ctx context.Context, jobID string, phase spore.JobPhase, percent int, pull *spore.PullProgress) error {
	return c.update(ctx, func(tx store.Tx) error {
		j, err := tx.Job(jobID)
		if err != nil {
			return err
		}
		if !j.Status.Active() {
			return spore.Errorf(spore.CodeCanceled, "the job was ended")
		}
		j.Phase, j.Progress = phase, max(percent, j.Progress)
		if pull != nil {
			j.Pull = *pull
		}
		return tx.UpdateJob(j)
	})
}

// maxAttempts is how often a job is run in all: a few retries, and as many servers that died under it. One that goes
// beyond may be what kills them.
const maxAttempts = 8

// runJob runs one queued job to its end; it is what the store's queue calls.
func (c *Center) runJob(ctx context.Context, jobID string, attempt int, last bool) (err error) {
	c.running.Store(jobID, true)
	defer func() {
		if v := recover(); v != nil {
			c.log.Error("a job panicked", "job", jobID, "panic", v, "stack", string(debug.Stack()))
			err = c.jobFailed(context.WithoutCancel(ctx), ctx, jobID, fmt.Errorf("panic: %v", v), last)
		}
		c.running.Delete(jobID)
		// It may have been asked to end just after it had decided to be tried again.
		c.insist(ctx, "end "+jobID+" if it is cancelled", func(ctx context.Context) error { return c.endCancelled(ctx, jobID) })
	}()
	return c.runAttempt(ctx, jobID, attempt, last)
}

// endCancelled ends a job that was asked to end and that does not run: nobody else would.
func (c *Center) endCancelled(ctx context.Context, jobID string) error {
	if _, runs := c.running.Load(jobID); runs {
		return nil
	}
	j, err := c.Job(ctx, jobID)
	if err != nil || !j.Status.Active() || !j.CancelAsked {
		return err
	}
	err = c.update(ctx, func(tx store.Tx) error {
		if j, err = tx.Job(jobID); err != nil || !j.Status.Active() {
			return err
		}
		c.finish(j, context.Canceled)
		if err := tx.UpdateJob(j); err != nil {
			return err
		}
		return c.failTemplate(tx, j)
	})
	if err == nil {
		c.unmake(ctx, j)
	}
	return err
}

// unmake forgets what a job that failed may have frozen already.
func (c *Center) unmake(ctx context.Context, j *spore.Job) {
	if makes(j.Operation) && (j.Status == spore.JobFailed || j.Status == spore.JobCancelled) {
		c.forget(ctx, j.NodeID, j.ResourceID)
	}
}

// makes says whether an operation makes the template or snapshot that it is about.
func makes(op spore.Operation) bool {
	return op == spore.OpCreate || op == spore.OpCommit || op == spore.OpSnapshotCreate
}

func (c *Center) runAttempt(ctx context.Context, jobID string, attempt int, last bool) error {
	var j *spore.Job
	err := c.update(ctx, func(tx store.Tx) (err error) {
		if j, err = tx.Job(jobID); err != nil || !j.Status.Active() {
			return err
		}
		j.AttemptNo, j.Owner = attempt, c.opt.Controller
		if j.Status == spore.JobPending {
			c.begin(j, j.Phase)
		}
		return tx.UpdateJob(j)
	})
	if err != nil && last && !isNotFound(err) { // the queue does not come back to it
		return c.jobFailed(context.WithoutCancel(ctx), ctx, jobID, err, true)
	}
	if err != nil || !j.Status.Active() {
		return err
	}
	c.opt.Hook("job:begun")

	if attempt > maxAttempts {
		err = spore.Errorf(spore.CodeInternal, "the server ended %d times while this was under way", attempt-1).
			WithHint("the server's log may say why")
		return c.jobFailed(context.WithoutCancel(ctx), ctx, j.ID, err, true)
	}
	switch j.Operation {
	case spore.OpCreate:
		err = c.runBuild(ctx, j)
	case spore.OpCommit:
		err = c.runCommit(ctx, j)
	case spore.OpFlatten:
		err = c.runFlatten(ctx, j)
	case spore.OpRedo:
		err = c.runRedo(ctx, j)
	case spore.OpReplicate:
		err = c.runReplicate(ctx, j)
	default:
		err = spore.Errorf(spore.CodeInternal, "job %s: operation %s cannot be queued", j.ID, j.Operation)
	}
	if err == nil {
		return nil
	}
	return c.jobFailed(context.WithoutCancel(ctx), ctx, j.ID, err, last)
}

// jobFailed decides what becomes of a job whose run failed: it ends, or the queue tries it again. run is the context of
// the run: when that was ended by the server's stopping, the job stays as it is and resumes with the next server.
func (c *Center) jobFailed(ctx, run context.Context, jobID string, failure error, last bool) error {
	stopped := run.Err() != nil
	again, err := c.endAttempt(ctx, jobID, failure, stopped, last)
	if err != nil && last && !stopped { // the queue does not come back to it
		c.insist(ctx, "record the failure of "+jobID, func(ctx context.Context) error {
			_, err := c.endAttempt(ctx, jobID, failure, false, true)
			return err
		})
		return failure
	}
	if err != nil {
		return err
	}
	if again {
		return failure
	}
	if spore.CodeOf(failure) == spore.CodeInternal {
		c.log.Error("job failed", "job", jobID, "err", failure)
	}
	return nil
}

// endAttempt ends a job, or says that it is to be tried again.
func (c *Center) endAttempt(ctx context.Context, jobID string, failure error, stopped, last bool) (again bool, err error) {
	var ended *spore.Job
	err = c.update(ctx, func(tx store.Tx) error {
		again, ended = false, nil
		j, err := tx.Job(jobID)
		if err != nil || !j.Status.Active() {
			return err
		}
		if stopped && !j.CancelAsked {
			again = true
			return nil
		}
		if !last && !j.CancelAsked && worthRetrying(failure) {
			again = true
			return tx.AppendJobLog(jobID, spore.LogLine{Time: c.opt.Now(), Level: "warn", Message: failure.Error() + "; trying again"})
		}
		c.finish(j, failure)
		if err := tx.UpdateJob(j); err != nil {
			return err
		}
		if err := tx.AppendJobLog(jobID, spore.LogLine{Time: c.opt.Now(), Level: "error", Message: j.Error.Message}); err != nil {
			return err
		}
		ended = j
		return c.failTemplate(tx, j)
	})
	if err == nil && ended != nil {
		c.unmake(ctx, ended)
	}
	return again, err
}

// failTemplate marks what a failed job was to make.
func (c *Center) failTemplate(tx store.Tx, j *spore.Job) error {
	if !makes(j.Operation) {
		return nil
	}
	t, err := tx.Template(j.ResourceID)
	if err != nil || (t.Status != spore.TemplatePending && t.Status != spore.TemplateCreating) {
		return err
	}
	t.Status, t.LastError, t.UpdatedAt = spore.TemplateFailed, j.Error.Message, c.opt.Now()
	if err := tx.UpdateTemplate(t); err != nil {
		return err
	}
	return c.cleaning(tx, t.ID)
}

// worthRetrying says whether time alone may cure an error.
func worthRetrying(err error) bool {
	switch spore.CodeOf(err) {
	case spore.CodeUnreachable, spore.CodeBusy, spore.CodeInternal:
		return true
	}
	return false
}

// Job answers one job.
func (c *Center) Job(ctx context.Context, id string) (j *spore.Job, err error) {
	err = c.store.View(ctx, func(tx store.Tx) error { j, err = tx.Job(id); return err })
	return j, err
}

// Jobs lists jobs, newest first.
func (c *Center) Jobs(ctx context.Context, q JobQuery) (jobs []*spore.Job, next string, err error) {
	err = c.store.View(ctx, func(tx store.Tx) error {
		var page store.Page
		jobs, page, err = tx.Jobs(store.JobFilter{
			Paging: store.Paging{Limit: q.Limit, After: q.PageToken}, Statuses: q.Statuses, Operation: q.Operation,
			ResourceID: q.Resource, SandboxID: q.Sandbox, NodeID: q.Node, Owner: q.Owner,
		})
		next = page.Next
		return err
	})
	return jobs, next, err
}

// JobLog answers the lines of a job's log after the given sequence number.
func (c *Center) JobLog(ctx context.Context, id string, after int64, limit int) (lines []spore.LogLine, err error) {
	err = c.store.View(ctx, func(tx store.Tx) error {
		if _, err := tx.Job(id); err != nil {
			return err
		}
		lines, err = tx.JobLog(id, after, limit)
		return err
	})
	return lines, err
}

// CancelJob asks a queued job to end. One that has ended already is answered as it is; one that runs with its caller
// waiting cannot be cancelled, since it is over in a moment.
func (c *Center) CancelJob(ctx context.Context, id string) (*spore.Job, error) {
	var j *spore.Job
	err := c.update(ctx, func(tx store.Tx) (err error) {
		if j, err = tx.Job(id); err != nil || !j.Status.Active() {
			return err
		}
		if !queued(j.Operation) {
			return spore.Errorf(spore.CodeConflict, "%s cannot be cancelled", j.Operation).WithHint("it ends by itself in a moment")
		}
		j.CancelAsked = true
		if j.Status == spore.JobPending {
			c.finish(j, context.Canceled)
			if err := c.failTemplate(tx, j); err != nil {
				return err
			}
		}
		return tx.UpdateJob(j)
	})
	if err != nil {
		return nil, err
	}
	if !j.CancelAsked {
		return j, nil
	}
	if err := c.store.CancelWork(ctx, id); err != nil {
		return nil, err
	}
	if err := c.endCancelled(ctx, id); err != nil { // it was waiting to be tried again
		return nil, err
	}
	wait, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err = c.await(wait, func(tx store.Tx) (bool, error) { j, err = tx.Job(id); return err == nil && !j.Status.Active(), err })
	if err != nil && ctx.Err() == nil && wait.Err() != nil {
		return j, nil // asked for; it ends at its next safe point
	}
	return j, err
}

func queued(op spore.Operation) bool {
	switch op {
	case spore.OpCreate, spore.OpCommit, spore.OpFlatten, spore.OpRedo, spore.OpReplicate:
		return true
	}
	return false
}

// WatchJob calls fn with the job and its new log lines, at once and after every change, until the job has ended.
func (c *Center) WatchJob(ctx context.Context, id string, after int64, fn func(*spore.Job, []spore.LogLine) error) error {
	const page = 500
	first, seen := true, spore.Job{}
	for {
		changed := c.store.Changes()
		var j *spore.Job
		var lines []spore.LogLine
		err := c.store.View(ctx, func(tx store.Tx) (err error) {
			if j, err = tx.Job(id); err != nil {
				return err
			}
			lines, err = tx.JobLog(id, after, page)
			return err
		})
		if err != nil {
			return err
		}
		moved := j.Status != seen.Status || j.Phase != seen.Phase || j.Progress != seen.Progress || j.Pull != seen.Pull
		if first || moved || len(lines) > 0 {
			if err := fn(j, lines); err != nil {
				return err
			}
			first, seen = false, *j
		}
		if len(lines) > 0 {
			after = lines[len(lines)-1].Seq
		}
		if len(lines) == page {
			continue
		}
		if !j.Status.Active() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
