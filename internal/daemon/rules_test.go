package daemon

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
	"github.com/sporevm/spore/internal/testbed"
	"github.com/sporevm/spore/internal/vmm/sim"
)

func TestFailedRollbackLeavesTheSandbox(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.build(t, "base")
	s := h.create(t, "base", 0, "")
	snap, err := h.CreateSnapshot(t.Context(), center.Idempotency{}, s.ID, center.SnapshotRequest{Name: "point"})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []sim.Step{sim.StepThaw, sim.StepLoad, sim.StepResume} {
		h.failing(step)
		if _, err := h.Rollback(t.Context(), center.Idempotency{}, s.ID, snap.ID); err == nil {
			t.Fatalf("a rollback went well although %v fails", step)
		}
		h.well()
		got, err := h.Sandbox(t.Context(), s.ID)
		if err != nil || got.State != spore.SandboxRunning || got.Generation != s.Generation {
			t.Fatalf("after a rollback that failed at %v: %+v, %v", step, got, err)
		}
		if _, err := h.CreateSnapshot(t.Context(), center.Idempotency{}, s.ID, center.SnapshotRequest{}); err != nil {
			t.Fatalf("the sandbox does not go on: %v", err)
		}
	}
	got, err := h.Rollback(t.Context(), center.Idempotency{}, s.ID, "point")
	if err != nil || got.Generation != s.Generation+1 || got.TemplateID != snap.ID {
		t.Fatalf("a rollback that nothing hinders: %+v, %v", got, err)
	}
}

func TestFailedCaptureLeavesTheSandbox(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.build(t, "base")
	s := h.create(t, "base", 0, "")
	key := center.Idempotency{Caller: "c", Key: "k", Digest: "d"}
	h.failing(sim.StepSave)
	if _, err := h.CreateSnapshot(t.Context(), key, s.ID, center.SnapshotRequest{Name: "point"}); err == nil {
		t.Fatal("a snapshot went well although saving fails")
	}
	if _, err := h.PauseSandbox(t.Context(), s.ID); err == nil {
		t.Fatal("a pause went well although saving fails")
	}
	h.well()
	if got := h.state(t, s.ID); got != spore.SandboxRunning {
		t.Fatalf("the sandbox is %s", got)
	}
	// The same request under the same key is tried again, and then remembered; the name that failed is free again.
	first, err := h.CreateSnapshot(t.Context(), key, s.ID, center.SnapshotRequest{Name: "point"})
	if err != nil {
		t.Fatal(err)
	}
	again, err := h.CreateSnapshot(t.Context(), key, s.ID, center.SnapshotRequest{Name: "point"})
	if err != nil || again.ID != first.ID {
		t.Fatalf("the replay answered %+v, %v", again, err)
	}
}

func TestTimeIsUp(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.build(t, "base")
	killed := h.create(t, "base", time.Hour, spore.EndKill)
	paused := h.create(t, "base", time.Hour, spore.EndPause)
	extended := h.create(t, "base", time.Hour, spore.EndKill)
	if _, err := h.ExtendSandbox(t.Context(), extended.ID, 3*time.Hour, ""); err != nil {
		t.Fatal(err)
	}
	endless := h.create(t, "base", 0, "")
	later := time.Now().Add(2 * time.Hour)
	h.now.Store(&later)
	eventually(t, "one is killed, one paused", func() bool {
		return h.state(t, killed.ID) == spore.SandboxKilled && h.state(t, paused.ID) == spore.SandboxPaused
	})
	for _, s := range []*spore.Sandbox{extended, endless} {
		if got := h.state(t, s.ID); got != spore.SandboxRunning {
			t.Errorf("sandbox %s is %s", s.ID, got)
		}
	}
	back, err := h.ResumeSandbox(t.Context(), paused.ID, nil)
	if err != nil || back.State != spore.SandboxRunning || !back.EndsAt.IsZero() {
		t.Errorf("resumed: %+v, %v", back, err)
	}
}

func TestForksKeepTheirSnapshot(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.build(t, "base")
	s := h.create(t, "base", 0, "")
	key := center.Idempotency{Caller: "c", Key: "k", Digest: "d"}
	forks, err := h.Fork(t.Context(), key, s.ID, center.ForkRequest{Count: 3})
	if err != nil {
		t.Fatal(err)
	}
	again, err := h.Fork(t.Context(), key, s.ID, center.ForkRequest{Count: 3})
	if err != nil || len(again) != 3 || again[2].Sandbox.ID != forks[2].Sandbox.ID {
		t.Fatalf("the replay answered %+v, %v", again, err)
	}
	snapshot := forks[0].Sandbox.TemplateID
	for i, f := range forks {
		if _, err := h.Template(t.Context(), snapshot); err != nil {
			t.Fatalf("with %d forks left the snapshot they stand on is gone: %v", 3-i, err)
		}
		if err := h.KillSandbox(t.Context(), f.Sandbox.ID); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the snapshot goes with the last fork", func() bool {
		_, err := h.Template(t.Context(), snapshot)
		return spore.CodeOf(err) == spore.CodeNotFound
	})
	if got := h.state(t, s.ID); got != spore.SandboxRunning {
		t.Errorf("the parent is %s", got)
	}
}

func TestCancelledBuild(t *testing.T) {
	dir := t.TempDir()
	h := newHouse(t, dir)
	began := make(chan struct{})
	block := sim.Fault(func(ctx context.Context, _ string, step sim.Step) error {
		if step != sim.StepBoot {
			return nil
		}
		close(began)
		<-ctx.Done()
		return ctx.Err()
	})
	h.fault.Store(&block)
	tpl, j, err := h.BuildTemplate(t.Context(), center.Idempotency{}, center.BuildRequest{Name: "slow", Image: testbed.Ref(testbed.Image(t, "static"))})
	if err != nil {
		t.Fatal(err)
	}
	<-began
	if _, err := h.CancelJob(t.Context(), j.ID); err != nil {
		t.Fatal(err)
	}
	h.well()
	if j, err = h.Job(t.Context(), j.ID); err != nil || j.Status != spore.JobCancelled {
		t.Fatalf("the job is %+v, %v", j, err)
	}
	if tpl, err = h.Template(t.Context(), tpl.ID); err != nil || tpl.Status != spore.TemplateFailed {
		t.Fatalf("the template is %+v, %v", tpl, err)
	}
	if leftovers, err := filepath.Glob(filepath.Join(dir, "vms", "*")); err != nil || len(leftovers) > 0 {
		t.Errorf("a cancelled build left %v (%v)", leftovers, err)
	}
	h.build(t, "slow") // the name of one that failed is free
}

func TestDeletedWhileBuilding(t *testing.T) {
	h := newHouse(t, t.TempDir())
	began := make(chan struct{})
	block := sim.Fault(func(ctx context.Context, _ string, step sim.Step) error {
		if step != sim.StepBoot {
			return nil
		}
		close(began)
		<-ctx.Done()
		return ctx.Err()
	})
	h.fault.Store(&block)
	tpl, _, err := h.BuildTemplate(t.Context(), center.Idempotency{}, center.BuildRequest{Name: "slow", Image: testbed.Ref(testbed.Image(t, "static"))})
	if err != nil {
		t.Fatal(err)
	}
	<-began
	if _, err := h.DeleteTemplate(t.Context(), none, tpl.ID, center.DeleteRequest{Force: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Template(t.Context(), tpl.ID); spore.CodeOf(err) != spore.CodeNotFound {
		t.Errorf("the deleted template is %v", err)
	}
}

func TestManyAtOnce(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.build(t, "base")
	s := h.create(t, "base", 0, "")
	snap, err := h.CreateSnapshot(t.Context(), center.Idempotency{}, s.ID, center.SnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	failures := make(chan error, 64)
	run := func(do func() error) { go func() { failures <- do() }() }
	const each = 8
	for range each {
		run(func() error {
			_, err := h.CreateSnapshot(t.Context(), center.Idempotency{}, s.ID, center.SnapshotRequest{})
			return err
		})
		run(func() error { _, err := h.Rollback(t.Context(), center.Idempotency{}, s.ID, snap.ID); return err })
		run(func() error {
			forks, err := h.Fork(t.Context(), center.Idempotency{}, snap.ID, center.ForkRequest{Count: 2})
			for _, f := range forks {
				if f.Err != nil {
					return f.Err
				}
			}
			return err
		})
		run(func() error {
			one, err := h.CreateSandbox(t.Context(), center.Idempotency{}, center.CreateRequest{Template: "base"})
			if err != nil {
				return err
			}
			return h.KillSandbox(t.Context(), one.ID)
		})
	}
	for range 4 * each {
		if err := <-failures; err != nil {
			t.Error(err)
		}
	}
	report, err := h.Check(t.Context(), true, nil)
	if err != nil || len(report.Problems) > 0 {
		t.Errorf("fsck: %+v, %v", report, err)
	}
}
