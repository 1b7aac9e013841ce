package client_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
	"github.com/sporevm/spore/internal/gateway"
	"github.com/sporevm/spore/internal/gateway/gatewaytest"
)

func ptr[T any](v T) *T { return &v }

func TestTemplatesOfACenter(t *testing.T) {
	c, svc := newServer(t)
	svc.AutoFinish = true
	ctx := t.Context()
	tpl := svc.AddTemplate("python")
	changed, err := c.UpdateTemplate(ctx, "python", api.TemplateUpdate{DisplayName: ptr("Python"), Retain: ptr(true), Replicas: &api.ReplicaPolicy{Min: 2}})
	if err != nil || changed.DisplayName != "Python" || !changed.Retain || changed.ReplicaPolicy.Min != 2 || changed.Labels["team"] != "red" {
		t.Fatalf("%+v, %v", changed, err)
	}
	box, err := c.CreateSandbox(ctx, api.CreateRequest{Template: "python", Nodes: []string{"local"}})
	if err != nil {
		t.Fatal(err)
	}
	if one, err := c.GetTemplateWithRequest(ctx, "python"); err != nil || len(one.Replicas) != 1 || *one.RefCount != 1 || len(one.Request) == 0 {
		t.Fatalf("%+v, %v", one, err)
	}
	if found, err := c.ListReplicas(ctx, "python"); err != nil || len(found) != 1 || found[0].NodeID != "local" {
		t.Fatalf("%+v, %v", found, err)
	}
	for _, ask := range []func() (*api.RefList, error){
		func() (*api.RefList, error) { return c.TemplateRefs(ctx, "python", false, 0) },
		func() (*api.RefList, error) { return c.SandboxRefs(ctx, box.ID, true, 5) },
	} {
		if refs, err := ask(); err != nil || refs.Total != 1 || refs.Refs[0].SandboxID != box.ID {
			t.Fatalf("%+v, %v", refs, err)
		}
	}
	if scope, err := c.ReadyNodes(ctx, "python"); err != nil || len(scope.Nodes) != 1 {
		t.Fatalf("%+v, %v", scope, err)
	}
	if p, err := c.PreviewSandbox(ctx, api.CreateRequest{Template: "python"}); err != nil || p.NodeID != "local" || client.PreviewError(p) != nil {
		t.Fatalf("%+v, %v", p, err)
	}
	var refused *spore.Error
	if p, err := c.PreviewSandbox(ctx, api.CreateRequest{Template: "none"}); err != nil || !errors.As(client.PreviewError(p), &refused) || refused.Reason != spore.ReasonTemplateNotFound {
		t.Fatalf("%+v, %v", p, err)
	}
	job, err := c.RedoTemplate(client.WithIdempotencyKey(ctx, "k"), "python", api.RedoRequest{Mode: spore.RedoNodes, Nodes: []string{"local"}})
	if err != nil || job.RequestID != "k" || job.Redo.Mode != spore.RedoNodes {
		t.Fatalf("%+v, %v", job, err)
	}
	snap, err := c.CreateSnapshot(ctx, box.ID, api.SnapshotRequest{Name: "one", Reason: "why"})
	if err != nil {
		t.Fatal(err)
	}
	if op, err := c.GetOperation(ctx, snap.JobID); err != nil || op.Operation != "CREATE" || op.SnapshotID != snap.ID {
		t.Fatalf("%+v, %v", op, err)
	}
	if s, err := c.GetSnapshotWithRequest(ctx, "one"); err != nil || s.Reason != "why" {
		t.Fatalf("%+v, %v", s, err)
	}
	if l, err := c.Lineage(ctx, "one", client.LineageOptions{Ancestors: true}); err != nil || len(l.Ancestors) != 1 || l.Ancestors[0].ID != tpl.ID {
		t.Fatalf("%+v, %v", l, err)
	}
	if d, err := c.Diff(ctx, "python", "one", 1); err != nil || len(d.Files) != 1 || d.FilesOmitted != 2 {
		t.Fatalf("%+v, %v", d, err)
	}
	_, err = c.DeleteSnapshot(ctx, "one", client.DeleteOptions{})
	if !errors.As(err, &refused) || refused.Code != spore.CodeInUse || refused.Reason != spore.ReasonInUse {
		t.Fatalf("delete of what runs: %v", err)
	}
	results, err := c.DeleteTemplates(ctx, []string{"python", "none"}, client.DeleteOptions{Force: true})
	if err != nil || len(results) != 2 || client.DeletionError(results[0]) != nil || spore.CodeOf(client.DeletionError(results[1])) != spore.CodeNotFound {
		t.Fatalf("%+v, %v", results, err)
	}
	keyed := client.WithIdempotencyKey(ctx, "bye")
	for range 2 {
		if d, err := c.DeleteSnapshot(keyed, snap.ID, client.DeleteOptions{Force: true}); err != nil || d.ID != snap.ID {
			t.Fatalf("%+v, %v", d, err)
		}
	}
}

func TestAliases(t *testing.T) {
	c, svc := newServer(t)
	ctx := t.Context()
	svc.AddTemplate("python-a")
	svc.AddTemplate("python-b")
	for _, at := range []string{"python-a", "python-b"} {
		if a, err := c.PutAlias(ctx, "py:3.12", api.AliasRequest{Template: at, Author: "ada"}); err != nil || a.Label != "py:3.12" {
			t.Fatalf("%+v, %v", a, err)
		}
	}
	if _, err := c.PutAlias(ctx, "py", api.AliasRequest{Template: "python-a"}); err != nil {
		t.Fatal(err)
	}
	var labels []string
	for a, err := range c.ListAliases(ctx, api.ListAliasesParams{Limit: 1}) {
		if err != nil {
			t.Fatal(err)
		}
		labels = append(labels, a.Label)
	}
	if strings.Join(labels, " ") != "py:3.12 py" {
		t.Errorf("aliases: %v", labels)
	}
	if s, err := c.CreateSandbox(ctx, api.CreateRequest{Template: "py:3.12"}); err != nil || s == nil {
		t.Fatal(err)
	}
	if err := c.DeleteAlias(ctx, "py:3.12", "ada", "done"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.GetAlias(ctx, "py:3.12"); spore.CodeOf(err) != spore.CodeNotFound {
		t.Errorf("an alias that is gone: %v", err)
	}
	if h, err := c.AliasHistory(ctx, "py:3.12", false, 0); err != nil || len(h) != 3 || h[0].Reason != "done" {
		t.Errorf("history: %+v, %v", h, err)
	}
}

func TestNodesAndCompat(t *testing.T) {
	c, svc := newServer(t)
	ctx := t.Context()
	tpl := svc.AddTemplate("python")
	svc.SetReplica(&spore.Replica{TemplateID: tpl.ID, NodeID: "n2", Status: spore.ReplicaReady, Phase: spore.ReplicaPhaseReady, CompatStatus: spore.CompatUnknown})
	if n, err := c.LabelNode(ctx, "n2", map[string]string{"zone": "b"}); err != nil || n.Labels["zone"] != "b" {
		t.Fatalf("%+v, %v", n, err)
	}
	if n, err := c.LabelNode(ctx, "n2", nil); err != nil || len(n.Labels) != 0 {
		t.Fatalf("%+v, %v", n, err)
	}
	if n, err := c.DrainNode(ctx, "n2"); err != nil || !n.Draining {
		t.Fatalf("%+v, %v", n, err)
	}
	if n, err := c.UndrainNode(ctx, "n2"); err != nil || n.Draining {
		t.Fatalf("%+v, %v", n, err)
	}
	if n, err := c.GetNode(ctx, "n2"); err != nil || n.Address != "n2.example:7071" {
		t.Fatalf("%+v, %v", n, err)
	}
	if s, err := c.NodeStorage(ctx, true); err != nil || len(s) != 2 || s[0].Storage.Limits.Reject != 85 {
		t.Fatalf("%+v, %v", s, err)
	}
	sum, err := c.CompatSummary(ctx)
	if err != nil || sum.UnknownReplicas != 1 {
		t.Fatalf("%+v, %v", sum, err)
	}
	for row, err := range c.CompatRows(ctx, "python") {
		if err != nil || row.TemplateID != tpl.ID || len(row.Nodes) != 2 || row.Overall != spore.CompatUnknown {
			t.Fatalf("%+v, %v", row, err)
		}
	}
	if n, err := c.AdoptBaseline(ctx, "python", "n2"); err != nil || n != 1 {
		t.Fatalf("%d, %v", n, err)
	}
	if scan, err := c.ScanCompat(ctx); err != nil || len(scan.Nodes) != 2 {
		t.Fatalf("%+v, %v", scan, err)
	}
	if _, err := c.ForgetNode(ctx, "n2", false); spore.CodeOf(err) != spore.CodeConflict {
		t.Errorf("a node that is there is forgotten: %v", err)
	}
	svc.SetNode(&spore.Node{ID: "n2", State: spore.NodeUnreachable})
	if f, err := c.ForgetNode(ctx, "n2", false); err != nil || f.Replicas != 1 {
		t.Errorf("%+v, %v", f, err)
	}
	if all, err := c.ListNodes(ctx, true); err != nil || len(all) != 2 {
		t.Errorf("%+v, %v", all, err)
	}
	var text bytes.Buffer
	if err := c.Metrics(ctx, &text); err != nil || !strings.Contains(text.String(), `spore_nodes{state="FORGOTTEN"} 1`) {
		t.Errorf("%v: %s", err, &text)
	}
}

// flaky cuts the first answers with contents off after some bytes.
type flaky struct {
	next   http.Handler
	breaks atomic.Int64
	ranges atomic.Int64
}

func (f *flaky) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Range") != "" {
		f.ranges.Add(1)
	}
	if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/content") && f.breaks.Add(-1) >= 0 {
		w = &cutWriter{ResponseWriter: w, left: 1000}
	}
	f.next.ServeHTTP(w, r)
}

type cutWriter struct {
	http.ResponseWriter
	left int
}

func (w *cutWriter) Write(p []byte) (int, error) {
	if w.left == 0 {
		return 0, io.ErrClosedPipe
	}
	n, err := w.ResponseWriter.Write(p[:min(len(p), w.left)])
	if w.left -= n; err == nil && n < len(p) {
		err = errors.Join(io.ErrClosedPipe, http.NewResponseController(w.ResponseWriter).Flush())
	}
	return n, err
}

func TestDownloadArtifact(t *testing.T) {
	svc := gatewaytest.New()
	content := strings.Repeat("0123456789", 1000)
	a := svc.AddArtifact(content)
	const token = "0123456789abcdef"
	front := &flaky{next: gateway.New(svc, gateway.Options{Token: token, LoopbackOnly: true})}
	server := httptest.NewServer(front)
	defer server.Close()
	owner, err := client.New(server.URL, client.WithToken(token))
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close()
	guest, err := client.New(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close()
	made, err := owner.ArtifactToken(t.Context(), a.ID, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	shown := client.WithArtifactToken(t.Context(), made.Token)
	if err := guest.DownloadArtifact(t.Context(), a.ID, newFile(t, ""), nil); spore.CodeOf(err) != spore.CodeUnauthenticated {
		t.Errorf("without a token: %v", err)
	}
	for _, c := range []struct {
		name   string
		client *client.Client
		ctx    context.Context
		before string
		breaks int64
		ranges bool
	}{
		{"the owner", owner, t.Context(), "", 0, false},
		{"with a token", guest, shown, "", 0, false},
		{"the rest of it", guest, shown, content[:4000], 0, true},
		{"all is there", guest, shown, content, 0, false},
		{"more than it is there", guest, shown, content + "more", 0, false},
		{"something else of its size is there", guest, shown, strings.Repeat("x", len(content)), 0, false},
		{"something else is there", guest, shown, "something else", 0, true},
		{"connections break", guest, shown, "", 3, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			front.breaks.Store(c.breaks)
			front.ranges.Store(0)
			f := newFile(t, c.before)
			last := int64(-1)
			if err := c.client.DownloadArtifact(c.ctx, a.ID, f, func(done, total int64) { last = done }); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(f.Name()); err != nil || string(got) != content {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if (front.ranges.Load() > 0) != c.ranges {
				t.Errorf("%d ranges were asked for", front.ranges.Load())
			}
			if last != int64(len(content)) && c.before != content {
				t.Errorf("progress ends at %d", last)
			}
		})
	}
	if err := owner.DownloadArtifact(t.Context(), "rfs-none", newFile(t, ""), nil); spore.CodeOf(err) != spore.CodeNotFound {
		t.Errorf("an artifact that is not there: %v", err)
	}
	svc.LoseArtifact(a.ID)
	if v, err := owner.VerifyArtifact(t.Context(), a.ID, false); err != nil || spore.CodeOf(client.VerdictError(v.Nodes[0])) != spore.CodeNotFound {
		t.Errorf("%+v, %v", v, err)
	}
	one, err := owner.GetArtifact(t.Context(), a.ID)
	if err != nil || one.Status != spore.ArtifactFailed {
		t.Errorf("%+v, %v", one, err)
	}
	for found, err := range owner.ListArtifacts(t.Context(), api.ListArtifactsParams{Status: []api.ArtifactStatus{spore.ArtifactReady}}) {
		t.Errorf("%+v, %v", found, err)
	}
}

func newFile(t *testing.T, content string) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "artifact")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}
