package nodetest

import (
	"testing"

	"github.com/sporevm/spore"
)

func testRecover(t *testing.T, fresh func(*testing.T) *bed) {
	t.Run("Report", func(t *testing.T) {
		b := fresh(t)
		b.needs(b.Restart != nil, "Restart")
		r := b.report()
		kernel, err := b.Node.ResolveKernel(t.Context(), "")
		b.must(err)
		n := r.Node
		if !r.Recovered || n.ID != b.Node.ID() || n.VCPUs < 1 || n.MemoryMiB < 1 || n.Engine == "" || n.Components.Engine != n.Engine ||
			n.Components.StateFormat == "" || n.Components.GuestImage != kernel || n.Storage.TotalBytes < 1 || n.Storage.UsedBytes < 0 ||
			n.Storage.Mode == "" || n.Storage.Limits.Validate() != nil || n.Storage.MeasuredAt.IsZero() {
			t.Errorf("a node that has recovered says %+v", r)
		}
		b.Node = b.Restart(t)
		if b.report().Recovered {
			t.Error("a process that has just begun says that it has recovered")
		}
		_, err = b.Node.Recover(t.Context(), nil)
		b.must(err)
		if !b.report().Recovered {
			t.Error("after Recover it says that it has not")
		}
	})

	t.Run("Adopt", func(t *testing.T) {
		b := fresh(t)
		b.needs(b.Restart != nil, "Restart")
		tpl := b.baked()
		moved, dropped, paused := b.started(tpl.ID), b.started(tpl.ID), b.started(tpl.ID)
		b.must(b.Node.Start(t.Context(), at(moved, 2), tpl.ID))
		_, err := b.Node.Suspend(t.Context(), paused, paused.ID+"-p1", tpl.ID)
		b.must(err)
		ghost := b.sandbox()

		b.Node = b.Restart(t)
		failed, err := b.Node.Recover(t.Context(), []*spore.Sandbox{at(moved, 2), paused, ghost})
		b.must(err)
		if len(failed) != 1 || failed[ghost.ID] == nil || spore.CodeOf(failed[ghost.ID]) == spore.CodeInternal {
			t.Fatalf("not adopted: %v, want %s and a reason", failed, ghost.ID)
		}
		b.machines(running(at(moved, 2), tpl.ID), running(paused, tpl.ID))
		b.idle()
		b.answers(at(moved, 2))
		b.answers(paused) // nobody is there to wake it
		snap := spore.NewSnapshotID()
		_, err = b.Node.Freeze(t.Context(), at(moved, 2), snap, tpl.ID)
		b.must(err)
		b.ids(tpl.ID, paused.ID+"-p1", snap)
		b.must(b.Node.VerifyFrozen(t.Context(), snap, true))
		_, err = b.Node.Agent(t.Context(), dropped.ID, 1)
		b.want(err, spore.CodeConflict)
		b.must(b.Node.Settle(t.Context(), moved.ID, 0))
		b.machines(running(paused, tpl.ID))
	})

	t.Run("Twice", func(t *testing.T) { // as a call that arrives late, or from a second controller
		b := fresh(t)
		b.needs(b.Restart != nil, "Restart")
		tpl := b.baked()
		adopted := b.started(tpl.ID)
		b.Node = b.Restart(t)
		_, err := b.Node.Recover(t.Context(), []*spore.Sandbox{adopted})
		b.must(err)
		started := b.started(tpl.ID)
		for _, want := range [][]*spore.Sandbox{{adopted, started}, nil} {
			failed, err := b.Node.Recover(t.Context(), want)
			b.must(err)
			if len(failed) > 0 {
				t.Fatalf("not there: %v", failed)
			}
			b.machines(running(adopted, tpl.ID), running(started, tpl.ID))
			b.answers(adopted)
			b.answers(started)
		}
		b.idle()
	})

	t.Run("StartedBefore", func(t *testing.T) { // by who does not know yet that the process is a new one
		b := fresh(t)
		b.needs(b.Restart != nil, "Restart")
		tpl := b.baked()
		left := b.started(tpl.ID)
		b.Node = b.Restart(t)
		s := b.started(tpl.ID)
		failed, err := b.Node.Recover(t.Context(), []*spore.Sandbox{s})
		b.must(err)
		if len(failed) > 0 {
			t.Fatalf("not there: %v", failed)
		}
		b.machines(running(s, tpl.ID))
		b.answers(s)
		_, err = b.Node.Agent(t.Context(), left.ID, 1)
		b.want(err, spore.CodeConflict)
		b.idle()
	})

	t.Run("Ended", func(t *testing.T) {
		b := fresh(t)
		b.needs(b.Restart != nil && b.EndVM != nil, "Restart and EndVM")
		tpl := b.baked()
		s := b.started(tpl.ID)
		b.EndVM(t, s.ID, 1)
		b.Node = b.Restart(t)
		failed, err := b.Node.Recover(t.Context(), []*spore.Sandbox{s})
		b.must(err)
		if failed[s.ID] == nil {
			t.Fatal("a VM that has ended was adopted")
		}
		b.must(b.Node.Settle(t.Context(), s.ID, 0))
		b.machines()
		b.idle()
		b.must(b.Node.Start(t.Context(), at(s, 2), tpl.ID))
		b.answers(at(s, 2))
	})
}
