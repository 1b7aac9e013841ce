package daemon_test

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/node/simnode"
)

var errBroken = spore.Errorf(spore.CodeUnsupported, "it was told to fail")

// kinds makes a template of each kind, wanted on all machines, with a file on the disks of those that were taken of a sandbox.
func (f *fleet) kinds() (built, committed, snapshot *api.Template) {
	f.t.Helper()
	built = f.build("built", everywhere)
	s := f.create("built", "n1")
	f.ok(f.cluster.Machine("n1").Write(s.ID, 1, "/root/file", "kept"))
	committed = f.commit(s.ID, "committed", everywhere)
	snapshot = f.snapshot(s.ID, "snapshot")
	_, err := f.UpdateTemplate(f.t.Context(), "snapshot", api.TemplateUpdate{Replicas: &everywhere})
	f.ok(err)
	f.until("the snapshot is everywhere", func() bool { return f.replicas("snapshot") == "n1 READY, n2 READY, n3 READY" })
	return built, committed, snapshot
}

// frozen is what machines keep of a template: on which node, from which capture, with which files.
func (f *fleet) frozen(id string) map[string]simnode.AuditFrozen {
	all := map[string]simnode.AuditFrozen{}
	for _, a := range f.cluster.Audit() {
		for _, s := range a.Frozen {
			if s.ID == id {
				all[a.Node] = s
			}
		}
	}
	return all
}

// remade says whether what a node keeps of a template has memory of its own now, and the same files.
func remade(before, after simnode.AuditFrozen) bool {
	return len(before.Files) == len(after.Files) && before.Files["/root/file"] == after.Files["/root/file"] &&
		len(after.Pieces) > 0 && !slices.ContainsFunc(after.Pieces, func(p string) bool { return slices.Contains(before.Pieces, p) })
}

// TestRedo makes templates of every kind again, in every mode, on three machines.
func TestRedo(t *testing.T) {
	inFleet(t, 3, func(t *testing.T, f *fleet) {
		built, committed, snapshot := f.kinds()
		for _, tpl := range []*api.Template{built, committed, snapshot} {
			// ALL
			before := f.frozen(tpl.ID)
			j := f.redo(tpl.Name, spore.RedoAll)
			if j.Operation != spore.OpRedo || j.Redo.Mode != spore.RedoAll || !slices.Equal(j.Redo.Scope, []string{"n1", "n2", "n3"}) ||
				j.Nodes.Expected != 3 || j.Nodes.Ready != 3 || j.Nodes.Failed != 0 || j.Progress != 100 || j.Redo.ResumePhase != spore.PhaseSnapshotting {
				t.Errorf("%s: the job of ALL is %+v, %+v, %+v", tpl.Name, j, j.Redo, j.Nodes)
			}
			after := f.frozen(tpl.ID)
			for node := range before {
				if !remade(before[node], after[node]) {
					t.Errorf("%s on %s was not made anew: %+v, %+v", tpl.Name, node, before[node], after[node])
				}
			}
			if got := f.template(tpl.Name); got.ID != tpl.ID || got.Status != spore.TemplateReady {
				t.Errorf("%s is %s (%s) after its redo", tpl.Name, got.ID, got.Status)
			}

			// NODES: this one and no other
			before = after
			if j := f.redo(tpl.Name, spore.RedoNodes, "n2"); j.Nodes.Expected != 1 || !slices.Equal(j.Redo.Scope, []string{"n2"}) {
				t.Errorf("%s: the job of NODES is %+v, %+v", tpl.Name, j.Redo, j.Nodes)
			}
			after = f.frozen(tpl.ID)
			if !remade(before["n2"], after["n2"]) || !slices.Equal(before["n1"].Pieces, after["n1"].Pieces) || !slices.Equal(before["n3"].Pieces, after["n3"].Pieces) {
				t.Errorf("%s: NODES n2 touched other nodes, or not that: %+v, %+v", tpl.Name, before, after)
			}

			// FAILED_ONLY and FAILED_NODES: what has failed, within the nodes that are named
			f.breakReplicas(tpl, "n2", "n3")
			if j := f.redo(tpl.Name, spore.RedoFailedNodes, "n1", "n3"); !slices.Equal(j.Redo.Scope, []string{"n3"}) {
				t.Errorf("%s: FAILED_NODES n1, n3 is about %v", tpl.Name, j.Redo.Scope)
			}
			if got := f.replicas(tpl.Name); got != "n1 READY, n2 FAILED, n3 READY" {
				t.Errorf("%s: after FAILED_NODES it is on %s", tpl.Name, got)
			}
			if j := f.redo(tpl.Name, spore.RedoFailedOnly); !slices.Equal(j.Redo.Scope, []string{"n2"}) {
				t.Errorf("%s: FAILED_ONLY is about %v", tpl.Name, j.Redo.Scope)
			}
			if got := f.replicas(tpl.Name); got != "n1 READY, n2 READY, n3 READY" {
				t.Errorf("%s: after FAILED_ONLY it is on %s", tpl.Name, got)
			}
			for _, node := range []string{"n1", "n2", "n3"} {
				s := f.create(tpl.Name, node)
				if s.NodeID != node {
					t.Errorf("%s starts on %s, not %s", tpl.Name, s.NodeID, node)
				}
				f.ok(f.DeleteSandbox(t.Context(), s.ID))
			}
		}
	})
}

// breakReplicas loses the bytes of replicas, and keeps the loop from making them again until somebody asks for it.
func (f *fleet) breakReplicas(tpl *api.Template, nodes ...string) {
	f.t.Helper()
	fault := func(node, step string) error {
		if slices.Contains(nodes, node) && (step == "probe:begin") {
			return errBroken
		}
		return nil
	}
	f.fault.Store(&fault)
	for _, node := range nodes {
		f.cluster.Machine(node).HarmFrozen(tpl.ID, simnode.Loss)
		if _, err := f.CreateSandbox(f.t.Context(), api.CreateRequest{Template: tpl.ID, Nodes: []string{node}}); spore.CodeOf(err) != spore.CodeNotFound {
			f.t.Errorf("%s starts on %s, where it is lost: %v", tpl.Name, node, err)
		}
	}
	f.until("the loss is known", func() bool {
		list := f.must(f.ListReplicas(f.t.Context(), tpl.ID))
		lost := 0
		for _, r := range list {
			if r.Status == spore.ReplicaFailed && r.Phase == spore.ReplicaPhaseFailed && r.Attempts > 1 {
				lost++
			}
		}
		return lost == len(nodes)
	})
	if got := f.template(tpl.ID); got.Status != spore.TemplatePartiallyReady || got.LastError == "" {
		f.t.Errorf("with %v lost it is %s (%q)", nodes, got.Status, got.LastError)
	}
	f.fault.Store(nil)
}

// TestFailedRedo breaks redos at every step: the old one goes on serving, nothing is left of the new one, and another try works.
func TestFailedRedo(t *testing.T) {
	inFleet(t, 3, func(t *testing.T, f *fleet) {
		built, committed, snapshot := f.kinds()
		for _, c := range []struct {
			tpl   *api.Template
			steps []string
		}{
			{built, []string{"bake:boot", "bake:freeze", "bake:commit", "probe:begin", "probe:greeted", "promote:commit"}},
			{committed, []string{"rebake:boot", "rebake:commit", "probe:thawed", "promote:commit"}},
			{snapshot, []string{"rebake:begin", "rebake:commit", "probe:begin", "promote:commit"}},
		} {
			before := f.frozen(c.tpl.ID)
			last := ""
			for _, step := range c.steps {
				f.breaks("n2", step, errBroken)
				j, err := f.RedoTemplate(t.Context(), c.tpl.ID, api.RedoRequest{Mode: spore.RedoNodes, Nodes: []string{"n2"}})
				f.ok(err)
				j, err = f.WaitJob(t.Context(), j.ID, nil)
				if err == nil || !strings.Contains(err.Error(), "n2") || !strings.Contains(err.Error(), "told to fail") || j.Nodes.Failed != 1 {
					t.Errorf("%s broken at %s: %v, %+v", c.tpl.Name, step, err, j.Nodes)
				}
				if last != "" && j.RetryOfJobID != last {
					t.Errorf("%s broken at %s tries %q again, not %s", c.tpl.Name, step, j.RetryOfJobID, last)
				}
				last = j.ID
				f.breaks("", "", nil)
				f.pass(time.Second)
				if after := f.frozen(c.tpl.ID); !slices.Equal(before["n2"].Pieces, after["n2"].Pieces) || after["n2"].Err != nil {
					t.Errorf("%s broken at %s: the old one is not what it was: %+v, %+v", c.tpl.Name, step, before["n2"], after["n2"])
				}
				if got := f.replicas(c.tpl.ID); got != "n1 READY, n2 READY, n3 READY" {
					t.Errorf("%s broken at %s is on %s", c.tpl.Name, step, got)
				}
				f.create(c.tpl.ID, "n2")
			}
			f.redo(c.tpl.ID, spore.RedoNodes, "n2")
			if !remade(before["n2"], f.frozen(c.tpl.ID)["n2"]) {
				t.Errorf("%s was not made anew in the end", c.tpl.Name)
			}
		}
		for _, a := range f.cluster.Audit() {
			for _, s := range a.Frozen {
				if strings.Contains(s.ID, "+") {
					t.Errorf("%s: %s was left", a.Node, s.ID)
				}
			}
		}
	})
}

// TestRedoResumes ends the server in the middle of a redo: the next one goes on where it was, and does not do again what was done.
func TestRedoResumes(t *testing.T) {
	inFleet(t, 3, func(t *testing.T, f *fleet) {
		built := f.build("built", everywhere)
		before := f.frozen(built.ID)
		at, goOn := f.pauses("replica:proven")
		j, err := f.RedoTemplate(t.Context(), "built", api.RedoRequest{})
		f.ok(err)
		<-at
		goOn()
		f.restart()
		if j = f.wait(j.ID); j.Nodes.Ready != 3 {
			t.Errorf("the job is %+v", j.Nodes)
		}
		for node, old := range before {
			if !remade(old, f.frozen(built.ID)[node]) {
				t.Errorf("%s was not made anew", node)
			}
			if n := f.cluster.Machine(node).Count("bake"); n > 3 { // the build's, or none; the redo's; and one that was cut off
				t.Errorf("%s baked %d times", node, n)
			}
		}
		f.create("built")
	})
}

// TestRedoOfWhatFailed redoes a template that never came to be: what broke is done, then it serves.
func TestRedoOfWhatFailed(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, f *fleet) {
		for step, phase := range map[string]spore.JobPhase{"build:pull": spore.PhasePulling, "bake:boot": spore.PhaseBuildingExt4} {
			f.breaks("", step, errBroken)
			name := strings.ReplaceAll(step, ":", "-")
			tj, err := f.BuildTemplate(t.Context(), api.BuildRequest{Name: name, Image: "registry.test/" + name, MemoryMiB: 128, DiskMiB: 64})
			f.ok(err)
			if _, err := f.WaitJob(t.Context(), tj.Job.ID, nil); spore.CodeOf(err) != spore.CodeUnsupported {
				t.Fatalf("broken at %s: %v", step, err)
			}
			if got := f.template(name); got.Status != spore.TemplateFailed || !strings.Contains(got.LastError, "told to fail") {
				t.Errorf("broken at %s it is %s (%q)", step, got.Status, got.LastError)
			}
			_, err = f.CreateSandbox(t.Context(), api.CreateRequest{Template: name})
			f.refused(err, refusal{code: spore.CodeConflict, status: 409, words: []string{name, "told to fail"}, hint: "build it again"})
			f.breaks("", "", nil)
			j := f.redo(name, spore.RedoFailedOnly)
			if j.RetryOfJobID != tj.Job.ID || j.Redo.ResumePhase != phase && j.Redo.ResumePhase != spore.PhasePulling {
				t.Errorf("broken at %s the redo begins at %s, after %s", step, j.Redo.ResumePhase, j.RetryOfJobID)
			}
			f.create(name)
		}
	})
}

// TestRedoIsCancelled cancels a redo while it boots: it ends at once, and what served goes on serving.
func TestRedoIsCancelled(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		built := f.build("built", api.ReplicaPolicy{})
		before := f.frozen(built.ID)
		var booting atomic.Bool
		release := make(chan struct{})
		fault := func(_, step string) error {
			if step == "bake:ready" && booting.CompareAndSwap(false, true) {
				<-release
			}
			return nil
		}
		f.fault.Store(&fault)
		j, err := f.RedoTemplate(t.Context(), "built", api.RedoRequest{})
		f.ok(err)
		f.until("it boots", booting.Load)
		cancelled := make(chan *api.Job, 1)
		go func() {
			j, err := f.CancelJob(t.Context(), j.ID)
			if err != nil {
				t.Error(err)
			}
			cancelled <- j
		}()
		f.pass(time.Second)
		close(release)
		if j = <-cancelled; j.Status != spore.JobCancelled || !j.CancelRequested {
			t.Errorf("the job is %s", j.Status)
		}
		f.pass(time.Minute)
		if after := f.frozen(built.ID); !slices.Equal(before["n1"].Pieces, after["n1"].Pieces) {
			t.Errorf("it was made anew all the same")
		}
		for j, err := range f.ListJobs(t.Context(), api.ListJobsParams{Resource: built.ID, Operation: spore.OpReplicate}) {
			t.Errorf("what served was taken for failed: %+v, %v", j, err)
		}
		if got := f.replicas("built"); got != "n1 READY" {
			t.Errorf("its replicas are %s", got)
		}
		if again, err := f.CancelJob(t.Context(), j.ID); err != nil || again.Status != spore.JobCancelled {
			t.Errorf("cancelled again it is %+v, %v", again, err)
		}
		f.create("built")
		f.redo("built", spore.RedoAll)
	})
}
