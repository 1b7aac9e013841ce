package center

import (
	"log/slog"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/memory"
)

// two is a center that is not alone, with a clock of its own and nothing else at work.
func two(t *testing.T) (c *Center, now *time.Time) {
	now = new(time.Time)
	*now = time.Now().UTC()
	log := slog.New(slog.DiscardHandler)
	s := memory.New().Open(memory.Options{Logger: log})
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	c = New(s, nil, Options{Controller: "one", Logger: log, Now: func() time.Time { return *now }})
	if err := c.enrol(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c, now
}

func (c *Center) do(t *testing.T, fn func(store.Tx) error) {
	t.Helper()
	if err := c.store.Update(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

// After a time in which nobody could say that they live, the first who can must not take the others for dead.
func TestFencingAfterOutage(t *testing.T) {
	c, now := two(t)
	live := func(d time.Duration, well bool) {
		for end := now.Add(d); now.Before(end); *now = now.Add(beatEvery) {
			if !well {
				c.pulse.beat(*now, false)
			} else if err := c.beat(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	fenced := func() (fenced bool) {
		t.Helper()
		if err := c.fenceSilent(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.do(t, func(tx store.Tx) error {
			all, err := tx.Controllers()
			for _, o := range all {
				fenced = fenced || o.ID == "other" && o.Fenced
			}
			return err
		})
		return fenced
	}
	c.do(t, func(tx store.Tx) error { return tx.Beat("other", *now) })
	live(deadAfter+beatEvery, false)
	live(beatEvery, true)
	if fenced() {
		t.Error("fenced by one who was as silent")
	}
	live(deadAfter/2, true)
	*now = now.Add(deadAfter) // its own process stood still
	live(deadAfter/2, true)
	if fenced() {
		t.Error("fenced by one who was silent in between")
	}
	live(deadAfter, true)
	if !fenced() {
		t.Error("a dead controller was not fenced")
	}
}

// A lease that this controller has and nobody in it holds, as after a commit that seemed to have failed, keeps nobody away.
func TestStaleLease(t *testing.T) {
	c, now := two(t)
	const id = "s1"
	c.do(t, func(tx store.Tx) error {
		l := c.creationLease(id)
		l.Until = now.Add(leaseFor)
		_, err := tx.TakeLease(l, *now)
		return err
	})
	unlock, ok := c.tryLock(t.Context(), id)
	if !ok {
		t.Fatal("it is not to be had")
	}
	if _, ok := c.tryLock(t.Context(), id); ok {
		t.Fatal("it is to be had twice")
	}
	unlock()
	c.do(t, func(tx store.Tx) error {
		if left, err := tx.Leases(""); err != nil || len(left) > 0 {
			t.Errorf("left over: %v, %v", left, err)
		}
		_, err := tx.TakeLease(store.Lease{Name: c.sandboxLease(id).Name, Holder: "h", Controller: "other", Until: now.Add(leaseFor)}, *now)
		return err
	})
	if _, ok := c.tryLock(t.Context(), id); ok {
		t.Error("taken away from another controller")
	}
}

// The snapshot of a fork stands alone until its forks are reserved, which another controller cannot see coming.
func TestFreshSnapshotOfFork(t *testing.T) {
	c, now := two(t)
	snapshot := &spore.Template{
		ID: "snap-1", Kind: spore.KindSnapshot, Status: spore.TemplateReady, Ephemeral: true, CreatedAt: *now, UpdatedAt: *now,
	}
	c.do(t, func(tx store.Tx) error { return tx.InsertTemplate(snapshot) })
	for _, want := range []spore.TemplateStatus{spore.TemplateReady, spore.TemplateDeleted} {
		if err := c.dropEphemeral(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.do(t, func(tx store.Tx) error {
			got, err := tx.Template(snapshot.ID)
			if err == nil && got.Status != want {
				t.Errorf("it is %s, not %s", got.Status, want)
			}
			return err
		})
		*now = now.Add(graceOfRows)
	}
}
