package storetest

import (
	"errors"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

func testAliases(t *testing.T, open Open) {
	alias := func(name, tag string, to *spore.Template, n int) spore.Alias {
		return spore.Alias{Name: name, Tag: tag, TemplateID: to.ID, Author: "me", Reason: "r", UpdatedAt: at(n)}
	}
	// withTwo inserts two templates to point at.
	withTwo := func(t *testing.T) (s store.Store, one, two *spore.Template) {
		s, one, two = fresh(t, open), sampleTemplate(1), sampleTemplate(2)
		one.Name, one.Status, two.Name = "", spore.TemplateReady, ""
		update(t, s, func(tx store.Tx) error { return errors.Join(tx.InsertTemplate(one), tx.InsertTemplate(two)) })
		return s, one, two
	}
	put := func(s store.Store, a spore.Alias) error {
		return s.Update(t.Context(), func(tx store.Tx) error { return tx.PutAlias(a) })
	}
	found := func(t *testing.T, s store.Store, ref string) (id string) {
		t.Helper()
		view(t, s, func(tx store.Tx) error {
			got, err := tx.FindTemplate(ref)
			if err == nil {
				id = got.ID
			}
			if spore.CodeOf(err) == spore.CodeNotFound {
				return nil
			}
			return err
		})
		return id
	}
	history := func(t *testing.T, s store.Store, name, tag string, limit int) (list []spore.Alias) {
		t.Helper()
		view(t, s, func(tx store.Tx) error {
			changes, err := tx.AliasHistory(name, tag, limit)
			for i, c := range changes {
				if i > 0 && c.Seq >= changes[i-1].Seq {
					t.Errorf("entry %d comes after entry %d", c.Seq, changes[i-1].Seq)
				}
				list = append(list, c.Alias)
			}
			return err
		})
		return list
	}

	t.Run("Switch", func(t *testing.T) {
		s, one, two := withTwo(t)
		first, tagged, second := alias("python", spore.DefaultTag, one, 1), alias("python", "3.12_A", one, 2), alias("python", spore.DefaultTag, two, 3)
		update(t, s, func(tx store.Tx) error { return errors.Join(tx.PutAlias(first), tx.PutAlias(tagged)) })
		wantEqual(t, []string{found(t, s, "python"), found(t, s, "python:latest"), found(t, s, "python:3.12_A"), found(t, s, "python:3")}, []string{one.ID, one.ID, one.ID, ""})
		wantCode(t, put(s, second), "")
		wantEqual(t, []string{found(t, s, "python"), found(t, s, "python:3.12_A")}, []string{two.ID, one.ID})
		view(t, s, func(tx store.Tx) error {
			got, err := tx.Alias("python", spore.DefaultTag)
			wantEqual(t, got, &second)
			return err
		})
		wantEqual(t, history(t, s, "python", spore.DefaultTag, 10), []spore.Alias{second, first})
		wantEqual(t, history(t, s, "python", "", 2), []spore.Alias{second, tagged})
		wantEqual(t, history(t, s, "none", "", 10), []spore.Alias(nil))
	})

	t.Run("Delete", func(t *testing.T) {
		s, one, _ := withTwo(t)
		a := alias("python", "v1", one, 1)
		wantCode(t, put(s, a), "")
		gone := spore.Alias{Name: "python", Tag: "v1", TemplateID: "not looked at", Author: "you", Reason: "enough", UpdatedAt: at(2)}
		remove := func() error {
			return s.Update(t.Context(), func(tx store.Tx) error { return tx.DeleteAlias(gone) })
		}
		wantCode(t, remove(), "")
		wantEqual(t, found(t, s, "python:v1"), "")
		gone.TemplateID = ""
		wantEqual(t, history(t, s, "python", "v1", 10), []spore.Alias{gone, a})
		wantCode(t, remove(), spore.CodeNotFound)
		view(t, s, func(tx store.Tx) error {
			_, err := tx.Alias("python", "v1")
			wantCode(t, err, spore.CodeNotFound)
			return nil
		})
		wantEqual(t, len(history(t, s, "python", "v1", 10)), 2)
	})

	t.Run("Target", func(t *testing.T) {
		s, one, two := withTwo(t)
		stray := alias("python", "v1", one, 1)
		stray.TemplateID = "tpl-none"
		wantCode(t, put(s, stray), spore.CodeNotFound)
		two.Status = spore.TemplateDeleting
		update(t, s, func(tx store.Tx) error { return tx.UpdateTemplate(two) })
		wantCode(t, put(s, alias("python", "v1", two, 1)), spore.CodeNotFound)
		wantEqual(t, history(t, s, "python", "", 10), []spore.Alias(nil))
	})

	// A name is a template's own or an alias, never both.
	t.Run("Names", func(t *testing.T) {
		s, one, two := withTwo(t)
		one.Name = "own"
		update(t, s, func(tx store.Tx) error { return tx.UpdateTemplate(one) })
		for _, target := range []*spore.Template{one, two} {
			for _, tag := range []string{spore.DefaultTag, "v1"} {
				wantReason(t, put(s, alias("own", tag, target, 1)), spore.CodeConflict, spore.ReasonDuplicate)
			}
		}
		wantCode(t, put(s, alias("pointed", "v1", one, 1)), "")
		third := sampleTemplate(3)
		third.Name = "pointed"
		insert := func(tx store.Tx) error { return tx.InsertTemplate(third) }
		wantReason(t, s.Update(t.Context(), insert), spore.CodeConflict, spore.ReasonDuplicate)
		renamed := *two
		renamed.Name = "pointed"
		wantReason(t, s.Update(t.Context(), func(tx store.Tx) error { return tx.UpdateTemplate(&renamed) }), spore.CodeConflict, spore.ReasonDuplicate)
		wantTemplate(t, s, two)

		update(t, s, func(tx store.Tx) error { return tx.DeleteAlias(spore.Alias{Name: "pointed", Tag: "v1"}) })
		update(t, s, insert)
		one.Status = spore.TemplateDeleting
		update(t, s, func(tx store.Tx) error { return tx.UpdateTemplate(one) })
		wantCode(t, put(s, alias("own", "v1", two, 2)), "") // free again
	})

	t.Run("TemplateGone", func(t *testing.T) {
		for _, c := range []struct {
			name     string
			statuses []spore.TemplateStatus
		}{
			{"deleting", []spore.TemplateStatus{spore.TemplateDeleting}},
			{"deleting and deleted", []spore.TemplateStatus{spore.TemplateDeleting, spore.TemplateDeleted}},
		} {
			t.Run(c.name, func(t *testing.T) {
				s, one, two := withTwo(t)
				a, b, kept := alias("a", "v1", one, 1), alias("b", spore.DefaultTag, one, 1), alias("a", "v2", two, 1)
				update(t, s, func(tx store.Tx) error { return errors.Join(tx.PutAlias(a), tx.PutAlias(b), tx.PutAlias(kept)) })
				for _, status := range c.statuses {
					one.Status, one.UpdatedAt = status, at(50)
					update(t, s, func(tx store.Tx) error { return tx.UpdateTemplate(one) })
				}
				wantEqual(t, []string{found(t, s, "a:v1"), found(t, s, "b"), found(t, s, "a:v2")}, []string{"", "", two.ID})
				for _, gone := range []spore.Alias{a, b} {
					list := history(t, s, gone.Name, gone.Tag, 10)
					wantEqual(t, len(list), 2)
					if list[0].Reason == "" {
						t.Error("the history does not say why the alias is gone")
					}
					list[0].Reason = ""
					wantEqual(t, list, []spore.Alias{{Name: gone.Name, Tag: gone.Tag, UpdatedAt: at(50)}, gone})
				}
				wantEqual(t, history(t, s, "a", "v2", 10), []spore.Alias{kept})
			})
		}
	})

	t.Run("Filters", func(t *testing.T) {
		s, one, two := withTwo(t)
		rows := []*spore.Alias{}
		for _, a := range []spore.Alias{
			alias("a", "A", two, 1), alias("a", "_x", one, 2), alias("a", "latest", one, 3), alias("a-b", "0", one, 4), alias("b", "latest", two, 5),
		} {
			rows = append(rows, &a)
		}
		update(t, s, func(tx store.Tx) error {
			var err error
			for i := range rows {
				err = errors.Join(err, tx.PutAlias(*rows[len(rows)-1-i]))
			}
			return err
		})
		for _, c := range []struct {
			name string
			f    store.AliasFilter
			want []*spore.Alias
		}{
			{"all", store.AliasFilter{}, rows}, // byte by byte, whatever letters they are
			{"name", store.AliasFilter{Name: "a"}, rows[:3]},
			{"template", store.AliasFilter{TemplateID: one.ID}, rows[1:4]},
			{"both", store.AliasFilter{Name: "a", TemplateID: two.ID}, rows[:1]},
			{"none", store.AliasFilter{Name: "x"}, nil},
		} {
			t.Run(c.name, func(t *testing.T) {
				view(t, s, func(tx store.Tx) error {
					got, page, err := tx.Aliases(c.f)
					wantEqual(t, got, c.want)
					wantEqual(t, page, store.Page{})
					return err
				})
			})
		}
	})
}
