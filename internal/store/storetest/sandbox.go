package storetest

import (
	"errors"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

func testSandboxes(t *testing.T, open Open) {
	t.Run("RoundTrip", func(t *testing.T) {
		s := fresh(t, open)
		template := withTemplate(t, s)
		full := sampleSandbox(1, template)
		bare := &spore.Sandbox{ID: "s2", State: spore.SandboxCreating, TemplateID: template}
		update(t, s, func(tx store.Tx) error { return errors.Join(tx.InsertSandbox(full), tx.InsertSandbox(bare)) })
		wantSandbox(t, s, full)
		wantSandbox(t, s, bare)
		full.State, full.EndsAt, full.Env = spore.SandboxRunning, time.Time{}, map[string]string{"X": "Y"}
		update(t, s, func(tx store.Tx) error { return tx.UpdateSandbox(full) })
		wantSandbox(t, s, full)

		wantCode(t, s.Update(t.Context(), func(tx store.Tx) error { return tx.InsertSandbox(bare) }), spore.CodeConflict)
	})

	t.Run("Unknown", func(t *testing.T) {
		s := fresh(t, open)
		template := withTemplate(t, s)
		view(t, s, func(tx store.Tx) error {
			_, err := tx.Sandbox("s-none")
			wantCode(t, err, spore.CodeNotFound)
			return nil
		})
		row := sampleSandbox(1, template)
		wantCode(t, s.Update(t.Context(), func(tx store.Tx) error { return tx.UpdateSandbox(row) }), spore.CodeNotFound)
		row.TemplateID = "tpl-none"
		wantCode(t, s.Update(t.Context(), func(tx store.Tx) error { return tx.InsertSandbox(row) }), spore.CodeNotFound)
	})

	t.Run("FarTimes", func(t *testing.T) {
		s := fresh(t, open)
		row := sampleSandbox(1, withTemplate(t, s))
		row.EndsAt = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
		update(t, s, func(tx store.Tx) error { return tx.InsertSandbox(row) })
		view(t, s, func(tx store.Tx) error {
			got, err := tx.Sandbox(row.ID)
			if err == nil && got.EndsAt.Year() < 2200 {
				t.Errorf("a far end became %s", got.EndsAt)
			}
			return err
		})
	})

	t.Run("Filters", func(t *testing.T) {
		s := fresh(t, open)
		template := withTemplate(t, s)
		other := sampleTemplate(5)
		rows := make([]*spore.Sandbox, 5)
		for i := range rows {
			rows[i] = sampleSandbox(i, template)
			rows[i].State = spore.SandboxRunning
		}
		rows[1].TemplateID, rows[1].EndsAt, rows[1].NodeID = other.ID, time.Time{}, "n-one"
		rows[2].State, rows[2].Labels = spore.SandboxPaused, map[string]string{"x": "y"}
		rows[3].State = spore.SandboxFailed
		rows[4].State = spore.SandboxKilled
		update(t, s, func(tx store.Tx) error {
			err := tx.InsertTemplate(other)
			for _, row := range rows {
				err = errors.Join(err, tx.InsertSandbox(row))
			}
			return err
		})
		for _, c := range []struct {
			name string
			f    store.SandboxFilter
			want []int
		}{
			{"plain", store.SandboxFilter{}, []int{3, 2, 1, 0}},
			{"killed too", store.SandboxFilter{Killed: true}, []int{4, 3, 2, 1, 0}},
			{"states", store.SandboxFilter{States: []spore.SandboxState{spore.SandboxPaused, spore.SandboxFailed}}, []int{3, 2}},
			{"states and killed", store.SandboxFilter{States: []spore.SandboxState{spore.SandboxKilled, spore.SandboxPaused}, Killed: true}, []int{4, 2}},
			{"killed, but not asked for", store.SandboxFilter{States: []spore.SandboxState{spore.SandboxKilled}}, nil},
			{"template", store.SandboxFilter{TemplateID: other.ID}, []int{1}},
			{"template and states", store.SandboxFilter{TemplateID: template, States: []spore.SandboxState{spore.SandboxRunning, spore.SandboxFailed}}, []int{3, 0}},
			{"node", store.SandboxFilter{NodeID: "n-one"}, []int{1}},
			{"label and states", store.SandboxFilter{Labels: map[string]string{"a": "b"}, States: []spore.SandboxState{spore.SandboxRunning, spore.SandboxPaused}}, []int{1, 0}},
			{"ended and paused", store.SandboxFilter{EndsBefore: rows[3].EndsAt, States: []spore.SandboxState{spore.SandboxPaused, spore.SandboxFailed}}, []int{3, 2}},
			{"label", store.SandboxFilter{Labels: map[string]string{"x": "y"}}, []int{2}},
			{"ended", store.SandboxFilter{EndsBefore: rows[2].EndsAt}, []int{2, 0}},
			{"none ended", store.SandboxFilter{EndsBefore: rows[0].EndsAt.Add(-1)}, nil},
		} {
			var got []int
			view(t, s, func(tx store.Tx) error {
				list, _, err := tx.Sandboxes(c.f)
				for _, row := range list {
					for i := range rows {
						if rows[i].ID == row.ID {
							got = append(got, i)
						}
					}
				}
				return err
			})
			t.Run(c.name, func(t *testing.T) { wantEqual(t, got, c.want) })
		}
	})

	t.Run("Purge", func(t *testing.T) {
		s := fresh(t, open)
		template := withTemplate(t, s)
		old, recent, held, alive := sampleSandbox(1, template), sampleSandbox(9, template), sampleSandbox(2, template), sampleSandbox(3, template)
		old.State, recent.State, held.State = spore.SandboxKilled, spore.SandboxKilled, spore.SandboxKilled
		update(t, s, func(tx store.Tx) error {
			return errors.Join(
				tx.InsertSandbox(old), tx.InsertSandbox(recent), tx.InsertSandbox(held), tx.InsertSandbox(alive),
				tx.PutRef(&spore.RuntimeRef{TemplateID: template, SandboxID: old.ID, Status: spore.RefReleased}),
				tx.PutRef(&spore.RuntimeRef{TemplateID: template, SandboxID: held.ID, Status: spore.RefActive}),
			)
		})
		update(t, s, func(tx store.Tx) error {
			purged, err := tx.PurgeSandboxes(at(5))
			wantEqual(t, purged, 1)
			return err
		})
		view(t, s, func(tx store.Tx) error {
			list, _, err := tx.Sandboxes(store.SandboxFilter{Killed: true})
			wantEqual(t, list, []*spore.Sandbox{recent, alive, held}) // a ref that is still held keeps its sandbox
			return err
		})
	})
}

func wantSandbox(t *testing.T, s store.Store, want *spore.Sandbox) {
	t.Helper()
	view(t, s, func(tx store.Tx) error {
		got, err := tx.Sandbox(want.ID)
		if err == nil {
			wantEqual(t, got, want)
		}
		return err
	})
}
