package storetest

import (
	"errors"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

func testReplicas(t *testing.T, open Open) {
	t.Run("RoundTrip", func(t *testing.T) {
		s := fresh(t, open)
		template := withTemplate(t, s)
		one, two := sampleReplica(template, "n1"), &spore.Replica{TemplateID: template, NodeID: "N 2", Status: spore.ReplicaFailed, Phase: spore.ReplicaPending}
		update(t, s, func(tx store.Tx) error { return errors.Join(tx.PutReplica(one), tx.PutReplica(two)) })
		want := func(want ...*spore.Replica) {
			t.Helper()
			view(t, s, func(tx store.Tx) error {
				got, err := tx.Replicas(template)
				wantEqual(t, got, want)
				return err
			})
		}
		want(two, one)
		next := sampleReplica(template, "n1")
		next.Status, next.Phase, next.ErrorMessage, next.LastErrorPhase, next.CleanupRequired = spore.ReplicaReady, spore.ReplicaPhaseReady, "", "", false
		next.Bound, next.CompatStatus, next.CompatPolicy, next.Attempts = spore.Components{}, "", "", 0
		next.RetryAt, next.UpdatedAt, next.VerifiedAt = at(0), at(9), at(10)
		update(t, s, func(tx store.Tx) error { return tx.PutReplica(next) })
		want(two, next)
		view(t, s, func(tx store.Tx) error {
			got, err := tx.Replica(template, "n1")
			wantEqual(t, got, next)
			_, missing := tx.Replica(template, "none")
			wantCode(t, missing, spore.CodeNotFound)
			return err
		})
		for range 2 { // what is gone may be deleted again
			update(t, s, func(tx store.Tx) error { return tx.DeleteReplica(template, "n1") })
		}
		want(two)
		stray := sampleReplica("tpl-none", "n1")
		wantCode(t, s.Update(t.Context(), func(tx store.Tx) error { return tx.PutReplica(stray) }), spore.CodeNotFound)
	})

	t.Run("Filters", func(t *testing.T) {
		s := fresh(t, open)
		a, b := sampleTemplate(1), sampleTemplate(2)
		rows := []*spore.Replica{sampleReplica(a.ID, "n1"), sampleReplica(a.ID, "n2"), sampleReplica(b.ID, "n1"), sampleReplica(b.ID, "n3")}
		rows[1].Status, rows[1].Phase, rows[1].CompatStatus = spore.ReplicaReady, spore.ReplicaPhaseReady, spore.CompatOK
		rows[2].Phase = spore.ReplicaCleaning
		rows[3].CompatStatus = spore.CompatUnknown
		update(t, s, func(tx store.Tx) error {
			err := errors.Join(tx.InsertTemplate(a), tx.InsertTemplate(b))
			for i := range rows {
				err = errors.Join(err, tx.PutReplica(rows[len(rows)-1-i]))
			}
			return err
		})
		for _, c := range []struct {
			name string
			f    store.ReplicaFilter
			want []*spore.Replica
		}{
			{"all", store.ReplicaFilter{}, rows},
			{"node", store.ReplicaFilter{NodeID: "n1"}, []*spore.Replica{rows[0], rows[2]}},
			{"status", store.ReplicaFilter{Status: spore.ReplicaReady}, rows[1:2]},
			{"phase", store.ReplicaFilter{Phase: spore.ReplicaPending}, []*spore.Replica{rows[0], rows[3]}},
			{"compat", store.ReplicaFilter{Compat: spore.CompatStale}, []*spore.Replica{rows[0], rows[2]}},
			{"node and phase", store.ReplicaFilter{NodeID: "n1", Phase: spore.ReplicaCleaning}, rows[2:3]},
			{"none", store.ReplicaFilter{NodeID: "n4"}, nil},
		} {
			t.Run(c.name, func(t *testing.T) {
				view(t, s, func(tx store.Tx) error {
					got, page, err := tx.ReplicaPage(c.f)
					wantEqual(t, got, c.want)
					wantEqual(t, page, store.Page{})
					return err
				})
			})
		}
	})
}
