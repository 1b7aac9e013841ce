package node

import (
	"context"
	"strings"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// TestNetworkIsLost ends what the networks of sandboxes hang on, while the server runs and while it does not.
func TestNetworkIsLost(t *testing.T) {
	r, tpl := cabled(t, 0)
	c, ctx := r.cables, t.Context()
	exits := make(chan string, 10)
	r.OnExit(func(sandbox string, _ int, reason string) { exits <- sandbox + ": " + reason })
	begin := func() (*spore.Sandbox, *machine) {
		s := &spore.Sandbox{
			ID: spore.NewSandboxID(), Generation: 1, TemplateID: tpl.ID, Network: spore.Network{Mode: spore.NetworkUser}, Limits: spore.Limits{NetworkInMbps: 7},
		}
		must(t, r.Start(ctx, s, tpl.ID))
		m, err := r.machine(s.ID, 1)
		must(t, err)
		return s, m
	}
	ends := func(s *spore.Sandbox, reason string) {
		t.Helper()
		if got := <-exits; !strings.HasPrefix(got, s.ID+": its network was lost") || !strings.Contains(got, reason) {
			t.Errorf("it ended with %q, not %q", got, reason)
		}
		must(t, r.Settle(ctx, s.ID, 0))
	}

	one, m := begin()
	c.tear(m.id)
	eventually(t, "it is restored", func() bool { return c.restorals(m.id) == 1 })
	one.Limits, one.Network.Egress.Proxy = spore.Limits{DiskIOPS: 10}, "http://10.1.2.3:3128"
	must(t, r.Adjust(ctx, one))
	c.tear(m.id)
	eventually(t, "it is restored again", func() bool { return c.restorals(m.id) == 2 })
	c.wants(t, r, one) // under the policy that holds now
	two, m2 := begin()
	c.noMore[m2.id] = spore.Errorf(spore.CodeNoSpace, "no room for it")
	c.tear(m2.id)
	ends(two, "(torn by the test) and cannot be restored: no room for it")
	c.wants(t, r, one)
	for n := 3; n < mostLosses; n++ {
		c.tear(m.id)
		eventually(t, "it is restored as often as that", func() bool { return c.restorals(m.id) == n })
	}
	c.tear(m.id)
	ends(one, "5 times within 1m0s; the last time: torn by the test")
	c.wants(t, r)

	// A server that finds them so.
	good, mGood := begin()
	cut, mCut := begin()
	bad, mBad := begin()
	must(t, r.Close(context.WithoutCancel(ctx)))
	must(t, r.opt.Frozen.Close())
	c.tear(mGood.id)
	c.tear(mBad.id)
	c.noMore[mBad.id] = spore.Errorf(spore.CodeUnsupported, "not with this engine")
	o, err := readOwner(r.machineDir(mCut.id))
	must(t, err)
	o.Cut = true // by a server that ended while it restored it
	must(t, writeOwner(r.machineDir(mCut.id), o))
	r.open(t)
	failed, err := r.Recover(ctx, []*spore.Sandbox{good, cut, bad})
	must(t, err)
	if why := failed[bad.ID]; len(failed) != 1 || spore.CodeOf(why) != spore.CodeConflict || !strings.Contains(why.Error(), "not with this engine") {
		t.Errorf("it says %v", failed)
	}
	for id, want := range map[string]int{mGood.id: 1, mCut.id: 1, mBad.id: 0} {
		if got := c.restorals(id); got != want {
			t.Errorf("%s is restored %d times, not %d", id, got, want)
		}
	}
	if o, err := readOwner(r.machineDir(mCut.id)); err != nil || o.Cut {
		t.Errorf("its owner file says %+v, %v", o, err)
	}
	eventually(t, "what has failed is ended", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.machines[mBad.id].vm.State() == vmm.StateExited
	})
	must(t, r.Settle(ctx, bad.ID, 0))
	c.wants(t, r, good, cut)
	c.tear(mGood.id) // it is watched from then on
	eventually(t, "it is restored under the next server", func() bool { return c.restorals(mGood.id) == 2 })

	// A network that hangs on no process is looked at now and then.
	r.OnExit(func(sandbox string, _ int, reason string) { exits <- sandbox + ": " + reason })
	firm := newCables()
	r.opt.Networks[spore.NetworkIsolated] = struct{ Networks }{firm}
	s := &spore.Sandbox{ID: spore.NewSandboxID(), Generation: 1, TemplateID: tpl.ID, Network: spore.Network{Mode: spore.NetworkIsolated}}
	must(t, r.Start(ctx, s, tpl.ID))
	m, err = r.machine(s.ID, 1)
	must(t, err)
	firm.tear(m.id)
	_, err = r.Recover(ctx, []*spore.Sandbox{good, cut, s})
	must(t, err)
	ends(s, "its network was lost: torn by the test")
	firm.wants(t, r)
}
