package storetest

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

func testControllers(t *testing.T, open Open) {
	s := fresh(t, open)
	do := func(fn func(tx store.Tx) error) error { return s.Update(t.Context(), fn) }
	beat := func(id string, n int) error { return do(func(tx store.Tx) error { return tx.Beat(id, at(n)) }) }
	guard := func(id string) error { return do(func(tx store.Tx) error { return tx.Guard(id) }) }
	fence := func(id string) error { return do(func(tx store.Tx) error { return tx.Fence(id) }) }
	want := func(want ...store.Controller) {
		t.Helper()
		view(t, s, func(tx store.Tx) error {
			got, err := tx.Controllers()
			wantEqual(t, got, want)
			return err
		})
	}
	want()
	wantReason(t, guard("a"), spore.CodeConflict, spore.ReasonFenced) // it has never been heard of
	wantCode(t, fence("a"), spore.CodeNotFound)
	wantCode(t, beat("b", 1), "")
	wantCode(t, beat("a", 2), "")
	wantCode(t, beat("b", 3), "")
	want(store.Controller{ID: "a", StartedAt: at(2), SeenAt: at(2)}, store.Controller{ID: "b", StartedAt: at(1), SeenAt: at(3)})
	wantCode(t, guard("a"), "")

	wantCode(t, fence("b"), "")
	wantCode(t, fence("b"), "")
	wantReason(t, beat("b", 4), spore.CodeConflict, spore.ReasonFenced)
	wantReason(t, guard("b"), spore.CodeConflict, spore.ReasonFenced)
	wantCode(t, guard("a"), "")
	want(store.Controller{ID: "a", StartedAt: at(2), SeenAt: at(2)}, store.Controller{ID: "b", StartedAt: at(1), SeenAt: at(3), Fenced: true})

	// What a fenced controller does in a transaction that asks comes to nothing.
	row := sampleTemplate(1)
	wantReason(t, do(func(tx store.Tx) error { return errors.Join(tx.InsertTemplate(row), tx.Guard("b")) }), spore.CodeConflict, spore.ReasonFenced)
	wantMissing(t, s, row.ID)

	purge := func(n, want int) {
		t.Helper()
		update(t, s, func(tx store.Tx) error {
			got, err := tx.PurgeControllers(at(n))
			wantEqual(t, got, want)
			return err
		})
	}
	purge(3, 0)
	purge(4, 1)
	want(store.Controller{ID: "a", StartedAt: at(2), SeenAt: at(2)}) // that has not beaten for longer, but is not fenced
	wantReason(t, guard("b"), spore.CodeConflict, spore.ReasonFenced)
}

func testLeases(t *testing.T, open Open) {
	lease := func(name, holder, controller string, until int) store.Lease {
		return store.Lease{Name: name, Holder: holder, Controller: controller, Until: at(until)}
	}
	take := func(t *testing.T, s store.Store, l store.Lease, now int, want bool) {
		t.Helper()
		update(t, s, func(tx store.Tx) error {
			got, err := tx.TakeLease(l, at(now))
			if got != want {
				t.Errorf("%s took %s at %d: %v, want %v", l.Holder, l.Name, now, got, want)
			}
			return err
		})
	}
	held := func(t *testing.T, s store.Store, controller string, want ...store.Lease) {
		t.Helper()
		view(t, s, func(tx store.Tx) error {
			got, err := tx.Leases(controller)
			wantEqual(t, got, want)
			return err
		})
	}
	withTwo := func(t *testing.T) store.Store {
		s := fresh(t, open)
		update(t, s, func(tx store.Tx) error { return errors.Join(tx.Beat("c1", at(0)), tx.Beat("c2", at(0))) })
		return s
	}

	t.Run("Take", func(t *testing.T) {
		s := withTwo(t)
		one := lease("sandbox/1", "h1", "c1", 10)
		take(t, s, one, 0, true)
		take(t, s, lease("sandbox/1", "h2", "c2", 99), 0, false)
		take(t, s, lease("sandbox/1", "h2", "c1", 99), 9, false) // of the same controller, but another operation
		two := lease("sandbox/2", "h2", "c2", 10)
		take(t, s, two, 0, true)
		held(t, s, "", one, two)
		held(t, s, "c1", one)
		held(t, s, "none")

		one.Until = at(20) // renewed by its holder
		take(t, s, one, 9, true)
		held(t, s, "c1", one)
		take(t, s, lease("sandbox/1", "h3", "c2", 99), 10, false)
		one.Until = at(15) // which may make it shorter
		take(t, s, one, 10, true)
		taken := lease("sandbox/1", "h3", "c2", 40)
		take(t, s, taken, 15, true) // it has run out at the very instant that it says
		held(t, s, "", taken, two)
		take(t, s, one, 16, false)
	})

	t.Run("Renew", func(t *testing.T) {
		s := withTwo(t)
		a, b, other := lease("a", "h1", "c1", 10), lease("b", "h2", "c1", 20), lease("c", "h3", "c2", 10)
		for _, l := range []store.Lease{a, b, other} {
			take(t, s, l, 0, true)
		}
		update(t, s, func(tx store.Tx) error {
			return errors.Join(tx.RenewLeases("c1", at(30)), tx.RenewLeases("none", at(90)))
		})
		a.Until, b.Until = at(30), at(30)
		held(t, s, "", a, b, other)
	})

	t.Run("Drop", func(t *testing.T) {
		s := withTwo(t)
		a := lease("a", "h1", "c1", 10)
		take(t, s, a, 0, true)
		drop := func(name, holder string) {
			t.Helper()
			update(t, s, func(tx store.Tx) error { return tx.DropLease(name, holder) })
		}
		drop("a", "h2")
		drop("none", "h1")
		held(t, s, "", a)
		drop("a", "h1")
		drop("a", "h1")
		held(t, s, "")
		take(t, s, lease("a", "h2", "c2", 10), 0, true)
	})

	t.Run("Fenced", func(t *testing.T) {
		s := withTwo(t)
		a, b, other := lease("a", "h1", "c1", 100), lease("b", "h2", "c1", 100), lease("c", "h3", "c2", 100)
		for _, l := range []store.Lease{a, b, other} {
			take(t, s, l, 0, true)
		}
		update(t, s, func(tx store.Tx) error { return tx.Fence("c1") })
		held(t, s, "", other)
		next := lease("a", "h4", "c2", 100)
		take(t, s, next, 1, true)
		// The dead cannot renew what was taken from them, whatever they still try.
		update(t, s, func(tx store.Tx) error { return tx.RenewLeases("c1", at(999)) })
		take(t, s, a, 2, false)
		held(t, s, "", next, other)
		// And what a fenced one takes holds nobody up.
		err := s.Update(t.Context(), func(tx store.Tx) error { _, err := tx.TakeLease(b, at(2)); return err })
		if err == nil {
			take(t, s, lease("b", "h5", "c2", 100), 3, true)
		}
	})

	t.Run("RolledBack", func(t *testing.T) {
		s := withTwo(t)
		err := s.Update(t.Context(), func(tx store.Tx) error {
			_, err := tx.TakeLease(lease("a", "h1", "c1", 100), at(0))
			return errors.Join(err, errOnPurpose)
		})
		if !errors.Is(err, errOnPurpose) {
			t.Fatal(err)
		}
		take(t, s, lease("a", "h2", "c2", 100), 0, true)
	})

	t.Run("Race", func(t *testing.T) {
		s := withTwo(t)
		raceForLeases(t, s, s)
	})
}

// raceForLeases lets many holders, half of them through each store, reach for the same leases: of each, one gets it.
func raceForLeases(t *testing.T, a, b store.Store) {
	t.Helper()
	const rounds, holders = 8, 6
	for round := range rounds {
		name := string(rune('a' + round))
		var won atomic.Int64
		var wg sync.WaitGroup
		for h := range holders {
			s, controller := a, "c1"
			if h%2 == 1 {
				s, controller = b, "c2"
			}
			wg.Go(func() {
				var got bool
				err := s.Update(t.Context(), func(tx store.Tx) (err error) {
					got, err = tx.TakeLease(store.Lease{Name: name, Holder: string(rune('0' + h)), Controller: controller, Until: at(100)}, at(0))
					return err
				})
				if err != nil {
					t.Error(err)
				}
				if got && err == nil {
					won.Add(1)
				}
			})
		}
		wg.Wait()
		wantEqual(t, won.Load(), int64(1))
	}
}
