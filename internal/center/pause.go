package center

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// PauseSandbox freezes a sandbox to disk and gives its memory back.
func (c *Center) PauseSandbox(ctx context.Context, id string) (*spore.Sandbox, error) {
	ctx, cancel := c.within(ctx)
	defer cancel()
	unlock, err := c.lock(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return c.pause(ctx, id)
}

// pause is PauseSandbox for a caller who holds the sandbox's lock.
func (c *Center) pause(ctx context.Context, id string) (*spore.Sandbox, error) {
	s, err := c.Sandbox(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := mustRun(s, "paused"); err != nil {
		return nil, err
	}
	generation := s.Generation
	frozenID := pausePrefix + s.ID + "-" + strconv.Itoa(s.Generation)
	n, err := c.on(s.NodeID)
	if err != nil {
		return nil, err
	}
	if _, err := n.Suspend(ctx, s, frozenID, s.TemplateID); err != nil {
		return nil, c.overran(ctx, err)
	}
	c.opt.Hook("pause:frozen")
	err = c.record(ctx, func(tx store.Tx) error {
		now, err := liveSandbox(tx, id)
		if err != nil {
			return err
		}
		s = now
		s.State, s.FrozenID, s.UpdatedAt = spore.SandboxPaused, frozenID, c.opt.Now()
		return tx.UpdateSandbox(s)
	})
	if err != nil {
		undo := func(ctx context.Context) {
			if wake := n.Wake(ctx, id, generation); wake != nil {
				c.log.Error("waking a sandbox whose pause could not be recorded", "sandbox", id, "err", wake)
			}
			c.forget(ctx, s.NodeID, frozenID)
		}
		if !errors.Is(err, store.ErrUndecided) {
			undo(context.WithoutCancel(ctx))
			return nil, err
		}
		c.insist(ctx, "settle the pause of "+id, func(ctx context.Context) error {
			recorded := false
			// Not a view: whatever is still being committed comes before this.
			err := c.update(ctx, func(tx store.Tx) error {
				now, err := tx.Sandbox(id)
				if isNotFound(err) {
					return nil
				}
				recorded = err == nil && now.FrozenID == frozenID
				return err
			})
			if err == nil && !recorded {
				undo(ctx)
			}
			return err
		})
		return nil, err
	}
	c.opt.Hook("pause:recorded")
	c.settle(ctx, s.NodeID, id, 0)
	return s, nil
}

// settle ends the generations of a sandbox that the rows no longer speak of. The node goes on with one that does not end.
func (c *Center) settle(ctx context.Context, nodeID, id string, keep int) {
	n, err := c.on(nodeID)
	if err == nil {
		err = n.Settle(context.WithoutCancel(ctx), id, keep)
	}
	if err != nil { // the node's next report shows what is left
		c.log.Error("ending the VMs that a sandbox has left", "sandbox", id, "err", err)
	}
}

// ResumeSandbox brings a paused sandbox back. ttl, when given, sets its end anew; one that was paused because its time
// was up, and is given none, has no end.
func (c *Center) ResumeSandbox(ctx context.Context, id string, ttl *time.Duration) (*spore.Sandbox, error) {
	if ttl != nil {
		if err := checkLife(*ttl, "", nil); err != nil {
			return nil, err
		}
	}
	ctx, cancel := c.within(ctx)
	defer cancel()
	unlock, err := c.lock(ctx, id)
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
	n, err := c.on(s.NodeID)
	if err != nil {
		return nil, err
	}
	if err := c.connectable(s); err != nil {
		return nil, err
	}
	next := *s
	next.Generation++
	err = c.update(ctx, func(tx store.Tx) error { return tx.PutRef(c.newRef(&next)) })
	if err != nil {
		return nil, err
	}
	if err := n.Start(ctx, &next, s.FrozenID); err != nil {
		return nil, c.dropGeneration(ctx, s, &next, err)
	}
	if next.Ports, err = c.published(ctx, n, &next); err != nil {
		return nil, c.dropGeneration(ctx, s, &next, err)
	}
	c.opt.Hook("resume:started")
	next.State, next.FrozenID = spore.SandboxRunning, ""
	err = c.switchTo(ctx, &next, func(store.Tx) error {
		switch now := next.UpdatedAt; {
		case ttl != nil && *ttl > 0:
			next.EndsAt = now.Add(*ttl)
		case ttl != nil || next.Expired(now):
			next.EndsAt = time.Time{}
		}
		return nil
	})
	if err != nil {
		return nil, c.dropGeneration(ctx, s, &next, err)
	}
	c.opt.Hook("resume:recorded")
	c.forget(ctx, s.NodeID, s.FrozenID)
	return &next, nil
}

// connectable refuses to start a sandbox on its own node when that has said that it cannot connect it any more.
func (c *Center) connectable(s *spore.Sandbox) error {
	n := c.fleet.facts(s.NodeID)
	if n == nil {
		return nil
	}
	can, whyNot := n.Connects(s.Network.Mode)
	if can {
		return nil
	}
	return spore.NoNetworkMode("sandbox "+s.ID, s.Network.Mode, map[string]string{n.ID: whyNot}).
		WithHint("what was frozen of it is on %s alone: have that serve mode %s again, and resume it then", n.ID, s.Network.Mode)
}

// switchTo writes that a sandbox is now its next generation, and moves its refs in the same transaction. also may change
// next once more; by then next has the end that the sandbox may have been given while its VM was made.
func (c *Center) switchTo(ctx context.Context, next *spore.Sandbox, also func(tx store.Tx) error) error {
	return c.record(ctx, func(tx store.Tx) error {
		s, err := liveSandbox(tx, next.ID)
		if err != nil {
			return err
		}
		next.EndsAt, next.OnEnd, next.UpdatedAt = s.EndsAt, s.OnEnd, c.opt.Now()
		if err := also(tx); err != nil {
			return err
		}
		if err := tx.UpdateSandbox(next); err != nil {
			return err
		}
		return c.moveRefs(tx, next.ID, next.Generation, "switched to another state")
	})
}

// dropGeneration undoes a generation that did not come to pass: the sandbox stays what it was. It answers cause.
func (c *Center) dropGeneration(ctx context.Context, s, next *spore.Sandbox, cause error) error {
	if errors.Is(cause, store.ErrUndecided) {
		return cause
	}
	cause = c.overran(ctx, cause)
	keep := 0
	if next.NodeID == s.NodeID {
		keep = s.Generation
	}
	c.settle(ctx, next.NodeID, s.ID, keep)
	generation := next.Generation
	c.insist(ctx, fmt.Sprintf("release generation %d of %s", generation, s.ID), func(ctx context.Context) error {
		return c.update(ctx, func(tx store.Tx) error {
			refs, err := tx.Refs(store.RefFilter{SandboxID: s.ID, Statuses: []spore.RuntimeRefStatus{spore.RefReserved}})
			for _, r := range refs {
				if r.SandboxGen == generation {
					r.Status, r.Reason, r.ReleasedAt = spore.RefReleased, "did not start", c.opt.Now()
					err = errors.Join(err, tx.PutRef(r))
				}
			}
			return err
		})
	})
	return cause
}
