package center

import (
	"context"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

const (
	// endings is how many sandboxes whose time is up are ended at a time.
	endings = 8
	// endAgainAfter is how long a sandbox that could not be ended is left alone.
	endAgainAfter = time.Minute
)

// endExpired sets out to kill or pause the sandboxes whose time is up. One at which an operation is at work waits for the
// next look, and keeps no other from its end.
func (c *Center) endExpired(ctx context.Context) error {
	now := c.opt.Now()
	due, err := c.expired(ctx, now)
	if err != nil {
		return err
	}
	for _, s := range due {
		if until, failed := c.notBefore.Load(s.ID); failed && now.Before(until.(time.Time)) {
			continue
		}
		select {
		case c.ending <- struct{}{}:
		default:
			return nil
		}
		unlock, free := c.tryLock(ctx, s.ID)
		if !free {
			<-c.ending
			continue
		}
		c.loops.Go(func() {
			defer func() { <-c.ending }()
			defer unlock()
			c.notBefore.Delete(s.ID)
			if err := c.endOne(ctx, s.ID); err != nil && !isNotFound(err) && ctx.Err() == nil {
				c.log.Error("ending a sandbox whose time is up", "sandbox", s.ID, "err", err)
				c.notBefore.Store(s.ID, c.opt.Now().Add(endAgainAfter))
			}
		})
	}
	return nil
}

// expired lists the sandboxes whose time is up. A paused one that is to be paused waits to be resumed.
func (c *Center) expired(ctx context.Context, now time.Time) (due []*spore.Sandbox, err error) {
	f := store.SandboxFilter{
		Paging: store.Paging{Limit: 1000}, EndsBefore: now,
		States: []spore.SandboxState{spore.SandboxRunning, spore.SandboxPaused, spore.SandboxFailed},
	}
	err = c.store.View(ctx, func(tx store.Tx) error {
		for {
			list, page, err := tx.Sandboxes(f)
			if err != nil {
				return err
			}
			for _, s := range list {
				if s.State != spore.SandboxPaused || s.OnEnd != spore.EndPause {
					due = append(due, s)
				}
			}
			if page.Next == "" {
				return nil
			}
			f.After = page.Next
		}
	})
	return due, err
}

// endOne ends a sandbox, unless it was given more time in the last moment. The caller holds its lock.
func (c *Center) endOne(ctx context.Context, id string) error {
	s, err := c.Sandbox(ctx, id)
	if err != nil || !s.Expired(c.opt.Now()) {
		return err
	}
	ctx, cancel := c.within(ctx)
	defer cancel()
	if s.OnEnd == spore.EndPause && s.State == spore.SandboxRunning {
		_, err := c.pause(ctx, id)
		return err
	}
	return c.kill(ctx, id, func(s *spore.Sandbox) bool { return s.Expired(c.opt.Now()) })
}
