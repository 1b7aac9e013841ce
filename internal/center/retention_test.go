package center_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
)

func TestRetention(t *testing.T) {
	inWorld(t, 1, center.Options{Retention: center.Retention{KeepLast: 2}}, func(t *testing.T, w *world) {
		ctx := t.Context()
		w.template("base", spore.ReplicaPolicy{})
		s := w.sandbox("base")
		yes := func(r *center.SnapshotRequest) { r.Retain = true }
		retained, aliased, used, plain := w.snapshot(s.ID, yes), w.snapshot(s.ID), w.snapshot(s.ID), w.snapshot(s.ID)
		_, err := w.PutAlias(ctx, "good", "", center.AliasRequest{Template: aliased.ID})
		w.ok(err)
		user := w.sandbox(used.ID)
		forks, err := w.Fork(ctx, center.Idempotency{}, s.ID, center.ForkRequest{Count: 1})
		w.ok(err)
		newer, newest := w.snapshot(s.ID), w.snapshot(s.ID)
		child := w.snapshot(user.ID) // of another sandbox
		names := map[string]string{
			retained.ID: "retained", aliased.ID: "aliased", used.ID: "used", plain.ID: "plain", newer.ID: "newer", newest.ID: "newest", child.ID: "child",
		}
		there := func() (out string) {
			list, _, err := w.Templates(ctx, center.TemplateQuery{Kind: spore.KindSnapshot})
			w.ok(err)
			for _, s := range list {
				out = names[s.ID] + " " + out
			}
			return strings.TrimSpace(out)
		}
		plan, err := w.CollectGarbage(ctx, true)
		w.ok(err)
		if len(plan.Policies) != 1 || plan.Policies[0].TemplateID != plain.ID || plan.Policies[0].Policy != "keep-last" || plan.Policies[0].Detail == "" {
			t.Errorf("%+v", plan.Policies)
		}
		if got := there(); got != "retained aliased used plain newer newest child" {
			t.Errorf("a dry run left %s", got)
		}
		w.pass(3 * time.Minute)
		if got := there(); got != "retained aliased used newer newest child" {
			t.Errorf("there are %s", got)
		}
		if f, err := w.Sandbox(ctx, forks[0].Sandbox.ID); err != nil || f.State != spore.SandboxRunning {
			t.Errorf("the fork: %+v, %v", f, err)
		}
		jobs, _, err := w.Jobs(ctx, center.JobQuery{Resource: plain.ID, Operation: spore.OpSnapshotDelete})
		if err != nil || len(jobs) != 1 || jobs[0].Status != spore.JobReady {
			t.Errorf("%v, %v", jobs, err)
		}

		w.ok(w.KillSandbox(ctx, user.ID))
		w.ok(w.DeleteAlias(ctx, "good", "", "", ""))
		done, err := w.CollectGarbage(ctx, false)
		if err != nil || len(done.Policies) != 2 {
			t.Errorf("%+v, %v", done, err)
		}
		if got := there(); got != "retained newer newest child" {
			t.Errorf("there are %s", got)
		}
		if s := w.sandbox(child.ID); s.State != spore.SandboxRunning { // what it was made of is gone
			t.Errorf("%+v", s)
		}
	})
	inWorld(t, 1, center.Options{Retention: center.Retention{MaxAge: time.Hour}}, func(t *testing.T, w *world) {
		w.template("base", spore.ReplicaPolicy{})
		s := w.sandbox("base")
		old := w.snapshot(s.ID)
		w.pass(50 * time.Minute)
		young := w.snapshot(s.ID)
		w.pass(15 * time.Minute)
		w.wants(second(w.Template(t.Context(), old.ID)), spore.CodeNotFound)
		for _, ref := range []string{young.ID, "base"} {
			if _, err := w.Template(t.Context(), ref); err != nil {
				t.Errorf("%s: %v", ref, err)
			}
		}
	})
}

func TestQuota(t *testing.T) {
	inWorld(t, 1, center.Options{Quota: center.Quota{SnapshotsPerSandbox: 2, Templates: 2}}, func(t *testing.T, w *world) {
		ctx := t.Context()
		w.template("base", spore.ReplicaPolicy{})
		s, other := w.sandbox("base"), w.sandbox("base")
		first := w.snapshot(s.ID)
		w.snapshot(s.ID)
		snapshot := func(id string) error {
			return second(w.CreateSnapshot(ctx, center.Idempotency{}, id, center.SnapshotRequest{}))
		}
		err := snapshot(s.ID)
		w.wants(err, spore.CodeConflict)
		if !strings.Contains(fmt.Sprint(err), "quota") || !strings.Contains(err.Error(), s.ID) {
			t.Errorf("it does not say which quota: %v", err)
		}
		w.ok(snapshot(other.ID))
		if forks, err := w.Fork(ctx, center.Idempotency{}, s.ID, center.ForkRequest{Count: 1}); err != nil || forks[0].Err != nil {
			t.Errorf("a fork does not count: %v, %v", forks, err)
		}
		w.remove(first.ID)
		w.ok(snapshot(s.ID))

		commit := func(name string) error {
			_, _, err := w.CommitSandbox(ctx, center.Idempotency{}, s.ID, center.CommitRequest{Name: name})
			w.pass(time.Minute)
			return err
		}
		w.ok(commit("second"))
		w.wants(commit("third"), spore.CodeConflict)
		w.remove("second")
		w.ok(commit("third"))
	})
	inWorld(t, 1, center.Options{Quota: center.Quota{Bytes: 1 << 20}}, func(t *testing.T, w *world) {
		base := w.template("base", spore.ReplicaPolicy{})
		if base.MemoryBytes+base.DiskBytes < 1<<20 {
			t.Fatalf("it keeps only %d and %d bytes", base.MemoryBytes, base.DiskBytes)
		}
		s := w.sandbox("base")
		_, err := w.CreateSnapshot(t.Context(), center.Idempotency{}, s.ID, center.SnapshotRequest{})
		w.wants(err, spore.CodeConflict)
		w.remove("base")
		w.pass(2 * time.Minute)
		_, err = w.CreateSnapshot(t.Context(), center.Idempotency{}, s.ID, center.SnapshotRequest{})
		w.ok(err)
	})
}

func TestMetrics(t *testing.T) {
	inWorld(t, 3, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		w.template("base", spore.ReplicaPolicy{})
		for range 3 {
			w.sandbox("base")
		}
		paused, killed := w.sandbox("base"), w.sandbox("base")
		_, err := w.PauseSandbox(ctx, paused.ID)
		w.ok(err)
		w.ok(w.KillSandbox(ctx, killed.ID))
		_, err = w.DrainNode(ctx, "n2", true)
		w.ok(err)
		w.machines[2].SetReachable(false)
		w.pass(2 * time.Minute)
		m, err := w.Metrics(ctx)
		w.ok(err)
		if m.Sandboxes[spore.SandboxRunning] != 3 || m.Sandboxes[spore.SandboxPaused] != 1 || m.Sandboxes[spore.SandboxFailed] != 0 {
			t.Errorf("%v", m.Sandboxes)
		}
		if m.Nodes[spore.NodeReady] != 2 || m.Nodes[spore.NodeUnreachable] != 1 || m.Draining != 1 || len(m.Storage) != 3 || m.Storage[2].LastError == "" {
			t.Errorf("%v, %d, %+v", m.Nodes, m.Draining, m.Storage)
		}
		if m.Jobs[spore.JobPending]+m.Jobs[spore.JobRunning] != 0 {
			t.Errorf("%v", m.Jobs)
		}
		if len(m.Resolve) != len(center.ResolveStages)+1 {
			t.Fatalf("%v", m.Resolve)
		}
		for _, h := range m.Resolve {
			if h.Samples != 5 {
				t.Errorf("%s was measured %d times", h.Name, h.Samples)
			}
		}
	})
}
