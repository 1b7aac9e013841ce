package center

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"sync"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// A center is one controller among those that share the rows, be it the only one. It says now and then that it lives;
// one that falls silent is fenced by the others: none of its later transactions goes through, and what it was at is
// settled by them.

const (
	beatEvery   = 5 * time.Second
	deadAfter   = 20 * time.Second // of silence
	leaseFor    = 20 * time.Second
	leaderLease = "leader"
)

// NewControllerID returns a fresh id for a controller. One that starts again is another one.
func NewControllerID() string { return "ctl-" + token() }

func token() string {
	b := make([]byte, 8)
	rand.Read(b) // never fails: crypto/rand ends the process instead
	return hex.EncodeToString(b)
}

// update is store.Update for a controller that may have been declared dead meanwhile: then nothing is written.
func (c *Center) update(ctx context.Context, fn func(tx store.Tx) error) error {
	changes := placements{cache: &c.replicas}
	defer changes.over()
	err := c.store.Update(ctx, func(tx store.Tx) error {
		if err := tx.Guard(c.opt.Controller); err != nil {
			return err
		}
		changes.Tx = tx // a store may run this again when a transaction was lost; what the first one changed is to be dropped too
		return fn(&changes)
	})
	if fenced(err) {
		c.fenced()
	}
	return err
}

// record is update for what has come to pass on a node. Once it is begun it is decided, also when the caller leaves. Only the end of
// this controller leaves it undecided: then nothing is undone, and who takes over goes by the rows.
func (c *Center) record(ctx context.Context, fn func(tx store.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return c.update(context.WithoutCancel(ctx), fn)
}

func fenced(err error) bool {
	var e *spore.Error
	return errors.As(err, &e) && e.Reason == spore.ReasonFenced
}

// fenced ends everything that this controller does: others have taken over.
func (c *Center) fenced() {
	c.fencedOnce.Do(func() {
		c.log.Error("this controller was declared dead by another; it stops")
		c.stop()
		if c.opt.OnFenced != nil {
			c.opt.OnFenced()
		}
	})
}

// enrol makes this controller known. One that is alone fences whatever was there before: it is dead.
func (c *Center) enrol(ctx context.Context) error {
	return c.store.Update(ctx, func(tx store.Tx) error {
		others, err := tx.Controllers()
		if err != nil {
			return err
		}
		for _, o := range others {
			dead := c.opt.Alone || o.ID == c.opt.Predecessor
			if dead && !o.Fenced && o.ID != c.opt.Controller {
				if err := tx.Fence(o.ID); err != nil {
					return err
				}
			}
		}
		return tx.Beat(c.opt.Controller, c.opt.Now())
	})
}

// beat says that this controller lives, and keeps what it has leased.
func (c *Center) beat(ctx context.Context) error {
	err := c.update(ctx, func(tx store.Tx) error {
		now := c.opt.Now()
		if err := tx.Beat(c.opt.Controller, now); err != nil {
			return err
		}
		if c.opt.Alone {
			return nil
		}
		return tx.RenewLeases(c.opt.Controller, now.Add(leaseFor))
	})
	c.pulse.beat(c.opt.Now(), err == nil)
	return err
}

// pulse is for how long a controller has said without a gap that it lives.
type pulse struct {
	mu          sync.Mutex
	since, last time.Time
}

func (p *pulse) beat(now time.Time, well bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !well:
		p.since = time.Time{}
	case p.since.IsZero() || now.Sub(p.last) > 2*beatEvery:
		p.since = now
	}
	p.last = now
}

func (p *pulse) steady(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.since.IsZero() && now.Sub(p.last) <= 2*beatEvery && now.Sub(p.since) >= deadAfter
}

// fenceSilent declares controllers dead that have not said anything for a while, if they could have: the first to reach a database
// that was away finds all the others silent.
func (c *Center) fenceSilent(ctx context.Context) error {
	if c.opt.Alone || !c.pulse.steady(c.opt.Now()) {
		return nil
	}
	return c.update(ctx, func(tx store.Tx) error {
		all, err := tx.Controllers()
		if err != nil {
			return err
		}
		for _, o := range all {
			if o.ID == c.opt.Controller || o.Fenced || c.opt.Now().Sub(o.SeenAt) < deadAfter {
				continue
			}
			c.log.Warn("another controller is silent; its work is taken over", "controller", o.ID, "seen", o.SeenAt)
			if err := tx.Fence(o.ID); err != nil {
				return err
			}
		}
		_, err = tx.PurgeControllers(c.opt.Now().Add(-24 * time.Hour))
		return err
	})
}

// leading says whether this controller is the one that runs the loops of which there must be one. It takes the lead when
// nobody has it.
func (c *Center) leading(ctx context.Context) (leads bool, err error) {
	if c.opt.Alone {
		return true, nil
	}
	return c.take(ctx, store.Lease{Name: leaderLease, Holder: c.opt.Controller, Controller: c.opt.Controller})
}

// lead is do for the leader only.
func (c *Center) lead(do func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		if leads, err := c.leading(ctx); err != nil || !leads {
			return err
		}
		return do(ctx)
	}
}

// lock takes a sandbox for one operation, and waits for those before it, in this controller and in others. The answer gives
// it back.
func (c *Center) lock(ctx context.Context, sandboxID string) (unlock func(), err error) {
	local, err := c.sandboxes.lock(ctx, sandboxID)
	if err != nil || c.opt.Alone {
		return local, err
	}
	l := c.sandboxLease(sandboxID)
	for {
		changed := c.store.Changes()
		took, err := c.take(ctx, l)
		if err != nil {
			local()
			return nil, err
		}
		if took {
			return c.unlocking(ctx, l, local), nil
		}
		again := time.NewTimer(time.Second) // a lease may also run out, which is no change
		select {
		case <-changed:
		case <-again.C:
		case <-ctx.Done():
			local()
			return nil, spore.Errorf(spore.CodeBusy, "another operation on %s is still under way", sandboxID).
				WithCause(ctx.Err()).WithHint("try again when it has ended").Because(spore.ReasonInProgress)
		}
		again.Stop()
	}
}

// tryLock is lock for a caller who does not wait.
func (c *Center) tryLock(ctx context.Context, sandboxID string) (unlock func(), ok bool) {
	local, ok := c.sandboxes.tryLock(sandboxID)
	if !ok || c.opt.Alone {
		return local, ok
	}
	l := c.sandboxLease(sandboxID)
	took, err := c.take(ctx, l)
	if err != nil || !took {
		local()
		return nil, false
	}
	return c.unlocking(ctx, l, local), true
}

func (c *Center) sandboxLease(id string) store.Lease {
	return store.Lease{Name: "sandbox/" + id, Holder: token(), Controller: c.opt.Controller}
}

// errUnchanged ends a transaction that found nothing to write. A commit wakes everybody who waits for a change, and two who
// wait for the same would keep each other awake.
var errUnchanged = errors.New("nothing to write")

func (c *Center) take(ctx context.Context, l store.Lease) (bool, error) {
	err := c.update(ctx, func(tx store.Tx) error {
		now := c.opt.Now()
		l.Until = now.Add(leaseFor)
		took, err := tx.TakeLease(l, now)
		if err == nil && !took {
			took, err = c.takeStale(tx, l, now)
		}
		if err == nil && !took {
			return errUnchanged
		}
		return err
	})
	if errors.Is(err, errUnchanged) {
		return false, nil
	}
	return err == nil, err
}

// takeStale takes a lease of this controller's that nobody in it holds, such as one that was stored when nothing told so: who
// asks for it holds the lock that goes with it here.
func (c *Center) takeStale(tx store.Tx, l store.Lease, now time.Time) (took bool, err error) {
	own, err := tx.Leases(c.opt.Controller)
	for _, o := range own {
		if err == nil && o.Name == l.Name && o.Holder != l.Holder {
			err = tx.DropLease(o.Name, o.Holder)
			took = true
		}
	}
	if err != nil || !took {
		return false, err
	}
	return tx.TakeLease(l, now)
}

func (c *Center) unlocking(ctx context.Context, l store.Lease, local func()) func() {
	return func() {
		c.insist(ctx, "give back "+l.Name+" of "+l.Holder, func(ctx context.Context) error {
			return c.store.Update(ctx, func(tx store.Tx) error { return tx.DropLease(l.Name, l.Holder) })
		})
		local()
	}
}

// atWork says whether some controller is at an operation on a sandbox right now.
func (c *Center) atWork(tx store.Tx, sandboxID string) (bool, error) {
	if c.sandboxes.busy(sandboxID) {
		return true, nil
	}
	if c.opt.Alone {
		return false, nil
	}
	all, err := tx.Leases("")
	if err != nil {
		return false, err
	}
	for _, l := range all {
		if l.Name == "sandbox/"+sandboxID && c.opt.Now().Before(l.Until) {
			return true, nil
		}
	}
	return false, nil
}
