package center_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
)

// connectable builds a template with a network device, which is wanted on certain nodes.
func (w *world) connectable(name string, nodes ...string) *spore.Template {
	w.t.Helper()
	_, j, err := w.BuildTemplate(w.t.Context(), center.Idempotency{}, center.BuildRequest{
		Name: name, Image: app, Network: &spore.Network{Mode: spore.NetworkIsolated}, Replicas: spore.ReplicaPolicy{Nodes: nodes},
		Resources: spore.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64},
	})
	w.ok(err)
	w.watched(j.ID)
	w.pass(2 * time.Minute)
	t, err := w.Template(w.t.Context(), name)
	w.ok(err)
	return t
}

// TestNetworkPlacement has sandboxes start where they can be connected as they are to be, and nowhere else.
func TestNetworkPlacement(t *testing.T) {
	inWorld(t, 3, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		const isolated, user, none = spore.NetworkIsolated, spore.NetworkUser, spore.NetworkNone
		w.machines[0].SetNetworks(user)
		w.machines[1].SetNetworks()
		w.pass(30 * time.Second)
		w.connectable("base", "n1", "n2", "n3")
		ask := func(mode spore.NetworkMode, nodes ...string) center.CreateRequest {
			return center.CreateRequest{Template: "base", Nodes: nodes, Wiring: center.Wiring{Mode: mode}}
		}
		n, err := w.Node(ctx, "n1")
		w.ok(err)
		if got := n.Modes(); !slices.Equal(got, []spore.NetworkMode{none, user}) {
			t.Errorf("n1 has %v", got)
		}

		w.lands(ask(""), "n3") // the template's own mode
		w.lands(ask(user), "n1")
		w.lands(ask(user, "n2", "n3"), "n3")
		w.lands(ask(none, "n2"), "n2")
		forks, err := w.Fork(ctx, center.Idempotency{}, "base", center.ForkRequest{Count: 6})
		w.ok(err)
		for _, f := range forks {
			if f.Err != nil || f.Sandbox.NodeID != "n3" {
				t.Errorf("a fork: %+v, %v", f.Sandbox, f.Err)
			}
		}
		p := w.preview(ask(isolated))
		if c := p.Candidates; p.NodeID != "n3" || c[0].Fits || c[0].Why != "it cannot connect sandboxes in mode isolated: the machine was made without it" || !c[2].Fits {
			t.Errorf("%+v", p)
		}

		// Nowhere, though another node could.
		w.refuses(ask(isolated, "n1", "n2"), spore.CodeUnsupported, spore.ReasonNoNetworkMode, "base", "isolated", "n1, n2", "made without it")
		p = w.preview(ask(isolated, "n2"))
		if p.Err == nil || p.Err.Field != "network.mode" || p.Err.Hint != "n2 has none; ask for another mode, or see: spore node ls -o wide" {
			t.Errorf("%+v", p.Err)
		}
		upgrade(w.machines[2])
		w.pass(30 * time.Second)
		w.refuses(ask(isolated), spore.CodeStale, spore.ReasonStaleNeedsRedo, "n3") // a redo there is what helps
		upgrade(w.machines[1])
		w.pass(30 * time.Second)
		w.refuses(ask(isolated, "n2"), spore.CodeUnsupported, spore.ReasonNoNetworkMode, "n2") // and no redo does here
	})
}

// TestNetworkElsewhere names a node that has the mode and not yet the template, and what to do about it.
func TestNetworkElsewhere(t *testing.T) {
	inWorld(t, 2, center.Options{}, func(t *testing.T, w *world) {
		w.machines[0].SetNetworks()
		w.pass(30 * time.Second)
		w.connectable("base", "n1")
		ask := center.CreateRequest{Template: "base"}
		w.refuses(ask, spore.CodeUnsupported, spore.ReasonNoNetworkMode, "isolated", "n1")
		if p := w.preview(ask); p.Err.Hint != "n2 has mode isolated; to have it there too: spore template set base --node n1 --node n2" {
			t.Errorf("%+v", p.Err)
		}
		_, err := w.UpdateTemplate(t.Context(), "base", center.TemplateUpdate{Replicas: &spore.ReplicaPolicy{Nodes: []string{"n1", "n2"}}})
		w.ok(err)
		w.pass(2 * time.Minute)
		w.lands(ask, "n2")
	})
}

// TestNetworkMoves takes a mode away from a node with connected sandboxes: a rollback goes elsewhere, and a resume, which cannot,
// is refused and leaves the sandbox paused.
func TestNetworkMoves(t *testing.T) {
	inWorld(t, 2, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		w.connectable("base", "n1", "n2")
		s, paused := w.sandbox("base", "n1"), w.sandbox("base", "n1")
		_, err := w.PauseSandbox(ctx, paused.ID)
		w.ok(err)
		w.machines[0].SetNetworks(spore.NetworkUser)
		w.pass(30 * time.Second)
		s, err = w.Rollback(ctx, center.Idempotency{}, s.ID, "base")
		w.ok(err)
		if s.NodeID != "n2" || s.State != spore.SandboxRunning {
			t.Errorf("it was rolled back on %s, and is %s", s.NodeID, s.State)
		}
		_, err = w.ResumeSandbox(ctx, paused.ID, nil)
		w.wants(err, spore.CodeUnsupported, spore.ReasonNoNetworkMode)
		if e := spore.AsError(err); !strings.Contains(e.Message, paused.ID) || !strings.Contains(e.Message, "n1") || e.Field != "network.mode" {
			t.Errorf("%+v", e)
		}
		w.machines[0].SetNetworks(spore.NetworkUser, spore.NetworkIsolated)
		w.pass(30 * time.Second)
		if paused, err = w.ResumeSandbox(ctx, paused.ID, nil); err != nil || paused.State != spore.SandboxRunning {
			t.Errorf("%+v, %v", paused, err)
		}
		w.machines[0].SetNetworks()
		w.machines[1].SetNetworks()
		w.pass(30 * time.Second)
		_, err = w.Rollback(ctx, center.Idempotency{}, s.ID, "base")
		w.wants(err, spore.CodeUnsupported, spore.ReasonNoNetworkMode)
		if now, err := w.Sandbox(ctx, s.ID); err != nil || now.State != spore.SandboxRunning || now.NodeID != "n2" {
			t.Errorf("after a rollback that was refused: %+v, %v", now, err)
		}
	})
}

// TestStaleNamesTheVersion takes away the version of an engine that froze a template: whoever asks is told which it was, what there is
// instead, and what cures it.
func TestStaleNamesTheVersion(t *testing.T) {
	inWorld(t, 2, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		run := func(version, format string) {
			for _, m := range w.machines {
				c := m.Components()
				c.Engine, c.EngineVersion, c.StateFormat, c.CPU = "firecracker", version, "firecracker-"+format+"/5f1d", "intel"
				m.SetComponents(c)
			}
			w.pass(30 * time.Second)
		}
		run("1.13.1", "8.0.0")
		w.template("base", spore.ReplicaPolicy{Nodes: []string{"n1", "n2"}})
		s := w.sandbox("base", "n1")
		lenient := spore.PolicyGuestOnly
		w.template("lenient", spore.ReplicaPolicy{Nodes: []string{"n1"}})
		_, err := w.UpdateTemplate(ctx, "lenient", center.TemplateUpdate{Policy: &lenient})
		w.ok(err)
		run("1.10.1", "4.0.0")

		const why = "it was frozen by Firecracker 1.13.1, format 8.0.0; installed: 1.10.1 (format 4.0.0)"
		const hint = "spore template redo base --node n1 --node n2; or install Firecracker 1.13 or 1.14 on n1, n2, beside what is there"
		told := func(what string, err error) {
			t.Helper()
			w.wants(err, spore.CodeStale, spore.ReasonStaleNeedsRedo)
			if e := spore.AsError(err); e == nil || e.Message != "base cannot be thawed on n1, n2: "+why || e.Hint != hint {
				t.Errorf("%s: %+v", what, e)
			}
		}
		_, err = w.CreateSandbox(ctx, center.Idempotency{}, center.CreateRequest{Template: "base"})
		told("create", err)
		_, err = w.Fork(ctx, center.Idempotency{}, "base", center.ForkRequest{Count: 2})
		told("fork", err)
		_, err = w.Rollback(ctx, center.Idempotency{}, s.ID, "base")
		told("rollback", err)
		_, err = w.ReadyNodes(ctx, "base")
		told("where it can start", err)
		for _, c := range w.preview(center.CreateRequest{Template: "base"}).Candidates {
			if c.Why != why {
				t.Errorf("the preview says %q of %s", c.Why, c.NodeID)
			}
		}
		m, err := w.CompatMatrix(ctx, center.CompatQuery{Template: "base"})
		w.ok(err)
		for _, cell := range m.Templates[0].Nodes {
			if cell.Status != spore.CompatStale || cell.Gap != (spore.Gap{Why: why, Cure: "Firecracker 1.13 or 1.14"}) {
				t.Errorf("the matrix says %+v", cell)
			}
		}
		// Where the guest image alone has to agree the center asks the node, which says the same.
		_, err = w.CreateSandbox(ctx, center.Idempotency{}, center.CreateRequest{Template: "lenient"})
		w.wants(err, spore.CodeStale)
		if err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("the node says %v", err)
		}
		// As does the node of a paused sandbox.
		run("1.13.1", "8.0.0")
		w.lands(center.CreateRequest{Template: "base", Nodes: []string{"n1"}}, "n1")
		_, err = w.PauseSandbox(ctx, s.ID)
		w.ok(err)
		run("1.17.0", "12.0.0")
		if _, err = w.ResumeSandbox(ctx, s.ID, nil); err == nil || !strings.Contains(err.Error(), "Firecracker 1.13.1, format 8.0.0; installed: 1.17.0 (format 12.0.0)") {
			t.Errorf("resume: %v", err)
		}
	})
}
