package center_test

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
)

var errTold = spore.Errorf(spore.CodeUnsupported, "it was told to fail")

// watched follows a job to its end, and answers the phases that a watcher saw.
func (w *world) watched(jobID string) (phases string) {
	w.t.Helper()
	var seen []string
	percent := 0
	w.ok(w.WatchJob(w.t.Context(), jobID, 0, func(j *spore.Job, _ []spore.LogLine) error {
		if at := string(j.Phase); len(seen) == 0 || seen[len(seen)-1] != at {
			seen = append(seen, at)
		}
		if j.Progress < percent {
			w.t.Errorf("%s goes back from %d to %d %%", j.Operation, percent, j.Progress)
		}
		percent = j.Progress
		return nil
	}))
	return strings.Join(seen, " ")
}

// went fails the test unless the latest job about a template or snapshot has had these phases.
func (w *world) went(op spore.Operation, ref, phases string) *spore.Job {
	w.t.Helper()
	jobs, _, err := w.Jobs(w.t.Context(), center.JobQuery{Operation: op, Resource: ref, Limit: 1})
	w.ok(err)
	if len(jobs) != 1 {
		w.t.Fatalf("there is no %s of %s", op, ref)
	}
	if got := w.journal.tell(jobs[0].ID); got != phases {
		w.t.Errorf("%s was %s", op, got)
	}
	return jobs[0]
}

// slow has each step of the machines take a while, so that whoever looks now and then sees all.
func slow(string, string) error { time.Sleep(time.Second); return nil }

func TestBuildPhases(t *testing.T) {
	inWorld(t, 2, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		w.faulty(slow)
		base, j, err := w.BuildTemplate(ctx, center.Idempotency{}, center.BuildRequest{
			Name: "base", Image: "registry.example/app:1", Replicas: spore.ReplicaPolicy{Min: 2},
			Resources: spore.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64},
		})
		w.ok(err)
		if base.Status != spore.TemplatePending || j.Status != spore.JobPending || j.Phase != spore.PhasePulling {
			t.Errorf("at first the template is %s and its job %s, %s", base.Status, j.Status, j.Phase)
		}
		live := w.watched(j.ID)
		all := "PULLING UNPACKING BUILDING_EXT4 GENERATING_JSON CREATING_TEMPLATE REGISTERING DISTRIBUTING READY"
		done := w.went(spore.OpCreate, base.ID, all)
		if done.Progress != 100 || done.Pull.BytesDone == 0 || done.Pull.BytesDone != done.Pull.BytesTotal {
			t.Errorf("in the end it is at %d %%, having pulled %+v", done.Progress, done.Pull)
		}
		for _, phase := range []string{"PULLING", "UNPACKING", "BUILDING_EXT4", "CREATING_TEMPLATE", "DISTRIBUTING", "READY"} {
			if !slices.Contains(strings.Fields(live), phase) {
				t.Errorf("a watcher saw %s, but not %s", live, phase)
			}
		}
		var order []string
		for _, phase := range strings.Fields(all) {
			if slices.Contains(strings.Fields(live), phase) {
				order = append(order, phase)
			}
		}
		if strings.Join(order, " ") != live {
			t.Errorf("a watcher saw %s", live)
		}
		if got := w.journal.tell(base.ID + "@n1"); got != "READY" {
			t.Errorf("the first replica was %s", got)
		}
		if got := w.journal.tell(base.ID + "@n2"); got != "DISTRIBUTING DISTRIBUTED SNAPSHOTTING READY" {
			t.Errorf("the second replica was %s", got)
		}

		// What an earlier build has made already is not made again.
		w.template("same", spore.ReplicaPolicy{Nodes: []string{"n1"}})
		same, err := w.Template(ctx, "same")
		w.ok(err)
		w.went(spore.OpCreate, same.ID, "PULLING GENERATING_JSON CREATING_TEMPLATE REGISTERING READY")
	})
}

// redo makes replicas again, and waits for it.
func (w *world) redo(ref string, req center.RedoRequest) *spore.Job {
	w.t.Helper()
	j, err := w.RedoTemplate(w.t.Context(), center.Idempotency{}, ref, req)
	w.ok(err)
	w.watched(j.ID)
	j, err = w.Job(w.t.Context(), j.ID)
	w.ok(err)
	return j
}

func TestRedoPhases(t *testing.T) {
	inWorld(t, 2, center.Options{}, func(t *testing.T, w *world) {
		base := w.template("base", spore.ReplicaPolicy{Nodes: []string{"n1"}})
		at := base.ID + "@n1"
		w.journal.forget(at)
		w.redo("base", center.RedoRequest{})
		w.went(spore.OpRedo, base.ID, "SNAPSHOTTING GENERATING_JSON CREATING_TEMPLATE READY")
		if got := w.journal.tell(at); got != "DISTRIBUTING DISTRIBUTED SNAPSHOTTING READY" {
			t.Errorf("the replica was %s", got)
		}
		point := w.snapshot(w.sandbox("base").ID)
		w.redo(point.ID, center.RedoRequest{Mode: spore.RedoNodes, Nodes: []string{"n1"}})
		w.went(spore.OpRedo, point.ID, "SNAPSHOTTING READY") // its disk is there: nothing is pulled or built

		// A template that was never built is built by its redo, from where the build broke.
		for image, c := range map[string]struct {
			breaks string
			phases string
		}{
			"registry.example/unpulled:1": {"resolve:registry", "PULLING UNPACKING BUILDING_EXT4 GENERATING_JSON CREATING_TEMPLATE READY"},
			"registry.example/unbooted:1": {"bake:boot", "PULLING GENERATING_JSON CREATING_TEMPLATE READY"},
		} {
			w.faulty(func(_, step string) error {
				if step == c.breaks {
					return errTold
				}
				return nil
			})
			tpl, j, err := w.BuildTemplate(t.Context(), center.Idempotency{}, center.BuildRequest{
				Name: "broken", Image: image, Replicas: spore.ReplicaPolicy{Nodes: []string{"n1"}}, Resources: spore.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64},
			})
			w.ok(err)
			w.watched(j.ID)
			if got := w.journal.tell(j.ID); !strings.HasSuffix(got, " FAILED") {
				t.Errorf("the build of %s was %s", image, got)
			}
			w.faulty(nil)
			w.redo(tpl.ID, center.RedoRequest{Mode: spore.RedoFailedOnly})
			w.went(spore.OpRedo, tpl.ID, c.phases)
			w.sandbox(tpl.ID)
			w.remove(tpl.ID)
		}
	})
}

func TestReplicaPhases(t *testing.T) {
	inWorld(t, 2, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		base := w.template("base", spore.ReplicaPolicy{Nodes: []string{"n1"}})
		at := base.ID + "@n2"
		w.faulty(func(node, step string) error {
			if node == "n2" && step == "probe:begin" {
				return errTold
			}
			return nil
		})
		_, err := w.UpdateTemplate(ctx, "base", center.TemplateUpdate{Replicas: &spore.ReplicaPolicy{Nodes: []string{"n1", "n2"}}})
		w.ok(err)
		for !strings.Contains(w.journal.tell(at), "FAILED") { // the loop finds that it is missing, and queues the making of it
			w.pass(time.Second)
		}
		if got := w.journal.tell(at); got != "PENDING DISTRIBUTING DISTRIBUTED SNAPSHOTTING FAILED" {
			t.Errorf("the replica was %s", got)
		}
		list, err := w.Replicas(ctx, "base")
		w.ok(err)
		r := list[1]
		if r.Status != spore.ReplicaFailed || r.LastErrorPhase != spore.ReplicaSnapshotting || !strings.Contains(r.ErrorMessage, "told to fail") ||
			!r.CleanupRequired || r.Attempts != 1 || !r.RetryAt.After(r.UpdatedAt) {
			t.Errorf("the replica is %+v", r)
		}
		if got, err := w.Template(ctx, "base"); err != nil || got.Status != spore.TemplatePartiallyReady || !strings.Contains(got.LastError, "n2") {
			t.Errorf("the template is %+v, %v", got, err)
		}
		w.journal.forget(at)
		w.faulty(nil)
		w.pass(2 * time.Minute) // it is tried again
		if got := w.journal.tell(at); got != "PENDING DISTRIBUTING DISTRIBUTED SNAPSHOTTING READY" {
			t.Errorf("the replica was %s", got)
		}

		// Not wanted there any more, while the node does not answer: CLEANING until it does.
		w.journal.forget(at)
		w.machines[1].SetReachable(false)
		_, err = w.DeleteTemplate(ctx, center.Idempotency{}, "base", center.DeleteRequest{})
		w.ok(err)
		w.pass(5 * time.Minute)
		if list, err = w.Replicas(ctx, base.ID); err != nil || len(list) != 1 || list[0].NodeID != "n2" || list[0].Phase != spore.ReplicaCleaning || list[0].Status != spore.ReplicaFailed {
			t.Errorf("what is left of it is %v, %v", list, err)
		}
		w.machines[1].SetReachable(true)
		w.pass(time.Minute)
		if got := w.journal.tell(at); got != "CLEANING gone" {
			t.Errorf("the replica was %s", got)
		}
		if a := w.machines[1].Audit(); len(a.Frozen) != 0 {
			t.Errorf("%v are left on the node", a.Frozen)
		}
	})
}

func TestSandboxPhases(t *testing.T) {
	inWorld(t, 2, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		w.template("base", spore.ReplicaPolicy{Nodes: []string{"n1"}})
		s := w.sandbox("base")

		point := w.snapshot(s.ID)
		w.went(spore.OpSnapshotCreate, point.ID, "SNAPSHOTTING READY")

		tpl, j, err := w.CommitSandbox(ctx, center.Idempotency{}, s.ID, center.CommitRequest{Name: "committed", Replicas: spore.ReplicaPolicy{Min: 2}})
		w.ok(err)
		w.watched(j.ID)
		w.went(spore.OpCommit, tpl.ID, "SNAPSHOTTING REGISTERING DISTRIBUTING READY")

		back, err := w.Rollback(ctx, center.Idempotency{}, s.ID, point.ID)
		if err != nil || back.Generation != 2 || back.TemplateID != point.ID {
			t.Fatalf("%+v, %v", back, err)
		}
		w.went(spore.OpSnapshotRollback, point.ID, "ROLLBACK_PREPARING ROLLBACK_DRIVING READY")

		w.ok(w.KillSandbox(ctx, s.ID))
		for ref, op := range map[string]spore.Operation{point.ID: spore.OpSnapshotDelete, tpl.ID: spore.OpDelete} {
			if _, err := w.DeleteTemplate(ctx, center.Idempotency{}, ref, center.DeleteRequest{}); err != nil {
				t.Error(err)
			}
			w.went(op, ref, "DELETING READY")
		}
	})
}

// TestRollbackRecovers has the rows refuse the end of a rollback when the node has done its part: the sandbox is what it was.
func TestRollbackRecovers(t *testing.T) {
	inWorld(t, 1, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		w.template("base", spore.ReplicaPolicy{})
		s := w.sandbox("base")
		point := w.snapshot(s.ID)
		var refused, recovering atomic.Bool
		refuse := func(_, state string) error {
			switch {
			case state == string(spore.PhaseReady) && refused.CompareAndSwap(false, true):
				return errors.New("the disk of the database is full")
			case state == string(spore.PhaseRollbackRecovering):
				recovering.Store(true)
			}
			return nil
		}
		w.journal.refuse.Store(&refuse)
		starts := w.machines[0].Count("start")
		_, err := w.Rollback(ctx, center.Idempotency{Key: "again", Digest: "d"}, s.ID, point.ID)
		if spore.CodeOf(err) != spore.CodeInternal || !refused.Load() || !recovering.Load() || w.machines[0].Count("start") != starts+1 {
			t.Fatalf("%v", err)
		}
		j := w.went(spore.OpSnapshotRollback, point.ID, "ROLLBACK_PREPARING ROLLBACK_DRIVING ROLLBACK_RECOVERING FAILED")
		if j.Phase != spore.PhaseRollbackRecovering || j.Error == nil || strings.Contains(j.Error.Message, "disk") {
			t.Errorf("the job is %+v, %+v", j, j.Error)
		}
		now, err := w.Sandbox(ctx, s.ID)
		if err != nil || now.Generation != 1 || now.TemplateID != s.TemplateID || now.State != spore.SandboxRunning {
			t.Errorf("the sandbox is %+v, %v", now, err)
		}
		if vms := w.machines[0].Audit().VMs; len(vms) != 1 || vms[0].Generation != 1 || !vms[0].Running || vms[0].Paused {
			t.Errorf("the node has %+v", vms)
		}
		refs, _, err := w.Refs(ctx, center.RefQuery{Sandbox: s.ID, All: true})
		if err != nil || len(refs) != 2 || refs[0].Status != spore.RefReleased || refs[0].Reason != "did not start" || refs[1].Status != spore.RefActive {
			t.Errorf("it holds %v, %v", refs, err)
		}
		back, err := w.Rollback(ctx, center.Idempotency{Key: "again", Digest: "d"}, s.ID, point.ID) // the key was given free
		if err != nil || back.Generation != 2 || back.TemplateID != point.ID {
			t.Errorf("%+v, %v", back, err)
		}
	})
}

// TestPhasesAreOfWhatIsDone looks at rows while the machine is at each step.
func TestPhasesAreOfWhatIsDone(t *testing.T) {
	inWorld(t, 2, center.Options{}, func(t *testing.T, w *world) {
		base := w.template("base", spore.ReplicaPolicy{Nodes: []string{"n1"}})
		var mu sync.Mutex
		seen := map[string]string{}
		look := func(step string) string {
			mu.Lock()
			defer mu.Unlock()
			return seen[step]
		}
		w.faulty(func(node, step string) error {
			list, err := w.Replicas(t.Context(), base.ID)
			mu.Lock()
			defer mu.Unlock()
			for _, r := range list {
				if err == nil && r.NodeID == node {
					seen[node+" "+step] = string(r.Phase) + " " + string(r.Status)
				}
			}
			return nil
		})
		w.redo("base", center.RedoRequest{})
		_, err := w.UpdateTemplate(t.Context(), "base", center.TemplateUpdate{Replicas: &spore.ReplicaPolicy{Nodes: []string{"n1", "n2"}}})
		w.ok(err)
		w.pass(time.Minute)
		for step, want := range map[string]string{
			"n1 build:resolve":  "DISTRIBUTING READY", // a redo makes the next one beside it
			"n1 bake:boot":      "SNAPSHOTTING READY",
			"n1 probe:thawed":   "SNAPSHOTTING READY",
			"n1 promote:commit": "SNAPSHOTTING READY",
			"n2 fetch:copy":     "DISTRIBUTING FAILED",
			"n2 probe:thawed":   "SNAPSHOTTING FAILED",
		} {
			if got := look(step); got != want {
				t.Errorf("at %s it is %q", step, got)
			}
		}
	})
}
