package center

import (
	"context"
	"strconv"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// PauseSandbox freezes a sandbox to disk and gives its memory back.
func (c *Center) PauseSandbox(ctx context.Context, id string) (*spore.Sandbox, error) {
	ctx, cancel := context.WithTimeout(ctx, c.opt.OperationTimeout)
	defer cancel()
	unlock, err := c.sandboxes.lock(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	s, err := c.Sandbox(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := mustRun(s, "paused"); err != nil {
		return nil, err
	}
	frozenID := "pause-" + s.ID + "-" + strconv.Itoa(s.Generation)
	if _, err := c.node.Suspend(ctx, s, frozenID, s.TemplateID); err != nil {
		return nil, err
	}
	c.opt.Hook("pause:frozen")
	err = c.store.Update(ctx, func(tx store.Tx) error {
		if s, err = liveSandbox(tx, id); err != nil {
			return err
		}
		s.State, s.FrozenID, s.UpdatedAt = spore.SandboxPaused, frozenID, c.opt.Now()
		return tx.UpdateSandbox(s)
	})
	if err != nil {
		back := context.WithoutCancel(ctx)
		if wake := c.node.Wake(back, id, s.Generation); wake != nil {
			c.log.Error("waking a sandbox whose pause could not be recorded", "sandbox", id, "err", wake)
		}
		if forget := c.node.Forget(back, frozenID); forget != nil {
			c.log.Error("forgetting a pause that could not be recorded", "sandbox", id, "err", forget)
		}
		return nil, err
	}
	c.opt.Hook("pause:recorded")
	return s, c.node.Settle(context.WithoutCancel(ctx), id, 0)
}

// ResumeSandbox brings a paused sandbox back. ttl, when given, sets its end anew; one that was paused because its time
// was up, and is given none, has no end.
func (c *Center) ResumeSandbox(ctx context.Context, id string, ttl *time.Duration) (*spore.Sandbox, error) {
	if ttl != nil {
		if err := checkLife(*ttl, "", nil); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, c.opt.OperationTimeout)
	defer cancel()
	unlock, err := c.sandboxes.lock(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	s, err := c.Sandbox(ctx, id)
	if err != nil {
		return nil, err
	}
	if s.State != spore.SandboxPaused {
		return nil, spore.Errorf(spore.CodeConflict, "sandbox %s is %s, not paused", id, s.State)
	}
	next := *s
	next.Generation++
	err = c.store.Update(ctx, func(tx store.Tx) error { return tx.PutRef(c.newRef(&next)) })
	if err != nil {
		return nil, err
	}
	if err := c.node.Start(ctx, &next, s.FrozenID); err != nil {
		return nil, c.dropGeneration(context.WithoutCancel(ctx), s, next.Generation, err)
	}
	c.opt.Hook("resume:started")
	now := c.opt.Now()
	next.State, next.FrozenID, next.UpdatedAt = spore.SandboxRunning, "", now
	if ttl != nil && *ttl > 0 {
		next.EndsAt = now.Add(*ttl)
	} else if ttl != nil || s.Expired(now) {
		next.EndsAt = time.Time{}
	}
	if err := c.switchTo(ctx, &next, nil); err != nil {
		return nil, c.dropGeneration(context.WithoutCancel(ctx), s, next.Generation, err)
	}
	c.opt.Hook("resume:recorded")
	if err := c.node.Forget(context.WithoutCancel(ctx), s.FrozenID); err != nil {
		c.log.Error("forgetting a pause that is over", "sandbox", id, "err", err)
	}
	return &next, nil
}

// switchTo writes that a sandbox is now its next generation, and moves its refs in the same transaction.
func (c *Center) switchTo(ctx context.Context, next *spore.Sandbox, also func(tx store.Tx) error) error {
	return c.store.Update(ctx, func(tx store.Tx) error {
		if _, err := liveSandbox(tx, next.ID); err != nil {
			return err
		}
		if err := tx.UpdateSandbox(next); err != nil {
			return err
		}
		if err := c.moveRefs(tx, next.ID, next.Generation, "switched to another state"); err != nil {
			return err
		}
		if also != nil {
			return also(tx)
		}
		return nil
	})
}

// dropGeneration undoes a generation that did not come to pass: the sandbox stays what it was. It answers cause.
func (c *Center) dropGeneration(ctx context.Context, s *spore.Sandbox, generation int, cause error) error {
	keep := s.Generation
	if s.State != spore.SandboxRunning {
		keep = 0
	}
	if err := c.node.Settle(ctx, s.ID, keep); err != nil {
		c.log.Error("dropping a generation", "sandbox", s.ID, "generation", generation, "err", err)
	}
	err := c.store.Update(ctx, func(tx store.Tx) error { return c.moveRefs(tx, s.ID, s.Generation, "did not start") })
	if err != nil {
		c.log.Error("releasing a ref", "sandbox", s.ID, "generation", generation, "err", err)
	}
	return cause
}
