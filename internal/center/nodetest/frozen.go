package nodetest

import (
	"slices"
	"testing"

	"github.com/sporevm/spore"
)

func testBake(t *testing.T, fresh func(*testing.T) *bed) {
	t.Run("As", func(t *testing.T) {
		b := fresh(t)
		tpl := b.template()
		as := tpl.ID + "-again"
		var notes []string
		f, err := b.Node.Bake(t.Context(), tpl, as, func(line string) { notes = append(notes, line) })
		b.must(err)
		if f.ID != as || f.ChainDepth != 0 || f.MemoryBytes <= 0 || f.Paused <= 0 || f.Total < f.Paused {
			t.Errorf("baked: %+v", f)
		}
		now := b.report().Node
		if got := f.Components(); got != now.Components || f.KernelID != tpl.KernelID || f.Engine == "" || f.StateFormat == "" || f.Engine != now.Engine {
			t.Errorf("frozen with %+v on a node with %+v", got, now.Components)
		}
		if len(notes) == 0 {
			t.Error("nobody was told how far it had come")
		}
		b.ids(as)
		_, err = b.Node.Frozen(t.Context(), tpl.ID)
		b.want(err, spore.CodeNotFound)
		known, err := b.Node.Frozen(t.Context(), as)
		b.must(err)
		if known.ID != as || known.MemoryBytes != f.MemoryBytes || known.DiskBytes != f.DiskBytes || known.Components() != f.Components() {
			t.Errorf("baked as %+v and known as %+v", f, known)
		}
		b.machines()
		b.idle()
	})

	t.Run("Again", func(t *testing.T) {
		b := fresh(t)
		tpl := b.baked()
		first, err := b.Node.Usage(t.Context(), tpl.ID)
		b.must(err)
		f, err := b.Node.Bake(t.Context(), tpl, tpl.ID, ignore)
		b.must(err)
		second, err := b.Node.Usage(t.Context(), tpl.ID)
		b.must(err)
		if f.ID != tpl.ID || *countsOf(first) != *countsOf(second) || len(b.garbage()) > 0 {
			t.Errorf("baking again answered %+v and made %+v of %+v", f, second, first)
		}
	})

	t.Run("Missing", func(t *testing.T) {
		b := fresh(t)
		tpl := b.template()
		lost := *tpl
		lost.ArtifactID = spore.ArtifactPrefix + "000000000000000000000000"
		_, err := b.Node.Bake(t.Context(), &lost, lost.ID, ignore)
		b.want(err, spore.CodeNotFound)
		lost = *tpl
		lost.KernelID = spore.KernelPrefix + "ffffffffffffffffffffffff"
		_, err = b.Node.Bake(t.Context(), &lost, lost.ID, ignore)
		b.want(err, spore.CodeNotFound)
		b.ids()
		b.idle()
	})

	t.Run("Rebake", func(t *testing.T) {
		b := fresh(t)
		tpl := b.baked()
		as := tpl.ID + "-again"
		f, err := b.Node.Rebake(t.Context(), tpl, as, ignore)
		b.must(err)
		if f.ID != as || f.ChainDepth != 0 {
			t.Errorf("rebaked: %+v", f)
		}
		b.ids(tpl.ID, as)
		b.must(b.Node.Forget(t.Context(), tpl.ID))
		b.collect()
		b.must(b.Node.VerifyFrozen(t.Context(), as, true)) // it stands on its own
		b.answers(b.started(as))
		_, err = b.Node.Rebake(t.Context(), tpl, tpl.ID+"-third", ignore)
		b.want(err, spore.CodeNotFound)
		again, err := b.Node.Rebake(t.Context(), tpl, as, ignore) // is there already
		b.must(err)
		if again.ID != as {
			t.Errorf("again: %+v", again)
		}
		b.idle()
	})
}

// counts is Usage without the names, to be compared.
type counts struct{ exclusive, shared, reclaimable int64 }

func countsOf(u *spore.Usage) *counts {
	return &counts{u.ExclusiveBytes, u.SharedBytes, u.ReclaimableBytes}
}

func testFrozen(t *testing.T, fresh func(*testing.T) *bed) {
	t.Run("Probe", func(t *testing.T) {
		b := fresh(t)
		tpl := b.baked()
		b.must(b.Node.Probe(t.Context(), tpl, tpl.ID))
		b.machines()
		b.idle()
		b.ids(tpl.ID)
		if items := b.garbage(); len(items) > 0 {
			t.Errorf("a probe left %v", items)
		}
		b.want(b.Node.Probe(t.Context(), tpl, tpl.ID+"-none"), spore.CodeNotFound)
	})

	t.Run("Promote", func(t *testing.T) {
		b := fresh(t)
		tpl := b.baked()
		next := tpl.ID + "-next"
		old := b.started(tpl.ID)
		made, err := b.Node.Bake(t.Context(), tpl, next, ignore)
		b.must(err)
		for range 2 { // the second time it has happened already
			f, err := b.Node.Promote(t.Context(), next, tpl.ID)
			b.must(err)
			if f.ID != tpl.ID || f.MemoryBytes != made.MemoryBytes || f.DiskBytes != made.DiskBytes {
				t.Fatalf("promoted: %+v, made: %+v", f, made)
			}
			b.ids(tpl.ID)
		}
		b.collect()
		b.answers(old)
		snap := spore.NewSnapshotID()
		_, err = b.Node.Freeze(t.Context(), old, snap, tpl.ID)
		b.must(err)
		b.must(b.Node.VerifyFrozen(t.Context(), snap, true))
		b.answers(b.started(snap))
		b.answers(b.started(tpl.ID))
		b.must(b.Node.VerifyFrozen(t.Context(), tpl.ID, true))
		_, err = b.Node.Promote(t.Context(), next, tpl.ID+"-none")
		b.want(err, spore.CodeNotFound)
		b.idle()
	})

	t.Run("PromoteFirst", func(t *testing.T) {
		b := fresh(t)
		tpl := b.template()
		next := tpl.ID + "-next"
		_, err := b.Node.Bake(t.Context(), tpl, next, ignore)
		b.must(err)
		_, err = b.Node.Promote(t.Context(), next, tpl.ID) // nothing has the id
		b.must(err)
		b.ids(tpl.ID)
		b.answers(b.started(tpl.ID))
	})

	t.Run("Forget", func(t *testing.T) {
		b := fresh(t)
		tpl := b.baked()
		s := b.started(tpl.ID)
		b.must(b.Node.Forget(t.Context(), tpl.ID))
		b.ids()
		b.want(b.Node.Forget(t.Context(), tpl.ID), spore.CodeNotFound)
		b.want(b.Node.VerifyFrozen(t.Context(), tpl.ID, false), spore.CodeNotFound)
		b.want(b.Node.Start(t.Context(), b.sandbox(), tpl.ID), spore.CodeNotFound)
		b.collect()
		b.answers(s) // what it stands on is kept
		snap := spore.NewSnapshotID()
		_, err := b.Node.Freeze(t.Context(), s, snap, tpl.ID)
		b.must(err)
		b.must(b.Node.Settle(t.Context(), s.ID, 0))
		b.collect()
		b.must(b.Node.VerifyFrozen(t.Context(), snap, true))
		b.answers(b.started(snap))
	})

	t.Run("Damage", func(t *testing.T) {
		b := fresh(t)
		b.needs(b.DamageFrozen != nil, "DamageFrozen")
		tpl := b.baked()
		other := b.baked()
		b.must(b.Node.VerifyFrozen(t.Context(), tpl.ID, true))
		b.DamageFrozen(t, tpl.ID)
		b.want(b.Node.VerifyFrozen(t.Context(), tpl.ID, true), spore.CodeDamaged)
		b.want(b.Node.Start(t.Context(), b.sandbox(), tpl.ID), spore.CodeDamaged)
		b.want(b.Node.Probe(t.Context(), tpl, tpl.ID), spore.CodeDamaged)
		b.machines()
		b.idle()
		r, err := b.Node.Check(t.Context(), true, nil)
		b.must(err)
		if len(r.Problems) == 0 {
			t.Error("a check finds nothing")
		}
		ids, err := b.Node.FrozenIDs(t.Context())
		b.must(err)
		if !slices.Contains(ids, tpl.ID) {
			t.Error("the damaged state is not listed")
		}
		b.must(b.Node.VerifyFrozen(t.Context(), other.ID, true))
		next := tpl.ID + "-next" // and it can be replaced
		_, err = b.Node.Bake(t.Context(), tpl, next, ignore)
		b.must(err)
		_, err = b.Node.Promote(t.Context(), next, tpl.ID)
		b.must(err)
		b.must(b.Node.VerifyFrozen(t.Context(), tpl.ID, true))
		b.answers(b.started(tpl.ID))
		b.must(b.Node.Forget(t.Context(), other.ID))
	})

	t.Run("ForgetDamaged", func(t *testing.T) {
		b := fresh(t)
		b.needs(b.DamageFrozen != nil, "DamageFrozen")
		tpl := b.baked()
		b.DamageFrozen(t, tpl.ID)
		b.must(b.Node.Forget(t.Context(), tpl.ID))
		b.collect()
		r, err := b.Node.Check(t.Context(), true, nil)
		b.must(err)
		if len(r.Problems) > 0 {
			t.Errorf("after it was forgotten and collected, a check finds %+v", r.Problems)
		}
	})
}
