package center

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// maxTTL bounds the time a sandbox may be given at once.
const maxTTL = 10 * 365 * 24 * time.Hour

// CreateSandbox thaws a sandbox from a template or snapshot and answers when its agent does.
func (c *Center) CreateSandbox(ctx context.Context, key Idempotency, req CreateRequest) (*spore.Sandbox, error) {
	if err := checkCreate(req); err != nil {
		return nil, err
	}
	ctx, cancel := c.within(ctx)
	defer cancel()
	id := spore.NewSandboxID()
	unlock, err := c.sandboxes.lock(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	var s *spore.Sandbox
	var ref *spore.RuntimeRef
	var r *resolution
	replayed := ""
	err = c.update(ctx, func(tx store.Tx) (err error) {
		if replayed, err = replay(tx, key); err != nil || replayed != "" {
			return err
		}
		if r, err = c.resolve(tx, req); err != nil {
			return err
		}
		s = c.newSandbox(id, r.request)
		s.NodeID, s.Cold = r.nodeID, r.cold
		if ref, err = c.reserve(tx, s, r.template); err != nil {
			return err
		}
		return c.remember(tx, key, s.ID)
	})
	if err != nil {
		return nil, err
	}
	if replayed != "" {
		return c.settled(ctx, replayed)
	}
	c.meters.resolved(r.stages)
	return c.launch(ctx, s, ref, r.request.TTL)
}

func checkCreate(req CreateRequest) error {
	if req.Template == "" {
		return spore.Invalidf("template", "no template given").WithHint("see which there are: spore template ls").Because(spore.ReasonTemplateIDRequired)
	}
	if err := checkLife(req.TTL, req.OnEnd, req.Env); err != nil {
		return err
	}
	if err := req.Wiring.validate(); err != nil {
		return err
	}
	if err := spore.ValidateDisks(req.Disks); err != nil {
		return err
	}
	return checkLabels(req.Labels)
}

const (
	maxLabels   = 64
	maxLabel    = 1024 // bytes of a key or a value
	maxEnv      = 1024
	maxEnvBytes = 256 << 10 // of all names and values
)

func checkLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return spore.Invalidf("labels", "there are %d", len(labels)).WithHint("at most %d", maxLabels)
	}
	for k, v := range labels {
		if k == "" || len(k) > maxLabel || len(v) > maxLabel {
			return spore.Invalidf("labels", "%.60q is empty, or its key or value is too long", k).WithHint("at most %d bytes each", maxLabel)
		}
	}
	return nil
}

func checkLife(ttl time.Duration, onEnd spore.EndAction, env map[string]string) error {
	switch {
	case ttl < 0 || ttl > maxTTL:
		return spore.Invalidf("ttlSeconds", "%s is out of range", ttl).WithHint("0 for no end, at most ten years")
	case onEnd != "" && onEnd != spore.EndKill && onEnd != spore.EndPause:
		return spore.Invalidf("onEnd", "%q is not known", onEnd).WithHint(`"kill" or "pause"`)
	}
	list := make([]string, 0, len(env))
	for k, v := range env {
		if strings.Contains(k, "=") {
			return spore.Invalidf("env", "the name %.60q contains an equals sign", k)
		}
		list = append(list, k+"="+v)
	}
	return checkEnv("env", list)
}

func (c *Center) newSandbox(id string, req CreateRequest) *spore.Sandbox {
	now := c.opt.Now()
	s := &spore.Sandbox{
		ID: id, State: spore.SandboxCreating, Generation: 1,
		Env: req.Env, Labels: req.Labels, OnEnd: req.OnEnd, CreatedAt: now, UpdatedAt: now,
	}
	if s.OnEnd == "" {
		s.OnEnd = spore.EndKill
	}
	wire(s, req.Wiring)
	s.Disks = req.Disks
	if req.TTL > 0 {
		s.EndsAt = now.Add(req.TTL)
	}
	return s
}

// reserve inserts a sandbox that is to stand on t, with its ref, which it answers, so that t is held before anything is thawed. The caller holds
// the sandbox's lock in this controller; here it gets it among all.
func (c *Center) reserve(tx store.Tx, s *spore.Sandbox, t *spore.Template) (*spore.RuntimeRef, error) {
	n, err := c.on(s.NodeID)
	if err != nil {
		return nil, err
	}
	if err := n.Admit(t.Resources); err != nil {
		return nil, err
	}
	s.TemplateID, s.Resources = t.ID, t.Resources
	if err := tx.InsertSandbox(s); err != nil {
		return nil, err
	}
	ref := c.newRef(s)
	if err := tx.PutRef(ref); err != nil || c.opt.Alone {
		return ref, err
	}
	now := c.opt.Now()
	l := c.creationLease(s.ID)
	l.Until = now.Add(leaseFor)
	_, err = tx.TakeLease(l, now)
	return ref, err
}

func (c *Center) creationLease(sandboxID string) store.Lease {
	return store.Lease{Name: "sandbox/" + sandboxID, Holder: "creation", Controller: c.opt.Controller}
}

// created gives the lease of a creation back.
func (c *Center) created(tx store.Tx, sandboxID string) error {
	if c.opt.Alone {
		return nil
	}
	l := c.creationLease(sandboxID)
	return tx.DropLease(l.Name, l.Holder)
}

func (c *Center) newRef(s *spore.Sandbox) *spore.RuntimeRef {
	return &spore.RuntimeRef{
		TemplateID: s.TemplateID, SandboxID: s.ID, NodeID: s.NodeID, Binding: spore.BindingMemoryBacking,
		SandboxGen: s.Generation, Status: spore.RefReserved, AttachedAt: c.opt.Now(), LeaseUntil: c.opt.Now().Add(c.opt.OperationTimeout),
	}
}

// launch thaws a sandbox whose row and ref stand, and writes how that ended. The caller holds its lock.
func (c *Center) launch(ctx context.Context, s *spore.Sandbox, reserved *spore.RuntimeRef, ttl time.Duration) (*spore.Sandbox, error) {
	c.opt.Hook("create:reserved")
	fail := func(err error) (*spore.Sandbox, error) {
		c.fleet.promise(s.NodeID, -s.Resources.MemoryMiB)
		return nil, c.giveUp(ctx, s, err)
	}
	c.fleet.promise(s.NodeID, s.Resources.MemoryMiB)
	n, err := c.on(s.NodeID)
	if err != nil {
		return fail(err)
	}
	if err := n.Start(ctx, s, s.TemplateID); err != nil {
		c.doubt(ctx, s.TemplateID, s.NodeID, err)
		return fail(err)
	}
	ports, err := c.published(ctx, n, s)
	if err != nil {
		return fail(err)
	}
	c.opt.Hook("create:started")
	asked := s.EndsAt
	err = c.update(context.WithoutCancel(ctx), func(tx store.Tx) error { // as record, and a caller who leaves has a sandbox
		now, err := liveSandbox(tx, s.ID)
		if err != nil {
			return err
		}
		*s = *now
		s.State, s.UpdatedAt, s.Ports = spore.SandboxRunning, c.opt.Now(), ports
		if ttl > 0 && s.EndsAt.Equal(asked) { // its time begins now, unless it was given another end meanwhile
			s.EndsAt = s.UpdatedAt.Add(ttl)
		}
		if err := tx.UpdateSandbox(s); err != nil {
			return err
		}
		if err := c.created(tx, s.ID); err != nil {
			return err
		}
		ref := *reserved
		ref.Status, ref.LeaseUntil, ref.LastSeenAt = spore.RefActive, time.Time{}, s.UpdatedAt
		return tx.PutRef(&ref)
	})
	if err != nil {
		return fail(err)
	}
	return s, nil
}

// moveRefs makes the reserved ref of one generation the active one and releases the others.
func (c *Center) moveRefs(tx store.Tx, sandboxID string, generation int, reason string) error {
	refs, err := tx.Refs(store.RefFilter{SandboxID: sandboxID, Statuses: held})
	if err != nil {
		return err
	}
	for _, r := range refs {
		switch {
		case r.SandboxGen != generation:
			r.Status, r.Reason, r.ReleasedAt = spore.RefReleased, reason, c.opt.Now()
		case r.Status == spore.RefReserved:
			r.Status, r.LeaseUntil = spore.RefActive, time.Time{}
		default:
			continue
		}
		if err := tx.PutRef(r); err != nil {
			return err
		}
	}
	return nil
}

// releaseAll lets go of everything a sandbox stood on.
func (c *Center) releaseAll(tx store.Tx, sandboxID, reason string) error {
	return c.moveRefs(tx, sandboxID, -1, reason)
}

// giveUp undoes a create that did not come to pass and answers why. The request's key is forgotten, so that a retry
// tries again instead of being told of the old failure.
func (c *Center) giveUp(ctx context.Context, s *spore.Sandbox, cause error) error {
	if errors.Is(cause, store.ErrUndecided) {
		return cause
	}
	cause = c.overran(ctx, cause)
	id := s.ID
	c.settle(ctx, s.NodeID, id, 0)
	c.insist(ctx, "record that "+id+" did not start", func(ctx context.Context) error {
		return c.update(ctx, func(tx store.Tx) error {
			if err := c.created(tx, id); err != nil {
				return err
			}
			s, err := tx.Sandbox(id)
			if err != nil || s.State != spore.SandboxCreating {
				return err
			}
			s.State, s.StateReason, s.UpdatedAt = spore.SandboxKilled, spore.AsError(cause).Message, c.opt.Now()
			if err := tx.UpdateSandbox(s); err != nil {
				return err
			}
			if err := tx.DropReplay(id); err != nil {
				return err
			}
			return c.releaseAll(tx, id, "create failed")
		})
	})
	return cause
}

// settled waits until a sandbox that another request is creating has come to be, or not. Only one that did not come to be
// is KILLED with a reason.
func (c *Center) settled(ctx context.Context, id string) (s *spore.Sandbox, err error) {
	err = c.await(ctx, func(tx store.Tx) (bool, error) {
		if s, err = tx.Sandbox(id); err != nil {
			return false, err
		}
		return s.State != spore.SandboxCreating, nil
	})
	if err != nil {
		return nil, err
	}
	if s.State == spore.SandboxKilled && s.StateReason != "" {
		return nil, spore.Errorf(spore.CodeConflict, "sandbox %s did not start: %s", id, s.StateReason)
	}
	return s, nil
}

// Sandbox answers one sandbox. A killed one is not found.
func (c *Center) Sandbox(ctx context.Context, id string) (s *spore.Sandbox, err error) {
	err = c.store.View(ctx, func(tx store.Tx) error { s, err = liveSandbox(tx, id); return err })
	return s, err
}

func liveSandbox(tx store.Tx, id string) (*spore.Sandbox, error) {
	s, err := tx.Sandbox(id)
	if err != nil {
		return nil, err
	}
	if s.State == spore.SandboxKilled {
		return nil, spore.Errorf(spore.CodeNotFound, "sandbox %s is gone", id)
	}
	return s, nil
}

// Sandboxes lists sandboxes, newest first.
func (c *Center) Sandboxes(ctx context.Context, q SandboxQuery) (list []*spore.Sandbox, next string, err error) {
	err = c.store.View(ctx, func(tx store.Tx) error {
		f := store.SandboxFilter{
			Paging: store.Paging{Limit: q.Limit, After: q.PageToken}, States: q.States, NodeID: q.Node, Labels: q.Labels, Killed: q.All,
		}
		if q.Template != "" {
			t, err := tx.FindTemplate(q.Template)
			if err != nil {
				return err
			}
			f.TemplateID = t.ID
		}
		var page store.Page
		list, page, err = tx.Sandboxes(f)
		next = page.Next
		return err
	})
	return list, next, err
}

// mustRun refuses to act on a sandbox that does not run; done is the participle of the act.
func mustRun(s *spore.Sandbox, done string) error {
	if s.State == spore.SandboxRunning {
		return nil
	}
	e := spore.Errorf(spore.CodeConflict, "sandbox %s is %s and cannot be %s", s.ID, s.State, done)
	switch s.State {
	case spore.SandboxPaused:
		e.Hint = "resume it first: spore sandbox resume " + s.ID
	case spore.SandboxFailed:
		e.Message += ": " + s.StateReason
		e.Hint = "roll it back to a snapshot, or remove it"
	case spore.SandboxCreating:
		e.Code, e.Hint = spore.CodeBusy, "try again in a moment"
	case spore.SandboxKilled:
		e.Code = spore.CodeNotFound
	}
	return e
}

// KillSandbox ends a sandbox for good.
func (c *Center) KillSandbox(ctx context.Context, id string) error {
	unlock, err := c.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	return c.kill(ctx, id, func(*spore.Sandbox) bool { return true })
}

// kill is KillSandbox for a caller who holds the sandbox's lock, and only if the sandbox is still one that due wants ended.
func (c *Center) kill(ctx context.Context, id string, due func(*spore.Sandbox) bool) error {
	frozenID, nodeID, killed := "", "", false
	err := c.update(ctx, func(tx store.Tx) error {
		s, err := liveSandbox(tx, id)
		if err != nil {
			return err
		}
		if killed = due(s); !killed {
			return nil
		}
		frozenID, nodeID, s.FrozenID = s.FrozenID, s.NodeID, ""
		s.State, s.StateReason, s.UpdatedAt = spore.SandboxKilled, "", c.opt.Now()
		if err := tx.UpdateSandbox(s); err != nil {
			return err
		}
		return c.releaseAll(tx, id, "sandbox killed")
	})
	if err != nil || !killed {
		return err
	}
	c.notBefore.Delete(id)
	c.opt.Hook("kill:recorded")
	if frozenID != "" {
		c.forget(ctx, nodeID, frozenID)
	}
	if f := c.fleet.facts(nodeID); f == nil || f.State != spore.NodeForgotten { // nothing runs there any more
		var n Node
		if n, err = c.on(nodeID); err == nil {
			err = n.Settle(context.WithoutCancel(ctx), id, 0)
		}
	}
	c.dropIdle(ctx)
	return err
}

// ExtendSandbox sets a sandbox's end to ttl from now; 0 is no end.
func (c *Center) ExtendSandbox(ctx context.Context, id string, ttl time.Duration, onEnd spore.EndAction) (s *spore.Sandbox, err error) {
	if err := checkLife(ttl, onEnd, nil); err != nil {
		return nil, err
	}
	err = c.update(ctx, func(tx store.Tx) error {
		if s, err = liveSandbox(tx, id); err != nil {
			return err
		}
		s.EndsAt, s.UpdatedAt = time.Time{}, c.opt.Now()
		if ttl > 0 {
			s.EndsAt = s.UpdatedAt.Add(ttl)
		}
		if onEnd != "" {
			s.OnEnd = onEnd
		}
		return tx.UpdateSandbox(s)
	})
	return s, err
}

// Agent answers a transport to the agent of a running sandbox.
func (c *Center) Agent(ctx context.Context, id string) (http.RoundTripper, error) {
	s, err := c.Sandbox(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := mustRun(s, "reached"); err != nil {
		return nil, err
	}
	n, err := c.on(s.NodeID)
	if err != nil {
		return nil, err
	}
	return n.Agent(ctx, id, s.Generation)
}

// SandboxLogs answers the output of the image's own process, or of the guest's console.
func (c *Center) SandboxLogs(ctx context.Context, id string, console bool, limit int) ([]byte, error) {
	s, err := c.Sandbox(ctx, id)
	if err != nil {
		return nil, err
	}
	if !slices.Contains([]spore.SandboxState{spore.SandboxRunning, spore.SandboxFailed}, s.State) {
		return nil, mustRun(s, "asked for its logs")
	}
	n, err := c.on(s.NodeID)
	if err != nil {
		return nil, err
	}
	return n.Logs(ctx, id, s.Generation, console, limit)
}
