package daemon

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
	"github.com/sporevm/spore/internal/frozen"
	"github.com/sporevm/spore/internal/image"
	"github.com/sporevm/spore/internal/kernel"
	"github.com/sporevm/spore/internal/node"
	"github.com/sporevm/spore/internal/store/sqlite"
	"github.com/sporevm/spore/internal/testbed"
	"github.com/sporevm/spore/internal/vmm/sim"
)

// house is a center and a node on the simulated engine, whose faults and clock the test controls. All the rest is real.
type house struct {
	*center.Center
	node  *node.Node
	fault atomic.Pointer[sim.Fault]
	now   atomic.Pointer[time.Time] // nil: the real time
	stop  func()
}

func newHouse(t *testing.T, dir string) *house {
	t.Helper()
	ctx := t.Context()
	h := &house{}
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	if testing.Verbose() {
		quiet = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	engine := sim.New(sim.Options{Guest: newSimGuest().serve, Fault: func(ctx context.Context, id string, step sim.Step) error {
		if f := h.fault.Load(); f != nil {
			return (*f)(ctx, id, step)
		}
		return nil
	}})
	images, err := image.Open(dir, image.Options{Logger: quiet})
	must(err)
	states, err := frozen.Open(filepath.Join(dir, "frozen"), frozen.Options{Log: quiet})
	must(err)
	kernels := kernel.Open(filepath.Join(dir, "kernels"))
	if _, err := kernels.Default(); spore.CodeOf(err) == spore.CodeNotFound {
		vmlinuz, modules := testbed.KernelFiles(t)
		_, err := kernels.Install(ctx, kernel.Source{Kernel: vmlinuz, Modules: modules, Init: initOf(t)}, nil)
		must(err)
	}
	h.node, err = node.Open(ctx, node.Options{ID: "here", DataDir: dir, Engine: engine, Images: images, Kernels: kernels, Frozen: states, Logger: quiet})
	must(err)
	st, err := sqlite.Open(ctx, filepath.Join(dir, "spore.db"), sqlite.Options{Logger: quiet})
	must(err)
	h.Center = center.New(st, h.node, center.Options{Logger: quiet, Now: func() time.Time {
		if at := h.now.Load(); at != nil {
			return *at
		}
		return time.Now()
	}})
	must(h.Start(ctx))
	stopped := false
	h.stop = func() {
		if stopped {
			return
		}
		stopped = true
		end := context.WithoutCancel(ctx)
		must(errors.Join(h.Stop(end), h.node.Close(end), st.Close(), states.Close()))
	}
	t.Cleanup(h.stop)
	return h
}

func initOf(t *testing.T) []byte {
	t.Helper()
	init, err := os.ReadFile(testbed.SporeInit(t))
	if err != nil {
		t.Fatal(err)
	}
	return init
}

// wait waits for a job and answers its error.
func (h *house) wait(t *testing.T, j *spore.Job) error {
	t.Helper()
	var last *spore.Job
	if err := h.WatchJob(t.Context(), j.ID, 0, func(j *spore.Job, _ []spore.LogLine) error { last = j; return nil }); err != nil {
		t.Fatal(err)
	}
	if last.Error != nil {
		return &spore.Error{Code: last.Error.Code, Message: last.Error.Message, Field: last.Error.Field}
	}
	return nil
}

func (h *house) build(t *testing.T, name string) *spore.Template {
	t.Helper()
	tpl, j, err := h.BuildTemplate(t.Context(), center.Idempotency{}, center.BuildRequest{
		Name: name, Image: testbed.Ref(testbed.Image(t, "static")), Resources: spore.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.wait(t, j); err != nil {
		t.Fatal(err)
	}
	if tpl, err = h.Template(t.Context(), tpl.ID); err != nil {
		t.Fatal(err)
	}
	return tpl
}

func (h *house) create(t *testing.T, template string, ttl time.Duration, onEnd spore.EndAction) *spore.Sandbox {
	t.Helper()
	s, err := h.CreateSandbox(t.Context(), center.Idempotency{}, center.CreateRequest{Template: template, TTL: ttl, OnEnd: onEnd})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (h *house) state(t *testing.T, id string) spore.SandboxState {
	t.Helper()
	s, err := h.Sandbox(t.Context(), id)
	if spore.CodeOf(err) == spore.CodeNotFound {
		return spore.SandboxKilled
	}
	if err != nil {
		t.Fatal(err)
	}
	return s.State
}

// failing makes every operation of the engine fail at a step.
func (h *house) failing(at sim.Step) {
	f := sim.Fault(func(_ context.Context, _ string, step sim.Step) error {
		if step == at {
			return spore.Errorf(spore.CodeUnsupported, "it was told to fail")
		}
		return nil
	})
	h.fault.Store(&f)
}

func (h *house) well() { h.fault.Store(nil) }

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

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
	if _, err := h.DeleteTemplate(t.Context(), tpl.ID, false); err != nil {
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
