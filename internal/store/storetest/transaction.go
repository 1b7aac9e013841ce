package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

var errOnPurpose = errors.New("on purpose")

func testTransactions(t *testing.T, open Open) {
	t.Run("Rollback", func(t *testing.T) {
		s := fresh(t, open)
		row := sampleTemplate(1)
		err := s.Update(t.Context(), func(tx store.Tx) error {
			if err := tx.InsertTemplate(row); err != nil {
				return err
			}
			if _, err := tx.Template(row.ID); err != nil { // its own writes it sees
				return err
			}
			return errOnPurpose
		})
		if !errors.Is(err, errOnPurpose) {
			t.Fatalf("error %v", err)
		}
		wantMissing(t, s, row.ID)
	})

	t.Run("Panic", func(t *testing.T) {
		s := fresh(t, open)
		row := sampleTemplate(1)
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic was swallowed")
				}
			}()
			_ = s.Update(t.Context(), func(tx store.Tx) error {
				if err := tx.InsertTemplate(row); err != nil {
					return err
				}
				panic("on purpose")
			})
		}()
		wantMissing(t, s, row.ID)
		update(t, s, func(tx store.Tx) error { return tx.InsertTemplate(row) })
	})

	t.Run("Ended", func(t *testing.T) {
		s := fresh(t, open)
		row := sampleTemplate(1)
		ctx, cancel := context.WithCancel(t.Context())
		err := s.Update(ctx, func(tx store.Tx) error {
			if err := tx.InsertTemplate(row); err != nil {
				return err
			}
			cancel()
			_, err := tx.Template(row.ID)
			return err
		})
		wantCode(t, err, spore.CodeCanceled)
		wantCode(t, s.Update(ctx, func(store.Tx) error { t.Error("it ran"); return nil }), spore.CodeCanceled)
		wantCode(t, s.View(ctx, func(tx store.Tx) error { _, err := tx.Template(row.ID); return err }), spore.CodeCanceled)
		wantMissing(t, s, row.ID)
	})

	t.Run("Kept", func(t *testing.T) {
		s := fresh(t, open)
		var kept store.Tx
		update(t, s, func(tx store.Tx) error { kept = tx; return nil })
		if err := kept.InsertTemplate(sampleTemplate(1)); err == nil {
			t.Error("a kept transaction wrote")
		}
		view(t, s, func(tx store.Tx) error {
			if tx.InsertTemplate(sampleTemplate(2)) == nil || tx.PutRef(&spore.RuntimeRef{}) == nil || tx.DeleteReplica("a", "b") == nil {
				t.Error("a View wrote")
			}
			return nil
		})
	})

	t.Run("Snapshot", func(t *testing.T) {
		s := fresh(t, open)
		row := sampleTemplate(1)
		update(t, s, func(tx store.Tx) error { return tx.InsertTemplate(row) })
		view(t, s, func(tx store.Tx) error {
			before, err := tx.Template(row.ID)
			if err != nil {
				return err
			}
			changed := *row
			changed.LastError = "changed meanwhile"
			update(t, s, func(tx store.Tx) error { return tx.UpdateTemplate(&changed) })
			after, err := tx.Template(row.ID)
			wantEqual(t, after, before)
			return err
		})
	})

	// Transactions that run at the same time and may share a commit: each is all there or not at all, whatever the others do.
	t.Run("Concurrent", func(t *testing.T) {
		s := fresh(t, open)
		const writers, rounds = 8, 20
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for r := range rounds {
					n := w*rounds + r
					a, b := sampleTemplate(2*n), sampleTemplate(2*n+1)
					fails, panics := r%3 == 1, r%7 == 2
					err := func() (err error) {
						defer func() {
							if v := recover(); v != nil {
								err = fmt.Errorf("panic: %v", v)
							}
						}()
						return s.Update(t.Context(), func(tx store.Tx) error {
							if err := tx.InsertTemplate(a); err != nil {
								return err
							}
							if panics {
								panic("on purpose")
							}
							if err := tx.InsertTemplate(b); err != nil {
								return err
							}
							if fails {
								return errOnPurpose
							}
							return nil
						})
					}()
					if (err != nil) != (fails || panics) {
						t.Errorf("writer %d round %d: %v", w, r, err)
					}
					err = s.View(t.Context(), func(tx store.Tx) error {
						_, errA := tx.Template(a.ID)
						_, errB := tx.Template(b.ID)
						if there := err == nil; there != (errA == nil) || there != (errB == nil) {
							t.Errorf("writer %d round %d: committed %v, but %v and %v", w, r, there, errA, errB)
						}
						return nil
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
	})

	t.Run("Counter", func(t *testing.T) {
		s := fresh(t, open)
		row := sampleSandbox(1, withTemplate(t, s))
		row.Generation = 0
		update(t, s, func(tx store.Tx) error { return tx.InsertSandbox(row) })
		const writers, rounds = 6, 25
		var wg sync.WaitGroup
		for range writers {
			wg.Go(func() {
				for range rounds {
					err := s.Update(t.Context(), func(tx store.Tx) error {
						now, err := tx.Sandbox(row.ID)
						if err != nil {
							return err
						}
						now.Generation++
						return tx.UpdateSandbox(now)
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		row.Generation = writers * rounds
		wantSandbox(t, s, row)
	})
}

func wantMissing(t *testing.T, s store.Store, template string) {
	t.Helper()
	view(t, s, func(tx store.Tx) error {
		_, err := tx.Template(template)
		wantCode(t, err, spore.CodeNotFound)
		return nil
	})
}

func testChanges(t *testing.T, open Open) {
	s := fresh(t, open)
	before := s.Changes()
	if err := s.Update(t.Context(), func(store.Tx) error { return errOnPurpose }); err == nil {
		t.Fatal("no error")
	}
	select {
	case <-before:
		t.Fatal("a rollback was told as a change")
	default:
	}
	row := sampleTemplate(1)
	update(t, s, func(tx store.Tx) error { return tx.InsertTemplate(row) })
	receive(t, before, "the change")
	wantTemplate(t, s, row) // who is told sees it
	select {
	case <-s.Changes():
		t.Fatal("an old change was told again")
	default:
	}
}
