package sqlite

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// What the writer keeps of its reads is what a fresh read would find, whatever is written, taken back and given up between.
func TestAnswersAreCurrent(t *testing.T) {
	s := openInside(t)
	random := rand.New(rand.NewPCG(1, 2))
	onPurpose := errors.New("on purpose")
	const templates = 4
	stored := map[int]string{} // the display name that is committed
	for round := range 400 {
		now := map[int]string{}
		for n, name := range stored {
			now[n] = name
		}
		fails := random.IntN(3) == 0
		err := s.Update(t.Context(), func(tx store.Tx) error {
			for range 1 + random.IntN(6) {
				n := random.IntN(templates)
				name, exists := now[n]
				found, err := tx.FindTemplate(numbered(n).ID)
				switch {
				case exists && err != nil:
					return err
				case exists && found.DisplayName != name:
					t.Fatalf("round %d: %q was read where %q is", round, found.DisplayName, name)
				case !exists && spore.CodeOf(err) != spore.CodeNotFound:
					t.Fatalf("round %d: read what is not there: %v", round, err)
				}
				if random.IntN(2) == 0 {
					continue
				}
				next := numbered(n)
				next.DisplayName = fmt.Sprintf("%d-%d", round, n)
				write := tx.InsertTemplate
				if exists {
					write = tx.UpdateTemplate
				}
				if err := write(next); err != nil {
					return err
				}
				now[n] = next.DisplayName
			}
			if fails {
				return onPurpose
			}
			return nil
		})
		if fails != errors.Is(err, onPurpose) || !fails && err != nil {
			t.Fatal(err)
		}
		if !fails {
			stored = now
		}
	}
}

func TestStatementKinds(t *testing.T) {
	for query, want := range map[string]kind{
		"SELECT a FROM templates WHERE id = ?":                       kindSettled,
		"SELECT a FROM templates JOIN jobs ON 1":                     kindBusy,
		"SELECT state FROM sandboxes WHERE id = ?":                   kindBusy,
		"UPDATE sandboxes SET (state) = (?) WHERE id = ?":            kindBusy,
		"INSERT INTO runtime_refs (id) VALUES (?)":                   kindBusy,
		"SAVEPOINT member":                                           kindBusy,
		"DELETE FROM templates WHERE id = ?":                         kindOther,
		"INSERT INTO sandboxes_of_tomorrow (id) VALUES (?)":          kindOther,
		"UPDATE templates SET job_id = (SELECT id FROM jobs)":        kindOther,
		"WITH old AS (DELETE FROM templates RETURNING id) SELECT 1":  kindOther,
		"INSERT INTO templates (id) VALUES (?) RETURNING id":         kindOther,
		"PRAGMA foreign_keys = 0":                                    kindOther,
		"SELECT id FROM replicas WHERE phase = 'x' AND deleted_at=0": kindSettled,
	} {
		if got := newAnswers().kind(query); got != want {
			t.Errorf("%s is of kind %d, not %d", query, got, want)
		}
	}
}
