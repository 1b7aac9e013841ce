package storetest

import (
	"errors"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

func testRefs(t *testing.T, open Open) {
	s := fresh(t, open)
	template := withTemplate(t, s)
	a, b := sampleSandbox(1, template), sampleSandbox(2, template)
	update(t, s, func(tx store.Tx) error { return errors.Join(tx.InsertSandbox(a), tx.InsertSandbox(b)) })
	ref := func(sandbox string, gen int) *spore.RuntimeRef {
		return &spore.RuntimeRef{
			TemplateID: template, SandboxID: sandbox, NodeID: "n", Binding: spore.BindingMemoryBacking, SandboxGen: gen,
			Status: spore.RefReserved, Reason: "r", AttachedAt: at(1), ReleasedAt: at(2), LeaseUntil: at(3), LastSeenAt: at(4), LastError: "e",
		}
	}
	put := func(r *spore.RuntimeRef) error {
		return s.Update(t.Context(), func(tx store.Tx) error { return tx.PutRef(r) })
	}
	first := ref(a.ID, 1)
	wantCode(t, put(first), "")
	if first.ID == 0 {
		t.Fatal("the ref was given no id")
	}
	wantCode(t, put(ref(a.ID, 1)), spore.CodeConflict)
	first.Status = spore.RefActive
	wantCode(t, put(first), "")
	wantCode(t, put(ref(a.ID, 1)), spore.CodeConflict)

	next, others := ref(a.ID, 2), ref(b.ID, 1)
	wantCode(t, put(next), "") // the next generation, beside the old one
	wantCode(t, put(others), "")
	clash := *next
	clash.SandboxGen = 1
	wantCode(t, put(&clash), spore.CodeConflict)

	first.Status, first.Reason, first.ReleasedAt = spore.RefReleased, "killed", at(9)
	wantCode(t, put(first), "")
	again := ref(a.ID, 1)
	wantCode(t, put(again), "")

	missing := ref(a.ID, 7)
	missing.ID = 12345
	wantCode(t, put(missing), spore.CodeNotFound)
	wantCode(t, put(ref("s-none", 1)), spore.CodeNotFound)
	stray := ref(b.ID, 7)
	stray.TemplateID = "tpl-none"
	wantCode(t, put(stray), spore.CodeNotFound)

	elsewhere := ref(b.ID, 9)
	elsewhere.NodeID = "n2"
	wantCode(t, put(elsewhere), "")

	for _, c := range []struct {
		name string
		f    store.RefFilter
		want []*spore.RuntimeRef
	}{
		{"all", store.RefFilter{}, []*spore.RuntimeRef{first, next, others, again, elsewhere}},
		{"the first", store.RefFilter{Limit: 2}, []*spore.RuntimeRef{first, next}},
		{"template and sandbox", store.RefFilter{TemplateID: template, SandboxID: a.ID}, []*spore.RuntimeRef{first, next, again}},
		{"statuses", store.RefFilter{SandboxID: a.ID, Statuses: []spore.RuntimeRefStatus{spore.RefReleased, spore.RefActive}}, []*spore.RuntimeRef{first}},
		{"status", store.RefFilter{TemplateID: template, Statuses: []spore.RuntimeRefStatus{spore.RefReserved}}, []*spore.RuntimeRef{next, others, again, elsewhere}},
		{"node", store.RefFilter{NodeID: "n2"}, []*spore.RuntimeRef{elsewhere}},
		{"node and status", store.RefFilter{NodeID: "n", Statuses: []spore.RuntimeRefStatus{spore.RefReserved}, Limit: 5}, []*spore.RuntimeRef{next, others, again}},
		{"another template", store.RefFilter{TemplateID: "tpl-none"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			view(t, s, func(tx store.Tx) error {
				got, err := tx.Refs(c.f)
				wantEqual(t, got, c.want)
				n, countErr := tx.CountRefs(c.f)
				wantEqual(t, n, len(c.want))
				return errors.Join(err, countErr)
			})
		})
	}
}

func testReplays(t *testing.T, open Open) {
	s := fresh(t, open)
	rows := []store.Replay{
		{Caller: "a", Key: "k", Digest: "d1", ResourceID: "r1", CreatedAt: at(1)},
		{Caller: "b", Key: "k", Digest: "d2", ResourceID: "r2", CreatedAt: at(2)},
		{Caller: "a", Key: "other", Digest: "d3", ResourceID: "r3", CreatedAt: at(3)},
	}
	replay := func(caller, key string) (got *store.Replay) {
		view(t, s, func(tx store.Tx) (err error) {
			got, err = tx.Replay(caller, key)
			return err
		})
		return got
	}
	wantEqual(t, replay("a", "k"), (*store.Replay)(nil))
	for _, row := range rows {
		update(t, s, func(tx store.Tx) error { return tx.PutReplay(row) })
	}
	for _, row := range rows {
		wantEqual(t, replay(row.Caller, row.Key), &row)
		row.Digest = "else"
		wantCode(t, s.Update(t.Context(), func(tx store.Tx) error { return tx.PutReplay(row) }), spore.CodeConflict)
	}
	// The key and the work stand or fall together.
	wantCode(t, s.Update(t.Context(), func(tx store.Tx) error {
		if err := tx.InsertTemplate(sampleTemplate(1)); err != nil {
			return err
		}
		return tx.PutReplay(rows[0])
	}), spore.CodeConflict)
	view(t, s, func(tx store.Tx) error {
		_, err := tx.Template(sampleTemplate(1).ID)
		wantCode(t, err, spore.CodeNotFound)
		return nil
	})

	update(t, s, func(tx store.Tx) error { return errors.Join(tx.DropReplay("r2"), tx.DropReplay("none")) })
	wantEqual(t, replay("b", "k"), (*store.Replay)(nil))
	update(t, s, func(tx store.Tx) error {
		purged, err := tx.PurgeReplays(at(3))
		wantEqual(t, purged, 1)
		return err
	})
	wantEqual(t, replay("a", "k"), (*store.Replay)(nil))
	wantEqual(t, replay("a", "other"), &rows[2])
}
