package storetest

import (
	"errors"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

func testArtifacts(t *testing.T, open Open) {
	t.Run("RoundTrip", func(t *testing.T) {
		s := fresh(t, open)
		full, bare := sampleArtifact(1), &spore.Artifact{ID: "rfs-2", Status: spore.ArtifactPending}
		update(t, s, func(tx store.Tx) error { return errors.Join(tx.PutArtifact(full), tx.PutArtifact(bare)) })
		want := func(want *spore.Artifact) {
			t.Helper()
			view(t, s, func(tx store.Tx) error {
				got, err := tx.Artifact(want.ID)
				wantEqual(t, got, want)
				return err
			})
		}
		want(full)
		want(bare)
		next := &spore.Artifact{ID: full.ID, Status: spore.ArtifactBuilding, CreatedAt: at(77), UpdatedAt: at(78)}
		update(t, s, func(tx store.Tx) error { return tx.PutArtifact(next) })
		want(next)
		next.Reused = true
		update(t, s, func(tx store.Tx) error { return tx.PutArtifact(next) })
		next.Reused = false // not kept
		want(next)
		view(t, s, func(tx store.Tx) error {
			_, err := tx.Artifact("rfs-none")
			wantCode(t, err, spore.CodeNotFound)
			return nil
		})
	})

	t.Run("Filters", func(t *testing.T) {
		s := fresh(t, open)
		rows := make([]*spore.Artifact, 5)
		for i := range rows {
			rows[i] = sampleArtifact(i)
		}
		rows[1].Status, rows[1].UnusedAt = spore.ArtifactReady, time.Time{}
		rows[2].Status, rows[2].TriedAt = spore.ArtifactCleanupPending, at(100)
		rows[3].Status, rows[3].TriedAt = spore.ArtifactCleanupPending, at(90)
		rows[4].Status, rows[4].TriedAt = spore.ArtifactOrphaned, time.Time{}
		update(t, s, func(tx store.Tx) error {
			var err error
			for _, row := range rows {
				err = errors.Join(err, tx.PutArtifact(row))
			}
			return err
		})
		unwanted := []spore.ArtifactStatus{spore.ArtifactCleanupPending, spore.ArtifactOrphaned}
		for _, c := range []struct {
			name string
			f    store.ArtifactFilter
			want []int
		}{
			{"all", store.ArtifactFilter{}, []int{4, 3, 2, 1, 0}},
			{"status", store.ArtifactFilter{Statuses: unwanted[:1]}, []int{3, 2}},
			{"statuses", store.ArtifactFilter{Statuses: unwanted}, []int{4, 3, 2}},
			{"unused", store.ArtifactFilter{UnusedBefore: rows[2].UnusedAt}, []int{0}},
			{"unused long enough", store.ArtifactFilter{UnusedBefore: at(1000)}, []int{4, 3, 2, 0}},
			{"unused and statuses", store.ArtifactFilter{UnusedBefore: at(1000), Statuses: unwanted}, []int{4, 3, 2}},
			{"fair", store.ArtifactFilter{Fair: true}, []int{4, 0, 1, 3, 2}},
			{"fair of a status", store.ArtifactFilter{Fair: true, Statuses: unwanted[:1]}, []int{3, 2}},
			{"fair of statuses", store.ArtifactFilter{Fair: true, Statuses: unwanted}, []int{4, 3, 2}},
			{"fair, unused", store.ArtifactFilter{Fair: true, Statuses: unwanted, UnusedBefore: rows[4].UnusedAt}, []int{3, 2}},
			{"the fairest", store.ArtifactFilter{Fair: true, Statuses: unwanted, Paging: store.Paging{Limit: 2}}, []int{4, 3}},
		} {
			t.Run(c.name, func(t *testing.T) {
				var got []int
				view(t, s, func(tx store.Tx) error {
					list, page, err := tx.Artifacts(c.f)
					for _, row := range list {
						for i := range rows {
							if rows[i].ID == row.ID {
								got = append(got, i)
							}
						}
					}
					wantEqual(t, page, store.Page{})
					return err
				})
				wantEqual(t, got, c.want)
			})
		}
	})

	// Whoever takes the first one in the fair order, and comes back later for those that did not work, starves none.
	t.Run("Fair", func(t *testing.T) {
		s := fresh(t, open)
		const there = 4
		for n := range there {
			row := sampleArtifact(n)
			row.Status, row.TriedAt = spore.ArtifactCleanupPending, time.Time{}
			update(t, s, func(tx store.Tx) error { return tx.PutArtifact(row) })
		}
		tried := map[string]int{}
		for round := range 3 * there {
			update(t, s, func(tx store.Tx) error {
				list, _, err := tx.Artifacts(store.ArtifactFilter{Fair: true, Paging: store.Paging{Limit: 1}})
				if err != nil {
					return err
				}
				tried[list[0].ID]++
				list[0].TriedAt = at(round)
				return tx.PutArtifact(list[0])
			})
		}
		for n := range there {
			wantEqual(t, tried[sampleArtifact(n).ID], 3)
		}
	})

	t.Run("Delete", func(t *testing.T) {
		s := fresh(t, open)
		row := sampleArtifact(1)
		remove := func() error {
			return s.Update(t.Context(), func(tx store.Tx) error { return tx.DeleteArtifact(row.ID) })
		}
		wantCode(t, remove(), spore.CodeNotFound)
		for _, status := range []spore.ArtifactStatus{
			spore.ArtifactPending, spore.ArtifactBuilding, spore.ArtifactReady, spore.ArtifactFailed, spore.ArtifactBuilding, spore.ArtifactOrphaned,
		} {
			row.Status = status
			update(t, s, func(tx store.Tx) error { return tx.PutArtifact(row) })
			wantCode(t, remove(), spore.CodeConflict)
		}
		row.Status = spore.ArtifactCleanupPending
		update(t, s, func(tx store.Tx) error {
			return errors.Join(tx.PutArtifact(row), tx.PutPlacement(spore.Placement{ArtifactID: row.ID, NodeID: "n1"}))
		})
		wantCode(t, remove(), spore.CodeConflict)
		update(t, s, func(tx store.Tx) error { return tx.DeletePlacement(row.ID, "n1") })
		wantCode(t, remove(), "")
		wantCode(t, remove(), spore.CodeNotFound)
	})

	t.Run("Users", func(t *testing.T) {
		s := fresh(t, open)
		const id = "rfs-used"
		users := func(want int) {
			t.Helper()
			view(t, s, func(tx store.Tx) error {
				got, err := tx.ArtifactUsers(id)
				wantEqual(t, got, want)
				return err
			})
		}
		users(0)
		template := sampleTemplate(1)
		template.ArtifactID = id
		replica := sampleReplica(template.ID, "n1")
		replica.ArtifactID = id
		job, over := sampleJob(1), sampleJob(2)
		job.ArtifactID, over.ArtifactID, over.Status = id, id, spore.JobFailed
		update(t, s, func(tx store.Tx) error { return tx.InsertTemplate(template) })
		users(1)
		update(t, s, func(tx store.Tx) error {
			return errors.Join(tx.PutReplica(replica), tx.InsertJob(job), tx.InsertJob(over))
		})
		users(3)
		template.Status = spore.TemplateDeleting
		update(t, s, func(tx store.Tx) error { return tx.UpdateTemplate(template) })
		users(3)
		template.Status, job.Status = spore.TemplateDeleted, spore.JobCancelled
		update(t, s, func(tx store.Tx) error { return errors.Join(tx.UpdateTemplate(template), tx.UpdateJob(job)) })
		users(1)
		update(t, s, func(tx store.Tx) error { return tx.DeleteReplica(template.ID, "n1") })
		users(0)
	})
}

func testPlacements(t *testing.T, open Open) {
	s := fresh(t, open)
	a, b := sampleArtifact(1), sampleArtifact(2)
	update(t, s, func(tx store.Tx) error { return errors.Join(tx.PutArtifact(a), tx.PutArtifact(b)) })
	rows := []spore.Placement{
		{ArtifactID: a.ID, NodeID: "n1", VerifiedAt: at(1), CreatedAt: at(2)}, {ArtifactID: a.ID, NodeID: "n2"}, {ArtifactID: b.ID, NodeID: "n1", CreatedAt: at(3)},
	}
	update(t, s, func(tx store.Tx) error {
		return errors.Join(tx.PutPlacement(rows[2]), tx.PutPlacement(rows[1]), tx.PutPlacement(rows[0]))
	})
	want := func(artifact, node string, want ...spore.Placement) {
		t.Helper()
		view(t, s, func(tx store.Tx) error {
			got, err := tx.Placements(artifact, node)
			wantEqual(t, got, want)
			return err
		})
	}
	want("", "", rows...)
	want(a.ID, "", rows[:2]...)
	want("", "n1", rows[0], rows[2])
	want(b.ID, "n1", rows[2])
	want(b.ID, "n2")
	rows[1].VerifiedAt = at(7)
	update(t, s, func(tx store.Tx) error { return tx.PutPlacement(rows[1]) })
	want(a.ID, "n2", rows[1])
	for range 2 { // what is gone may be deleted again
		update(t, s, func(tx store.Tx) error { return tx.DeletePlacement(a.ID, "n2") })
	}
	want(a.ID, "", rows[0])
	stray := spore.Placement{ArtifactID: "rfs-none", NodeID: "n1"}
	wantCode(t, s.Update(t.Context(), func(tx store.Tx) error { return tx.PutPlacement(stray) }), spore.CodeNotFound)
}
