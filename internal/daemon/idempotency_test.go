package daemon_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

// TestReplays asks for each thing twice under one key: once it is under way, once it is done, and once it is gone. The answer
// is that of the first time, and another request under the same key is refused.
func TestReplays(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		keyed := client.WithIdempotencyKey
		ctx := t.Context()
		build := api.BuildRequest{Name: "base", Image: "registry.test/base", MemoryMiB: 128, DiskMiB: 64}
		base, err := f.BuildTemplate(keyed(ctx, "build"), build)
		f.ok(err)
		again, err := f.BuildTemplate(keyed(ctx, "build"), build)
		f.ok(err)
		if again.Template.ID != base.Template.ID || again.Job.ID != base.Job.ID || again.Job.RequestID != "build" {
			t.Errorf("under way, the build is answered with %+v", again)
		}
		f.wait(base.Job.ID)

		s, err := f.CreateSandbox(keyed(ctx, "create"), api.CreateRequest{Template: "base"})
		f.ok(err)
		// A request that comes while the first is at work waits for it.
		at, goOn := f.pauses("snapshot:frozen")
		var both sync.WaitGroup
		made := make([]*api.Template, 2)
		for i := range made {
			both.Go(func() {
				var err error
				if made[i], err = f.CreateSnapshot(keyed(ctx, "snapshot"), s.ID, api.SnapshotRequest{Name: "point"}); err != nil {
					t.Error(err)
				}
			})
		}
		<-at
		f.pass(time.Minute)
		goOn()
		both.Wait()
		if made[0] == nil || made[1] == nil || made[0].ID != made[1].ID || made[1].Status != spore.TemplateReady {
			t.Fatalf("two at once made %+v", made)
		}
		back, err := f.Rollback(keyed(ctx, "rollback"), s.ID, "point")
		f.ok(err)
		redo, err := f.RedoTemplate(keyed(ctx, "redo"), "base", api.RedoRequest{})
		f.ok(err)
		f.wait(redo.ID)
		gone, err := f.DeleteSnapshot(keyed(ctx, "delete"), "point", client.DeleteOptions{Force: true})
		f.ok(err)

		f.restart() // what is remembered is remembered in rows
		for _, deleted := range []bool{false, true} {
			if deleted {
				f.ok(f.DeleteSandbox(ctx, s.ID))
				_, err := f.DeleteTemplate(ctx, "base", client.DeleteOptions{})
				f.ok(err)
			}
			if again, err := f.BuildTemplate(keyed(ctx, "build"), build); err != nil || again.Template.ID != base.Template.ID || again.Job.ID != base.Job.ID {
				t.Errorf("the build is answered with %+v, %v", again, err)
			}
			if again, err := f.CreateSandbox(keyed(ctx, "create"), api.CreateRequest{Template: "base"}); err != nil || again.ID != s.ID {
				t.Errorf("the create is answered with %+v, %v", again, err)
			}
			if again, err := f.CreateSnapshot(keyed(ctx, "snapshot"), s.ID, api.SnapshotRequest{Name: "point"}); err != nil || again.ID != made[0].ID {
				t.Errorf("the snapshot is answered with %+v, %v", again, err)
			}
			if again, err := f.RedoTemplate(keyed(ctx, "redo"), "base", api.RedoRequest{}); err != nil || again.ID != redo.ID {
				t.Errorf("the redo is answered with %+v, %v", again, err)
			}
			if again, err := f.DeleteSnapshot(keyed(ctx, "delete"), "point", client.DeleteOptions{Force: true}); err != nil || again.JobID != gone.JobID || again.ID != gone.ID {
				t.Errorf("the delete is answered with %+v, %v", again, err)
			}
			if deleted {
				continue // there is no sandbox that could be answered with
			}
			if again, err := f.Rollback(keyed(ctx, "rollback"), s.ID, "point"); err != nil || again.Generation != back.Generation {
				t.Errorf("the rollback is answered with %+v, %v", again, err)
			}
		}

		want := refusal{code: spore.CodeConflict, status: 409, words: []string{"build"}, hint: "new key"}
		build.Name = "other"
		_, err = f.BuildTemplate(keyed(ctx, "build"), build)
		f.refused(err, want)
		_, err = f.CreateSandbox(keyed(ctx, "build"), api.CreateRequest{Template: "base"})
		f.refused(err, want)
	})
}

// TestOperationsOutliveTheirSnapshots looks up what was done to a snapshot that is gone.
func TestOperationsOutliveTheirSnapshots(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		f.build("base", api.ReplicaPolicy{})
		s := f.create("base")
		point := f.snapshot(s.ID, "point")
		_, err := f.Rollback(ctx, s.ID, "point")
		f.ok(err)
		f.pass(time.Second)
		f.ok(f.DeleteSandbox(ctx, s.ID))
		_, err = f.DeleteSnapshot(ctx, "point", client.DeleteOptions{})
		f.ok(err)
		f.leap(30 * 24 * time.Hour)
		var names []string
		for j, err := range f.ListJobs(ctx, api.ListJobsParams{Resource: point.ID}) {
			f.ok(err)
			op, err := f.GetOperation(ctx, j.ID)
			f.ok(err)
			if op.SnapshotID != point.ID || op.Status != spore.JobReady || op.Progress != 100 || op.AttemptNo != 1 || op.ResourceType != spore.KindSnapshot {
				t.Errorf("the operation is %+v", op)
			}
			names = append(names, op.Operation)
		}
		if len(names) != 3 || names[0] != "DELETE" || names[1] != "ROLLBACK" || names[2] != "CREATE" {
			t.Errorf("the operations are %v", names)
		}
	})
}

// TestBuildIsTriedAgain breaks a build for a while: its job counts its attempts, tells of each, and succeeds.
func TestBuildIsTriedAgain(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		var broken atomic.Bool
		fault := func(_, step string) error {
			if step == "build:pull" && broken.CompareAndSwap(false, true) {
				return spore.Errorf(spore.CodeUnreachable, "the registry does not answer")
			}
			return nil
		}
		f.fault.Store(&fault)
		tj, err := f.BuildTemplate(ctx, api.BuildRequest{Name: "base", Image: "registry.test/base", MemoryMiB: 128, DiskMiB: 64})
		f.ok(err)
		if j := f.wait(tj.Job.ID); j.Attempt != 2 || j.Nodes.Ready != 1 {
			t.Errorf("it took %d attempts", j.Attempt)
		}
		told := false
		for line, err := range f.JobLog(ctx, tj.Job.ID, 0) {
			f.ok(err)
			told = told || line.Level == "warn" && line.Message == "the registry does not answer; trying again"
		}
		if !told {
			t.Error("its log does not tell of it")
		}
		f.create("base")

		f.breaks("", "build:pull", spore.Errorf(spore.CodeUnreachable, "the registry does not answer"))
		tj, err = f.BuildTemplate(ctx, api.BuildRequest{Name: "never", Image: "registry.test/never", MemoryMiB: 128, DiskMiB: 64})
		f.ok(err)
		j, err := f.WaitJob(ctx, tj.Job.ID, nil)
		if spore.CodeOf(err) != spore.CodeUnreachable || j.Attempt != 3 || j.Status != spore.JobFailed {
			t.Errorf("in the end it is %s after %d attempts: %v", j.Status, j.Attempt, err)
		}
	})
}

// TestCancel cancels jobs: one that waits, one that is at work, one that is over, and an operation whose caller is waiting.
func TestCancel(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		f.build("base", api.ReplicaPolicy{})
		at, goOn := f.pauses("artifact:claimed")
		tj, err := f.BuildTemplate(ctx, api.BuildRequest{Name: "victim", Image: "registry.test/victim", MemoryMiB: 128, DiskMiB: 64})
		f.ok(err)
		<-at
		cancelled := make(chan *api.Job, 1)
		go func() {
			j, err := f.CancelJob(ctx, tj.Job.ID)
			if err != nil {
				t.Error(err)
			}
			cancelled <- j
		}()
		f.pass(time.Second)
		goOn()
		if j := <-cancelled; j.Status != spore.JobCancelled {
			t.Errorf("the job is %s", j.Status)
		}
		_, err = f.WaitJob(ctx, tj.Job.ID, nil)
		if spore.CodeOf(err) != spore.CodeCanceled {
			t.Errorf("who waits for it is told %v", err)
		}
		if got := f.template("victim"); got.Status != spore.TemplateFailed {
			t.Errorf("the template is %s", got.Status)
		}
		f.build("victim", api.ReplicaPolicy{}) // the name of what failed is free
		if j, err := f.CancelJob(ctx, tj.Job.ID); err != nil || j.Status != spore.JobCancelled {
			t.Errorf("cancelled again: %+v, %v", j, err)
		}

		s := f.create("base")
		at, goOn = f.pauses("snapshot:recorded")
		done := make(chan error, 1)
		go func() { _, err := f.CreateSnapshot(ctx, s.ID, api.SnapshotRequest{Name: "point"}); done <- err }()
		<-at
		for j, err := range f.ListJobs(ctx, api.ListJobsParams{Operation: spore.OpSnapshotCreate}) {
			f.ok(err)
			_, err = f.CancelJob(ctx, j.ID)
			f.refused(err, refusal{code: spore.CodeConflict, status: 409, words: []string{"SNAPSHOT_CREATE"}, hint: "by itself"})
		}
		goOn()
		f.ok(<-done)
	})
}
