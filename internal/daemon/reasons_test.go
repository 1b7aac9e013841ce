package daemon_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

// everywhere is a policy of replicas: on all machines.
var everywhere = api.ReplicaPolicy{Pinned: true}

// TestReasons provokes every refusal that has a reason through the API, from outside. store_unavailable has a test of its own.
func TestReasons(t *testing.T) {
	for _, c := range []struct {
		reason   spore.Reason
		machines int
		provoke  func(t *testing.T, f *fleet)
	}{
		{spore.ReasonTemplateNotFound, 1, templateNotFound},
		{spore.ReasonSnapshotNotFound, 1, snapshotNotFound},
		{spore.ReasonOperationNotFound, 1, operationNotFound},
		{spore.ReasonTemplateIDRequired, 1, templateIDRequired},
		{spore.ReasonNoReadyReplica, 2, noReadyReplica},
		{spore.ReasonNoNodes, 2, noNodes},
		{spore.ReasonDuplicate, 1, duplicateTemplate},
		{spore.ReasonInProgress, 1, attemptInProgress},
		{spore.ReasonStaleNeedsRedo, 2, staleNeedsRedo},
		{spore.ReasonNothingFailed, 2, nothingFailed},
		{spore.ReasonReplicaIncomplete, 2, replicaIncomplete},
		{spore.ReasonLocatorMissing, 2, locatorMissing},
		{spore.ReasonInUse, 1, templateInUse},
		{spore.ReasonNoNetworkMode, 2, noNetworkMode},
	} {
		t.Run(string(c.reason), func(t *testing.T) { inFleet(t, c.machines, c.provoke) })
	}
}

func templateNotFound(t *testing.T, f *fleet) {
	ctx := t.Context()
	for _, ref := range []string{"none", "none:tag", "tpl-000000000000000000000000"} {
		want := refusal{code: spore.CodeNotFound, status: 404, reason: spore.ReasonTemplateNotFound, words: []string{ref}, hint: "spore template ls"}
		_, err := f.GetTemplate(ctx, ref)
		f.refused(err, want)
		_, err = f.CreateSandbox(ctx, api.CreateRequest{Template: ref})
		f.refused(err, want)
		_, err = f.RedoTemplate(ctx, ref, api.RedoRequest{})
		f.refused(err, want)
		_, err = f.DeleteTemplate(ctx, ref, client.DeleteOptions{})
		f.refused(err, want)
		_, err = f.ListReplicas(ctx, ref)
		f.refused(err, want)
		_, err = f.PutAlias(ctx, "name", api.AliasRequest{Template: ref})
		f.refused(err, want)
		_, err = f.AdoptBaseline(ctx, ref)
		f.refused(err, want)
	}
	base := f.build("base", api.ReplicaPolicy{})
	_, err := f.DeleteTemplate(ctx, "base", client.DeleteOptions{})
	f.ok(err)
	_, err = f.GetTemplate(ctx, base.ID)
	f.refused(err, refusal{code: spore.CodeNotFound, status: 404, reason: spore.ReasonTemplateNotFound, words: []string{base.ID}})
}

func snapshotNotFound(t *testing.T, f *fleet) {
	ctx := t.Context()
	f.build("base", api.ReplicaPolicy{})
	for _, ref := range []string{"none", "snap-000000000000000000000000", "base"} { // the last is a template, and of the wrong kind
		want := refusal{code: spore.CodeNotFound, status: 404, reason: spore.ReasonSnapshotNotFound, words: []string{ref}, hint: "spore snapshot ls"}
		_, err := f.GetSnapshot(ctx, ref)
		f.refused(err, want)
		_, err = f.DeleteSnapshot(ctx, ref, client.DeleteOptions{Force: true})
		f.refused(err, want)
	}
	f.template("base") // was not deleted by mistake
	s := f.create("base")
	_, err := f.Rollback(ctx, s.ID, "snap-000000000000000000000000")
	f.refused(err, refusal{code: spore.CodeNotFound, status: 404, reason: spore.ReasonSnapshotNotFound, words: []string{"snap-0"}})
}

func operationNotFound(t *testing.T, f *fleet) {
	ctx := t.Context()
	base := f.build("base", api.ReplicaPolicy{})
	for _, id := range []string{"job-000000000000000000000000", base.JobID} { // the last is a job, but a build is no operation on a snapshot
		_, err := f.GetOperation(ctx, id)
		f.refused(err, refusal{code: spore.CodeNotFound, status: 404, reason: spore.ReasonOperationNotFound, words: []string{id}, hint: "spore job ls"})
	}
	_, err := f.GetJob(ctx, "job-000000000000000000000000")
	f.refused(err, refusal{code: spore.CodeNotFound, status: 404, reason: spore.ReasonOperationNotFound, words: []string{"job-0"}})
}

func templateIDRequired(t *testing.T, f *fleet) {
	ctx := t.Context()
	want := refusal{code: spore.CodeInvalid, status: 400, reason: spore.ReasonTemplateIDRequired, field: "template", hint: "spore template ls"}
	_, err := f.CreateSandbox(ctx, api.CreateRequest{})
	f.refused(err, want)
	_, err = f.PreviewSandbox(ctx, api.CreateRequest{})
	f.refused(err, want)
	_, err = f.PutAlias(ctx, "name", api.AliasRequest{})
	f.refused(err, want)
	results, err := f.DeleteTemplates(ctx, []string{""}, client.DeleteOptions{})
	f.ok(err)
	f.like(spore.AsError(client.DeletionError(results[0])), want)
}

func noReadyReplica(t *testing.T, f *fleet) {
	ctx := t.Context()
	f.build("base", api.ReplicaPolicy{Nodes: []string{"n1"}})
	want := refusal{code: spore.CodeConflict, status: 409, reason: spore.ReasonNoReadyReplica, words: []string{"base"}, hint: "spore template replicas base"}
	_, err := f.CreateSandbox(ctx, api.CreateRequest{Template: "base", Nodes: []string{"n2"}})
	f.refused(err, want)
	_, err = f.CreateSandbox(ctx, api.CreateRequest{Template: "base", PreferredNode: "n2"})
	f.refused(err, want)
	_, err = f.DrainNode(ctx, "n1")
	f.ok(err)
	want.words = []string{"base", "n1", "drained"}
	_, err = f.CreateSandbox(ctx, api.CreateRequest{Template: "base"})
	f.refused(err, want)
	_, err = f.ReadyNodes(ctx, "base")
	f.refused(err, want)
	p, err := f.PreviewSandbox(ctx, api.CreateRequest{Template: "base"})
	f.ok(err)
	f.like(spore.AsError(client.PreviewError(p)), want)
	_, err = f.UndrainNode(ctx, "n1")
	f.ok(err)
	f.create("base")
}

func noNodes(t *testing.T, f *fleet) {
	ctx := t.Context()
	build := func(p api.ReplicaPolicy) error {
		_, err := f.BuildTemplate(ctx, api.BuildRequest{Name: "base", Image: "registry.test/base:1", Replicas: p})
		return err
	}
	want := refusal{code: spore.CodeInvalid, status: 400, reason: spore.ReasonNoNodes, hint: "spore node ls"}
	f.refused(build(api.ReplicaPolicy{Selector: api.Labels{"gpu": "yes"}}), want)
	want.field, want.words = "replicas.nodes", []string{"n9"}
	f.refused(build(api.ReplicaPolicy{Nodes: []string{"n1", "n9"}}), want)

	f.build("base", api.ReplicaPolicy{})
	want.field = "nodes"
	_, err := f.CreateSandbox(ctx, api.CreateRequest{Template: "base", Nodes: []string{"n9"}})
	f.refused(err, want)
	_, err = f.RedoTemplate(ctx, "base", api.RedoRequest{Mode: spore.RedoNodes, Nodes: []string{"n9"}})
	f.refused(err, want)
	_, err = f.ScanCompat(ctx, "n9")
	f.refused(err, want)
	_, err = f.AdoptBaseline(ctx, "base", "n9")
	f.refused(err, want)
	want.field = "preferredNode"
	_, err = f.CreateSandbox(ctx, api.CreateRequest{Template: "base", PreferredNode: "n9"})
	f.refused(err, want)

	f.lost("n1")
	f.lost("n2")
	want.field, want.words = "", []string{"base"}
	_, err = f.RedoTemplate(ctx, "base", api.RedoRequest{})
	f.refused(err, want)
	_, err = f.RedoTemplate(ctx, "base", api.RedoRequest{Mode: spore.RedoNodes, Nodes: []string{"n2"}})
	f.refused(err, refusal{code: spore.CodeUnreachable, status: 502, reason: spore.ReasonNoNodes, words: []string{"n2", "UNREACHABLE"}, hint: "spore node info n2"})
}

func duplicateTemplate(t *testing.T, f *fleet) {
	ctx := t.Context()
	base := f.build("base", api.ReplicaPolicy{})
	_, err := f.PutAlias(ctx, "pointer", api.AliasRequest{Template: "base"})
	f.ok(err)
	want := refusal{code: spore.CodeConflict, status: 409, reason: spore.ReasonDuplicate, words: []string{"base", base.ID}, hint: "another name"}
	_, err = f.BuildTemplate(ctx, api.BuildRequest{Name: "base", Image: "registry.test/base:1"})
	f.refused(err, want)
	s := f.create("base")
	_, err = f.CommitSandbox(ctx, s.ID, api.CommitRequest{Name: "base"})
	f.refused(err, want)
	_, err = f.CreateSnapshot(ctx, s.ID, api.SnapshotRequest{Name: "base"})
	f.refused(err, want)
	_, err = f.PutAlias(ctx, "base", api.AliasRequest{Template: base.ID})
	f.refused(err, want)
	want.words = []string{"pointer"}
	_, err = f.CreateSnapshot(ctx, s.ID, api.SnapshotRequest{Name: "pointer"})
	f.refused(err, want)
}

func attemptInProgress(t *testing.T, f *fleet) {
	ctx := t.Context()
	f.build("base", api.ReplicaPolicy{})
	at, goOn := f.pauses("replica:drafted")
	first, err := f.RedoTemplate(ctx, "base", api.RedoRequest{})
	f.ok(err)
	<-at
	_, err = f.RedoTemplate(ctx, "base", api.RedoRequest{})
	f.refused(err, refusal{code: spore.CodeBusy, status: 503, reason: spore.ReasonInProgress, words: []string{first.ID, "base"}, hint: "spore job watch " + first.ID})
	goOn()
	f.wait(first.ID)
	f.redo("base", spore.RedoAll)
}

func staleNeedsRedo(t *testing.T, f *fleet) {
	ctx := t.Context()
	f.build("base", everywhere)
	s := f.create("base", "n1")
	snap, committed := f.snapshot(s.ID, "point"), f.commit(s.ID, "committed", api.ReplicaPolicy{})
	for _, m := range f.cluster.Machines() { // an upgrade that takes the old guest image away, and changes the engine
		next := m.Components()
		old := next.GuestImage
		next.GuestImage, next.Agent, next.StateFormat = "krn-000000000000000000000002", "2.0.0", "sim-2"
		m.SetComponents(next)
		m.RemoveKernel(old)
	}
	f.until("the upgrade is known", func() bool {
		return f.node("n1").Components.Agent == "2.0.0" && f.node("n2").Components.Agent == "2.0.0"
	})

	want := refusal{code: spore.CodeStale, status: 409, reason: spore.ReasonStaleNeedsRedo, words: []string{"base", "n1", "n2"}, hint: "spore template redo base --node n1 --node n2"}
	for ref, cure := range map[string][]string{"base": {"n1", "n2"}, snap.Name: {"n1"}, committed.Name: {"n1"}} {
		want.words, want.hint = append([]string{ref}, cure...), "spore template redo "+ref+" --node "+strings.Join(cure, " --node ")
		_, err := f.CreateSandbox(ctx, api.CreateRequest{Template: ref})
		f.refused(err, want)
		_, err = f.ReadyNodes(ctx, ref)
		f.refused(err, want)

		f.redo(ref, spore.RedoNodes, cure...) // what the hint says
		f.create(ref)
		for _, r := range f.must(f.ListReplicas(ctx, ref)) {
			if r.CompatStatus != spore.CompatOK || r.Bound.Agent != "2.0.0" || r.Bound.StateFormat != "sim-2" {
				t.Errorf("%s on %s is %s after the redo: %+v", ref, r.NodeID, r.CompatStatus, r.Bound)
			}
		}
	}
}

// must is the answer of a list that has to be answered.
func (f *fleet) must(list []api.Replica, err error) []api.Replica {
	f.t.Helper()
	f.ok(err)
	return list
}

func noNetworkMode(t *testing.T, f *fleet) {
	ctx := t.Context()
	f.cluster.Machine("n1").SetNetworks()
	f.until("its modes are known", func() bool { n := f.node("n1"); return len(n.Networks) > 1 && n.Networks[1].WhyNot != "" })
	base, err := f.BuildTemplate(ctx, api.BuildRequest{
		Name: "base", Image: "registry.test/base:1", MemoryMiB: 128, DiskMiB: 64, Network: &api.Network{Mode: spore.NetworkUser}, Replicas: api.ReplicaPolicy{Nodes: []string{"n1"}},
	})
	f.ok(err)
	f.made(base)
	want := refusal{
		code: spore.CodeUnsupported, status: 501, reason: spore.ReasonNoNetworkMode, field: "network.mode",
		words: []string{"base", "user", "n1", "made without it"}, hint: "spore template set base --node n1 --node n2",
	}
	_, err = f.CreateSandbox(ctx, api.CreateRequest{Template: "base"})
	f.refused(err, want)
	p, err := f.PreviewSandbox(ctx, api.CreateRequest{Template: "base"})
	f.ok(err)
	f.like(spore.AsError(client.PreviewError(p)), want)
	_, err = f.UpdateTemplate(ctx, "base", api.TemplateUpdate{Replicas: &api.ReplicaPolicy{Nodes: []string{"n1", "n2"}}}) // what the hint says
	f.ok(err)
	f.until("it is there", func() bool {
		s, err := f.CreateSandbox(ctx, api.CreateRequest{Template: "base"})
		return err == nil && s.NodeID == "n2"
	})
}

func nothingFailed(t *testing.T, f *fleet) {
	ctx := t.Context()
	f.build("base", everywhere)
	want := refusal{code: spore.CodeInvalid, status: 400, reason: spore.ReasonNothingFailed, words: []string{"base"}, hint: "spore template redo base"}
	_, err := f.RedoTemplate(ctx, "base", api.RedoRequest{Mode: spore.RedoFailedOnly})
	f.refused(err, want)
	_, err = f.RedoTemplate(ctx, "base", api.RedoRequest{Mode: spore.RedoFailedNodes, Nodes: []string{"n1", "n2"}})
	f.refused(err, want)
	f.redo("base", spore.RedoAll)
}

// replicaIncomplete looks at a template while its only node is being given up: the rows of its replicas are still there.
func replicaIncomplete(t *testing.T, f *fleet) {
	ctx := t.Context()
	f.build("base", api.ReplicaPolicy{Selector: api.Labels{"id": "n1"}})
	s := f.create("base")
	f.lost("n1")
	at, goOn := f.pauses("forget:recorded")
	forgotten := make(chan error, 1)
	go func() { _, err := f.ForgetNode(ctx, "n1", false); forgotten <- err }()
	<-at
	want := refusal{code: spore.CodeConflict, status: 409, reason: spore.ReasonReplicaIncomplete, words: []string{"base", "n1"}, hint: "spore template redo base"}
	_, err := f.CreateSandbox(ctx, api.CreateRequest{Template: "base"})
	f.refused(err, want)
	_, err = f.ReadyNodes(ctx, "base")
	f.refused(err, want)
	_, err = f.Rollback(ctx, s.ID, "base")
	f.refused(err, want)
	goOn()
	f.ok(<-forgotten)
	if got := f.replicas("base"); got != "" {
		t.Errorf("the replicas of a forgotten node are %s", got)
	}
}

func locatorMissing(t *testing.T, f *fleet) {
	ctx := t.Context()
	tpl := f.build("base", api.ReplicaPolicy{Selector: api.Labels{"id": "n1"}})
	f.lost("n1")
	_, err := f.ForgetNode(ctx, "n1", false)
	f.ok(err)
	d, err := f.DeleteTemplate(ctx, "base", client.DeleteOptions{}) // it always succeeds
	f.ok(err)
	if d.Replicas != 0 {
		t.Errorf("it is said to be on %d nodes", d.Replicas)
	}
	want := refusal{code: spore.CodeNotFound, status: 404, reason: spore.ReasonLocatorMissing, words: []string{tpl.ID, "n1", "forgotten"}, hint: "wipe"}
	_, err = f.DeleteTemplate(ctx, tpl.ID, client.DeleteOptions{})
	f.refused(err, want)

	// As the hint says: it is cleaned when it comes back.
	machine := f.cluster.Machine("n1")
	machine.SetReachable(true)
	f.until("the node is back", func() bool { return f.node("n1").State == spore.NodeReady })
	f.until("its bytes are cleared away", func() bool { return len(machine.Audit().Frozen) == 0 })
	_, err = f.DeleteTemplate(ctx, tpl.ID, client.DeleteOptions{})
	f.refused(err, refusal{code: spore.CodeNotFound, status: 404, reason: spore.ReasonTemplateNotFound, words: []string{tpl.ID}})
}

func templateInUse(t *testing.T, f *fleet) {
	ctx := t.Context()
	base := f.build("base", api.ReplicaPolicy{})
	s := f.create("base")
	point := f.snapshot(s.ID, "point")
	other := f.create("point")
	for ref, holder := range map[string]string{"base": s.ID, point.ID: other.ID} {
		_, err := f.DeleteTemplate(ctx, ref, client.DeleteOptions{})
		f.refused(err, refusal{code: spore.CodeInUse, status: 409, reason: spore.ReasonInUse, words: []string{holder}, hint: "--force"})
		d, err := f.DeleteTemplate(ctx, ref, client.DeleteOptions{DryRun: true})
		f.ok(err)
		if !d.DryRun || len(d.Running) != 1 || d.Running[0] != holder {
			t.Errorf("the dry run says %+v", d)
		}
		f.template(ref) // is still there
		if d, err = f.DeleteTemplate(ctx, ref, client.DeleteOptions{Force: true}); err != nil || d.Running[0] != holder {
			t.Errorf("by force: %+v, %v", d, err)
		}
	}
	_, err := f.GetTemplate(ctx, base.ID)
	f.refused(err, refusal{code: spore.CodeNotFound, status: 404, reason: spore.ReasonTemplateNotFound, words: []string{base.ID}})
	for _, id := range []string{s.ID, other.ID} { // nothing was evicted
		if got, err := f.GetSandbox(ctx, id); err != nil || got.State != spore.SandboxRunning {
			t.Errorf("the sandbox is %+v, %v", got, err)
		}
	}
}

// TestBadInput sends what no client should: each thing is refused by name, and nothing comes of any.
func TestBadInput(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, f *fleet) {
		f.build("base", api.ReplicaPolicy{})
		s := f.create("base")
		f.snapshot(s.ID, "point")
		for _, m := range f.cluster.Machines() {
			m.Occupy(7, true)
		}
		const image = `"image": "registry.test/base:1"`
		for _, c := range []struct {
			name, method, path, body string
			status                   int
			code                     spore.Code
			field                    string
			words                    string
		}{
			{"unknown sandbox", "GET", "/v1/sandboxes/s00000000000000000000", "", 404, spore.CodeNotFound, "", "s00000000000000000000"},
			{"unknown job", "GET", "/v1/jobs/job-none", "", 404, spore.CodeNotFound, "", "job-none"},
			{"unknown job cancelled", "POST", "/v1/jobs/job-none/cancel", "", 404, spore.CodeNotFound, "", "job-none"},
			{"unknown artifact", "GET", "/v1/artifacts/rfs-none", "", 404, spore.CodeNotFound, "", "rfs-none"},
			{"unknown node", "GET", "/v1/nodes/n9", "", 404, spore.CodeNotFound, "", "n9"},
			{"unknown node drained", "POST", "/v1/nodes/n9/drain", "", 404, spore.CodeNotFound, "", "n9"},
			{"unknown node forgotten", "DELETE", "/v1/nodes/n9", "", 404, spore.CodeNotFound, "", "n9"},
			{"unknown alias", "GET", "/v1/aliases/none", "", 404, spore.CodeNotFound, "", "none"},
			{"unknown id explained", "GET", "/v1/explain/none", "", 404, spore.CodeNotFound, "", "none"},
			{"unknown template compared", "GET", "/v1/diff?from=base&to=none", "", 404, spore.CodeNotFound, "", "none"},
			{"unknown route", "GET", "/v1/nothing", "", 404, spore.CodeNotFound, "", "/v1/nothing"},
			{"wrong method", "PUT", "/v1/templates", "", 405, spore.CodeInvalid, "", "PUT"},
			{"a template is no snapshot", "GET", "/v1/snapshots/base", "", 404, spore.CodeNotFound, "", "base"},
			{"a node that answers is forgotten", "DELETE", "/v1/nodes/n1", "", 409, spore.CodeConflict, "", "n1"},
			{"resume of what runs", "POST", "/v1/sandboxes/" + s.ID + "/resume", "", 409, spore.CodeConflict, "", "RUNNING"},
			{"no page", "GET", "/v1/templates?pageToken=!!!", "", 400, spore.CodeInvalid, "pageToken", ""},
			{"a page of another list", "GET", "/v1/jobs?pageToken=eyJhIjoxfQ", "", 400, spore.CodeInvalid, "pageToken", ""},
			{"an endless page token", "GET", "/v1/snapshots?pageToken=" + strings.Repeat("A", 5000), "", 400, spore.CodeInvalid, "pageToken", ""},
			{"a negative limit", "GET", "/v1/sandboxes?limit=-1", "", 400, spore.CodeInvalid, "limit", ""},
			{"a limit beyond numbers", "GET", "/v1/sandboxes?limit=99999999999999999999", "", 400, spore.CodeInvalid, "limit", ""},
			{"a misspelt parameter", "DELETE", "/v1/templates/base?dryrun=true", "", 400, spore.CodeInvalid, "dryrun", ""},
			{"an unknown status", "GET", "/v1/templates?status=FINE", "", 400, spore.CodeInvalid, "status", ""},
			{"an unknown kind", "GET", "/v1/templates?kind=image", "", 400, spore.CodeInvalid, "kind", ""},
			{"a scope of an unknown node", "POST", "/v1/templates", `{"name": "x", ` + image + `, "replicas": {"nodes": ["n9"]}}`, 400, spore.CodeInvalid, "replicas.nodes", "n9"},
			{"a scan of an unknown node", "POST", "/v1/compat/scan", `{"nodes": ["n9"]}`, 400, spore.CodeInvalid, "nodes", "n9"},
			{"an unknown field", "POST", "/v1/templates", `{"name": "x", ` + image + `, "cpus": 3}`, 400, spore.CodeInvalid, "cpus", ""},
			{"an unknown inner field", "POST", "/v1/templates", `{"name": "x", ` + image + `, "replicas": {"most": 3}}`, 400, spore.CodeInvalid, "replicas.most", ""},
			{"no JSON", "POST", "/v1/sandboxes", `{"template": `, 400, spore.CodeInvalid, "", ""},
			{"two values", "POST", "/v1/sandboxes", `{"template": "base"} {}`, 400, spore.CodeInvalid, "", ""},
			{"a wrong type", "POST", "/v1/sandboxes", `{"template": 7}`, 400, spore.CodeInvalid, "template", ""},
			{"a missing field", "POST", "/v1/sandboxes", `{}`, 400, spore.CodeInvalid, "template", ""},
			{"an image like an option", "POST", "/v1/templates", `{"name": "x", "image": "-rf"}`, 400, spore.CodeInvalid, "image", "-rf"},
			{"no image", "POST", "/v1/templates", `{"name": "x", "image": ""}`, 400, spore.CodeInvalid, "image", ""},
			{"a port too high", "POST", "/v1/templates", `{"name": "x", ` + image + `, "readiness": {"tcpPort": 65536}}`, 400, spore.CodeInvalid, "readiness.tcpPort", "65536"},
			{"a port too low", "POST", "/v1/templates", `{"name": "x", ` + image + `, "readiness": {"httpPath": "/", "httpPort": -1}}`, 400, spore.CodeInvalid, "readiness.httpPort", "-1"},
			{"a path without a slash", "POST", "/v1/templates", `{"name": "x", ` + image + `, "readiness": {"httpPath": "ready"}}`, 400, spore.CodeInvalid, "readiness.httpPath", "ready"},
			{"a size beyond numbers", "POST", "/v1/templates", `{"name": "x", ` + image + `, "memoryMiB": 9223372036854775808}`, 400, spore.CodeInvalid, "memoryMiB", ""},
			{"a disk that overflows in bytes", "POST", "/v1/templates", `{"name": "x", ` + image + `, "diskMiB": 8796093022208}`, 400, spore.CodeInvalid, "diskMiB", ""},
			{"a negative size", "POST", "/v1/templates", `{"name": "x", ` + image + `, "diskMiB": -1}`, 400, spore.CodeInvalid, "diskMiB", ""},
			{"half a processor", "POST", "/v1/templates", `{"name": "x", ` + image + `, "vcpus": 0.5}`, 400, spore.CodeInvalid, "vcpus", ""},
			{"more memory than any node has", "POST", "/v1/templates", `{"name": "x", ` + image + `, "memoryMiB": 1048576}`, 400, spore.CodeInvalid, "memoryMiB", ""},
			{"a time beyond numbers", "POST", "/v1/sandboxes", `{"template": "base", "ttlSeconds": 9223372036854775807}`, 400, spore.CodeInvalid, "ttlSeconds", ""},
			{"replicas beyond reason", "POST", "/v1/templates", `{"name": "x", ` + image + `, "replicas": {"min": 10001}}`, 400, spore.CodeInvalid, "replicas.min", ""},
			{"fewer at most than at least", "POST", "/v1/templates", `{"name": "x", ` + image + `, "replicas": {"min": 2, "max": 1}}`, 400, spore.CodeInvalid, "replicas.max", ""},
			{"an unknown policy", "POST", "/v1/templates", `{"name": "x", ` + image + `, "compatPolicy": "LAX"}`, 400, spore.CodeInvalid, "compatPolicy", "LAX"},
			{"an unknown mode", "POST", "/v1/templates/base/redo", `{"mode": "SOME"}`, 400, spore.CodeInvalid, "mode", "SOME"},
			{"a mode without its nodes", "POST", "/v1/templates/base/redo", `{"mode": "NODES"}`, 400, spore.CodeInvalid, "nodes", ""},
			{"nodes without their mode", "POST", "/v1/templates/base/redo", `{"mode": "ALL", "nodes": ["n1"]}`, 400, spore.CodeInvalid, "nodes", ""},
			{"a name in upper case", "POST", "/v1/templates", `{"name": "Base", ` + image + `}`, 400, spore.CodeInvalid, "name", ""},
			{"a name like an id", "POST", "/v1/sandboxes/" + s.ID + "/snapshots", `{"name": "snap-1"}`, 400, spore.CodeInvalid, "name", "snap-1"},
			{"an alias like an id", "PUT", "/v1/aliases/tpl-1", `{"template": "base"}`, 400, spore.CodeInvalid, "alias", "tpl-1"},
			{"no tag", "PUT", "/v1/aliases/base2:", `{"template": "base"}`, 400, spore.CodeInvalid, "alias", ""},
			{"forks beyond reason", "POST", "/v1/forks", `{"source": "base", "count": 1001}`, 400, spore.CodeInvalid, "count", ""},
			{"forks without a source", "POST", "/v1/forks", `{"source": "none", "count": 1}`, 404, spore.CodeNotFound, "", "none"},
			{"an action that is none", "POST", "/v1/sandboxes", `{"template": "base", "onEnd": "explode"}`, 400, spore.CodeInvalid, "onEnd", "explode"},
			{"a host port twice", "POST", "/v1/sandboxes", `{"template": "base", "ports": [{"hostPort": 81, "guestPort": 1}, {"hostPort": 81, "guestPort": 2}]}`, 400, spore.CodeInvalid, "ports.hostPort", "81"},
			{"a host port everywhere and somewhere", "POST", "/v1/sandboxes", `{"template": "base", "ports": [{"hostPort": 81, "guestPort": 1, "hostAddress": "0.0.0.0"}, {"hostPort": 81, "guestPort": 2}]}`, 400, spore.CodeInvalid, "ports.hostPort", "81"},
			{"a host port too high", "POST", "/v1/sandboxes", `{"template": "base", "ports": [{"hostPort": 65536, "guestPort": 1}]}`, 400, spore.CodeInvalid, "ports[0].hostPort", "65536"},
			{"a negative guest port", "POST", "/v1/sandboxes/" + s.ID + "/ports", `{"ports": [{"guestPort": -1}]}`, 400, spore.CodeInvalid, "ports[0].guestPort", "-1"},
			{"a port without a port", "POST", "/v1/sandboxes/" + s.ID + "/ports", `{"ports": [{"hostPort": 80}]}`, 400, spore.CodeInvalid, "ports[0].guestPort", ""},
			{"a misspelt field of a port", "POST", "/v1/sandboxes/" + s.ID + "/ports", `{"ports": [{"guestPort": 80, "host": 80}]}`, 400, spore.CodeInvalid, "ports[0].host", ""},
			{"no ports", "POST", "/v1/sandboxes/" + s.ID + "/ports", `{"ports": []}`, 400, spore.CodeInvalid, "ports", ""},
			{"a host port that is taken", "POST", "/v1/sandboxes/" + s.ID + "/ports", `{"ports": [{"guestPort": 80}, {"hostPort": 7, "guestPort": 80}]}`, 409, spore.CodeConflict, "ports.hostPort", "7"},
			{"a sandbox at a port that is taken", "POST", "/v1/sandboxes", `{"template": "base", "ports": [{"hostPort": 7, "guestPort": 80}]}`, 409, spore.CodeConflict, "ports.hostPort", "7"},
			{"an address that is none", "POST", "/v1/sandboxes", `{"template": "base", "ports": [{"hostAddress": "localhost", "guestPort": 1}]}`, 400, spore.CodeInvalid, "ports.hostAddress", "localhost"},
			{"a port that is not published", "DELETE", "/v1/sandboxes/" + s.ID + "/ports?hostPort=81", "", 404, spore.CodeNotFound, "", "81"},
			{"no port to unpublish", "DELETE", "/v1/sandboxes/" + s.ID + "/ports", "", 400, spore.CodeInvalid, "hostPort", ""},
			{"a network for a template without a device", "POST", "/v1/sandboxes", `{"template": "base", "network": {"mode": "user"}}`, 409, spore.CodeConflict, "network.mode", "base"},
			{"an unknown network mode", "POST", "/v1/sandboxes", `{"template": "base", "network": {"mode": "vpn"}}`, 400, spore.CodeInvalid, "network.mode", "vpn"},
			{"a policy without a network", "POST", "/v1/sandboxes", `{"template": "base", "network": {"egress": {"internet": true}}}`, 400, spore.CodeInvalid, "network.egress", ""},
			{"a malformed range", "POST", "/v1/templates", `{"name": "x", ` + image + `, "network": {"mode": "user", "egress": {"allowCIDRs": ["10.0.0.0/33"]}}}`, 400, spore.CodeInvalid, "network.egress.allowCIDRs", "10.0.0.0/33"},
			{"a range with bits beyond its prefix", "POST", "/v1/templates", `{"name": "x", ` + image + `, "network": {"mode": "user", "egress": {"denyCIDRs": ["10.0.0.1/8"]}}}`, 400, spore.CodeInvalid, "network.egress.denyCIDRs", "10.0.0.1/8"},
			{"a malformed domain", "POST", "/v1/templates", `{"name": "x", ` + image + `, "network": {"mode": "user", "egress": {"allowDomains": ["exa mple.com"]}}}`, 400, spore.CodeInvalid, "network.egress.allowDomains", "exa mple.com"},
			{"allowed and denied", "POST", "/v1/templates", `{"name": "x", ` + image + `, "network": {"mode": "user", "egress": {"allowCIDRs": ["10.0.0.0/8"], "denyCIDRs": ["10.0.0.0/8"]}}}`, 400, spore.CodeInvalid, "network.egress.denyCIDRs", "10.0.0.0/8"},
			{"names while the internet is on", "POST", "/v1/templates", `{"name": "x", ` + image + `, "network": {"mode": "user", "egress": {"internet": true, "allowDomains": ["example.com"]}}}`, 400, spore.CodeInvalid, "network.egress.allowDomains", ""},
			{"a proxy with a password", "POST", "/v1/templates", `{"name": "x", ` + image + `, "network": {"mode": "user", "egress": {"proxy": "http://me:secret@10.1.2.3:1"}}}`, 400, spore.CodeInvalid, "network.egress.proxy", ""},
			{"a policy of a build without a network", "POST", "/v1/templates", `{"name": "x", ` + image + `, "network": {"mode": "none", "egress": {"internet": true}}}`, 400, spore.CodeInvalid, "network.egress", ""},
			{"a negative limit of processors", "POST", "/v1/sandboxes", `{"template": "base", "limits": {"cpus": -1}}`, 400, spore.CodeInvalid, "limits.cpus", "-1"},
			{"next to no processor", "POST", "/v1/sandboxes", `{"template": "base", "limits": {"cpus": 0.001}}`, 400, spore.CodeInvalid, "limits.cpus", "0.001"},
			{"an absurd limit", "PATCH", "/v1/sandboxes/" + s.ID, `{"limits": {"diskMBps": 9000000}}`, 400, spore.CodeInvalid, "limits.diskMBps", "9000000"},
			{"a bandwidth without a network", "PATCH", "/v1/sandboxes/" + s.ID, `{"limits": {"networkInMbps": 10}}`, 400, spore.CodeInvalid, "limits.networkInMbps", ""},
			{"a policy of a sandbox without a network", "PATCH", "/v1/sandboxes/" + s.ID, `{"egress": {"internet": false}}`, 400, spore.CodeInvalid, "network.egress", ""},
			{"a network mode changed", "PATCH", "/v1/sandboxes/" + s.ID, `{"network": {"mode": "user"}}`, 400, spore.CodeInvalid, "network", ""},
			{"a relative disk", "POST", "/v1/sandboxes", `{"template": "base", "disks": [{"path": "data.img"}]}`, 400, spore.CodeInvalid, "disks.path", "data.img"},
			{"a disk twice", "POST", "/v1/sandboxes", `{"template": "base", "disks": [{"path": "/d"}, {"path": "/d"}]}`, 400, spore.CodeInvalid, "disks.path", "/d"},
			{"a label without a key", "POST", "/v1/sandboxes", `{"template": "base", "labels": {"": "x"}}`, 400, spore.CodeInvalid, "labels", ""},
			{"a certificate that is none", "POST", "/v1/templates", `{"name": "x", ` + image + `, "egressCA": "none"}`, 202, "", "", ""},
		} {
			status, e := f.do(c.method, c.path, c.body)
			switch {
			case status != c.status:
				t.Errorf("%s: status %d, want %d (%v)", c.name, status, c.status, e)
			case e == nil:
			case e.Code != c.code || e.Field != c.field || !strings.Contains(e.Error(), c.words):
				t.Errorf("%s: %s of field %q: %v", c.name, e.Code, e.Field, e)
			}
		}
		f.pass(time.Minute)
		left := 0
		for tpl, err := range f.ListTemplates(t.Context(), api.ListTemplatesParams{}) {
			f.ok(err)
			if left++; tpl.Name != "base" && tpl.Name != "point" && (tpl.Name != "x" || tpl.Status != spore.TemplateFailed || !strings.Contains(tpl.LastError, "certificate")) {
				t.Errorf("%s came of bad input: %s (%s)", tpl.Name, tpl.Status, tpl.LastError)
			}
		}
		if left != 3 {
			t.Errorf("there are %d templates", left)
		}
	})
}

// TestIdempotencyKeysThatAreNone wants an idempotency key that cannot be kept refused.
func TestIdempotencyKeysThatAreNone(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		for _, key := range []string{strings.Repeat("k", 1000), "a\tb"} {
			status, e := f.do(http.MethodPost, "/v1/templates", `{"name": "x", "image": "registry.test/x:1"}`, "Idempotency-Key", key)
			if status != 400 || e == nil || e.Code != spore.CodeInvalid || e.Field != "Idempotency-Key" {
				t.Errorf("a key of %d bytes: %d, %v", len(key), status, e)
			}
		}
	})
}
