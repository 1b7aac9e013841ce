package gateway_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/gateway"
)

var update = flag.Bool("update", false, "write golden files anew")

// syncBuffer is a log that a test may read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestDescriptionIsValid(t *testing.T) {
	doc := description(t)
	if err := doc.Validate(context.Background()); err != nil {
		t.Fatal(err)
	}
	var undescribed []string
	for name, schema := range doc.Components.Schemas {
		if schema.Value.Description == "" {
			undescribed = append(undescribed, name)
		}
		for field, property := range schema.Value.Properties {
			if property.Value.Description == "" {
				undescribed = append(undescribed, name+"."+field)
			}
		}
	}
	if len(undescribed) > 0 {
		t.Errorf("without a description: %v", undescribed)
	}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			if op.Summary == "" || op.OperationID == "" || len(op.Tags) == 0 {
				t.Errorf("%s %s lacks a summary, an id or a tag", method, path)
			}
			makes := method == http.MethodPost && op.Responses.Status(201) != nil || op.Responses.Status(202) != nil
			if makes && !takes(op, "Idempotency-Key") {
				t.Errorf("%s %s makes something and takes no Idempotency-Key", method, path)
			}
		}
	}
}

func takes(op *openapi3.Operation, name string) bool {
	return op.Parameters.GetByInAndName("header", name) != nil
}

// TestEveryOperation walks through the whole API. Each answer is held against the description.
func TestEveryOperation(t *testing.T) {
	e := newEdge(t)
	e.svc.AutoFinish = true
	e.want(200, "GET", "/healthz", "")
	e.want(200, "GET", "/v1/info", "")
	made := decode[api.TemplateJob](t, e.want(202, "POST", "/v1/templates", `{
		"name": "python", "image": "example.test/python:3", "vcpus": 2, "memoryMiB": 256, "diskMiB": 1024,
		"process": {"cmd": ["python3"], "env": ["A=1"], "user": "app", "workDir": "/srv"},
		"readiness": {"tcpPort": 80, "timeoutSeconds": 5}, "labels": {"team": "red"}, "egressCA": "PEM"}`))
	if made.Template.VCPUs != 2 || made.Template.Process.User != "app" || made.Template.Readiness.TimeoutSeconds != 5 || !made.Template.EgressCA.Baked {
		t.Errorf("template is not what was asked for: %+v", made.Template)
	}
	e.want(200, "GET", "/v1/templates/python", "")
	for _, query := range []string{"", "?kind=template&status=READY&name=python&label=team=red&all=true&limit=5", "?label=team=blue"} {
		found := decode[api.TemplateList](t, e.want(200, "GET", "/v1/templates"+query, ""))
		if want := strings.Count(query, "blue") ^ 1; len(found.Templates) != want {
			t.Errorf("%s: %d templates, want %d", query, len(found.Templates), want)
		}
	}
	box := decode[api.Sandbox](t, e.want(201, "POST", "/v1/sandboxes", `{"template": "python", "ttlSeconds": 60, "onEnd": "pause", "env": {"B": "2"}, "labels": {"x": "y"}}`))
	if box.EndsAt.IsZero() || box.OnEnd != spore.EndPause || box.Env["B"] != "2" {
		t.Errorf("sandbox is not what was asked for: %+v", box)
	}
	at := "/v1/sandboxes/" + box.ID
	e.want(200, "GET", at, "")
	e.want(200, "GET", "/v1/sandboxes?state=RUNNING,PAUSED&template="+made.Template.ID+"&label=x=y", "")
	e.want(200, "POST", at+"/extend", `{"ttlSeconds": 0, "onEnd": "kill"}`)
	e.want(200, "POST", at+"/pause", "")
	e.want(409, "POST", at+"/pause", "")
	e.want(200, "POST", at+"/resume", "")
	e.want(200, "POST", at+"/pause", "{}")
	e.want(200, "POST", at+"/resume", `{"ttlSeconds": 5}`)
	if out := e.want(200, "GET", at+"/logs", ""); out.body != "serving on :8080\n" {
		t.Errorf("logs: %q", out.body)
	}
	if out := e.want(200, "GET", at+"/logs?console=true&limit=4", ""); out.body != "6.1\n" {
		t.Errorf("console: %q", out.body)
	}
	snap := decode[api.Template](t, e.want(201, "POST", at+"/snapshots", `{"name": "one", "labels": {"k": "v"}}`))
	e.want(201, "POST", at+"/snapshots", "")
	e.want(200, "GET", "/v1/snapshots?originSandbox="+box.ID, "")
	e.want(200, "GET", "/v1/snapshots/one", "")
	e.want(404, "GET", "/v1/snapshots/python", "")
	e.want(404, "DELETE", "/v1/snapshots/python", "")
	e.want(200, "GET", "/v1/templates/python", "")
	rolled := decode[api.Sandbox](t, e.want(200, "POST", at+"/rollback", `{"snapshot": "one"}`))
	if rolled.TemplateID != snap.ID {
		t.Errorf("rolled back to %s, want %s", rolled.TemplateID, snap.ID)
	}
	forks := decode[api.ForkList](t, e.want(201, "POST", "/v1/forks", `{"source": "one", "count": 3}`))
	if len(forks.Forks) != 3 || forks.Forks[0].Sandbox == nil {
		t.Errorf("forks: %+v", forks)
	}
	e.want(202, "POST", at+"/commit", `{"name": "committed"}`)
	lineage := decode[api.LineageList](t, e.want(200, "GET", "/v1/lineage?limit=2", ""))
	if len(lineage.Entries) != 2 || lineage.NextPageToken == "" {
		t.Errorf("lineage: %+v", lineage)
	}
	e.want(200, "GET", "/v1/lineage?limit=2&pageToken="+lineage.NextPageToken, "")
	e.want(200, "GET", "/v1/jobs?status=READY,FAILED&operation=CREATE&resource="+made.Template.ID, "")
	e.want(200, "GET", "/v1/jobs/"+made.Job.ID, "")
	e.want(200, "GET", "/v1/jobs/"+made.Job.ID+"/log?after=0&limit=10", "")
	e.want(200, "GET", "/v1/jobs/"+made.Job.ID+"/watch", "")
	e.want(409, "POST", "/v1/jobs/"+made.Job.ID+"/cancel", "")
	kernels := decode[api.KernelList](t, e.want(200, "GET", "/v1/kernels", ""))
	e.want(200, "POST", "/v1/kernels", "")
	e.want(200, "POST", "/v1/kernels", `{"kernel": "/k", "modules": "/m"}`)
	e.want(204, "DELETE", "/v1/kernels/"+kernels.Kernels[0].ID, "")
	e.want(200, "POST", "/v1/check?full=true", "")
	e.want(200, "POST", "/v1/gc?dryRun=true", "")
	e.want(200, "GET", "/v1/explain/python", "")
	dry := decode[api.Deletion](t, e.want(200, "DELETE", "/v1/snapshots/one?dryRun=true", ""))
	if !dry.DryRun || len(dry.HeldBy) != 4 || len(dry.Running) != 4 || dry.JobID != "" {
		t.Errorf("dry run: %+v", dry)
	}
	e.want(200, "GET", "/v1/snapshots/one", "")
	if refused := e.want(409, "DELETE", "/v1/snapshots/one", "").error(t); refused.Code != spore.CodeInUse || refused.Reason != spore.ReasonInUse || !strings.Contains(refused.Message, box.ID) {
		t.Errorf("delete of what runs: %+v", refused)
	}
	e.want(200, "DELETE", "/v1/snapshots/one?force=true", "")
	e.want(200, "DELETE", "/v1/templates/python", "")
	e.want(404, "GET", "/v1/templates/python", "")
	e.want(204, "DELETE", at, "")
	e.want(404, "DELETE", at, "")
	if spec := e.want(200, "GET", "/v1/openapi.yaml", ""); spec.body != string(api.Spec) {
		t.Error("the description that is served is not the description")
	}
}

// TestErrors keeps the body, status and headers of each kind of refusal.
func TestErrors(t *testing.T) {
	inner := spore.Errorf(spore.CodeUnreachable, "the registry does not answer")
	fail := map[string]error{
		"conflict":        spore.Errorf(spore.CodeConflict, "the name python is taken").WithHint("choose another"),
		"in_use":          spore.Errorf(spore.CodeInUse, "s1 stands on it"),
		"busy":            spore.Errorf(spore.CodeBusy, "no room for another sandbox"),
		"no_space":        spore.Errorf(spore.CodeNoSpace, "12 MiB are missing"),
		"stale":           spore.Errorf(spore.CodeStale, "frozen with another kernel"),
		"unreachable":     spore.Errorf(spore.CodeUnreachable, "the image cannot be pulled").WithCause(inner),
		"damaged":         spore.Errorf(spore.CodeDamaged, "layer 3 is damaged"),
		"unsupported":     spore.Errorf(spore.CodeUnsupported, "no such engine"),
		"canceled":        spore.Errorf(spore.CodeCanceled, "canceled"),
		"unauthenticated": spore.Errorf(spore.CodeUnauthenticated, "who are you"),
		"not_found":       spore.Errorf(spore.CodeNotFound, "nothing there"),
		"wrapped":         fmt.Errorf("deep inside: %w", spore.Invalidf("memoryMiB", "64 is out of range").WithHint("more")),
		"context":         context.Canceled,
		"plain":           fmt.Errorf("secret: open /root/.config: no"),
		"internal":        spore.Errorf(spore.CodeInternal, "secret state"),
		"unknown code":    spore.Errorf("new_code", "secret state"),
	}
	var got strings.Builder
	for _, name := range sorted(fail) {
		e := newEdge(t)
		e.svc.Fail = func(string) error { return fail[name] }
		a := e.do("GET", "/v1/info", "", "X-Request-Id", "req-1")
		fmt.Fprintf(&got, "== %s\n%d", name, a.status)
		for _, h := range []string{"Retry-After", "WWW-Authenticate", "Spore-Error"} {
			if v := a.header.Get(h); v != "" {
				fmt.Fprintf(&got, " %s: %s", h, v)
			}
		}
		fmt.Fprintf(&got, "\n%s", a.body)
		if strings.Contains(a.body, "secret") {
			t.Errorf("%s shows what is internal: %s", name, a.body)
		}
		if strings.Contains(fail[name].Error(), "secret") && !strings.Contains(e.log.String(), "secret") {
			t.Errorf("%s is not logged", name)
		}
	}
	e := newEdge(t, func(o *gateway.Options) { o.MaxBody = 4096 })
	for _, bad := range []struct{ name, method, path, body string }{
		{"unknown field", "POST", "/v1/sandboxes", `{"template": "x", "tll": 3}`},
		{"field of another case", "POST", "/v1/sandboxes", `{"Template": "x"}`},
		{"unknown nested field", "POST", "/v1/templates", `{"name": "x", "image": "y", "readiness": {"port": 3}}`},
		{"field twice", "POST", "/v1/sandboxes", `{"template": "x", "template": "y"}`},
		{"missing field", "POST", "/v1/sandboxes/s1/extend", `{"onEnd": "kill"}`},
		{"null field", "POST", "/v1/sandboxes", `{"template": null}`},
		{"wrong type", "POST", "/v1/templates", `{"name": "x", "image": "y", "memoryMiB": "many"}`},
		{"wrong nested type", "POST", "/v1/templates", `{"name": "x", "image": "y", "readiness": {"tcpPort": 1.5}}`},
		{"no object", "POST", "/v1/sandboxes", `[1]`},
		{"no JSON", "POST", "/v1/sandboxes", "{\n  \"template\": oops\n}"},
		{"half JSON", "POST", "/v1/sandboxes", `{"template": "x"`},
		{"two values", "POST", "/v1/sandboxes", `{"template": "x"} {}`},
		{"no body", "POST", "/v1/sandboxes", ""},
		{"body where none belongs", "POST", "/v1/sandboxes/s1/pause", `{"a": 1}`},
		{"too large", "POST", "/v1/sandboxes", `{"template": "` + strings.Repeat("x", 5000) + `"}`},
		{"unknown parameter", "DELETE", "/v1/templates/x?dryrun=true", ""},
		{"bad boolean", "DELETE", "/v1/templates/x?dryRun=maybe", ""},
		{"bad number", "GET", "/v1/jobs?limit=ten", ""},
		{"limit out of range", "GET", "/v1/jobs?limit=1001", ""},
		{"negative limit", "GET", "/v1/jobs?limit=-1", ""},
		{"unknown state", "GET", "/v1/sandboxes?state=ASLEEP", ""},
		{"unknown kind", "GET", "/v1/templates?kind=image", ""},
		{"unknown operation", "GET", "/v1/jobs?operation=MAKE", ""},
		{"bad label", "GET", "/v1/templates?label=team", ""},
		{"label twice", "GET", "/v1/templates?label=a=1&label=a=2", ""},
		{"negative time", "POST", "/v1/sandboxes", `{"template": "x", "ttlSeconds": -1}`},
		{"endless time", "POST", "/v1/sandboxes", `{"template": "x", "ttlSeconds": 9223372036854775807}`},
		{"unknown end", "POST", "/v1/sandboxes", `{"template": "x", "onEnd": "explode"}`},
		{"too many forks", "POST", "/v1/forks", `{"source": "x", "count": 1001}`},
		{"kernel without modules", "POST", "/v1/kernels", `{"kernel": "/k"}`},
		{"kernel and package", "POST", "/v1/kernels", `{"kernel": "/k", "modules": "/m", "package": "/p"}`},
		{"probe out of range", "POST", "/v1/templates", `{"name": "x", "image": "y", "readiness": {"timeoutSeconds": 99999999999999}}`},
		{"no such route", "GET", "/v2/sandboxes", ""},
		{"no such method", "PUT", "/v1/sandboxes", ""},
		{"bad query", "GET", "/v1/jobs?limit=%zz", ""},
		{"unknown redo mode", "POST", "/v1/templates/x/redo", `{"mode": "SOME"}`},
		{"redo of nodes that are not named", "POST", "/v1/templates/x/redo", `{"mode": "FAILED_NODES"}`},
		{"redo of all, of some nodes", "POST", "/v1/templates/x/redo", `{"nodes": ["n2"]}`},
		{"unknown policy", "PATCH", "/v1/templates/x", `{"compatPolicy": "LAX"}`},
		{"field that never changes", "PATCH", "/v1/templates/x", `{"name": "y"}`},
		{"too many replicas", "POST", "/v1/templates", `{"name": "x", "image": "y", "replicas": {"min": 10001}}`},
		{"fewer replicas than none", "POST", "/v1/templates", `{"name": "x", "image": "y", "replicas": {"max": -1}}`},
		{"size that overflows", "POST", "/v1/templates", `{"name": "x", "image": "y", "memoryMiB": 99999999999999999999}`},
		{"size in exponents", "POST", "/v1/templates", `{"name": "x", "image": "y", "diskMiB": 1e300}`},
		{"port out of range", "POST", "/v1/templates", `{"name": "x", "image": "y", "readiness": {"tcpPort": 65536}}`},
		{"label that is too long", "POST", "/v1/sandboxes", `{"template": "x", "labels": {"k": "` + strings.Repeat("v", 1025) + `"}}`},
		{"label key that is too long", "PATCH", "/v1/nodes/local", `{"labels": {"` + strings.Repeat("k", 1025) + `": "v"}}`},
		{"no labels", "PATCH", "/v1/nodes/local", `{"labels": null}`},
		{"name that is too long", "POST", "/v1/sandboxes/s1/snapshots", `{"name": "` + strings.Repeat("n", 65) + `"}`},
		{"id that is too long", "GET", "/v1/jobs/" + strings.Repeat("j", 129), ""},
		{"bad alias", "PUT", "/v1/aliases/Upper", `{"template": "x"}`},
		{"bad tag", "GET", "/v1/aliases/python:-", ""},
		{"alias of an id", "PUT", "/v1/aliases/tpl-1", `{"template": "x"}`},
		{"unknown artifact status", "GET", "/v1/artifacts?status=READY,GONE", ""},
		{"token for ever", "POST", "/v1/artifacts/rfs-1/token", `{"ttlSeconds": 86401}`},
		{"no diff", "GET", "/v1/diff?from=a", ""},
		{"nothing to delete", "POST", "/v1/templates/delete", `{"refs": []}`},
		{"refresh that is no boolean", "GET", "/v1/nodes/storage?refresh=perhaps", ""},
		{"page of another list", "GET", "/v1/compat?pageToken=none", ""},
		{"negative page", "GET", "/v1/aliases?pageToken=-1", ""},
		{"page token that is too long", "GET", "/v1/artifacts?pageToken=" + strings.Repeat("x", 1025), ""},
		{"no template", "POST", "/v1/sandboxes", `{"template": ""}`},
		{"no such operation", "GET", "/v1/operations/job-1", ""},
		{"no such template", "GET", "/v1/templates/none", ""},
		{"no such snapshot", "GET", "/v1/snapshots/none", ""},
	} {
		a := e.do(bad.method, bad.path, bad.body)
		fmt.Fprintf(&got, "== %s\n%d\n%s", bad.name, a.status, a.body)
	}
	golden(t, "errors.txt", got.String())
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; run with -update and look at the difference. Got:\n%s", file, got)
	}
}

func sorted[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	for i := range keys {
		for j := i; j > 0 && keys[j] < keys[j-1]; j-- {
			keys[j], keys[j-1] = keys[j-1], keys[j]
		}
	}
	return keys
}

func TestRouteTableIsWhole(t *testing.T) {
	want := map[string]bool{}
	for path, item := range description(t).Paths.Map() {
		for method, op := range item.Operations() {
			pattern := method + " " + path
			want[pattern] = true
			body, params, ok := gateway.RouteOf(pattern)
			if !ok {
				t.Errorf("%s is not in the table of routes", pattern)
			}
			if (op.RequestBody != nil) != body {
				t.Errorf("%s: body: described %t, known %t", pattern, op.RequestBody != nil, body)
			}
			for _, p := range op.Parameters {
				if p.Value.In == "query" && !params[p.Value.Name] {
					t.Errorf("%s: parameter %s is described but not known", pattern, p.Value.Name)
				}
			}
		}
	}
	for _, pattern := range gateway.Routes() {
		if !want[pattern] {
			t.Errorf("%s is known but not described", pattern)
		}
	}
}

func TestIdempotency(t *testing.T) {
	e := newEdge(t)
	e.svc.AddTemplate("python")
	create := func(status int, key, body string) answer {
		t.Helper()
		return e.want(status, "POST", "/v1/sandboxes", body, "Idempotency-Key", key)
	}
	first := decode[api.Sandbox](t, create(201, "k1", `{"template": "python", "ttlSeconds": 60}`))
	again := decode[api.Sandbox](t, create(201, "k1", `{ "ttlSeconds":60,"template":"python"}`))
	if first.ID != again.ID {
		t.Errorf("the same request made %s and %s", first.ID, again.ID)
	}
	if e := create(409, "k1", `{"template": "python", "ttlSeconds": 61}`).error(t); e.Code != spore.CodeConflict {
		t.Errorf("another request with the same key: %+v", e)
	}
	if other := decode[api.Sandbox](t, create(201, "k2", `{"template": "python", "ttlSeconds": 60}`)); other.ID == first.ID {
		t.Error("another key made the same sandbox")
	}
	create(400, "not one word", `{"template": "python"}`)
	create(400, strings.Repeat("k", 256), `{"template": "python"}`)
}
