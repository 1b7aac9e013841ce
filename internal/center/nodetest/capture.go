package nodetest

import (
	"testing"

	"github.com/sporevm/spore"
)

func testCapture(t *testing.T, fresh func(*testing.T) *bed) {
	t.Run("Freeze", func(t *testing.T) {
		b := fresh(t)
		tpl := b.baked()
		base, err := b.Node.Frozen(t.Context(), tpl.ID)
		b.must(err)
		s := b.started(tpl.ID)
		snap := spore.NewSnapshotID()
		f, err := b.Node.Freeze(t.Context(), s, snap, tpl.ID)
		b.must(err)
		if f.ID != snap || f.ChainDepth != 1 || f.Paused <= 0 || f.Components() != base.Components() {
			t.Errorf("frozen: %+v of a template with %+v", f, base)
		}
		b.ids(tpl.ID, snap)
		b.answers(s) // it runs on
		_, err = b.Node.Freeze(t.Context(), s, snap, tpl.ID)
		b.want(err, spore.CodeConflict)
		b.answers(s)

		child := b.started(snap)
		b.machines(running(s, tpl.ID), running(child, snap))
		second := spore.NewSnapshotID()
		f, err = b.Node.Freeze(t.Context(), child, second, snap)
		b.must(err)
		if f.ChainDepth != 2 {
			t.Errorf("a child of a child is at depth %d", f.ChainDepth)
		}
		third := spore.NewSnapshotID()
		_, err = b.Node.Freeze(t.Context(), child, third, "snap-gone") // then it is what it was started from
		b.must(err)
		for _, id := range []string{snap, second, third} {
			b.must(b.Node.VerifyFrozen(t.Context(), id, true))
		}
		b.must(b.Node.Forget(t.Context(), snap)) // children go on
		b.collect()
		for _, id := range []string{tpl.ID, second, third} {
			b.must(b.Node.VerifyFrozen(t.Context(), id, true))
			b.answers(b.started(id))
		}
		b.idle()
	})

	t.Run("FreezeFailed", func(t *testing.T) {
		b := fresh(t)
		tpl := b.baked()
		s := b.started(tpl.ID)
		for _, wrong := range []*spore.Sandbox{b.sandbox(), at(s, 2)} {
			_, err := b.Node.Freeze(t.Context(), wrong, spore.NewSnapshotID(), tpl.ID)
			b.want(err, spore.CodeConflict)
			_, err = b.Node.Suspend(t.Context(), wrong, spore.NewSnapshotID(), tpl.ID)
			b.want(err, spore.CodeConflict)
			b.want(b.Node.Wake(t.Context(), wrong.ID, wrong.Generation), spore.CodeConflict)
		}
		b.ids(tpl.ID)
		b.idle()
	})

	t.Run("Suspend", func(t *testing.T) {
		b := fresh(t)
		tpl := b.baked()
		s := b.started(tpl.ID)
		first, second := s.ID+"-p1", s.ID+"-p2"
		_, err := b.Node.Suspend(t.Context(), s, first, tpl.ID)
		b.must(err)
		b.must(b.Node.Wake(t.Context(), s.ID, 1)) // it was not to be
		b.answers(s)
		b.must(b.Node.Forget(t.Context(), first))
		_, err = b.Node.Suspend(t.Context(), s, second, tpl.ID)
		b.must(err)
		b.must(b.Node.Settle(t.Context(), s.ID, 0))
		b.machines()
		b.must(b.Node.Start(t.Context(), at(s, 2), second))
		b.machines(running(at(s, 2), second))
		b.answers(at(s, 2))
		b.idle()
	})

	t.Run("Flatten", func(t *testing.T) {
		b := fresh(t)
		tpl := b.baked()
		ids := []string{tpl.ID}
		for range 3 {
			s := b.started(ids[len(ids)-1])
			if b.Write != nil {
				b.Write(t, s.ID, 1)
			}
			next := spore.NewSnapshotID()
			_, err := b.Node.Freeze(t.Context(), s, next, ids[len(ids)-1])
			b.must(err)
			ids = append(ids, next)
		}
		last := ids[3]
		on := b.started(last)
		for _, step := range []struct {
			toBase bool
			most   int
		}{{false, 1}, {false, 1}, {true, 0}, {true, 0}} {
			f, err := b.Node.Flatten(t.Context(), last, step.toBase)
			b.must(err)
			if f.ID != last || f.ChainDepth > step.most {
				t.Errorf("flattened, to a base %t: %+v", step.toBase, f)
			}
			b.must(b.Node.VerifyFrozen(t.Context(), last, true))
		}
		for _, id := range ids[:3] {
			b.must(b.Node.Forget(t.Context(), id))
		}
		b.collect()
		b.answers(on)
		b.must(b.Node.VerifyFrozen(t.Context(), last, true))
		b.answers(b.started(last))
		snap := spore.NewSnapshotID() // of one that stands on what was flattened away
		_, err := b.Node.Freeze(t.Context(), on, snap, last)
		b.must(err)
		b.collect()
		b.answers(b.started(snap))
		b.idle()
	})

	t.Run("Diff", func(t *testing.T) {
		b := fresh(t)
		tpl := b.baked()
		d, err := b.Node.Diff(t.Context(), tpl.ID, tpl.ID, 10)
		b.must(err)
		if len(d.Files) > 0 || d.FilesOmitted > 0 || d.MemoryChanged != 0 || d.DiskChanged != 0 || d.MemoryTotal != int64(b.Size.MemoryMiB)<<20 {
			t.Errorf("nothing differs, and: %+v", d)
		}
		b.needs(b.Write != nil, "Write")
		s := b.started(tpl.ID)
		b.Write(t, s.ID, 1)
		snap := spore.NewSnapshotID()
		_, err = b.Node.Freeze(t.Context(), s, snap, tpl.ID)
		b.must(err)
		d, err = b.Node.Diff(t.Context(), tpl.ID, snap, 10)
		b.must(err)
		if d.From != tpl.ID || d.To != snap || d.MemoryChanged+d.DiskChanged == 0 {
			t.Errorf("a guest wrote, and: %+v", d)
		}
		d, err = b.Node.Diff(t.Context(), snap, snap, 10)
		b.must(err)
		if len(d.Files) > 0 || d.MemoryChanged != 0 || d.DiskChanged != 0 {
			t.Errorf("nothing differs, and: %+v", d)
		}
	})
}
