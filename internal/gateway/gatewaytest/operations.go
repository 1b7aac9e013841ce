package gatewaytest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
)

func (s *Service) KillSandbox(_ context.Context, id string) error {
	if err := s.enter("KillSandbox"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	b, err := s.find(id)
	if err != nil {
		return err
	}
	b.State = spore.SandboxKilled
	s.release(b.ID, "sandbox killed")
	return nil
}

// change alters a sandbox under the lock.
func (s *Service) change(method, id string, f func(*spore.Sandbox) error) (*spore.Sandbox, error) {
	if err := s.enter(method); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	b, err := s.find(id)
	if err != nil {
		return nil, err
	}
	if err := f(b); err != nil {
		return nil, err
	}
	return clone(b), nil
}

func move(b *spore.Sandbox, to spore.SandboxState) error {
	if b.State == to {
		return spore.Errorf(spore.CodeConflict, "sandbox %s is %s already", b.ID, to)
	}
	if err := spore.SandboxTransitions.Check("sandbox "+b.ID, b.State, to); err != nil {
		return err
	}
	b.State = to
	return nil
}

func (s *Service) PauseSandbox(_ context.Context, id string) (*spore.Sandbox, error) {
	return s.change("PauseSandbox", id, func(b *spore.Sandbox) error { return move(b, spore.SandboxPaused) })
}

func (s *Service) ResumeSandbox(_ context.Context, id string, ttl *time.Duration) (*spore.Sandbox, error) {
	return s.change("ResumeSandbox", id, func(b *spore.Sandbox) error {
		if ttl != nil && *ttl > 0 {
			b.EndsAt = Start.Add(*ttl)
		}
		b.Generation++
		return move(b, spore.SandboxRunning)
	})
}

func (s *Service) ExtendSandbox(_ context.Context, id string, ttl time.Duration, onEnd spore.EndAction) (*spore.Sandbox, error) {
	return s.change("ExtendSandbox", id, func(b *spore.Sandbox) error {
		b.EndsAt = time.Time{}
		if ttl > 0 {
			b.EndsAt = Start.Add(ttl)
		}
		if onEnd != "" {
			b.OnEnd = onEnd
		}
		return nil
	})
}

func (s *Service) SandboxLogs(_ context.Context, id string, console bool, limit int) ([]byte, error) {
	if err := s.enter("SandboxLogs"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	if _, err := s.find(id); err != nil {
		return nil, err
	}
	out := []byte("serving on :8080\n")
	if console {
		out = []byte("[    0.000000] Linux version 6.1\n")
	}
	return out[max(0, len(out)-limit):], nil
}

func (s *Service) CreateSnapshot(_ context.Context, key center.Idempotency, id string, req center.SnapshotRequest) (*spore.Template, error) {
	if err := s.enter("CreateSnapshot"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	if made, err := s.once(key); err != nil || made != "" {
		if err != nil {
			return nil, err
		}
		return s.template(made)
	}
	b, err := s.running(id)
	if err != nil {
		return nil, err
	}
	t, _, err := s.addTemplate(&spore.Template{
		Name: req.Name, Kind: spore.KindSnapshot, ParentID: b.TemplateID, OriginSandbox: id, Labels: req.Labels,
		DisplayName: req.DisplayName, Author: req.Author, Reason: req.Reason, Retain: req.Retain,
	}, spore.OpSnapshotCreate)
	if err != nil {
		return nil, err
	}
	b.TemplateID = t.ID
	s.keep(key, t.ID)
	return t, nil
}

func (s *Service) Rollback(_ context.Context, _ center.Idempotency, id, ref string) (*spore.Sandbox, error) {
	return s.change("Rollback", id, func(b *spore.Sandbox) error {
		t, err := s.template(ref)
		if err != nil {
			return err
		}
		b.TemplateID = t.ID
		b.Generation++
		s.attach(b, "rolled back")
		return nil
	})
}

func (s *Service) Fork(_ context.Context, _ center.Idempotency, ref string, req center.ForkRequest) ([]center.ForkResult, error) {
	if err := s.enter("Fork"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	from := ""
	if b, err := s.running(ref); err == nil {
		from = b.TemplateID
	} else if t, err := s.template(ref); err == nil {
		from = t.ID
	} else {
		return nil, spore.Errorf(spore.CodeNotFound, "there is no sandbox or snapshot %q", ref)
	}
	var out []center.ForkResult
	for i := range req.Count {
		if s.Fail != nil {
			if err := s.Fail(fmt.Sprintf("Fork/%d", i)); err != nil {
				out = append(out, center.ForkResult{Err: spore.AsError(err)})
				continue
			}
		}
		out = append(out, center.ForkResult{Sandbox: clone(s.addSandbox(from, req.TTL, req.OnEnd, req.Env, req.Labels))})
	}
	return out, nil
}

func (s *Service) job(id string) (*spore.Job, error) {
	for _, j := range s.jobs {
		if j.ID == id {
			return clone(j), nil
		}
	}
	return nil, spore.Errorf(spore.CodeNotFound, "there is no job %q", id).WithHint("spore job ls")
}

// end ends a job; the lock is held.
func (s *Service) end(j *spore.Job, err error) {
	j.FinishedAt, j.Progress, j.Status, j.Phase = Start.Add(time.Second), 100, spore.JobReady, spore.PhaseReady
	status := spore.TemplateReady
	if err != nil {
		e := spore.AsError(err)
		j.Status, j.Error, status = spore.JobFailed, &spore.JobError{Code: e.Code, Message: e.Message, Hint: e.Hint, Reason: e.Reason}, spore.TemplateFailed
		if e.Code == spore.CodeCanceled {
			j.Status = spore.JobCancelled
		}
	}
	for _, t := range s.templates {
		if t.ID == j.ResourceID && !(j.Operation == spore.OpRedo && err != nil) { // a redo that fails leaves what serves
			t.Status = status
			s.placed(t, j, err)
		}
	}
	s.notify()
}

// EndJob ends the job with that id, well or with err.
func (s *Service) EndJob(id string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, j := range s.jobs {
		if j.ID == id {
			s.end(j, err)
		}
	}
}

// Log adds a line to a job's log and sets its progress.
func (s *Service) Log(id string, progress int, message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, j := range s.jobs {
		if j.ID == id {
			j.Progress = progress
			s.logs[id] = append(s.logs[id], spore.LogLine{Seq: int64(len(s.logs[id]) + 1), Time: Start, Level: "info", Message: message})
			s.notify()
		}
	}
}

func (s *Service) Job(_ context.Context, id string) (*spore.Job, error) {
	if err := s.enter("Job"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	return s.job(id)
}

func (s *Service) Jobs(_ context.Context, q center.JobQuery) ([]*spore.Job, string, error) {
	if err := s.enter("Jobs"); err != nil {
		return nil, "", err
	}
	defer s.mu.Unlock()
	var found []*spore.Job
	for _, j := range s.jobs {
		if len(q.Statuses) > 0 && !slices.Contains(q.Statuses, j.Status) || q.Operation != "" && j.Operation != q.Operation ||
			q.Node != "" && j.NodeID != q.Node || q.Owner != "" && j.Owner != q.Owner || q.Resource != "" && j.ResourceID != q.Resource || q.Sandbox != "" && j.SandboxID != q.Sandbox {
			continue
		}
		found = append(found, clone(j))
	}
	return page(found, q.Limit, q.PageToken)
}

func (s *Service) CancelJob(_ context.Context, id string) (*spore.Job, error) {
	if err := s.enter("CancelJob"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	for _, j := range s.jobs {
		if j.ID == id {
			if !j.Status.Active() {
				return nil, spore.Errorf(spore.CodeConflict, "job %s has ended", id)
			}
			j.CancelAsked = true
			s.end(j, spore.Errorf(spore.CodeCanceled, "canceled"))
		}
	}
	return s.job(id)
}

func (s *Service) JobLog(_ context.Context, id string, after int64, limit int) ([]spore.LogLine, error) {
	if err := s.enter("JobLog"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	if _, err := s.job(id); err != nil {
		return nil, err
	}
	lines := s.linesAfter(id, after)
	return lines[:min(limit, len(lines))], nil
}

func (s *Service) linesAfter(id string, after int64) []spore.LogLine {
	all := s.logs[id]
	return slices.Clone(all[min(after, int64(len(all))):])
}

func (s *Service) WatchJob(ctx context.Context, id string, after int64, fn func(*spore.Job, []spore.LogLine) error) error {
	if err := s.enter("WatchJob"); err != nil {
		return err
	}
	for {
		j, err := s.job(id)
		lines := s.linesAfter(id, after)
		changed := s.changed
		s.mu.Unlock()
		if err != nil {
			return err
		}
		if len(lines) > 0 {
			after = lines[len(lines)-1].Seq
		}
		if err := fn(j, lines); err != nil {
			return err
		}
		if !j.Status.Active() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
		s.mu.Lock()
	}
}
