package storetest

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

func testPaging(t *testing.T, open Open) {
	t.Run("Stable", func(t *testing.T) {
		s := fresh(t, open)
		const there = 25
		insert := func(n int, second int) {
			row := sampleTemplate(n)
			row.CreatedAt = at(second)
			update(t, s, func(tx store.Tx) error { return tx.InsertTemplate(row) })
		}
		for n := range there {
			insert(n, n/3) // several rows share a time
		}
		seen := map[string]bool{}
		f, pages, newer := store.TemplateFilter{Paging: store.Paging{Limit: 4}}, 0, there
		var last *spore.Template
		for {
			var list []*spore.Template
			var page store.Page
			view(t, s, func(tx store.Tx) (err error) {
				list, page, err = tx.Templates(f)
				return err
			})
			pages++
			for _, row := range list {
				if seen[row.ID] {
					t.Fatalf("%s came twice", row.ID)
				}
				if last != nil && (row.CreatedAt.After(last.CreatedAt) || row.CreatedAt.Equal(last.CreatedAt) && row.ID > last.ID) {
					t.Fatalf("%s came after %s", row.ID, last.ID)
				}
				seen[row.ID], last = true, row
			}
			if page.Next == "" {
				break
			}
			wantEqual(t, len(list), 4)
			f.After = page.Next
			insert(newer, 1000+newer) // rows that are born meanwhile belong before the first page
			newer++
		}
		wantEqual(t, len(seen), there)
		wantEqual(t, pages, 7)
	})

	t.Run("Ends", func(t *testing.T) {
		s := fresh(t, open)
		page := func(limit int) (int, bool) {
			var got []*spore.Template
			var next store.Page
			view(t, s, func(tx store.Tx) (err error) {
				got, next, err = tx.Templates(store.TemplateFilter{Paging: store.Paging{Limit: limit}})
				return err
			})
			return len(got), next.Next != ""
		}
		check := func(limit, wantRows int, wantMore bool) {
			t.Helper()
			if rows, more := page(limit); rows != wantRows || more != wantMore {
				t.Fatalf("limit %d: %d rows, more: %v; want %d, %v", limit, rows, more, wantRows, wantMore)
			}
		}
		check(0, 0, false)
		update(t, s, func(tx store.Tx) error {
			var err error
			for n := range 101 {
				err = errors.Join(err, tx.InsertTemplate(sampleTemplate(n)))
			}
			return err
		})
		check(0, 100, true)
		check(1, 1, true)
		check(100, 100, true)
		check(101, 101, false)
		check(1000, 101, false)
	})

	t.Run("Malformed", func(t *testing.T) {
		s := fresh(t, open)
		update(t, s, func(tx store.Tx) error {
			return errors.Join(tx.InsertTemplate(sampleTemplate(1)), tx.InsertTemplate(sampleTemplate(2)))
		})
		var good string
		view(t, s, func(tx store.Tx) error {
			_, page, err := tx.Templates(store.TemplateFilter{Paging: store.Paging{Limit: 1}})
			good = page.Next
			return err
		})
		tokens := []string{"x", "===", "AAAA", good + "A", good[1:], strings.Repeat("A", 1<<16), " " + good,
			base64.RawURLEncoding.EncodeToString([]byte("1.templates.z.' OR 1=1 --"))}
		view(t, s, func(tx store.Tx) error {
			for _, token := range tokens {
				_, _, err := tx.Templates(store.TemplateFilter{Paging: store.Paging{After: token}})
				wantField(t, err, "pageToken")
			}
			// A token is good for the list that it came from only.
			_, _, err := tx.Sandboxes(store.SandboxFilter{Paging: store.Paging{After: good}})
			wantField(t, err, "pageToken")
			_, _, err = tx.Jobs(store.JobFilter{Paging: store.Paging{After: good}})
			wantField(t, err, "pageToken")
			for _, limit := range []int{-1, 1001} {
				_, _, err := tx.Templates(store.TemplateFilter{Paging: store.Paging{Limit: limit}})
				wantField(t, err, "limit")
			}
			return nil
		})
	})
}

func wantField(t *testing.T, err error, field string) {
	t.Helper()
	wantCode(t, err, spore.CodeInvalid)
	wantEqual(t, spore.AsError(err).Field, field)
}
