package nodetest

import (
	"slices"
	"testing"
	"time"

	"github.com/sporevm/spore"
)

func testSandbox(t *testing.T, fresh func(*testing.T) *bed) {
	t.Run("Start", func(t *testing.T) {
		b := fresh(t)
		tpl := b.baked()
		s := b.started(tpl.ID)
		b.machines(running(s, tpl.ID))
		b.idle()
		b.answers(s)
		for _, console := range []bool{false, true} {
			if out, err := b.Node.Logs(t.Context(), s.ID, s.Generation, console, 10); err != nil || len(out) > 10 {
				t.Errorf("10 bytes of logs (console %t): %q, %v", console, out, err)
			}
		}
		b.must(b.Node.Start(t.Context(), s, tpl.ID)) // a call that arrives twice
		b.machines(running(s, tpl.ID))
		b.want(b.Node.Start(t.Context(), b.sandbox(), tpl.ID+"-none"), spore.CodeNotFound)
		b.machines(running(s, tpl.ID))
		b.idle()
	})

	t.Run("Generations", func(t *testing.T) {
		b := fresh(t)
		tpl := b.baked()
		one := b.started(tpl.ID)
		other := b.started(tpl.ID)
		two := at(one, 2)
		b.must(b.Node.Start(t.Context(), two, tpl.ID)) // make before break
		b.machines(running(one, tpl.ID), running(two, tpl.ID), running(other, tpl.ID))
		b.answers(one)
		b.answers(two)
		for range 2 {
			b.must(b.Node.Settle(t.Context(), one.ID, 2))
			b.machines(running(two, tpl.ID), running(other, tpl.ID))
		}
		_, err := b.Node.Agent(t.Context(), one.ID, 1)
		b.want(err, spore.CodeConflict)
		b.answers(two)
		for range 2 {
			b.must(b.Node.Settle(t.Context(), one.ID, 0))
			b.machines(running(other, tpl.ID))
		}
		b.must(b.Node.Settle(t.Context(), other.ID, 7)) // one that it never had
		b.machines()
		b.must(b.Node.Settle(t.Context(), spore.NewSandboxID(), 0))
		b.idle()
	})

	t.Run("FailedStart", func(t *testing.T) {
		b := fresh(t)
		tpl := b.baked()
		one := b.started(tpl.ID)
		b.want(b.Node.Start(t.Context(), at(one, 2), tpl.ID+"-none"), spore.CodeNotFound)
		b.machines(running(one, tpl.ID)) // the others are not touched
		b.answers(one)
	})

	t.Run("Networks", func(t *testing.T) {
		b := fresh(t)
		tpl := b.template()
		tpl.NIC = true
		_, err := b.Node.Bake(t.Context(), tpl, tpl.ID, ignore)
		b.must(err)
		var named []spore.NetworkMode
		for _, has := range b.report().Node.Networks {
			named = append(named, has.Mode)
			s := b.sandbox()
			s.TemplateID, s.Network.Mode = tpl.ID, has.Mode
			err := b.Node.Start(t.Context(), s, tpl.ID)
			if has.WhyNot == "" {
				b.must(err)
				b.answers(s)
				b.must(b.Node.Settle(t.Context(), s.ID, 0))
			} else if b.want(err, spore.CodeUnsupported); spore.AsError(err).Field != "network.mode" {
				t.Errorf("the refusal of mode %s names no field: %+v", has.Mode, err)
			}
			b.machines()
		}
		if slices.Sort(named); !slices.Equal(named, []spore.NetworkMode{spore.NetworkIsolated, spore.NetworkNone, spore.NetworkUser}) {
			t.Errorf("the node speaks of the modes %v", named)
		}
		b.idle()
	})

	t.Run("Exit", func(t *testing.T) {
		b := fresh(t)
		b.needs(b.EndVM != nil, "EndVM")
		type exit struct {
			id         string
			generation int
			reason     string
		}
		exits := make(chan exit, 10)
		b.Node.OnExit(func(id string, generation int, reason string) { exits <- exit{id, generation, reason} })
		tpl := b.baked()
		s, other := b.started(tpl.ID), b.started(tpl.ID)
		b.must(b.Node.Settle(t.Context(), other.ID, 0)) // that is not by itself
		b.EndVM(t, s.ID, 1)
		select {
		case e := <-exits:
			if e.id != s.ID || e.generation != 1 || e.reason == "" {
				t.Fatalf("told of %+v", e)
			}
		case <-time.After(time.Minute):
			t.Fatal("nobody was told that the VM ended")
		}
		gone := running(s, tpl.ID)
		gone.Running = false
		b.machines(gone)
		_, err := b.Node.Freeze(t.Context(), s, spore.NewSnapshotID(), tpl.ID)
		b.want(err, spore.CodeConflict)
		_, err = b.Node.Agent(t.Context(), s.ID, 1)
		b.want(err, spore.CodeConflict)
		b.must(b.Node.Settle(t.Context(), s.ID, 0))
		b.machines()
		b.idle()
		if len(exits) > 0 {
			t.Errorf("told of %+v too", <-exits)
		}
	})

	t.Run("Admit", func(t *testing.T) {
		b := fresh(t)
		b.must(b.Node.Admit(b.Size))
		for field, r := range map[string]spore.Resources{
			"vcpus":     {VCPUs: 100_000, MemoryMiB: 128, DiskMiB: 64},
			"memoryMiB": {VCPUs: 1, MemoryMiB: 1 << 30, DiskMiB: 64},
			"diskMiB":   {VCPUs: 1, MemoryMiB: 128, DiskMiB: 1 << 40},
		} {
			if e := spore.AsError(b.Node.Admit(r)); e == nil || e.Code != spore.CodeInvalid || e.Field != field {
				t.Errorf("%s too large: %+v", field, e)
			}
		}
	})
}
