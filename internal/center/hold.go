package center

import (
	"context"
	"time"

	"github.com/sporevm/spore"
)

// maxHold bounds how long a sandbox may be asked to stand still for a snapshot.
const maxHold = 5 * time.Minute

// hold is a snapshot whose sandbox stands still until somebody outside has done what belongs to the same instant, such as copying a
// disk that the sandbox writes to.
type hold struct {
	limit    time.Duration
	standing chan *spore.Template // told once the sandbox stands still and is captured
	release  chan bool            // whether the snapshot is to be kept
	done     chan struct{}        // closed when made and err say what came of it

	made *spore.Template
	err  error
}

// HoldSnapshot is CreateSnapshot that answers, with a snapshot that is still CREATING, while the sandbox stands still. It does so until
// ReleaseSnapshot, or until the limit is over: then it goes on, and the snapshot FAILED.
// Asked for again under its key it answers when that is over.
func (c *Center) HoldSnapshot(ctx context.Context, key Idempotency, sandboxID string, req SnapshotRequest, limit time.Duration) (*spore.Template, error) {
	if limit <= 0 || limit > maxHold {
		return nil, spore.Invalidf("holdSeconds", "%s is out of range", limit).WithHint("at most %s", maxHold)
	}
	h := &hold{limit: limit, standing: make(chan *spore.Template, 1), release: make(chan bool), done: make(chan struct{})}
	req.Held, req.hold = true, h
	// It ends by itself, not with the request that began it.
	c.loops.Go(func() {
		defer close(h.done)
		h.made, h.err = c.CreateSnapshot(context.WithoutCancel(ctx), key, sandboxID, req)
	})
	select {
	case t := <-h.standing:
		return t, nil
	case <-h.done:
		return h.made, h.err
	}
}

// ReleaseSnapshot lets the sandbox of a held snapshot go on, and answers when the snapshot is READY. With keep false it is to be none.
func (c *Center) ReleaseSnapshot(ctx context.Context, id string, keep bool) (*spore.Template, error) {
	found, held := c.held.LoadAndDelete(id)
	if !held {
		return nil, spore.Errorf(spore.CodeConflict, "no sandbox stands still for snapshot %s", id).
			WithHint("it may have waited too long, or be held by another controller")
	}
	h := found.(*hold)
	select {
	case h.release <- keep:
	case <-h.done:
	}
	select {
	case <-h.done:
		return h.made, h.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// settleHeld ends a snapshot whose controller died while its sandbox stood still: whether what belonged to it was done nobody knows.
func (c *Center) settleHeld(ctx context.Context, j *spore.Job) error {
	s, err := c.Sandbox(ctx, j.SandboxID)
	if err == nil && s.State == spore.SandboxRunning && s.NodeID == j.NodeID {
		n, err := c.on(j.NodeID)
		if err == nil {
			err = n.Wake(ctx, s.ID, s.Generation)
		}
		if spore.CodeOf(err) == spore.CodeUnreachable {
			return err
		}
	} else if ignoreNotFound(err) != nil {
		return err
	}
	_ = c.failDirect(ctx, j.ID, errServerDied) // which it answers
	return nil
}

// capture freezes a sandbox, which goes on at once, or when it is released.
func (c *Center) capture(ctx context.Context, n Node, s *spore.Sandbox, t *spore.Template, h *hold) (*spore.Frozen, error) {
	if h == nil {
		return n.Freeze(ctx, s, t.ID, t.ParentID)
	}
	f, err := n.Suspend(ctx, s, t.ID, t.ParentID)
	if err != nil {
		return nil, err
	}
	still := time.Now()
	c.opt.Hook("snapshot:held")
	c.held.Store(t.ID, h)
	told := *t
	h.standing <- &told
	limit := time.NewTimer(h.limit)
	defer limit.Stop()
	select {
	case keep := <-h.release:
		if !keep {
			err = spore.Errorf(spore.CodeCanceled, "what was to be done while the sandbox stood still was not done")
		}
	case <-limit.C:
		err = spore.Errorf(spore.CodeCanceled, "the sandbox stood still for %s and nobody let it go on", h.limit).
			WithHint("allow more time, or do less while it stands still")
	case <-c.life.Done():
		err = spore.Errorf(spore.CodeUnreachable, "the server ends")
	}
	c.held.Delete(t.ID)
	if wake := n.Wake(context.WithoutCancel(ctx), s.ID, s.Generation); wake != nil { // the node goes on trying
		c.log.Error("letting a sandbox go on after a snapshot", "sandbox", s.ID, "err", wake)
	}
	f.Paused += time.Since(still)
	return f, err
}
