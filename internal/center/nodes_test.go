package center_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
	"github.com/sporevm/spore/internal/store"
)

func TestNodes(t *testing.T) {
	inWorld(t, 3, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		n, err := w.UpdateNode(ctx, "n2", center.NodeUpdate{Labels: map[string]string{"disk": "fast"}})
		w.ok(err)
		if n.Labels["disk"] != "fast" {
			t.Errorf("%v", n.Labels)
		}
		w.template("fast", spore.ReplicaPolicy{Selector: map[string]string{"disk": "fast"}})
		if got := w.replicas("fast"); got != "n2 READY OK; " {
			t.Errorf("it is on %s", got)
		}
		if n, err := w.UpdateNode(ctx, "n2", center.NodeUpdate{}); err != nil || n.Labels["disk"] != "fast" {
			t.Errorf("%v, %v", n, err)
		}
		w.template("anywhere", spore.ReplicaPolicy{Nodes: []string{"n1"}})
		_, err = w.DrainNode(ctx, "n1", true)
		w.ok(err)
		if _, err := w.CreateSandbox(ctx, center.Idempotency{}, center.CreateRequest{Template: "anywhere", Nodes: []string{"n1"}}); err == nil {
			t.Error("a sandbox was put on a node that is being drained")
		}
		w.pass(time.Minute)
		if n, err := w.Node(ctx, "n1"); err != nil || !n.Draining || n.State != spore.NodeReady {
			t.Errorf("after a report: %+v, %v", n, err)
		}
		_, err = w.DrainNode(ctx, "n1", false)
		w.ok(err)
		w.sandbox("anywhere", "n1")
		for name, err := range map[string]error{
			"unknown to update": second(w.UpdateNode(ctx, "n9", center.NodeUpdate{})),
			"unknown to drain":  second(w.DrainNode(ctx, "n9", true)),
			"unknown to forget": second(w.ForgetNode(ctx, "n9", false)),
			"unknown":           second(w.Node(ctx, "n9")),
		} {
			if spore.CodeOf(err) != spore.CodeNotFound {
				t.Errorf("%s: %v", name, err)
			}
		}
		_, err = w.UpdateNode(ctx, "n1", center.NodeUpdate{Labels: map[string]string{"": "x"}})
		w.wants(err, spore.CodeInvalid)

		w.machines[2].FillTo(90)
		w.machines[1].SetReachable(false)
		was, err := w.NodeStorage(ctx, false)
		w.ok(err)
		now, err := w.NodeStorage(ctx, true)
		w.ok(err)
		if was[2].Mode != spore.StorageHealthy || now[2].Mode != spore.StorageReject || now[2].UsagePct() < 89 || now[2].Address != "10.0.0.3" {
			t.Errorf("remembered %+v, asked %+v", was[2], now[2])
		}
		if was[1].LastError != "" || now[1].LastError == "" || now[1].Mode != spore.StorageUnknown {
			t.Errorf("remembered %+v, asked %+v", was[1], now[1])
		}
		w.pass(2 * time.Minute)
		if was, err = w.NodeStorage(ctx, false); err != nil || !strings.Contains(was[1].LastError, "UNREACHABLE") {
			t.Errorf("%+v, %v", was[1], err)
		}
	})
}

func second[T any](_ T, err error) error { return err }

// lostNode makes a world of two machines, of which n2 is not coming back.
func lostNode(t *testing.T, w *world) (running, paused, elsewhere *spore.Sandbox, only *spore.Template) {
	t.Helper()
	w.template("both", spore.ReplicaPolicy{Min: 2})
	running, paused, elsewhere = w.sandbox("both", "n2"), w.sandbox("both", "n2"), w.sandbox("both", "n1")
	only = w.snapshot(running.ID)
	_, err := w.PauseSandbox(t.Context(), paused.ID)
	w.ok(err)
	w.wants(second(w.ForgetNode(t.Context(), "n2", true)), spore.CodeConflict) // it answers
	w.machines[1].SetReachable(false)
	w.wants(second(w.ForgetNode(t.Context(), "n2", false)), spore.CodeConflict) // but a moment ago
	w.pass(time.Minute)
	return running, paused, elsewhere, only
}

// settledWithout looks at what must be once n2 is forgotten.
func (w *world) settledWithout(running, paused, elsewhere *spore.Sandbox, only *spore.Template) {
	t, ctx := w.t, w.t.Context()
	t.Helper()
	for _, s := range []*spore.Sandbox{running, paused} {
		now, err := w.Sandbox(ctx, s.ID)
		w.ok(err)
		refs, _, err := w.Refs(ctx, center.RefQuery{Sandbox: s.ID})
		if now.State != spore.SandboxFailed || !strings.Contains(now.StateReason, "n2") || now.FrozenID != "" || len(refs) != 0 || err != nil {
			t.Errorf("%+v still holds %v, %v", now, refs, err)
		}
	}
	if s, err := w.Sandbox(ctx, elsewhere.ID); err != nil || s.State != spore.SandboxRunning {
		t.Errorf("%+v, %v", s, err)
	}
	if got := w.replicas("both"); got != "n1 READY OK; " {
		t.Errorf("it is on %s", got)
	}
	if b, err := w.Template(ctx, "both"); err != nil || b.Status != spore.TemplatePartiallyReady {
		t.Errorf("%+v, %v", b, err)
	}
	if o, err := w.Template(ctx, only.ID); err != nil || o.Status != spore.TemplateFailed || o.LastError == "" {
		t.Errorf("%+v, %v", o, err)
	}
	w.rows(func(tx store.Tx) error {
		placed, err := tx.Placements("", "n2")
		if len(placed) != 0 {
			t.Errorf("%v are placed there", placed)
		}
		return err
	})
}

func TestForgetNode(t *testing.T) {
	inWorld(t, 2, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		running, paused, elsewhere, only := lostNode(t, w)
		plan, err := w.ForgetNode(ctx, "n2", true)
		w.ok(err)
		both := []string{running.ID, paused.ID}
		slices.Sort(both)
		if !plan.DryRun || plan.Replicas != 2 || !slices.Equal(plan.Lost, []string{only.ID}) || !slices.Equal(plan.Sandboxes, both) {
			t.Errorf("%+v", plan)
		}
		if n, err := w.Node(ctx, "n2"); err != nil || n.State != spore.NodeUnreachable {
			t.Errorf("a dry run made it %+v, %v", n, err)
		}
		done, err := w.ForgetNode(ctx, "n2", false)
		w.ok(err)
		if done.DryRun || done.Replicas != 2 || !slices.Equal(done.Lost, plan.Lost) || !slices.Equal(done.Sandboxes, both) {
			t.Errorf("%+v", done)
		}
		w.settledWithout(running, paused, elsewhere, only)
		again, err := w.ForgetNode(ctx, "n2", false)
		if err != nil || again.Replicas != 0 || len(again.Lost)+len(again.Sandboxes) != 0 {
			t.Errorf("%+v, %v", again, err)
		}
		if live, err := w.Nodes(ctx, false); err != nil || len(live) != 1 {
			t.Errorf("%v, %v", live, err)
		}
		w.wants(second(w.DrainNode(ctx, "n2", true)), spore.CodeConflict)

		back, err := w.Rollback(ctx, center.Idempotency{}, running.ID, "both")
		if err != nil || back.NodeID != "n1" || back.State != spore.SandboxRunning {
			t.Errorf("%+v, %v", back, err)
		}
		w.ok(w.KillSandbox(ctx, paused.ID))

		w.machines[1].SetReachable(true)
		w.pass(5 * time.Minute)
		if n, err := w.Node(ctx, "n2"); err != nil || n.State != spore.NodeReady || n.StateReason != "" {
			t.Errorf("it came back as %+v, %v", n, err)
		}
		if got := w.replicas("both"); got != "n1 READY OK; n2 READY OK; " {
			t.Errorf("it is on %s", got)
		}
		audit := w.machines[1].Audit()
		var names []string
		for _, f := range audit.Frozen {
			names = append(names, f.ID)
		}
		b, err := w.Template(ctx, "both")
		if len(audit.VMs) != 0 || !slices.Equal(names, []string{b.ID}) || err != nil || len(audit.Violations) != 0 {
			t.Errorf("it still has %v and %q; %q", audit.VMs, names, audit.Violations)
		}
	})
}

func TestForgetNodeCutOff(t *testing.T) {
	var died bool
	var w *world
	hook := func(step string) {
		if step == "forget:recorded" && !died {
			died = true
			w.store.Kill()
		}
	}
	inWorld(t, 2, center.Options{Hook: hook}, func(t *testing.T, in *world) {
		w = in
		running, paused, elsewhere, only := lostNode(t, w)
		_, err := w.ForgetNode(t.Context(), "n2", false)
		w.ok(err) // it is recorded
		if !died {
			t.Fatal("it did not come so far")
		}
		w.kill()
		w.start()
		w.pass(2 * time.Minute)
		w.settledWithout(running, paused, elsewhere, only)
	})
}
