package gateway_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/gateway"
)

// TestCenterOperations walks through what there is beside building and running. Each answer is held against the description.
func TestCenterOperations(t *testing.T) {
	e := newEdge(t)
	e.svc.AutoFinish = true
	made := decode[api.TemplateJob](t, e.want(202, "POST", "/v1/templates", `{
		"name": "python", "image": "example.test/python:3", "displayName": "Python 3", "author": "ada", "reason": "first", "retain": true,
		"compatPolicy": "GUEST_ONLY", "replicas": {"selector": {"zone": "a"}, "nodes": ["local"], "min": 1, "max": 2, "pinned": true},
		"defaults": {"ttlSeconds": 60, "onEnd": "pause", "env": {"A": "1"}, "labels": {"x": "y"}}}`))
	tpl := made.Template
	if tpl.DisplayName != "Python 3" || tpl.Author != "ada" || tpl.Reason != "first" || !tpl.Retain || tpl.CompatPolicy != spore.PolicyGuestOnly || tpl.ReplicaPolicy.Max != 2 || tpl.ReplicaPolicy.Selector["zone"] != "a" {
		t.Errorf("template is not what was asked for: %+v", tpl)
	}
	if made.Template.Replicas != nil || made.Template.Request != nil {
		t.Errorf("more than was asked for: %+v", tpl)
	}
	e.want(200, "PUT", "/v1/aliases/py:3.12", `{"template": "python", "author": "ada", "reason": "new"}`)
	box := decode[api.Sandbox](t, e.want(201, "POST", "/v1/sandboxes", `{"template": "py:3.12", "nodes": ["local"], "preferredNode": "local"}`))
	one := decode[api.Template](t, e.want(200, "GET", "/v1/templates/py:3.12?includeRequest=1", ""))
	if len(one.Replicas) != 1 || *one.RefCount != 1 || one.RefSandboxes[0] != box.ID || len(one.Aliases) != 1 || one.Job == nil || !strings.Contains(string(one.Request), `"ttlSeconds":60`) {
		t.Errorf("details: %+v", one)
	}
	changed := decode[api.Template](t, e.want(200, "PATCH", "/v1/templates/python", `{"displayName": "", "labels": {}, "retain": false, "compatPolicy": "STRICT", "replicas": {}}`))
	if changed.DisplayName != "" || len(changed.Labels) != 0 || changed.Retain || changed.CompatPolicy != spore.PolicyStrict || changed.ReplicaPolicy.Pinned {
		t.Errorf("changed: %+v", changed)
	}
	if same := decode[api.Template](t, e.want(200, "PATCH", "/v1/templates/python", `{"displayName": "x"}`)); same.CompatPolicy != spore.PolicyStrict || same.DisplayName != "x" {
		t.Errorf("changed: %+v", same)
	}
	e.want(200, "GET", "/v1/templates/python/replicas", "")
	e.want(200, "GET", "/v1/templates/python/nodes", "")
	refs := decode[api.RefList](t, e.want(200, "GET", "/v1/templates/python/refs?all=true&limit=1", ""))
	if refs.Total != 1 || refs.Refs[0].SandboxID != box.ID || refs.Refs[0].Binding != "memory_backing" || refs.Refs[0].Status != spore.RefActive {
		t.Errorf("refs: %+v", refs)
	}
	e.want(200, "GET", "/v1/sandboxes/"+box.ID+"/refs", "")

	snap := decode[api.Template](t, e.want(201, "POST", "/v1/sandboxes/"+box.ID+"/snapshots", `{"name": "one", "displayName": "One", "reason": "why", "author": "bob", "retain": true}`))
	if snap.DisplayName != "One" || snap.Author != "bob" || !snap.Retain {
		t.Errorf("snapshot: %+v", snap)
	}
	for _, query := range []string{"id=" + snap.ID, "status=ready&name=one", "status=Ready&parent=" + tpl.ID, "originSandbox=" + box.ID} {
		if found := decode[api.SnapshotList](t, e.want(200, "GET", "/v1/snapshots?"+query, "")); len(found.Snapshots) != 1 {
			t.Errorf("%s: %+v", query, found)
		}
	}
	op := decode[api.SnapshotOperation](t, e.want(200, "GET", "/v1/operations/"+snap.JobID, ""))
	if op.Operation != "CREATE" || op.SnapshotID != snap.ID || op.OperationID != snap.JobID || op.SandboxID != box.ID || op.AttemptNo != 1 || op.Status != spore.JobReady {
		t.Errorf("operation: %+v", op)
	}
	if none := e.want(404, "GET", "/v1/operations/"+tpl.JobID, "").error(t); none.Reason != spore.ReasonOperationNotFound {
		t.Errorf("operation of a template: %+v", none)
	}
	line := decode[api.Lineage](t, e.want(200, "GET", "/v1/templates/one/lineage", ""))
	if line.Self.ID != snap.ID || len(line.Ancestors) != 1 || line.Ancestors[0].ID != tpl.ID || len(line.Descendants) != 0 {
		t.Errorf("lineage: %+v", line)
	}
	if line = decode[api.Lineage](t, e.want(200, "GET", "/v1/templates/python/lineage?ancestors=true&limit=5", "")); len(line.Descendants) != 0 {
		t.Errorf("lineage upwards: %+v", line)
	}
	if d := decode[api.Diff](t, e.want(200, "GET", "/v1/diff?from=python&to=one&limit=2", "")); len(d.Files) != 2 || d.FilesOmitted != 1 || d.From != tpl.ID {
		t.Errorf("diff: %+v", d)
	}

	redo := decode[api.Job](t, e.want(202, "POST", "/v1/templates/python/redo", `{"mode": "NODES", "nodes": ["local"]}`, "Idempotency-Key", "again"))
	if redo.Redo == nil || redo.Redo.Mode != spore.RedoNodes || redo.Redo.Scope[0] != "local" || redo.Nodes.Expected != 1 || redo.RequestID != "again" || redo.Owner == "" {
		t.Errorf("redo: %+v", redo)
	}
	if same := decode[api.Job](t, e.want(202, "POST", "/v1/templates/python/redo", `{"mode": "NODES", "nodes": ["local"]}`, "Idempotency-Key", "again")); same.ID != redo.ID {
		t.Errorf("the same request made %s and %s", redo.ID, same.ID)
	}
	e.want(202, "POST", "/v1/templates/python/redo", "")
	if r := e.want(400, "POST", "/v1/templates/python/redo", `{"mode": "FAILED_ONLY"}`).error(t); r.Reason != spore.ReasonNothingFailed {
		t.Errorf("redo of nothing: %+v", r)
	}
	if j := decode[api.Job](t, e.want(200, "GET", "/v1/jobs/"+redo.ID, "")); j.TemplateStatus != spore.TemplateReady {
		t.Errorf("job: %+v", j)
	}
	e.want(200, "GET", "/v1/jobs?operation=REDO&owner=controller-1", "")

	e.want(200, "PUT", "/v1/aliases/py:3.12", `{"template": "one"}`)
	if a := decode[api.Alias](t, e.want(200, "GET", "/v1/aliases/py:3.12", "")); a.TemplateID != snap.ID || a.Label != "py:3.12" {
		t.Errorf("alias: %+v", a)
	}
	e.want(200, "PUT", "/v1/aliases/py", `{"template": "one"}`)
	all := decode[api.AliasList](t, e.want(200, "GET", "/v1/aliases?name=py&template=one&limit=1", ""))
	if len(all.Aliases) != 1 || all.NextPageToken == "" {
		t.Errorf("aliases: %+v", all)
	}
	e.want(200, "GET", "/v1/aliases?limit=1&pageToken="+all.NextPageToken, "")
	e.want(204, "DELETE", "/v1/aliases/py:3.12?author=ada&reason=done", "")
	e.want(404, "DELETE", "/v1/aliases/py:3.12", "")
	h := decode[api.AliasHistory](t, e.want(200, "GET", "/v1/aliases/py:3.12/history", ""))
	if len(h.Changes) != 3 || h.Changes[0].TemplateID != "" || h.Changes[0].Reason != "done" || h.Changes[2].TemplateID != tpl.ID {
		t.Errorf("history: %+v", h)
	}
	if h = decode[api.AliasHistory](t, e.want(200, "GET", "/v1/aliases/py/history?allTags=true&limit=2", "")); len(h.Changes) != 2 {
		t.Errorf("history of all tags: %+v", h)
	}
	if taken := e.want(409, "PUT", "/v1/aliases/python", `{"template": "one"}`).error(t); taken.Reason != spore.ReasonDuplicate {
		t.Errorf("alias of a name: %+v", taken)
	}

	e.want(200, "GET", "/v1/compat?limit=1", "")
	if s := decode[api.CompatScan](t, e.want(200, "POST", "/v1/compat/scan", "")); len(s.Nodes) != 2 || s.Replicas == 0 {
		t.Errorf("scan: %+v", s)
	}
	e.want(200, "POST", "/v1/compat/scan", `{"nodes": ["n2"]}`)
	e.want(400, "POST", "/v1/compat/scan", `{"nodes": ["n3"]}`)
	e.want(200, "POST", "/v1/compat/adopt", `{"template": "python", "nodes": ["local"]}`)

	e.want(200, "GET", "/v1/nodes?all=true", "")
	if n := decode[api.Node](t, e.want(200, "PATCH", "/v1/nodes/n2", `{"labels": {"zone": "b"}}`)); n.Labels["zone"] != "b" {
		t.Errorf("node: %+v", n)
	}
	if n := decode[api.Node](t, e.want(200, "POST", "/v1/nodes/n2/drain", "")); !n.Draining {
		t.Errorf("drained: %+v", n)
	}
	e.want(200, "POST", "/v1/nodes/n2/undrain", "{}")
	e.want(409, "DELETE", "/v1/nodes/n2?dryRun=true", "")
	e.svc.SetNode(&spore.Node{ID: "n3", State: spore.NodeUnreachable})
	if s := decode[api.NodeStorageList](t, e.want(200, "GET", "/v1/nodes/storage?refresh=1", "")); len(s.Nodes) != 3 || s.Nodes[2].Storage.Mode != spore.StorageUnknown || s.Nodes[0].Storage.UsagePct != 41 {
		t.Errorf("storage: %+v", s)
	}
	e.want(200, "DELETE", "/v1/nodes/n3?dryRun=true", "")
	e.want(200, "DELETE", "/v1/nodes/n3", "")
	e.want(404, "GET", "/v1/nodes/n3", "")

	p := decode[api.Preview](t, e.want(200, "POST", "/v1/sandboxes/preview", `{"template": "python", "env": {"A": "2"}}`))
	if p.NodeID != "local" || p.Error != nil || len(p.Candidates) != 2 || p.Request.Env["A"] != "2" || p.Template.ID != tpl.ID || len(p.Stages) == 0 {
		t.Errorf("preview: %+v", p)
	}
	if p = decode[api.Preview](t, e.want(200, "POST", "/v1/sandboxes/preview", `{"template": "python", "preferredNode": "n2"}`)); p.Error == nil || p.Error.Reason != spore.ReasonNoReadyReplica {
		t.Errorf("preview elsewhere: %+v", p)
	}
	if g := decode[api.GarbageReport](t, e.want(200, "POST", "/v1/gc?dryRun=true", "")); len(g.Policies) != 1 || g.Policies[0].Policy != "keep-last" {
		t.Errorf("garbage: %+v", g)
	}

	batch := decode[api.BatchDeletion](t, e.want(200, "POST", "/v1/templates/delete", `{"refs": ["python", "none", "one", ""]}`))
	var got []string
	for _, r := range batch.Results {
		if r.Error != nil {
			got = append(got, r.Ref+" "+string(r.Error.Reason))
		} else {
			got = append(got, r.Ref+" gone")
		}
	}
	if want := "python gone|none template_not_found|one template_in_use| template_id_required"; strings.Join(got, "|") != want {
		t.Errorf("batch: %s, want %s", strings.Join(got, "|"), want)
	}
	gone := decode[api.Deletion](t, e.want(200, "DELETE", "/v1/snapshots/one?force=true", "", "Idempotency-Key", "bye"))
	if again := decode[api.Deletion](t, e.want(200, "DELETE", "/v1/snapshots/one?force=true", "", "Idempotency-Key", "bye")); again.ID != gone.ID {
		t.Errorf("deleted again: %+v", again)
	}
	if e.want(404, "DELETE", "/v1/snapshots/one", "").error(t).Reason != spore.ReasonSnapshotNotFound {
		t.Error("a snapshot that is gone is missed as something else")
	}
	if op := decode[api.SnapshotOperation](t, e.want(200, "GET", "/v1/operations/"+gone.JobID, "")); op.Operation != "DELETE" || op.RequestID != "bye" {
		t.Errorf("operation of what is gone: %+v", op)
	}
}

// TestReasons carries every reason that there is to the client.
func TestReasons(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../../reason.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var reasons []spore.Reason
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok {
			if typ, ok := spec.Type.(*ast.Ident); ok && typ.Name == "Reason" {
				text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				reasons = append(reasons, spore.Reason(text))
			}
		}
		return true
	})
	if len(reasons) < 15 {
		t.Fatalf("found %v only", reasons)
	}
	known := description(t).Components.Schemas["Reason"].Value.Enum
	e := newEdge(t)
	for _, reason := range reasons {
		if !strings.Contains(fmt.Sprint(known), string(reason)) {
			t.Errorf("the description lacks %s", reason)
		}
		e.svc.Fail = func(string) error {
			return fmt.Errorf("wrapped: %w", spore.Errorf(spore.CodeConflict, "no").Because(reason))
		}
		if got := e.want(409, "GET", "/v1/info", "").error(t); got.Reason != reason {
			t.Errorf("%s arrives as %q", reason, got.Reason)
		}
	}
	if len(known) != len(reasons) {
		t.Errorf("the description has %d reasons, there are %d", len(known), len(reasons))
	}
}

func TestStaleSaysHowToCureIt(t *testing.T) {
	e := newEdge(t)
	tpl := e.svc.AddTemplate("python")
	for _, node := range []string{"n2", "local"} {
		e.svc.SetReplica(&spore.Replica{TemplateID: tpl.ID, NodeID: node, Status: spore.ReplicaReady, Phase: spore.ReplicaPhaseReady, CompatStatus: spore.CompatStale})
	}
	got := e.want(409, "GET", "/v1/templates/python/nodes", "").error(t)
	if got.Code != spore.CodeStale || got.Reason != spore.ReasonStaleNeedsRedo || !strings.Contains(got.Message, "local, n2") || got.Hint != "spore template redo "+tpl.ID+" --node local --node n2" {
		t.Errorf("%+v", got)
	}
	m := decode[api.CompatMatrix](t, e.want(200, "GET", "/v1/compat", ""))
	if m.Summary.StaleTemplates != 1 || m.Summary.StaleReplicas != 2 || m.Summary.AffectedNodes != 2 || m.Templates[0].Overall != spore.CompatStale {
		t.Errorf("%+v", m)
	}
}

func TestMetrics(t *testing.T) {
	e := newEdge(t, func(o *gateway.Options) { o.Token = "0123456789abcdef" })
	e.want(401, "GET", "/metrics", "")
	e.svc.SetNode(&spore.Node{ID: "odd \"name\"\n\\", State: spore.NodeUnreachable, Draining: true})
	a := e.want(200, "GET", "/metrics", "", "Authorization", "Bearer 0123456789abcdef")
	if kind := a.header.Get("Content-Type"); kind != "text/plain; version=0.0.4; charset=utf-8" {
		t.Errorf("Content-Type %s", kind)
	}
	golden(t, "metrics.txt", a.body)
}

func TestLimitsOfMaps(t *testing.T) {
	e := newEdge(t)
	e.svc.AddTemplate("python")
	entries := func(n, size int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"k%d":"%s"`, i, strings.Repeat("v", size))
		}
		return "{" + b.String()[1:] + "}"
	}
	for _, c := range []struct {
		field, value string
		status       int
	}{
		{"labels", entries(64, 1024), 201},
		{"labels", entries(65, 1), 400},
		{"labels", entries(1, 1025), 400},
		{"labels", `{"` + strings.Repeat("k", 1024) + `": "v"}`, 201},
		{"labels", `{"` + strings.Repeat("k", 1025) + `": "v"}`, 400},
		{"env", entries(1024, 1), 201},
		{"env", entries(1025, 1), 400},
		{"env", entries(1000, 250), 201},
		{"env", entries(1000, 260), 400},
		{"env", entries(1, 256<<10), 400},
		{"nodes", "[" + strings.Repeat(`"n",`, 10000) + `"n"]`, 400},
	} {
		a := e.want(c.status, "POST", "/v1/sandboxes", `{"template": "python", "`+c.field+`": `+c.value+`}`)
		if c.status == 400 && !strings.HasPrefix(a.error(t).Field, c.field) {
			t.Errorf("%s of %d bytes: %s", c.field, len(c.value), a.body)
		}
	}
}

// TestEverythingIsBounded looks for parameters and fields of requests that may be of any size.
func TestEverythingIsBounded(t *testing.T) {
	var look func(where string, s *openapi3.Schema)
	look = func(where string, s *openapi3.Schema) {
		for _, part := range s.AllOf {
			look(where, part.Value)
		}
		switch {
		case s.Type.Is("string") && s.MaxLength == nil && len(s.Enum) == 0 && s.Pattern == "":
			t.Errorf("%s: a string of any length", where)
		case s.Type.Is("integer") && (s.Max == nil || s.Min == nil) && s.Format != "int64":
			t.Errorf("%s: a number of any size", where)
		case s.Type.Is("array"):
			if s.MaxItems == nil {
				t.Errorf("%s: a list of any length", where)
			}
			look(where+"[]", s.Items.Value)
		case s.Type.Is("object"):
			if rest := s.AdditionalProperties.Schema; rest != nil {
				if s.MaxProps == nil || s.Extensions["x-max-key-length"] == nil {
					t.Errorf("%s: a map of any size", where)
				}
				look(where+".*", rest.Value)
			} else if s.AdditionalProperties.Has == nil || *s.AdditionalProperties.Has {
				t.Errorf("%s: an object with any fields", where)
			}
			for name, property := range s.Properties {
				look(where+"."+name, property.Value)
			}
		}
	}
	for path, item := range description(t).Paths.Map() {
		for method, op := range item.Operations() {
			for _, p := range append(slices.Clone(item.Parameters), op.Parameters...) {
				look(method+" "+path+" "+p.Value.Name, p.Value.Schema.Value)
			}
			if op.RequestBody != nil {
				look(method+" "+path, op.RequestBody.Value.Content.Get("application/json").Schema.Value)
			}
		}
	}
}
