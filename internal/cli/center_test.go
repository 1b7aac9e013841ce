package cli_test

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/cli"
	"github.com/sporevm/spore/internal/gateway/gatewaytest"
)

// transcript runs command lines and keeps what they print.
type transcript struct {
	*shell
	text strings.Builder
}

func (tr *transcript) show(code int, args ...string) outcome {
	tr.t.Helper()
	o := tr.want(code, args...)
	fmt.Fprintf(&tr.text, "$ spore %s\n%s", strings.Join(args, " "), o.out)
	for line := range strings.Lines(o.errOut) {
		fmt.Fprintf(&tr.text, "! %s", line)
	}
	return o
}

// formats shows a command as a table, wide, as JSON and as ids.
func (tr *transcript) formats(args ...string) {
	tr.t.Helper()
	for _, format := range [][]string{{}, {"-o", "wide"}, {"-o", "json"}, {"-q"}} {
		tr.show(0, append(slices.Clone(args), format...)...)
	}
}

// TestCenterOutput keeps what the commands of the template center print.
func TestCenterOutput(t *testing.T) {
	tr := &transcript{shell: newShell(t)}
	svc := tr.svc
	tr.env["USER"] = "ada"
	python := svc.AddTemplate("python")
	svc.SetReplica(&spore.Replica{
		TemplateID: python.ID, NodeID: "n2", Status: spore.ReplicaFailed, Phase: spore.ReplicaPhaseFailed, LastErrorPhase: spore.ReplicaDistributing, ErrorMessage: "node n2 has no room",
		Attempts: 3, RetryAt: gatewaytest.Start.Add(100 * time.Minute), CompatStatus: spore.CompatUnknown, CompatPolicy: spore.PolicyStrict, CleanupRequired: true, UpdatedAt: gatewaytest.Start,
	})
	tr.show(0, "template", "build", "web", "--image", "nginx:1", "--display-name", "The web", "--reason", "new release", "--retain", "--compat-policy", "guest-only", "--node", "local",
		"--replicas-min", "1", "--replicas-max", "2", "--selector", "zone=a", "--pin", "--default-ttl", "1h", "--default-on-end", "pause", "--default-env", "A=1", "--default-label", "team=red",
		"--tag", "www", "--tag", "www:v1")
	tr.show(0, "template", "info", "www:v1", "--include-request")
	tr.show(0, "template", "set", "web", "--label", "tier=front", "--no-retain", "--unpin", "--no-selector", "--any-node", "--replicas-max", "0", "--display-name", "", "-o", "json")
	tr.show(0, "template", "ls", "--kind", "any", "--name", "web", "--status", "ready")
	tr.formats("template", "replicas", "python")
	tr.show(0, "template", "nodes", "python")
	tr.show(0, "template", "redo", "python", "--failed-only", "--node", "n2")
	redo := strings.TrimSpace(tr.want(0, "template", "redo", "python", "-q").out)
	tr.show(0, "job", "show", redo)
	tr.show(0, "job", "ls", "--operation", "redo", "-o", "wide")

	tr.show(0, "sandbox", "create", "www", "--preview", "--prefer-node", "local", "--ttl", "90s", "-e", "TOKEN=secret")
	tr.show(1, "sandbox", "create", "www", "--preview", "--prefer-node", "n2")
	box := strings.TrimSpace(tr.show(0, "sandbox", "create", "python", "--node", "local", "-q").out)
	snap := strings.TrimSpace(tr.show(0, "snapshot", "create", box, "--name", "one", "--reason", "before the upgrade", "--display-name", "First", "--retain", "-q").out)
	tr.show(0, "snapshot", "info", "one")
	tr.show(0, "snapshot", "ls", "--sandbox", box, "--id", snap, "--name", "one", "--status", "ready")
	tr.show(0, "snapshot", "redo", "one", "-d")
	tr.show(1, "snapshot", "redo", "python")
	operation := strings.Fields(tr.want(0, "job", "ls", "-q", "--operation", "snapshot-create").out)[0]
	tr.show(0, "operation", "show", operation)
	tr.show(0, "template", "commit", box, "tuned", "--author", "bob", "--reason", "warm caches", "--replicas-min", "1")
	tr.formats("sandbox", "refs", box, "--all")
	tr.show(0, "template", "refs", "one")

	tr.show(0, "alias", "set", "py:stable", "python", "--reason", "first")
	tr.show(0, "tag", "py:stable", "tuned", "--author", "bob")
	tr.formats("alias", "ls", "--template", "tuned")
	tr.show(0, "alias", "info", "py:stable")
	tr.show(0, "log", "--graph")
	tr.show(0, "log", "--graph", box, "-n", "2")
	tr.show(0, "log", "tuned", "-o", "wide")
	tr.show(0, "alias", "rm", "--dry-run", "py:stable")
	tr.show(1, "alias", "rm", "py:stable", "py:none", "--reason", "not needed")
	tr.formats("alias", "history", "py", "--all-tags")
	tr.formats("diff", "python", "one")
	tr.show(0, "diff", "python", "one", "--limit", "1")

	tr.formats("artifact", "ls", "--status", "ready,cleanup-pending")
	artifact := strings.TrimSpace(tr.want(0, "artifact", "ls", "-q").out)
	tr.show(0, "artifact", "info", artifact)
	tr.show(0, "artifact", "verify", artifact, "--full")
	svc.LoseArtifact(artifact)
	tr.show(1, "artifact", "verify", artifact)

	svc.SetReplica(&spore.Replica{TemplateID: python.ID, NodeID: "local", Status: spore.ReplicaReady, Phase: spore.ReplicaPhaseReady, CompatStatus: spore.CompatStale,
		CompatPolicy: spore.PolicyStrict, Bound: spore.Components{GuestImage: "krn-000000000000000000000009", Agent: "0.0.9"}, CompatCheckedAt: gatewaytest.Start})
	tr.formats("compat", "matrix")
	tr.show(0, "compat", "matrix", "--status", "stale", "--template", "python")
	tr.show(0, "compat", "adopt", "--dry-run")
	tr.show(0, "compat", "adopt", "--template", "python", "--node", "n2")
	tr.show(0, "compat", "scan", "--node", "local")
	tr.show(2, "template", "nodes", "one", "two")
	tr.show(1, "template", "nodes", "nothing")

	tr.formats("node", "ls")
	tr.show(0, "node", "label", "n2", "disk=nvme", "zone-")
	tr.show(0, "node", "drain", "n2")
	tr.show(0, "node", "info", "n2")
	tr.show(0, "node", "undrain", "n2", "-q")
	tr.show(1, "node", "forget", "n2")
	svc.SetNode(&spore.Node{ID: "n2", Address: "n2.example:7071", State: spore.NodeUnreachable, StateReason: "it does not answer", Engine: "qemu"})
	tr.show(0, "node", "forget", "--dry-run", "n2")
	tr.formats("node", "storage")
	tr.show(0, "node", "storage", "--refresh")
	tr.show(0, "node", "forget", "n2")
	tr.show(0, "node", "ls", "--all", "-q")

	tr.show(0, "metrics", "spore_resolve_seconds_sum", "spore_resolve_seconds_count")
	tr.show(0, "snapshot", "rm", "--dry-run", "one", "-o", "wide")
	tr.show(1, "snapshot", "rm", "one")
	tr.show(0, "snapshot", "rm", "one", "--force", "-o", "wide")
	tr.show(1, "snapshot", "rm", "python", "nothing")
	key := regexp.MustCompile(`(request id: +)[0-9a-f]{32}`)
	golden(t, "center.txt", key.ReplaceAllString(tr.text.String(), "${1}KEY"))
}

// sent runs a command line and answers the body of the last request that changed something.
func (s *shell) sent(code int, args ...string) map[string]any {
	s.t.Helper()
	var body map[string]any
	s.onBody = func(method, path string, raw []byte) {
		body = nil
		if err := json.Unmarshal(raw, &body); err != nil {
			s.t.Errorf("%s %s: %v", method, path, err)
		}
	}
	defer func() { s.onBody = nil }()
	s.want(code, args...)
	return body
}

// TestWhatIsAskedFor looks at requests on the wire.
func TestWhatIsAskedFor(t *testing.T) {
	s := newShell(t)
	s.env["USER"], s.env["HERE"] = "ada", "yes"
	s.svc.AddTemplate("python")
	box := strings.TrimSpace(s.want(0, "sandbox", "create", "python", "-q").out)
	s.want(0, "snapshot", "create", box, "--name", "one")
	for _, c := range []struct {
		want string
		args []string
	}{
		{`{"mode":"ALL"}`, []string{"template", "redo", "python"}},
		{`{"mode":"NODES","nodes":["local","n2"]}`, []string{"template", "redo", "python", "--node", "local", "--node", "n2", "--wait"}},
		{`{"author":"ada","template":"python"}`, []string{"alias", "set", "py", "python"}},
		{`{"author":"bob","reason":"why","template":"python"}`, []string{"tag", "py:v1", "python", "--author", "bob", "--reason", "why"}},
		{`{"template":"python"}`, []string{"tag", "py:v2", "python", "--author", ""}},
		{`{"author":"ada","displayName":"D","name":"two","reason":"r","retain":true}`, []string{"snapshot", "create", box, "--name", "two", "--display-name", "D", "--reason", "r", "--retain"}},
		{`{"author":"ada","compatPolicy":"STRICT","name":"c","replicas":{"max":2,"nodes":["local"],"pinned":true,"selector":{"zone":"a"}}}`,
			[]string{"template", "commit", box, "c", "--compat-policy", "strict", "--replicas-max", "2", "--node", "local", "--pin", "--selector", "zone=a"}},
		{`{"retain":true}`, []string{"template", "set", "python", "--retain"}},
		{`{"retain":false}`, []string{"template", "set", "python", "--no-retain"}},
		{`{"displayName":""}`, []string{"template", "set", "python", "--display-name", ""}},
		{`{"compatPolicy":"GUEST_ONLY"}`, []string{"template", "set", "python", "--compat-policy", "guest-only"}},
		{`{"labels":{"a":"b","team":"red"}}`, []string{"template", "set", "python", "--label", "a=b"}},
		{`{"labels":{"a":"b"}}`, []string{"template", "set", "python", "--unlabel", "team"}},
		{`{"replicas":{"max":3,"min":1,"nodes":["local"]}}`, []string{"template", "set", "python", "--replicas-min", "1", "--replicas-max", "3", "--node", "local"}},
		{`{"replicas":{"max":3,"min":1,"nodes":["local"],"pinned":true,"selector":{"zone":"b"}}}`, []string{"template", "set", "python", "--pin", "--selector", "zone=b"}},
		{`{"replicas":{"max":3,"min":2}}`, []string{"template", "set", "python", "--unpin", "--no-selector", "--any-node", "--replicas-min", "2"}},
		{`{"labels":{"disk":"nvme","zone":"a"}}`, []string{"node", "label", "local", "disk=nvme"}},
		{`{"labels":{}}`, []string{"node", "label", "local", "disk-", "zone-"}},
		{`{"nodes":["local"],"preferredNode":"n2","template":"python"}`, []string{"sandbox", "create", "python", "--node", "local", "--prefer-node", "n2", "--preview"}},
		{`{"full":true}`, []string{"artifact", "verify", "--full", strings.Fields(s.want(0, "artifact", "ls", "-q").out)[0]}},
		{`{"ttlSeconds":600}`, []string{"artifact", "token", "--ttl", "10m", strings.Fields(s.want(0, "artifact", "ls", "-q").out)[0]}},
		{`{"nodes":["n2"]}`, []string{"compat", "scan", "--node", "n2"}},
		{`{"nodes":["n2"],"template":"python"}`, []string{"compat", "adopt", "--template", "python", "--node", "n2"}},
		{`{"refs":["one","two"]}`, []string{"template", "rm", "one", "two"}},
		{`{"dryRun":true,"force":true,"refs":["python"]}`, []string{"template", "rm", "--dry-run", "--force", "python"}},
	} {
		code := 0
		if c.args[1] == "create" && c.args[0] == "sandbox" || c.args[1] == "rm" && len(c.args) == 4 {
			code = -1 // whatever comes of it
		}
		raw, err := json.Marshal(s.sent(code, c.args...))
		if err != nil || string(raw) != c.want {
			t.Errorf("%v asks for\n%s, want\n%s", c.args, raw, c.want)
		}
	}
}

func TestFlagsThatExcludeEachOther(t *testing.T) {
	s := newShell(t)
	for want, args := range map[string][]string{
		"nothing is to be changed":        {"template", "set", "x"},
		"set and taken away":              {"template", "set", "x", "--label", "a=b", "--unlabel", "a"},
		"[retain no-retain]":              {"template", "set", "x", "--retain", "--no-retain"},
		"[pin unpin]":                     {"template", "set", "x", "--pin", "--unpin"},
		"below --replicas-min":            {"template", "build", "x", "--image", "y", "--replicas-min", "3", "--replicas-max", "2"},
		"cannot be negative":              {"template", "commit", "s1", "x", "--replicas-min", "-1"},
		"write strict or guest-only":      {"template", "build", "x", "--image", "y", "--compat-policy", "lax"},
		"--detach does not wait for":      {"template", "build", "x", "--image", "y", "--tag", "z", "-d"},
		"is not a valid tag":              {"template", "build", "x", "--image", "y", "--tag", "z:-"},
		"--default-on-end takes":          {"template", "build", "x", "--image", "y", "--default-on-end", "explode"},
		"--default-ttl cannot":            {"template", "build", "x", "--image", "y", "--default-ttl", "-1s"},
		"exclude each other":              {"template", "redo", "x", "--wait", "--detach"},
		"--kind takes":                    {"template", "ls", "--kind", "thing"},
		"--status takes one of pending":   {"snapshot", "ls", "--status", "done"},
		"--status takes pending":          {"artifact", "ls", "--status", "ready,done"},
		"--status takes ok":               {"compat", "matrix", "--status", "bad"},
		"--limit is between 1 and 1000":   {"template", "refs", "x", "--limit", "0"},
		"--limit is between 1 and 10000":  {"diff", "a", "b", "--limit", "10001"},
		"--limit cannot be negative":      {"log", "-n", "-1"},
		"use 1 to 64 lower-case letters":  {"alias", "set", "Bad_Name", "x"},
		"to take a label away":            {"node", "label", "n2", "zone"},
		"is to be set and taken away":     {"node", "label", "n2", "zone=a", "zone-"},
		"--ttl cannot be negative":        {"artifact", "token", "rfs-1", "--ttl", "-1s"},
		"three rising percentages":        {"serve", "--storage-limits", "90,80,70"},
		"write 36h or 30d":                {"serve", "--snapshot-max-age", "a month"},
		"write 500GiB":                    {"serve", "--quota-bytes", "-5"},
		"--quota-templates cannot":        {"serve", "--quota-templates", "-1"},
		"--snapshot-keep-last cannot":     {"serve", "--snapshot-keep-last", "-1"},
		"--operation-timeout must be":     {"serve", "--operation-timeout", "0s"},
		"--quota-snapshots-per-sandbox c": {"serve", "--quota-snapshots-per-sandbox", "-1"},
	} {
		s.opt.Serve = func(context.Context, cli.ServeConfig) error { t.Errorf("%v serves", args); return nil }
		if o := s.want(2, args...); !strings.Contains(o.errOut, want) || o.out != "" {
			t.Errorf("%v: %s", args, o.errOut)
		}
	}
	if calls := s.svc.Calls(); len(calls) > 0 {
		t.Errorf("the server was asked: %v", calls)
	}
}

func TestServeLimits(t *testing.T) {
	s := newShell(t)
	var got cli.ServeConfig
	s.opt.Serve = func(_ context.Context, cfg cli.ServeConfig) error { got = cfg; return nil }
	s.env["SPORE_DATABASE_URL"] = "postgres://elsewhere"
	s.want(0, "serve")
	if got.StorageLimits != spore.DefaultStorageLimits || got.OperationTimeout != 15*time.Minute || got.DatabaseURL != "postgres://elsewhere" || got.DatabaseFile != "" ||
		got.KeepLast != 0 || got.MaxAge != 0 || got.QuotaBytes != 0 {
		t.Errorf("%+v", got)
	}
	s.want(0, "serve", "--database-file", "db", "--storage-limits", "60, 80%,90", "--snapshot-keep-last", "20", "--snapshot-max-age", "30d", "--quota-snapshots-per-sandbox", "5",
		"--quota-templates", "7", "--quota-bytes", "500GiB", "--operation-timeout", "1m")
	if !filepath.IsAbs(got.DatabaseFile) || got.DatabaseURL != "" || got.StorageLimits != (spore.StorageLimits{Warn: 60, Reject: 80, DeleteOnly: 90}) || got.KeepLast != 20 ||
		got.MaxAge != 720*time.Hour || got.SnapshotsPerSandbox != 5 || got.Templates != 7 || got.QuotaBytes != 500<<30 || got.OperationTimeout != time.Minute {
		t.Errorf("%+v", got)
	}
}

func TestCenterCompletion(t *testing.T) {
	s := newShell(t)
	python := s.svc.AddTemplate("python")
	s.want(0, "alias", "set", "py:stable", "python")
	artifact := strings.TrimSpace(s.want(0, "artifact", "ls", "-q").out)
	for _, c := range []struct {
		want string
		args []string
	}{
		{"py:stable\t" + python.ID, []string{"sandbox", "create", ""}},
		{"py:stable", []string{"alias", "rm", ""}},
		{"n2\tREADY", []string{"node", "drain", ""}},
		{"n2", []string{"sandbox", "create", "python", "--prefer-node", ""}},
		{"zone=a", []string{"template", "build", "x", "--selector", ""}},
		{artifact, []string{"artifact", "download", ""}},
		{"guest-only", []string{"template", "commit", "--compat-policy", ""}},
		{"snapshot", []string{"template", "ls", "--kind", ""}},
		{"partially_ready", []string{"template", "ls", "--status", ""}},
		{"job-", []string{"operation", "show", ""}},
		{"n2", []string{"explain", ""}},
	} {
		if o := s.want(0, append([]string{"__complete"}, c.args...)...); !strings.Contains(o.out, c.want) {
			t.Errorf("%v: %s", c.args, o.out)
		}
	}
}

func TestInterruptedRedoIsCancelled(t *testing.T) {
	s := newShell(t)
	s.svc.AddTemplate("python")
	s.svc.AutoFinish = false
	ctx, interrupt := context.WithCancel(t.Context())
	s.svc.Fail = func(m string) error {
		if m == "WatchJob" {
			interrupt()
		}
		return nil
	}
	if o := s.runContext(ctx, "template", "redo", "python"); o.code != 130 || !slices.Contains(s.svc.Calls(), "CancelJob") || slices.Contains(s.svc.Calls(), "DeleteTemplate") {
		t.Errorf("%+v, %v", o, s.svc.Calls())
	}
}

func TestManyTemplatesAreRemovedAtOnce(t *testing.T) {
	s := newShell(t)
	args := []string{"template", "rm", "nothing"}
	for i := range 120 {
		name := fmt.Sprintf("t%03d", i)
		s.svc.AddTemplate(name)
		args = append(args, name)
	}
	o := s.want(1, append(args, "-q")...)
	if n := strings.Count(o.out, "\n"); n != 120 || strings.Count(o.errOut, "error:") != 1 {
		t.Errorf("%d gone\n%s", n, o.errOut)
	}
}

// TestWhatTakesLongIsShown holds a create until the command has said that it is under way.
func TestWhatTakesLongIsShown(t *testing.T) {
	s := newShell(t)
	s.svc.AddTemplate("python")
	said := make(chan struct{})
	s.stderr = writerFunc(func(p []byte) {
		if strings.HasPrefix(string(p), "starting") {
			close(said)
		}
	})
	s.svc.Wait = func(ctx context.Context) {
		select {
		case <-said:
		case <-ctx.Done():
		}
	}
	s.want(0, "sandbox", "create", "python")
}

type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }
