package daemon

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
	"github.com/sporevm/spore/internal/testbed"
	"github.com/sporevm/spore/internal/vmm/sim"
)

var none = center.Idempotency{}

func key(k string) center.Idempotency { return center.Idempotency{Caller: "c", Key: k, Digest: "d"} }

// vms lists the directories of the VMs that a sandbox has, or of all with "".
func (h *house) vms(t *testing.T, sandbox string) (dirs []string) {
	t.Helper()
	owners, err := filepath.Glob(filepath.Join(h.dir, "vms", "*", "owner.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range owners {
		raw, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(raw), `"sandbox":"`+sandbox) {
			dirs = append(dirs, filepath.Dir(path))
		}
	}
	return dirs
}

// crash ends the VMs of a sandbox as a hypervisor that fails would.
func (h *house) crash(t *testing.T, sandbox string) {
	t.Helper()
	for _, dir := range h.vms(t, sandbox) {
		if err := sim.New(sim.Options{}).Clean(t.Context(), dir); err != nil {
			t.Error(err)
		}
	}
}

// answers says whether the guest of a sandbox runs.
func (h *house) answers(t *testing.T, sandbox string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	agent, err := h.Agent(ctx, sandbox)
	if err != nil {
		return false
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/health", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := agent.RoundTrip(req)
	if err != nil {
		return false
	}
	return res.Body.Close() == nil && res.StatusCode == http.StatusNoContent
}

// use is what VMs take of the machine. A VM's memory is given back a moment after its directory is gone, so both are
// compared together.
type use struct{ vms, promisedMiB int }

// use answers it once it stands still: what an earlier test killed may still be ending.
func (h *house) use(t *testing.T) (u use) {
	t.Helper()
	eventually(t, "every VM's memory is accounted for", func() bool {
		load, err := h.node.Load()
		if err != nil {
			t.Fatal(err)
		}
		u = use{vms: len(h.vms(t, "")), promisedMiB: load.PromisedMiB}
		return u.promisedMiB == 128*u.vms
	})
	return u
}

// TestThingsGoWrong does one wrong after the other to one house.
func TestThingsGoWrong(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.build(t, "base")
	for name, test := range map[string]func(*testing.T, *house){
		"a VM ends as its sandbox begins":            vmEndsAtOnce,
		"a VM ends as its sandbox is rolled back":    vmEndsInRollback,
		"a hypervisor does not end":                  hypervisorDoesNotEnd,
		"a thaw fails and its hypervisor stays":      failedThawStays,
		"a guest is left standing still":             guestLeftStanding,
		"rows cannot be written after a capture":     rowsAfterCapture,
		"rows cannot be written after a start":       rowsAfterStart,
		"more time is given during a rollback":       extendedInRollback,
		"a rollback fails under a remembered key":    failedRollbackKey,
		"the same fork twice at once":                sameForkTwice,
		"a sandbox is asked for again after its end": replayAfterEnd,
		"a client leaves during a delete":            clientLeavesDelete,
		"a job is cancelled between two attempts":    cancelledBetweenAttempts,
		"time is up while an operation is at work":   timeUpWhileBusy,
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				h.hook.Store(nil)
				h.full.Store(false)
				h.undying.Store(false)
				h.well()
			}()
			test(t, h)
		})
	}
	list, _, err := h.Sandboxes(t.Context(), center.SandboxQuery{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if err := h.KillSandbox(t.Context(), s.ID); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "no VM is left, nor anything of one in the load", func() bool {
		load, err := h.node.Load()
		if err != nil {
			t.Fatal(err)
		}
		return len(h.vms(t, "")) == 0 && load.PromisedMiB == 0 && load.Machines == 0
	})
	jobs, _, err := h.Jobs(t.Context(), center.JobQuery{Statuses: []spore.JobStatus{spore.JobPending, spore.JobRunning}})
	if err != nil || len(jobs) > 0 {
		t.Errorf("jobs are active for ever: %+v, %v", jobs, err)
	}
}

// beforeTheRow is long enough for the news of a VM's end to arrive before the row is written that it is about. What they
// wait for cannot be seen from here; were it too short, a test could pass that should not.
const beforeTheRow = 100 * time.Millisecond

func vmEndsAtOnce(t *testing.T, h *house) {
	h.at("create:started", func() { h.crash(t, "s"); time.Sleep(beforeTheRow) })
	s := h.create(t, "base", 0, "")
	eventually(t, "it is known to have failed", func() bool { return h.state(t, s.ID) == spore.SandboxFailed })
}

func vmEndsInRollback(t *testing.T, h *house) {
	s := h.create(t, "base", 0, "")
	h.at("rollback:started", func() { h.crash(t, s.ID); time.Sleep(beforeTheRow) }) // the old one and the new one
	if _, err := h.Rollback(t.Context(), none, s.ID, "base"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is known to have failed", func() bool { return h.state(t, s.ID) == spore.SandboxFailed })
	if _, err := h.Rollback(t.Context(), none, s.ID, "base"); err != nil {
		t.Fatalf("a sandbox that failed cannot be rolled back: %v", err)
	}
	eventually(t, "it answers", func() bool { return h.answers(t, s.ID) })
}

func hypervisorDoesNotEnd(t *testing.T, h *house) {
	before := h.use(t)
	s := h.create(t, "base", 0, "")
	h.undying.Store(true)
	if err := h.KillSandbox(t.Context(), s.ID); spore.CodeOf(err) != spore.CodeUnreachable {
		t.Errorf("killing it answers %v", err)
	}
	if got := h.state(t, s.ID); got != spore.SandboxKilled {
		t.Errorf("it is %s", got)
	}
	h.undying.Store(false)
	eventually(t, "its VM is gone", func() bool { return h.use(t) == before })
}

func failedThawStays(t *testing.T, h *house) {
	before := h.use(t)
	h.undying.Store(true)
	h.failing(sim.StepResume)
	if _, err := h.CreateSandbox(t.Context(), none, center.CreateRequest{Template: "base"}); err == nil {
		t.Fatal("it started")
	}
	if now := h.use(t); now.promisedMiB != before.promisedMiB+128 {
		t.Errorf("memory that a VM still has is given to others: %+v before, %+v now", before, now)
	}
	h.undying.Store(false)
	eventually(t, "its VM is gone", func() bool { return h.use(t) == before })
}

func guestLeftStanding(t *testing.T, h *house) {
	s := h.create(t, "base", 0, "")
	var failures atomic.Int32
	f := sim.Fault(func(_ context.Context, _ string, step sim.Step) error {
		if step == sim.StepResume && failures.Add(1) <= 3 {
			return errors.New("it does not go on")
		}
		return nil
	})
	h.fault.Store(&f)
	if _, err := h.CreateSnapshot(t.Context(), none, s.ID, center.SnapshotRequest{}); err == nil {
		t.Error("the snapshot went well")
	}
	eventually(t, "the guest runs again", func() bool { return h.answers(t, s.ID) })
}

func rowsAfterCapture(t *testing.T, h *house) {
	s := h.create(t, "base", 0, "")
	h.at("snapshot:frozen", func() { h.full.Store(true) })
	if _, err := h.CreateSnapshot(t.Context(), key("full"), s.ID, center.SnapshotRequest{Name: "point"}); spore.CodeOf(err) != spore.CodeNoSpace {
		t.Errorf("the snapshot answers %v", err)
	}
	h.full.Store(false)
	eventually(t, "the failure is recorded", func() bool {
		failed, err := h.Template(t.Context(), "point")
		return err == nil && failed.Status == spore.TemplateFailed
	})
	failed, err := h.Template(t.Context(), "point")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "its bytes are forgotten", func() bool {
		_, err := h.node.Frozen(t.Context(), failed.ID)
		return spore.CodeOf(err) == spore.CodeNotFound
	})
	again, err := h.CreateSnapshot(t.Context(), key("full"), s.ID, center.SnapshotRequest{Name: "point"})
	if err != nil || again.Status != spore.TemplateReady {
		t.Errorf("the same request again: %+v, %v", again, err)
	}
}

func rowsAfterStart(t *testing.T, h *house) {
	h.at("create:started", func() { h.full.Store(true) })
	if _, err := h.CreateSandbox(t.Context(), key("start"), center.CreateRequest{Template: "base"}); spore.CodeOf(err) != spore.CodeNoSpace {
		t.Errorf("the create answers %v", err)
	}
	h.full.Store(false)
	eventually(t, "nothing is being created", func() bool {
		list, _, err := h.Sandboxes(t.Context(), center.SandboxQuery{States: []spore.SandboxState{spore.SandboxCreating}})
		return err == nil && len(list) == 0
	})
	if _, err := h.CreateSandbox(t.Context(), key("start"), center.CreateRequest{Template: "base"}); err != nil {
		t.Errorf("the same request again: %v", err)
	}
}

func extendedInRollback(t *testing.T, h *house) {
	s := h.create(t, "base", time.Hour, "")
	var end time.Time
	h.at("rollback:started", func() {
		if more, err := h.ExtendSandbox(t.Context(), s.ID, 5*time.Hour, spore.EndPause); err != nil {
			t.Error(err)
		} else {
			end = more.EndsAt
		}
	})
	s, err := h.Rollback(t.Context(), none, s.ID, "base")
	if err != nil || !s.EndsAt.Equal(end) || s.OnEnd != spore.EndPause {
		t.Errorf("it was given until %s, and has %+v, %v", end, s, err)
	}
}

func failedRollbackKey(t *testing.T, h *house) {
	s := h.create(t, "base", 0, "")
	first, err := h.CreateSnapshot(t.Context(), key("snap"), s.ID, center.SnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	h.failing(sim.StepThaw)
	if _, err := h.Rollback(t.Context(), key("roll"), s.ID, first.ID); err == nil {
		t.Fatal("the rollback went well")
	}
	h.well()
	again, err := h.CreateSnapshot(t.Context(), key("snap"), s.ID, center.SnapshotRequest{})
	if err != nil || again.ID != first.ID {
		t.Errorf("the snapshot's replay answers %+v, %v", again, err)
	}
	if back, err := h.Rollback(t.Context(), key("roll"), s.ID, first.ID); err != nil || back.Generation != s.Generation+1 {
		t.Errorf("the same rollback again: %+v, %v", back, err)
	}
}

func sameForkTwice(t *testing.T, h *house) {
	var arrived sync.WaitGroup
	arrived.Add(2)
	f := func(step string) {
		if step == "fork:frozen" { // both have seen that the key is new
			arrived.Done()
			arrived.Wait()
		}
	}
	h.hook.Store(&f)
	var both sync.WaitGroup
	var made [2][]center.ForkResult
	for i := range made {
		both.Go(func() {
			var err error
			if made[i], err = h.Fork(t.Context(), key("fork"), "base", center.ForkRequest{Count: 2}); err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	for i := range made[0] {
		if len(made[1]) != len(made[0]) || made[0][i].Sandbox.ID != made[1][i].Sandbox.ID {
			t.Fatalf("one request made %+v and %+v", made[0], made[1])
		}
	}
}

func replayAfterEnd(t *testing.T, h *house) {
	s, err := h.CreateSandbox(t.Context(), key("again"), center.CreateRequest{Template: "base"})
	if err != nil {
		t.Fatal(err)
	}
	h.crash(t, s.ID)
	eventually(t, "it is known to have failed", func() bool { return h.state(t, s.ID) == spore.SandboxFailed })
	if err := h.KillSandbox(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	again, err := h.CreateSandbox(t.Context(), key("again"), center.CreateRequest{Template: "base"})
	if err != nil || again.ID != s.ID || again.State != spore.SandboxKilled {
		t.Errorf("the replay answers %+v, %v", again, err)
	}
}

func clientLeavesDelete(t *testing.T, h *house) {
	s := h.create(t, "base", 0, "")
	snap, err := h.CreateSnapshot(t.Context(), none, s.ID, center.SnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, leave := context.WithCancel(t.Context())
	h.at("delete:recorded", leave)
	if _, err := h.DeleteTemplate(ctx, none, snap.ID, center.DeleteRequest{Force: true}); err != nil {
		t.Error(err)
	}
	jobs, _, err := h.Jobs(t.Context(), center.JobQuery{Resource: snap.ID, Operation: spore.OpSnapshotDelete})
	if err != nil || len(jobs) != 1 || jobs[0].Status != spore.JobReady {
		t.Errorf("the job of the delete: %+v, %v", jobs, err)
	}
}

func cancelledBetweenAttempts(t *testing.T, h *house) {
	f := sim.Fault(func(_ context.Context, _ string, step sim.Step) error {
		if step == sim.StepBoot {
			return spore.Errorf(spore.CodeUnreachable, "it was told to fail for now")
		}
		return nil
	})
	h.fault.Store(&f)
	tpl, j, err := h.BuildTemplate(t.Context(), none, center.BuildRequest{Name: "slow", Image: testbed.Ref(testbed.Image(t, "static"))})
	if err != nil {
		t.Fatal(err)
	}
	tried := errors.New("tried")
	err = h.WatchJob(t.Context(), j.ID, 0, func(_ *spore.Job, lines []spore.LogLine) error {
		for _, l := range lines {
			if strings.Contains(l.Message, "trying again") {
				return tried
			}
		}
		return nil
	})
	if !errors.Is(err, tried) {
		t.Fatal(err)
	}
	if j, err = h.CancelJob(t.Context(), j.ID); err != nil || j.Status != spore.JobCancelled {
		t.Errorf("cancelled, the job is %+v, %v", j, err)
	}
	if tpl, err = h.Template(t.Context(), tpl.ID); err != nil || tpl.Status != spore.TemplateFailed {
		t.Errorf("the template is %+v, %v", tpl, err)
	}
}

func timeUpWhileBusy(t *testing.T, h *house) {
	other := h.create(t, "base", time.Hour, "")
	given := h.create(t, "base", time.Hour, "")
	busy := h.create(t, "base", time.Hour, spore.EndPause) // the newest: it is looked at first
	at, done := make(chan struct{}), make(chan error)
	goOn := make(chan struct{})
	h.at("snapshot:recorded", func() { close(at); <-goOn })
	go func() {
		_, err := h.CreateSnapshot(t.Context(), none, busy.ID, center.SnapshotRequest{})
		done <- err
	}()
	<-at
	later := time.Now().Add(2 * time.Hour)
	if _, err := h.ExtendSandbox(t.Context(), given.ID, 9*time.Hour, ""); err != nil {
		t.Error(err)
	}
	h.now.Store(&later)
	defer h.now.Store(nil)
	eventually(t, "the other is killed", func() bool { return h.state(t, other.ID) == spore.SandboxKilled })
	if got := h.state(t, busy.ID); got != spore.SandboxRunning {
		t.Errorf("the one that an operation is at work on is %s", got)
	}
	close(goOn)
	if err := <-done; err != nil {
		t.Error(err)
	}
	eventually(t, "it is paused", func() bool { return h.state(t, busy.ID) == spore.SandboxPaused })
	if got := h.state(t, given.ID); got != spore.SandboxRunning {
		t.Errorf("the one that was given more time is %s", got)
	}
}
