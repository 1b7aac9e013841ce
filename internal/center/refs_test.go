package center_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
	"github.com/sporevm/spore/internal/store"
)

// refs answers all refs of a sandbox, released ones too, oldest first.
func (w *world) refs(sandboxID string) []*spore.RuntimeRef {
	w.t.Helper()
	list, _, err := w.Refs(w.t.Context(), center.RefQuery{Sandbox: sandboxID, All: true})
	w.ok(err)
	slices.Reverse(list)
	return list
}

// ref answers the one ref of a sandbox.
func (w *world) ref(sandboxID string) *spore.RuntimeRef {
	w.t.Helper()
	list := w.refs(sandboxID)
	if len(list) != 1 {
		w.t.Fatalf("%s has %d refs", sandboxID, len(list))
	}
	return list[0]
}

// TestRefsAreSeen has nodes confirm refs by their reports, and a silent node noted on them; none is released for that.
func TestRefsAreSeen(t *testing.T) {
	inWorld(t, 2, center.Options{}, func(t *testing.T, w *world) {
		w.template("base", spore.ReplicaPolicy{Min: 2})
		there, here := w.sandbox("base", "n2"), w.sandbox("base", "n1")
		w.pass(12 * time.Minute)
		seen := w.ref(there.ID)
		if seen.Status != spore.RefActive || seen.LastError != "" || time.Since(seen.LastSeenAt) > 6*time.Minute || !seen.LastSeenAt.After(seen.AttachedAt) {
			t.Errorf("what its node reports is %+v", seen)
		}

		w.machines[1].SetReachable(false)
		w.pass(time.Hour) // longer than any grace
		lost := w.ref(there.ID)
		if lost.Status != spore.RefActive || !strings.Contains(lost.LastError, "n2") || lost.LastSeenAt.Before(seen.LastSeenAt) || time.Since(lost.LastSeenAt) < 50*time.Minute {
			t.Errorf("with its node away it is %+v", lost)
		}
		if r := w.ref(here.ID); r.LastError != "" {
			t.Errorf("the ref of another node says %q", r.LastError)
		}
		w.machines[1].SetReachable(true)
		w.pass(30 * time.Second)
		if r := w.ref(there.ID); r.Status != spore.RefActive || r.LastError != "" || time.Since(r.LastSeenAt) > 30*time.Second {
			t.Errorf("with its node back it is %+v", r)
		}
	})
}

// TestRefsAreHealed finds refs that nothing stands behind: they are released, after the grace and not before, with the reason.
func TestRefsAreHealed(t *testing.T) {
	inWorld(t, 1, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		base := w.template("base", spore.ReplicaPolicy{})
		killed, running := w.sandbox("base"), w.sandbox("base")
		w.ok(w.KillSandbox(ctx, killed.ID))
		leak := func(sandboxID string, generation int) {
			w.rows(func(tx store.Tx) error {
				return tx.PutRef(&spore.RuntimeRef{
					TemplateID: base.ID, SandboxID: sandboxID, NodeID: "n1", Binding: spore.BindingMemoryBacking,
					SandboxGen: generation, Status: spore.RefActive, AttachedAt: time.Now(),
				})
			})
		}
		leak(killed.ID, 7)
		leak(running.ID, 7) // its sandbox runs, and is not of that generation
		for _, id := range []string{killed.ID, running.ID} {
			if got := w.refs(id); len(got) != 2 || got[1].Status != spore.RefActive {
				t.Fatalf("%s has %v", id, got)
			}
		}
		w.pass(25 * time.Second) // two reports do not mention them
		for _, id := range []string{killed.ID, running.ID} {
			if got := w.refs(id)[1]; got.Status != spore.RefActive {
				t.Errorf("before the grace is over it is %+v", got)
			}
		}
		w.pass(25 * time.Second)
		for id, why := range map[string]string{killed.ID: "gone", running.ID: "did not come to pass"} {
			if got := w.refs(id)[1]; got.Status != spore.RefReleased || !strings.Contains(got.Reason, why) || got.ReleasedAt.IsZero() {
				t.Errorf("after the grace it is %+v", got)
			}
		}
		if got := w.refs(running.ID)[0]; got.Status != spore.RefActive {
			t.Errorf("what the sandbox runs on is %+v", got)
		}
		if d, err := w.TemplateDetails(ctx, "base"); err != nil || d.RefCount != 1 || !slices.Equal(d.HeldBy, []string{running.ID}) {
			t.Errorf("the template is held by %v, %v", d.HeldBy, err)
		}
	})
}

// TestRefsInUseStay has reports that mention no VM of a sandbox that is being started, or that is paused or failed: it needs what
// it stands on, and can be resumed and rolled back.
func TestRefsInUseStay(t *testing.T) {
	inWorld(t, 1, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		w.template("base", spore.ReplicaPolicy{})
		paused, failed := w.sandbox("base"), w.sandbox("base")
		_, err := w.PauseSandbox(ctx, paused.ID)
		w.ok(err)
		w.machines[0].EndVM(failed.ID, 1, "it fell over")
		w.faulty(func(_, step string) error {
			if step == "start:begin" {
				time.Sleep(5 * time.Minute)
			}
			return nil
		})
		started := make(chan *spore.Sandbox, 1)
		go func() {
			s, err := w.CreateSandbox(ctx, center.Idempotency{}, center.CreateRequest{Template: "base"})
			if err != nil {
				t.Error(err)
			}
			started <- s
		}()
		w.pass(4 * time.Minute)
		for _, s := range w.sandboxes() {
			want := map[spore.SandboxState]spore.RuntimeRefStatus{
				spore.SandboxCreating: spore.RefReserved, spore.SandboxPaused: spore.RefActive, spore.SandboxFailed: spore.RefActive,
			}[s.State]
			if r := w.ref(s.ID); r.Status != want {
				t.Errorf("of a sandbox that is %s it is %s (%s)", s.State, r.Status, r.Reason)
			}
		}
		_, err = w.DeleteTemplate(ctx, center.Idempotency{}, "base", center.DeleteRequest{})
		w.wants(err, spore.CodeInUse, spore.ReasonInUse)
		s := <-started
		if r := w.ref(s.ID); r.Status != spore.RefActive || !r.LeaseUntil.IsZero() {
			t.Errorf("once it runs it is %+v", r)
		}
		w.faulty(nil)
		_, err = w.ResumeSandbox(ctx, paused.ID, nil)
		w.ok(err)
		_, err = w.Rollback(ctx, center.Idempotency{}, failed.ID, "base")
		w.ok(err)
		for _, id := range []string{paused.ID, failed.ID} {
			got := w.refs(id)
			if len(got) != 2 || got[0].Status != spore.RefReleased || got[1].Status != spore.RefActive || got[1].SandboxGen != 2 {
				t.Errorf("the refs of %s are %v", id, got)
			}
		}
	})
}

// TestLegacyJobs reads jobs of before operations were written down. One that was under way when its server ended is ended.
func TestLegacyJobs(t *testing.T) {
	inWorld(t, 1, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		base := w.template("base", spore.ReplicaPolicy{})
		past := time.Now().Add(-time.Hour)
		job := func(id string, s spore.JobStatus) *spore.Job {
			return &spore.Job{
				ID: id, Operation: spore.OpLegacy, ResourceType: spore.KindTemplate, ResourceID: base.ID, Status: s, Phase: spore.PhaseRegistering,
				AttemptNo: 1, Request: []byte("{}"), CreatedAt: past,
			}
		}
		done, cut := job("job-000000000000000000000001", spore.JobReady), job("job-000000000000000000000002", spore.JobRunning)
		w.rows(func(tx store.Tx) error { return errors.Join(tx.InsertJob(done), tx.InsertJob(cut)) })
		list, _, err := w.Jobs(ctx, center.JobQuery{Operation: spore.OpLegacy})
		if err != nil || len(list) != 2 || list[0].Operation != spore.OpLegacy {
			t.Errorf("%v, %v", list, err)
		}
		d, err := w.JobDetails(ctx, done.ID)
		if err != nil || d.Job.Operation != spore.OpLegacy || d.TemplateStatus != spore.TemplateReady || d.ArtifactStatus != spore.ArtifactReady {
			t.Errorf("%+v, %v", d, err)
		}
		w.kill()
		w.start()
		w.pass(time.Minute)
		now, err := w.Job(ctx, cut.ID)
		if err != nil || now.Status != spore.JobFailed || now.Error == nil || now.Error.Hint == "" || now.FinishedAt.IsZero() {
			t.Errorf("what was under way is %+v, %v", now, err)
		}
		w.redo("base", center.RedoRequest{}) // it is in nobody's way
		w.went(spore.OpRedo, base.ID, "SNAPSHOTTING GENERATING_JSON CREATING_TEMPLATE READY")
	})
}

// TestTemplateVersion looks at the form of what is stored with all kinds of templates.
func TestTemplateVersion(t *testing.T) {
	inWorld(t, 1, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		base := w.template("base", spore.ReplicaPolicy{})
		w.rows(func(tx store.Tx) error {
			old, err := tx.Template(base.ID)
			if err != nil {
				return err
			}
			old.Version = "v1"
			return tx.UpdateTemplate(old)
		})
		s := w.sandbox("base")
		point := w.snapshot(s.ID)
		tpl, j, err := w.CommitSandbox(ctx, center.Idempotency{}, s.ID, center.CommitRequest{Name: "committed"})
		w.ok(err)
		w.watched(j.ID)
		for id, want := range map[string]string{base.ID: "v1", point.ID: "v2", tpl.ID: "v2"} { // each is of the form that it was stored in
			got, err := w.Template(ctx, id)
			if err != nil || got.Version != want || got.StorageBackend != spore.StorageBackendLayers {
				t.Errorf("%s is %q, %q; %v", id, got.Version, got.StorageBackend, err)
			}
		}
		if base.Version != spore.DefaultTemplateVersion || spore.DefaultTemplateVersion != "v2" {
			t.Errorf("a build is %q", base.Version)
		}
	})
}

// TestOperationTimeout has a node take longer than an operation may: the operation is ended, and all is as it was before.
func TestOperationTimeout(t *testing.T) {
	inWorld(t, 1, center.Options{OperationTimeout: time.Minute}, func(t *testing.T, w *world) {
		ctx := t.Context()
		w.template("base", spore.ReplicaPolicy{})
		s := w.sandbox("base")
		point := w.snapshot(s.ID)
		for _, c := range []struct {
			op    spore.Operation // "" for what has no job
			stuck string
			do    func(key center.Idempotency) error
		}{
			{spore.OpSnapshotCreate, "freeze:captured", func(key center.Idempotency) error {
				return second(w.CreateSnapshot(ctx, key, s.ID, center.SnapshotRequest{Name: "late"}))
			}},
			{spore.OpSnapshotRollback, "start:thawed", func(key center.Idempotency) error {
				return second(w.Rollback(ctx, key, s.ID, point.ID))
			}},
			{"", "suspend:paused", func(center.Idempotency) error { return second(w.PauseSandbox(ctx, s.ID)) }},
			{"", "start:greeted", func(key center.Idempotency) error {
				return second(w.CreateSandbox(ctx, key, center.CreateRequest{Template: "base"}))
			}},
		} {
			before, err := w.Sandbox(ctx, s.ID)
			w.ok(err)
			w.faulty(func(_, step string) error {
				if step == c.stuck {
					time.Sleep(2 * time.Minute)
				}
				return nil
			})
			key := center.Idempotency{Key: c.stuck, Digest: "d"}
			err = c.do(key)
			w.wants(err, spore.CodeUnreachable)
			if !strings.Contains(err.Error(), "1m0s") || !strings.Contains(spore.AsError(err).Hint, "--operation-timeout") {
				t.Errorf("stuck at %s: %v", c.stuck, err)
			}
			w.faulty(nil)
			w.pass(time.Minute)
			now, err := w.Sandbox(ctx, s.ID)
			if err != nil || now.State != spore.SandboxRunning || now.Generation != before.Generation || now.TemplateID != before.TemplateID {
				t.Errorf("after %s the sandbox is %+v, %v", c.stuck, now, err)
			}
			a := w.machines[0].Audit()
			if len(a.VMs) != 1 || a.VMs[0].Paused || !a.VMs[0].Running || len(a.Frozen) != 2 || len(a.Reservations) != 0 {
				t.Errorf("after %s the node has %+v, %+v, %+v", c.stuck, a.VMs, a.Frozen, a.Reservations)
			}
			active := 0
			for _, r := range w.refs(s.ID) {
				if r.Status != spore.RefReleased {
					active++
				}
			}
			if active != 1 {
				t.Errorf("after %s it holds %d refs", c.stuck, active)
			}
			if c.op != "" {
				jobs, _, err := w.Jobs(ctx, center.JobQuery{Operation: c.op, Limit: 1})
				if err != nil || jobs[0].Status != spore.JobFailed || jobs[0].Error.Code != spore.CodeUnreachable {
					t.Errorf("the job of %s is %+v, %v", c.stuck, jobs[0], err)
				}
			}
		}
		if late, err := w.Template(ctx, "late"); err != nil || late.Status != spore.TemplateFailed || !strings.Contains(late.LastError, "1m0s") {
			t.Errorf("the snapshot is %+v, %v", late, err)
		}

		// Whoever waits for another operation waits no longer than that.
		w.faulty(func(_, step string) error {
			if step == "freeze:captured" {
				time.Sleep(50 * time.Second)
			}
			return nil
		})
		first := make(chan error, 3)
		for range 3 {
			go func() { first <- second(w.CreateSnapshot(ctx, center.Idempotency{}, s.ID, center.SnapshotRequest{})) }()
		}
		began := time.Now()
		codes := map[spore.Code]int{}
		for range 3 {
			err := <-first
			codes[spore.CodeOf(err)]++
		}
		if codes[""] != 1 || codes[spore.CodeBusy] != 1 || codes[spore.CodeUnreachable] != 1 || time.Since(began) > 2*time.Minute {
			t.Errorf("after %s: %v", time.Since(began), codes)
		}
	})
}
