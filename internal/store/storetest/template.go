package storetest

import (
	"errors"
	"sync"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

func testTemplates(t *testing.T, open Open) {
	t.Run("RoundTrip", func(t *testing.T) {
		s := fresh(t, open)
		full, bare := sampleTemplate(1), &spore.Template{ID: "snap-1", Kind: spore.KindSnapshot, Status: spore.TemplateCreating}
		update(t, s, func(tx store.Tx) error { return errors.Join(tx.InsertTemplate(full), tx.InsertTemplate(bare)) })
		for _, want := range []*spore.Template{full, bare} {
			wantTemplate(t, s, want)
		}
		full.Status, full.Name, full.LastError, full.Labels = spore.TemplateReady, "renamed", "", nil
		full.Process, full.Readiness = spore.Process{}, spore.Readiness{}
		update(t, s, func(tx store.Tx) error { return tx.UpdateTemplate(full) })
		wantTemplate(t, s, full)
	})

	t.Run("Unknown", func(t *testing.T) {
		s := fresh(t, open)
		view(t, s, func(tx store.Tx) error {
			_, err := tx.Template("tpl-none")
			wantReason(t, err, spore.CodeNotFound, spore.ReasonTemplateNotFound)
			for _, ref := range []string{"", "none", "none:", ":tag", "a:b:c", "tpl-none", "'; DROP TABLE templates; --", "a\x00b", "\xff\xfe:\xff"} {
				_, err = tx.FindTemplate(ref)
				wantReason(t, err, spore.CodeNotFound, spore.ReasonTemplateNotFound)
			}
			for _, find := range []func(string) (*spore.Template, error){tx.Template, tx.FindTemplate} {
				_, err = find("snap-none")
				wantReason(t, err, spore.CodeNotFound, spore.ReasonSnapshotNotFound)
			}
			return nil
		})
		wantCode(t, s.Update(t.Context(), func(tx store.Tx) error { return tx.UpdateTemplate(sampleTemplate(1)) }), spore.CodeNotFound)
	})

	t.Run("Names", func(t *testing.T) {
		s := fresh(t, open)
		first, second := sampleTemplate(1), sampleTemplate(2)
		second.Name = first.Name
		insert := func(row *spore.Template) error {
			return s.Update(t.Context(), func(tx store.Tx) error { return tx.InsertTemplate(row) })
		}
		wantCode(t, insert(first), "")
		wantReason(t, insert(first), spore.CodeConflict, spore.ReasonDuplicate)
		wantReason(t, insert(second), spore.CodeConflict, spore.ReasonDuplicate)

		second.Name = "other"
		wantCode(t, insert(second), "")
		second.Name = first.Name
		rename := func(tx store.Tx) error { return tx.UpdateTemplate(second) }
		wantReason(t, s.Update(t.Context(), rename), spore.CodeConflict, spore.ReasonDuplicate)

		// A row that is being deleted gives its name free, and is found by it no more.
		first.Status = spore.TemplateDeleting
		update(t, s, func(tx store.Tx) error { return tx.UpdateTemplate(first) })
		update(t, s, rename)
		view(t, s, func(tx store.Tx) error {
			found, err := tx.FindTemplate(first.Name)
			wantCode(t, err, "")
			wantEqual(t, found, second)
			_, err = tx.FindTemplate(first.ID)
			wantCode(t, err, spore.CodeNotFound)
			found, err = tx.FindTemplate(second.ID)
			wantCode(t, err, "")
			wantEqual(t, found, second)
			return nil
		})

		// Having no name is not a name.
		for n := range 3 {
			row := sampleTemplate(10 + n)
			row.Name = ""
			wantCode(t, insert(row), "")
		}
	})

	t.Run("NameRace", func(t *testing.T) {
		s := fresh(t, open)
		const rivals = 8
		var wg sync.WaitGroup
		results := make([]error, rivals)
		for i := range rivals {
			wg.Go(func() {
				row := sampleTemplate(i)
				row.Name = "wanted"
				results[i] = s.Update(t.Context(), func(tx store.Tx) error { return tx.InsertTemplate(row) })
			})
		}
		wg.Wait()
		won := 0
		for _, err := range results {
			if err == nil {
				won++
				continue
			}
			wantCode(t, err, spore.CodeConflict)
		}
		if won != 1 {
			t.Fatalf("%d got the name", won)
		}
	})

	t.Run("BadRows", func(t *testing.T) {
		s := fresh(t, open)
		for name, spoil := range map[string]func(*spore.Template){
			"no id":          func(r *spore.Template) { r.ID = "" },
			"unknown status": func(r *spore.Template) { r.Status = "BROKEN" },
			"unknown kind":   func(r *spore.Template) { r.Kind = "" },
		} {
			row := sampleTemplate(1)
			spoil(row)
			if err := s.Update(t.Context(), func(tx store.Tx) error { return tx.InsertTemplate(row) }); err == nil {
				t.Errorf("%s: accepted", name)
			}
		}
	})

	t.Run("Filters", func(t *testing.T) {
		s := fresh(t, open)
		rows := make([]*spore.Template, 6)
		for i := range rows {
			rows[i] = sampleTemplate(i)
			rows[i].Labels = map[string]string{"n": string(rune('0' + i)), "all": "yes"}
		}
		rows[1].Kind, rows[1].ParentID = spore.KindSnapshot, "tpl-parent"
		rows[2].OriginSandbox, rows[2].Status = "s-origin", spore.TemplateReady
		rows[3].Ephemeral = true
		rows[4].Status = spore.TemplateDeleting
		rows[5].Status = spore.TemplateDeleted
		rows[0].DisplayName, rows[2].DisplayName, rows[2].ArtifactID = "shown", "shown", "rfs-two"
		update(t, s, func(tx store.Tx) error {
			for _, row := range rows {
				if err := tx.InsertTemplate(row); err != nil {
					return err
				}
			}
			return errors.Join(
				tx.PutAlias(spore.Alias{Name: "called", Tag: spore.DefaultTag, TemplateID: rows[1].ID}),
				tx.PutAlias(spore.Alias{Name: "called", Tag: "v2", TemplateID: rows[2].ID}),
				tx.PutAlias(spore.Alias{Name: "shown", Tag: "v1", TemplateID: rows[1].ID}),
			)
		})
		for _, c := range []struct {
			name string
			f    store.TemplateFilter
			want []int
		}{
			{"plain", store.TemplateFilter{}, []int{2, 1, 0}},
			{"deleted too", store.TemplateFilter{Deleted: true}, []int{5, 4, 2, 1, 0}},
			{"ephemeral too", store.TemplateFilter{Ephemeral: true}, []int{3, 2, 1, 0}},
			{"ephemeral only", store.TemplateFilter{EphemeralOnly: true}, []int{3}},
			{"all", store.TemplateFilter{Ephemeral: true, Deleted: true}, []int{5, 4, 3, 2, 1, 0}},
			{"kind", store.TemplateFilter{Kind: spore.KindSnapshot}, []int{1}},
			{"status", store.TemplateFilter{Status: spore.TemplateReady}, []int{2}},
			{"deleting", store.TemplateFilter{Status: spore.TemplateDeleting, Deleted: true}, []int{4}},
			{"name", store.TemplateFilter{Name: "name-1"}, []int{1}},
			{"name and kind", store.TemplateFilter{Name: "name-1", Kind: spore.KindTemplate}, nil},
			{"name of a deleted one", store.TemplateFilter{Name: "name-5", Deleted: true}, []int{5}},
			{"display name and alias", store.TemplateFilter{Name: "shown"}, []int{2, 1, 0}},
			{"display name and label", store.TemplateFilter{Name: "shown", Labels: map[string]string{"n": "2"}}, []int{2}},
			{"alias", store.TemplateFilter{Name: "called"}, []int{2, 1}},
			{"alias with tag", store.TemplateFilter{Name: "called:v2"}, []int{2}},
			{"alias with another tag", store.TemplateFilter{Name: "called:v3"}, nil},
			{"id", store.TemplateFilter{ID: rows[1].ID}, []int{1}},
			{"id of a deleted one", store.TemplateFilter{ID: rows[5].ID}, nil},
			{"artifact", store.TemplateFilter{ArtifactID: "rfs-two"}, []int{2}},
			{"created before", store.TemplateFilter{CreatedBefore: rows[2].CreatedAt}, []int{1, 0}},
			{"origin", store.TemplateFilter{OriginSandbox: "s-origin"}, []int{2}},
			{"parent", store.TemplateFilter{ParentID: "tpl-parent"}, []int{1}},
			{"label", store.TemplateFilter{Labels: map[string]string{"n": "1"}}, []int{1}},
			{"labels", store.TemplateFilter{Labels: map[string]string{"n": "1", "all": "yes"}}, []int{1}},
			{"labels that disagree", store.TemplateFilter{Labels: map[string]string{"n": "1", "all": "no"}}, nil},
			{"hostile label", store.TemplateFilter{Labels: map[string]string{`$."' OR 1=1`: `%`}}, nil},
		} {
			var got []int
			view(t, s, func(tx store.Tx) error {
				list, page, err := tx.Templates(c.f)
				for _, row := range list {
					for i := range rows {
						if rows[i].ID == row.ID {
							got = append(got, i)
						}
					}
				}
				wantEqual(t, page, store.Page{})
				all, countErr := tx.CountTemplates(c.f, 100)
				few, fewErr := tx.CountTemplates(c.f, 2)
				wantEqual(t, []int{all, few}, []int{len(c.want), min(2, len(c.want))})
				return errors.Join(err, countErr, fewErr)
			})
			t.Run(c.name, func(t *testing.T) { wantEqual(t, got, c.want) })
		}
	})
}

func wantTemplate(t *testing.T, s store.Store, want *spore.Template) {
	t.Helper()
	view(t, s, func(tx store.Tx) error {
		got, err := tx.Template(want.ID)
		if err == nil {
			wantEqual(t, got, want)
		}
		return err
	})
}
