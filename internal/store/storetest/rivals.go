package storetest

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// OpenTwo opens two stores on one new database, as two servers would. The suite closes them.
type OpenTwo func(t *testing.T) (a, b store.Store)

// RunShared proves that stores that share a database exclude each other, as those within one store do.
func RunShared(t *testing.T, open OpenTwo) {
	for _, g := range []struct {
		name string
		run  func(t *testing.T, a, b store.Store)
	}{
		{"Seen", sharedSeen},
		{"Leases", sharedLeases},
		{"Fence", sharedFence},
		{"ActiveJob", sharedActiveJob},
		{"Replay", sharedReplay},
		{"Names", sharedNames},
		{"Transition", sharedTransition},
		{"Counter", sharedCounter},
		{"WriteSkew", sharedWriteSkew},
		{"Queue", sharedQueue},
	} {
		t.Run(g.name, func(t *testing.T) {
			a, b := open(t)
			t.Cleanup(func() {
				if err := errors.Join(a.Close(), b.Close()); err != nil {
					t.Errorf("close: %v", err)
				}
			})
			g.run(t, a, b)
		})
	}
}

// race runs n functions at once, half of them with each store, and answers how many succeeded. The others must fail with code.
func race(t *testing.T, a, b store.Store, n int, code spore.Code, run func(s store.Store, n int) error) int {
	t.Helper()
	var won atomic.Int64
	var wg sync.WaitGroup
	for i := range n {
		s := a
		if i%2 == 1 {
			s = b
		}
		wg.Go(func() {
			switch err := run(s, i); {
			case err == nil:
				won.Add(1)
			case spore.CodeOf(err) != code:
				t.Errorf("rival %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	return int(won.Load())
}

func sharedSeen(t *testing.T, a, b store.Store) {
	row := sampleTemplate(1)
	update(t, a, func(tx store.Tx) error { return tx.InsertTemplate(row) })
	wantTemplate(t, b, row)
	row.LastError = "changed by the other"
	update(t, b, func(tx store.Tx) error { return tx.UpdateTemplate(row) })
	wantTemplate(t, a, row)
}

func sharedLeases(t *testing.T, a, b store.Store) {
	update(t, a, func(tx store.Tx) error { return errors.Join(tx.Beat("c1", at(0)), tx.Beat("c2", at(0))) })
	raceForLeases(t, a, b)
}

func sharedFence(t *testing.T, a, b store.Store) {
	update(t, a, func(tx store.Tx) error {
		_, err := tx.TakeLease(store.Lease{Name: "x", Holder: "h1", Controller: "c1", Until: at(1000)}, at(0))
		return errors.Join(tx.Beat("c1", at(0)), err)
	})
	update(t, b, func(tx store.Tx) error { return errors.Join(tx.Beat("c2", at(0)), tx.Fence("c1")) })
	guarded := func(tx store.Tx) error { return errors.Join(tx.Guard("c1"), tx.InsertTemplate(sampleTemplate(1))) }
	wantReason(t, a.Update(t.Context(), guarded), spore.CodeConflict, spore.ReasonFenced)
	wantMissing(t, b, sampleTemplate(1).ID)
	update(t, b, func(tx store.Tx) error {
		got, err := tx.TakeLease(store.Lease{Name: "x", Holder: "h2", Controller: "c2", Until: at(1000)}, at(0))
		wantEqual(t, got, true)
		return err
	})
}

func sharedActiveJob(t *testing.T, a, b store.Store) {
	const rounds, rivals = 5, 6
	for round := range rounds {
		won := race(t, a, b, rivals, spore.CodeBusy, func(s store.Store, n int) error {
			j := sampleJob(round*rivals + n)
			j.ResourceID = sampleTemplate(round).ID
			return s.Update(t.Context(), func(tx store.Tx) error { return tx.InsertJob(j) })
		})
		wantEqual(t, won, 1)
	}
}

func sharedReplay(t *testing.T, a, b store.Store) {
	const rounds, rivals = 5, 6
	for round := range rounds {
		won := race(t, a, b, rivals, spore.CodeConflict, func(s store.Store, n int) error {
			row := sampleTemplate(round*rivals + n)
			return s.Update(t.Context(), func(tx store.Tx) error {
				if err := tx.InsertTemplate(row); err != nil {
					return err
				}
				return tx.PutReplay(store.Replay{Caller: "me", Key: string(rune('a' + round)), ResourceID: row.ID})
			})
		})
		wantEqual(t, won, 1)
	}
	view(t, a, func(tx store.Tx) error { // the losers left nothing behind
		n, err := tx.CountTemplates(store.TemplateFilter{}, 1000)
		wantEqual(t, n, rounds)
		return err
	})
}

func sharedNames(t *testing.T, a, b store.Store) {
	target := withTemplate(t, a)
	const rounds, rivals = 5, 6
	for round := range rounds {
		name := string(rune('a' + round))
		var owned, pointed atomic.Int64
		race(t, a, b, rivals, spore.CodeConflict, func(s store.Store, n int) error {
			return s.Update(t.Context(), func(tx store.Tx) error {
				if n%3 == 0 { // an alias by the name that others want for their own
					return tx.PutAlias(spore.Alias{Name: name, Tag: "v1", TemplateID: target})
				}
				row := sampleTemplate(round*rivals + n)
				row.Name = name
				return tx.InsertTemplate(row)
			})
		})
		view(t, b, func(tx store.Tx) error {
			list, _, err := tx.Templates(store.TemplateFilter{Name: name})
			for _, row := range list {
				if row.Name == name {
					owned.Add(1)
				}
			}
			aliases, _, aliasErr := tx.Aliases(store.AliasFilter{Name: name})
			pointed.Add(int64(len(aliases)))
			return errors.Join(err, aliasErr)
		})
		if owned.Load()+pointed.Load() != 1 {
			t.Errorf("the name %s has %d owners and %d aliases", name, owned.Load(), pointed.Load())
		}
	}
}

func sharedTransition(t *testing.T, a, b store.Store) {
	template := withTemplate(t, a)
	const rounds, rivals = 5, 6
	for round := range rounds {
		row := sampleSandbox(round, template)
		row.State = spore.SandboxRunning
		update(t, a, func(tx store.Tx) error { return tx.InsertSandbox(row) })
		// Half of them kill it, the others pause it: who comes after a kill is refused.
		race(t, a, b, rivals, spore.CodeConflict, func(s store.Store, n int) error {
			next := *row
			next.State = spore.SandboxKilled
			if n < rivals/2 {
				next.State = spore.SandboxPaused
			}
			return s.Update(t.Context(), func(tx store.Tx) error { return tx.UpdateSandbox(&next) })
		})
		view(t, b, func(tx store.Tx) error {
			got, err := tx.Sandbox(row.ID)
			if err == nil {
				wantEqual(t, got.State, spore.SandboxKilled)
			}
			return err
		})
	}
}

func sharedCounter(t *testing.T, a, b store.Store) {
	row := sampleSandbox(1, withTemplate(t, a))
	row.Generation = 0
	update(t, a, func(tx store.Tx) error { return tx.InsertSandbox(row) })
	const rivals, rounds = 6, 15
	race(t, a, b, rivals, "", func(s store.Store, _ int) error {
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
				return err
			}
		}
		return nil
	})
	row.Generation = rivals * rounds
	wantSandbox(t, b, row)
}

// What one transaction reads and another writes: a template is deleted if nothing stands on it, while sandboxes start from it if
// it is there. Each looks at rows that the other does not write.
func sharedWriteSkew(t *testing.T, a, b store.Store) {
	const rounds, rivals = 10, 4
	for round := range rounds {
		template := sampleTemplate(round)
		template.Status = spore.TemplateReady
		update(t, a, func(tx store.Tx) error { return tx.InsertTemplate(template) })
		race(t, a, b, rivals, spore.CodeNotFound, func(s store.Store, n int) error {
			if n < rivals/2 {
				return s.Update(t.Context(), func(tx store.Tx) error {
					found, err := tx.FindTemplate(template.ID)
					if err != nil {
						return err
					}
					held, err := tx.CountRefs(store.RefFilter{TemplateID: found.ID})
					if err != nil || held > 0 {
						return err
					}
					found.Status = spore.TemplateDeleting
					return tx.UpdateTemplate(found)
				})
			}
			sandbox := sampleSandbox(round*rivals+n, template.ID)
			return s.Update(t.Context(), func(tx store.Tx) error {
				if _, err := tx.FindTemplate(template.ID); err != nil {
					return err
				}
				if err := tx.InsertSandbox(sandbox); err != nil {
					return err
				}
				return tx.PutRef(&spore.RuntimeRef{TemplateID: template.ID, SandboxID: sandbox.ID, SandboxGen: 1, Status: spore.RefReserved})
			})
		})
		view(t, a, func(tx store.Tx) error {
			now, err := tx.Template(template.ID)
			if err != nil {
				return err
			}
			held, err := tx.CountRefs(store.RefFilter{TemplateID: template.ID})
			if deleted := now.Status == spore.TemplateDeleting; deleted == (held > 0) {
				t.Errorf("the template is %s and %d sandboxes stand on it", now.Status, held)
			}
			return err
		})
	}
}

// Two servers share the work: each job runs once, whoever enqueued it.
func sharedQueue(t *testing.T, a, b store.Store) {
	const jobs = 12
	ran := make(chan string, 2*jobs)
	for _, s := range []store.Store{a, b} {
		err := s.Work(t.Context(), 2, func(_ context.Context, job string, _ int, _ bool) error { ran <- job; return nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]int{}
	for n := range jobs {
		s := a
		if n%2 == 1 {
			s = b
		}
		want[enqueue(t, s, n, 1)] = 1
	}
	got := map[string]int{}
	for range jobs {
		got[receive(t, ran, "all jobs")]++
	}
	for _, s := range []store.Store{a, b} {
		if err := s.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	wantEqual(t, got, want)
	wantEqual(t, len(ran), 0)
}
