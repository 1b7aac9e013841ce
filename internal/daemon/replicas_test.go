package daemon_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
	"github.com/sporevm/spore/internal/center"
	"github.com/sporevm/spore/internal/node/simnode"
)

// join makes the server know a new machine.
func (f *fleet) join(i int) *simnode.Machine {
	f.t.Helper()
	m := f.machine(i)
	f.ok(f.center.Join(f.t.Context(), m.Connect()))
	return m
}

// TestReplicasFollowThePolicy has the loop bring templates to where they want to be: nodes that are new, or given labels; and
// away from those that are not wanted any more.
func TestReplicasFollowThePolicy(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, f *fleet) {
		f.build("pinned", everywhere)
		f.build("one", api.ReplicaPolicy{})
		f.build("labelled", api.ReplicaPolicy{Nodes: []string{"n1"}})
		if got := f.replicas("pinned"); got != "n1 READY, n2 READY" {
			t.Errorf("built, the pinned one is on %s", got)
		}
		third := f.join(3)
		f.until("the new node has the pinned one", func() bool { return f.replicas("pinned") == "n1 READY, n2 READY, n3 READY" })
		if third.Count("start") != 0 || f.replicas("one") == "" || strings.Contains(f.replicas("one"), ",") {
			t.Errorf("one replica is wanted, on no more than one node: %s", f.replicas("one"))
		}
		if s := f.create("pinned", "n3"); s.NodeID != "n3" {
			t.Errorf("it starts on %s", s.NodeID)
		}

		_, err := f.LabelNode(t.Context(), "n2", map[string]string{"zone": "b"})
		f.ok(err)
		_, err = f.LabelNode(t.Context(), "n3", map[string]string{"zone": "b"})
		f.ok(err)
		_, err = f.UpdateTemplate(t.Context(), "labelled", api.TemplateUpdate{Replicas: &api.ReplicaPolicy{Selector: api.Labels{"zone": "b"}, Min: 2}})
		f.ok(err)
		f.until("it is in the zone, and nowhere else", func() bool { return f.replicas("labelled") == "n2 READY, n3 READY" })
		_, err = f.UpdateTemplate(t.Context(), "labelled", api.TemplateUpdate{Replicas: &api.ReplicaPolicy{Selector: api.Labels{"zone": "b"}, Max: 1}})
		f.ok(err)
		f.until("one goes", func() bool { return f.replicas("labelled") == "n2 READY" })

		fewer, err := f.BuildTemplate(t.Context(), api.BuildRequest{Name: "many", Image: "registry.test/many", MemoryMiB: 128, DiskMiB: 64, Replicas: api.ReplicaPolicy{Min: 5}})
		f.ok(err)
		if many := f.made(fewer); many.Status != spore.TemplatePartiallyReady || many.LastError != "3 of 5 replicas are ready" {
			t.Errorf("of five replicas on three nodes it is %s (%q)", many.Status, many.LastError)
		}
		f.create("many")
		f.join(4)
		f.join(5)
		f.until("it is READY with two more nodes", func() bool { return f.template("many").Status == spore.TemplateReady })
	})
}

// TestReplicaIsRetried breaks one node: the template serves from the others, and the node is tried again, later each time.
func TestReplicaIsRetried(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, f *fleet) {
		f.breaks("n2", "fetch:copy", spore.Errorf(spore.CodeUnreachable, "it was told to fail"))
		fault := *f.fault.Load()
		both := func(node, step string) error {
			if node == "n2" && step == "bake:boot" {
				return errBroken
			}
			return fault(node, step)
		}
		f.fault.Store(&both)
		tpl := f.build("base", api.ReplicaPolicy{Nodes: []string{"n1", "n2"}})
		if tpl.Status != spore.TemplatePartiallyReady || !strings.Contains(tpl.LastError, "n2") || !strings.Contains(tpl.LastError, "told to fail") {
			t.Errorf("it is %s (%q)", tpl.Status, tpl.LastError)
		}
		var waits []time.Duration
		attempts := 0
		f.until("it was tried several times", func() bool {
			for _, r := range f.must(f.ListReplicas(t.Context(), "base")) {
				if r.NodeID == "n2" && r.Attempts > attempts {
					attempts = r.Attempts
					waits = append(waits, r.RetryAt.Sub(r.UpdatedAt))
					if r.LastErrorPhase != spore.ReplicaSnapshotting || !strings.Contains(r.ErrorMessage, "told to fail") || !r.CleanupRequired {
						t.Errorf("the replica is %+v", r)
					}
				}
			}
			return attempts >= 4
		})
		for i := 1; i < len(waits); i++ {
			if waits[i] < 2*waits[i-1] {
				t.Errorf("it waits %v", waits)
			}
		}
		jobs := 0
		for j, err := range f.ListJobs(t.Context(), api.ListJobsParams{Resource: tpl.ID, Operation: spore.OpReplicate}) {
			f.ok(err)
			if jobs++; j.NodeID != "n2" || j.RetryOfJobID == "" || j.Error == nil {
				t.Errorf("the job is %+v", j)
			}
		}
		if jobs < 3 {
			t.Errorf("%d jobs tried again", jobs)
		}
		f.breaks("", "", nil)
		f.until("it is READY", func() bool { return f.template("base").Status == spore.TemplateReady })
		if got := f.replicas("base"); got != "n1 READY, n2 READY" {
			t.Errorf("it is on %s", got)
		}
	})
}

// TestLossIsRepaired does harm to what machines keep: it is noticed and made whole, from a peer or from the image; what cannot
// be is said to be lost.
func TestLossIsRepaired(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, f *fleet) {
		base := f.build("base", everywhere)
		alone := f.build("alone", api.ReplicaPolicy{Nodes: []string{"n1"}})
		s := f.create("base", "n1")
		point := f.snapshot(s.ID, "point")
		for _, id := range []string{base.ID, alone.ID, point.ID} {
			f.cluster.Machine("n1").HarmFrozen(id, simnode.Loss)
		}
		f.until("the loss is known", func() bool { return f.template("point").Status == spore.TemplateFailed })
		f.until("the pinned one is back", func() bool { return f.replicas("base") == "n1 READY, n2 READY" })
		f.until("the lonely one is back", func() bool { return f.replicas("alone") == "n1 READY" })
		f.create("base", "n1")
		f.create("alone", "n1")
		_, err := f.CreateSandbox(t.Context(), api.CreateRequest{Template: "point"})
		f.refused(err, refusal{code: spore.CodeConflict, status: 409, words: []string{"point"}, hint: "start from another"})
		_, err = f.DeleteSnapshot(t.Context(), "point", client.DeleteOptions{})
		f.ok(err)

		// What is damaged is found when something is to start from it. That of an image is made anew; of a snapshot only the
		// memory is lost, and it gets a fresh one when somebody says so.
		last := f.snapshot(s.ID, "last")
		for _, id := range []string{alone.ID, last.ID} {
			f.cluster.Machine("n1").HarmFrozen(id, simnode.Damage)
			_, err = f.CreateSandbox(t.Context(), api.CreateRequest{Template: id})
			f.refused(err, refusal{code: spore.CodeDamaged, status: 500})
		}
		f.until("it is whole again", func() bool { return f.replicas("alone") == "n1 READY" })
		f.create("alone", "n1")
		f.pass(loops)
		if got := f.template("last"); got.Status != spore.TemplateFailed || !strings.Contains(got.LastError, "damaged") {
			t.Errorf("the snapshot is %s (%q)", got.Status, got.LastError)
		}
		f.redo("last", spore.RedoFailedOnly)
		f.create("last")
	})
}

// TestNodeIsDrained takes a node out of use: what it has is made elsewhere first, and what runs on it goes on.
func TestNodeIsDrained(t *testing.T) {
	inFleet(t, 3, func(t *testing.T, f *fleet) {
		f.build("base", api.ReplicaPolicy{Min: 2, Max: 2})
		from := f.must(f.ListReplicas(t.Context(), "base"))[0].NodeID
		s := f.create("base", from)
		n, err := f.DrainNode(t.Context(), from)
		f.ok(err)
		if !n.Draining {
			t.Error("it is not being drained")
		}
		f.until("two others have it", func() bool {
			got := f.replicas("base")
			return strings.Count(got, "READY") == 2 && !strings.Contains(got, from)
		})
		if got, err := f.GetSandbox(t.Context(), s.ID); err != nil || got.State != spore.SandboxRunning || got.NodeID != from {
			t.Errorf("the sandbox on it is %+v, %v", got, err)
		}
		for range 3 {
			if other := f.create("base"); other.NodeID == from {
				t.Error("something starts on a node that is being drained")
			}
		}
		_, err = f.UndrainNode(t.Context(), from)
		f.ok(err)
		f.pass(loops)
		if got := f.replicas("base"); strings.Count(got, "READY") != 2 {
			t.Errorf("in use again, it is on %s", got)
		}
	})
}

// TestNodeIsForgotten gives up a node that does not come back, and then it does.
func TestNodeIsForgotten(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		f.build("base", everywhere)
		s := f.create("base", "n1")
		point := f.snapshot(s.ID, "point")
		_, err := f.ForgetNode(ctx, "n1", false)
		f.refused(err, refusal{code: spore.CodeConflict, status: 409, words: []string{"n1"}, hint: "spore node drain n1"})
		f.lost("n1")
		if refs, err := f.SandboxRefs(ctx, s.ID, false, 0); err != nil || len(refs.Refs) != 1 || refs.Refs[0].LastError == "" {
			t.Errorf("the ref of a sandbox on a node that is silent: %+v, %v", refs, err)
		}
		if got, err := f.GetSandbox(ctx, s.ID); err != nil || got.State != spore.SandboxRunning {
			t.Errorf("its sandbox is %+v, %v", got, err)
		}
		plan, err := f.ForgetNode(ctx, "n1", true)
		f.ok(err)
		if !plan.DryRun || plan.Replicas != 2 || len(plan.Lost) != 1 || plan.Lost[0] != point.ID || len(plan.Sandboxes) != 1 || plan.Sandboxes[0] != s.ID {
			t.Errorf("the plan is %+v", plan)
		}
		if f.node("n1").State != spore.NodeUnreachable {
			t.Error("the dry run has forgotten it")
		}
		done, err := f.ForgetNode(ctx, "n1", false)
		f.ok(err)
		if done.DryRun || done.Replicas != 2 {
			t.Errorf("it did %+v", done)
		}
		f.until("all of it is given up", func() bool {
			got, err := f.GetSandbox(ctx, s.ID)
			f.ok(err)
			return got.State == spore.SandboxFailed && f.template("point").Status == spore.TemplateFailed && f.replicas("base") == "n2 READY"
		})
		if refs, err := f.SandboxRefs(ctx, s.ID, false, 0); err != nil || refs.Total != 0 {
			t.Errorf("its sandbox holds %+v, %v", refs, err)
		}
		back, err := f.Rollback(ctx, s.ID, "base")
		f.ok(err)
		if back.NodeID != "n2" || back.State != spore.SandboxRunning {
			t.Errorf("brought back it is %s on %s", back.State, back.NodeID)
		}
		if nodes, err := f.ListNodes(ctx, false); err != nil || len(nodes) != 1 {
			t.Errorf("the nodes are %+v, %v", nodes, err)
		}
		if nodes, err := f.ListNodes(ctx, true); err != nil || len(nodes) != 2 {
			t.Errorf("all nodes are %+v, %v", nodes, err)
		}

		f.cluster.Machine("n1").SetReachable(true)
		f.until("it is a new node that has the pinned one", func() bool { return f.replicas("base") == "n1 READY, n2 READY" })
		f.until("nothing of what it had is left", func() bool {
			a := f.cluster.Machine("n1").Audit()
			return len(a.VMs) == 0 && len(a.Frozen) == 1
		})
	})
}

// TestStorageModes fills disks: what a node refuses follows from how full it is, and is said.
func TestStorageModes(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		f.build("base", api.ReplicaPolicy{Nodes: []string{"n1"}})
		s := f.create("base")
		first := f.cluster.Machine("n1")
		for _, c := range []struct {
			percent             int
			mode                spore.StorageMode
			keeps, starts, made bool
		}{
			{50, spore.StorageHealthy, true, true, true},
			{75, spore.StorageWarn, true, true, true},
			{90, spore.StorageReject, false, true, false},
			{97, spore.StorageDeleteOnly, false, false, false},
			{10, spore.StorageHealthy, true, true, true},
		} {
			first.FillTo(c.percent)
			status, err := f.NodeStorage(ctx, true)
			f.ok(err)
			if got := status[0]; got.NodeID != "n1" || got.Storage.Mode != c.mode || got.Storage.UsagePct < c.percent-1 || got.Storage.UsagePct > c.percent+1 {
				t.Errorf("at %d %% it is %+v", c.percent, got)
			}
			if _, err := f.CreateSnapshot(ctx, s.ID, api.SnapshotRequest{}); c.keeps {
				f.ok(err)
			} else {
				f.refused(err, refusal{code: spore.CodeNoSpace, status: 507, words: []string{"n1", "missing", "MiB"}, hint: "spore gc"})
			}
			f.pass(20 * time.Second) // a visit tells the center
			if _, err := f.CreateSandbox(ctx, api.CreateRequest{Template: "base"}); c.starts {
				f.ok(err)
			} else {
				f.refused(err, refusal{code: spore.CodeConflict, status: 409, reason: spore.ReasonNoReadyReplica, words: []string{"n1", "full"}, hint: "spore template replicas"})
			}
			tj, err := f.BuildTemplate(ctx, api.BuildRequest{Image: "registry.test/other", Name: fmt.Sprint("at-", c.percent), MemoryMiB: 128, DiskMiB: 64, Replicas: api.ReplicaPolicy{Nodes: []string{"n1"}}})
			f.ok(err)
			if _, err := f.WaitJob(ctx, tj.Job.ID, nil); c.made != (err == nil) || !c.made && spore.CodeOf(err) != spore.CodeNoSpace {
				t.Errorf("at %d %% a build ends with %v", c.percent, err)
			}
			_, err = f.DeleteTemplate(ctx, tj.Template.ID, client.DeleteOptions{})
			f.ok(err)
		}
		first.SetReachable(false)
		status, err := f.NodeStorage(ctx, true)
		f.ok(err)
		if status[0].Storage.Mode != spore.StorageUnknown || status[0].Storage.LastError == "" || status[1].Storage.Mode != spore.StorageHealthy {
			t.Errorf("when it is silent: %+v", status)
		}
	})
}

// TestCompatOfAFleet upgrades machines one by one.
func TestCompatOfAFleet(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		f.build("base", everywhere)
		f.build("lenient", everywhere)
		_, err := f.UpdateTemplate(ctx, "lenient", api.TemplateUpdate{CompatPolicy: spore.PolicyGuestOnly})
		f.ok(err)
		second := f.cluster.Machine("n2")
		next := second.Components()
		next.Agent = "2.0.0"
		second.SetComponents(next)
		f.until("the upgrade is known", func() bool { return f.node("n2").Components.Agent == "2.0.0" })
		if s := f.create("lenient", "n2"); s.NodeID != "n2" {
			t.Errorf("where only the guest image counts it starts on %s", s.NodeID)
		}
		_, err = f.CreateSandbox(ctx, api.CreateRequest{Template: "base", Nodes: []string{"n2"}})
		f.refused(err, refusal{code: spore.CodeStale, status: 409, reason: spore.ReasonStaleNeedsRedo, words: []string{"base", "n2"}, hint: "spore template redo base --node n2"})
		if s := f.create("base"); s.NodeID != "n1" {
			t.Errorf("it starts on %s, where it is stale", s.NodeID)
		}
		scope, err := f.ReadyNodes(ctx, "base")
		f.ok(err)
		if len(scope.Nodes) != 1 || scope.Nodes[0] != "n1" || len(scope.Stale) != 1 || scope.Stale[0] != "n2" {
			t.Errorf("it can start on %+v", scope)
		}
		scan, err := f.ScanCompat(ctx)
		f.ok(err)
		if len(scan.Nodes) != 2 || scan.Replicas != 4 || scan.Stale != 1 {
			t.Errorf("the scan is %+v", scan)
		}
		sum, err := f.CompatSummary(ctx)
		f.ok(err)
		if sum.StaleTemplates != 1 || sum.StaleReplicas != 1 || sum.AffectedNodes != 1 || sum.MissingReplicas != 0 || sum.UnknownReplicas != 0 {
			t.Errorf("the summary is %+v", sum)
		}
		for row, err := range f.CompatRows(ctx, "base") {
			f.ok(err)
			if row.Overall != spore.CompatStale || len(row.Nodes) != 2 || row.Nodes[0].Status != spore.CompatOK || row.Nodes[1].Status != spore.CompatStale ||
				row.Nodes[1].Bound.Agent != "1.0.0" || row.Nodes[1].Current.Agent != "2.0.0" {
				t.Errorf("the row is %+v", row)
			}
		}

		// A node that comes to say less of itself makes what it has UNKNOWN, which serves; adopting says that it fits.
		next.Agent = ""
		second.SetComponents(next)
		f.until("it is UNKNOWN there", func() bool {
			for _, r := range f.must(f.ListReplicas(ctx, "base")) {
				if r.NodeID == "n2" {
					return r.CompatStatus == spore.CompatUnknown
				}
			}
			return false
		})
		f.create("base", "n2")
		if adopted, err := f.AdoptBaseline(ctx, "base", "n2"); err != nil || adopted != 0 {
			t.Errorf("what the node does not say cannot be adopted: %d, %v", adopted, err)
		}
	})
}

// TestPreviewMakesNothing asks what creates would do.
func TestPreviewMakesNothing(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		tj, err := f.BuildTemplate(ctx, api.BuildRequest{
			Name: "base", Image: "registry.test/base", MemoryMiB: 128, DiskMiB: 64, Replicas: everywhere,
			Defaults: api.CreateDefaults{TTLSeconds: 60, Env: api.Env{"A": "template", "B": "template"}, Labels: api.Labels{"team": "x"}},
		})
		f.ok(err)
		f.made(tj)
		_, err = f.DrainNode(ctx, "n2")
		f.ok(err)
		p, err := f.PreviewSandbox(ctx, api.CreateRequest{Template: "base", Env: api.Env{"A": "caller"}})
		f.ok(err)
		if p.Error != nil || p.NodeID != "n1" || p.Template == nil || p.Request.Env["A"] != "caller" || p.Request.Env["B"] != "template" ||
			p.Request.Labels["team"] != "x" || p.Request.TTLSeconds != 60 || len(p.Stages) != len(center.ResolveStages) {
			t.Errorf("the preview is %+v of %+v", p, p.Request)
		}
		if len(p.Candidates) != 2 || !p.Candidates[0].Fits || p.Candidates[1].Fits || !strings.Contains(p.Candidates[1].Why, "drained") {
			t.Errorf("the candidates are %+v", p.Candidates)
		}
		if p, err = f.PreviewSandbox(ctx, api.CreateRequest{Template: "none"}); err != nil || p.Error == nil || p.Error.Reason != spore.ReasonTemplateNotFound {
			t.Errorf("the preview of nothing is %+v, %v", p, err)
		}
		for s, err := range f.ListSandboxes(ctx, api.ListSandboxesParams{All: true}) {
			t.Errorf("a preview made %+v, %v", s, err)
		}
		for _, m := range f.cluster.Machines() {
			if len(m.Audit().VMs) > 0 {
				t.Errorf("a preview made VMs on %s", m.ID())
			}
		}
	})
}
