package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
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

// newServer starts a server over a Service in memory.
func newServer(t testing.TB) (*client.Client, *gatewaytest.Service) {
	t.Helper()
	svc := gatewaytest.New()
	closing := make(chan struct{})
	server := httptest.NewServer(gateway.New(svc, gateway.Options{LoopbackOnly: true, Logger: slog.New(slog.DiscardHandler), Closing: closing}))
	c, err := client.New(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		close(closing)
		c.Close()
		server.Close()
	})
	return c, svc
}

func TestURLs(t *testing.T) {
	for url, ok := range map[string]bool{
		"": true, "http://127.0.0.1:7070": true, "https://spore.example/": true, "unix:/run/s": true, "unix:///run/s": true,
		"unix:": false, "127.0.0.1:7070": false, "ftp://x": false, "http://": false, "http://user:pw@x": false, "http://x?y": false, "http://%": false,
	} {
		if _, err := client.New(url); (err == nil) != ok || err != nil && spore.CodeOf(err) != spore.CodeInvalid {
			t.Errorf("%q: %v", url, err)
		}
	}
}

func TestUnixSocketAndToken(t *testing.T) {
	dir, err := os.MkdirTemp("", "spore")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := "unix:" + filepath.Join(dir, "s")
	l, err := gateway.Listen(t.Context(), socket, "")
	if err != nil {
		t.Fatal(err)
	}
	const token = "0123456789abcdef"
	server := &http.Server{Handler: gateway.New(gatewaytest.New(), gateway.Options{Token: token, LoopbackOnly: true, Logger: slog.New(slog.DiscardHandler)})}
	go server.Serve(l)
	defer server.Close()
	good, err := client.New(socket, client.WithToken(token))
	if err != nil {
		t.Fatal(err)
	}
	defer good.Close()
	if _, err := good.Info(t.Context()); err != nil {
		t.Error(err)
	}
	bad, err := client.New(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer bad.Close()
	if err := bad.Healthy(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := bad.Info(t.Context()); spore.CodeOf(err) != spore.CodeUnauthenticated {
		t.Error(err)
	}
}

// TestErrorsComeBack carries each kind of error over the wire.
func TestErrorsComeBack(t *testing.T) {
	c, svc := newServer(t)
	for _, code := range []spore.Code{
		spore.CodeInvalid, spore.CodeUnauthenticated, spore.CodeNotFound, spore.CodeConflict, spore.CodeInUse, spore.CodeBusy, spore.CodeNoSpace,
		spore.CodeStale, spore.CodeUnreachable, spore.CodeDamaged, spore.CodeUnsupported, spore.CodeCanceled,
	} {
		want := &spore.Error{Code: code, Message: "what " + string(code), Field: "field", Hint: "do this", Cause: spore.Errorf(spore.CodeBusy, "why")}
		svc.Fail = func(string) error { return want }
		_, err := c.CreateSandbox(t.Context(), api.CreateRequest{Template: "x"})
		var got *spore.Error
		if !errors.As(err, &got) || got.Code != code || got.Message != want.Message || got.Field != want.Field || got.Hint != want.Hint {
			t.Errorf("%s came back as %#v", code, err)
		} else if got.Cause == nil || got.Cause.Error() != "why" {
			t.Errorf("%s lost its cause: %v", code, got.Cause)
		}
		if _, err := c.Sandbox("s1").Files().Read(t.Context(), "/x"); spore.CodeOf(err) != code {
			t.Errorf("%s came back from a sandbox's file as %v", code, err)
		}
		if err := c.Sandbox("s1").Command(t.Context(), "true").Run(); spore.CodeOf(err) != code {
			t.Errorf("%s came back from a command as %v", code, err)
		}
		if err := c.WatchJob(t.Context(), "job-1", nil); spore.CodeOf(err) != code {
			t.Errorf("%s came back from a watch as %v", code, err)
		}
	}
	svc.Fail = func(string) error { return errors.New("secret") }
	if _, err := c.Info(t.Context()); spore.CodeOf(err) != spore.CodeInternal || strings.Contains(err.Error(), "secret") {
		t.Errorf("internal error: %v", err)
	}
}

func TestServerThatIsNone(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	c, err := client.New("http://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Info(t.Context())
	var e *spore.Error
	if !errors.As(err, &e) || e.Code != spore.CodeUnreachable || e.Hint == "" {
		t.Errorf("nobody listens: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Info(ctx); spore.CodeOf(err) != spore.CodeCanceled || !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	for name, h := range map[string]http.HandlerFunc{
		"web page":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500); io.WriteString(w, "<html>") },
		"other API": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404); io.WriteString(w, `{"error": 1}`) },
		"no JSON":   func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") },
		"half":      func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"version": `) },
	} {
		server := httptest.NewServer(h)
		c, err := client.New(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Info(t.Context()); spore.CodeOf(err) != spore.CodeUnreachable {
			t.Errorf("%s: %v", name, err)
		}
		c.Close()
		server.Close()
	}
}

func TestListsArePaged(t *testing.T) {
	c, svc := newServer(t)
	svc.AddTemplate("python")
	forks, err := c.Fork(t.Context(), api.ForkRequest{Source: "python", Count: 25})
	if err != nil || len(forks) != 25 {
		t.Fatal(forks, err)
	}
	seen := map[string]bool{}
	for s, err := range c.ListSandboxes(t.Context(), api.ListSandboxesParams{Limit: 10}) {
		if err != nil {
			t.Fatal(err)
		}
		seen[s.ID] = true
	}
	if len(seen) != 25 {
		t.Errorf("%d sandboxes", len(seen))
	}
	n := 0
	for range c.ListSandboxes(t.Context(), api.ListSandboxesParams{Limit: 10}) {
		if n++; n == 3 {
			break
		}
	}
	svc.Fail = func(string) error { return spore.Errorf(spore.CodeBusy, "no") }
	for _, err := range c.ListLineage(t.Context()) {
		if spore.CodeOf(err) != spore.CodeBusy {
			t.Error(err)
		}
	}
}

func TestIdempotencyKey(t *testing.T) {
	c, svc := newServer(t)
	svc.AddTemplate("python")
	ctx := client.WithIdempotencyKey(t.Context(), "once")
	first, err := c.CreateSandbox(ctx, api.CreateRequest{Template: "python"})
	if err != nil {
		t.Fatal(err)
	}
	again, err := c.CreateSandbox(ctx, api.CreateRequest{Template: "python"})
	if err != nil || again.ID != first.ID {
		t.Errorf("%v, %v", again, err)
	}
	if _, err := c.CreateSandbox(ctx, api.CreateRequest{Template: "python", TTLSeconds: 3}); spore.CodeOf(err) != spore.CodeConflict {
		t.Error(err)
	}
}

func TestLifetimes(t *testing.T) {
	c, svc := newServer(t)
	svc.AddTemplate("python")
	s, err := c.CreateSandbox(t.Context(), api.CreateRequest{Template: "python"})
	if err != nil || !s.EndsAt.IsZero() {
		t.Fatal(s, err)
	}
	if s, err = c.ExtendSandbox(t.Context(), s.ID, 1500*time.Millisecond, spore.EndPause); err != nil || s.EndsAt.Sub(gatewaytest.Start) != 2*time.Second || s.OnEnd != spore.EndPause {
		t.Error(s, err)
	}
	if _, err := c.PauseSandbox(t.Context(), s.ID); err != nil {
		t.Error(err)
	}
	ttl := time.Minute
	if s, err = c.ResumeSandbox(t.Context(), s.ID, &ttl); err != nil || s.EndsAt.Sub(gatewaytest.Start) != ttl {
		t.Error(s, err)
	}
	var out strings.Builder
	if err := c.SandboxLogs(t.Context(), s.ID, true, 100, &out); err != nil || !strings.Contains(out.String(), "Linux version") {
		t.Error(out.String(), err)
	}
}

func TestWaitJob(t *testing.T) {
	c, svc := newServer(t)
	made, err := c.BuildTemplate(t.Context(), api.BuildRequest{Name: "a", Image: "b"})
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	j, err := c.WaitJob(t.Context(), made.Job.ID, func(e client.JobEvent) {
		switch {
		case e.Line != nil:
			lines = append(lines, e.Line.Message)
			if e.Line.Message == "begun" {
				go svc.Log(made.Job.ID, 50, "half")
			}
			if e.Line.Message == "half" {
				go svc.EndJob(made.Job.ID, nil)
			}
		case e.Job.Progress > 100:
			t.Error(e.Job.Progress)
		}
	})
	if err != nil || j.Status != spore.JobReady || strings.Join(lines, ",") != "begun,half" {
		t.Errorf("%+v, %v, %v", j, err, lines)
	}
	failed, err := c.BuildTemplate(t.Context(), api.BuildRequest{Name: "c", Image: "b"})
	if err != nil {
		t.Fatal(err)
	}
	svc.EndJob(failed.Job.ID, spore.Errorf(spore.CodeNoSpace, "12 MiB are missing").WithHint("make room"))
	j, err = c.WaitJob(t.Context(), failed.Job.ID, nil)
	var e *spore.Error
	if !errors.As(err, &e) || e.Code != spore.CodeNoSpace || e.Hint != "make room" || j.Status != spore.JobFailed {
		t.Errorf("%+v, %v", j, err)
	}
	stop := errors.New("enough")
	if err := c.WatchJob(t.Context(), failed.Job.ID, func(client.JobEvent) error { return stop }); err != stop {
		t.Error(err)
	}
	canceled, err := c.BuildTemplate(t.Context(), api.BuildRequest{Name: "d", Image: "b"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := c.WaitJob(ctx, canceled.Job.ID, func(client.JobEvent) { cancel() }); spore.CodeOf(err) != spore.CodeCanceled {
		t.Error(err)
	}
	if _, err := c.CancelJob(t.Context(), canceled.Job.ID); err != nil {
		t.Error(err)
	}
	if _, err := c.WaitJob(t.Context(), canceled.Job.ID, nil); spore.CodeOf(err) != spore.CodeCanceled {
		t.Error(err)
	}
	n := 0
	for line, err := range c.JobLog(t.Context(), made.Job.ID, 1) {
		if n++; err != nil || line.Message != "half" {
			t.Error(line, err)
		}
	}
	if n != 1 {
		t.Errorf("%d lines", n)
	}
}

// TestWatchSurvivesRestarts breaks the connection after each event.
func TestWatchSurvivesRestarts(t *testing.T) {
	var asked atomic.Int32
	write := func(w http.ResponseWriter, event, id string, v any) {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Error(err)
		}
		if id != "" {
			io.WriteString(w, "id: "+id+"\n")
		}
		io.WriteString(w, "event: "+event+"\ndata: "+string(raw)+"\n\n")
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		last := r.Header.Get("Last-Event-ID")
		switch asked.Add(1) {
		case 1:
			write(w, "log", "7", api.LogLine{Seq: 7, Message: "seven"})
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		case 2:
			if last != "7" {
				t.Errorf("Last-Event-ID is %q", last)
			}
			panic(http.ErrAbortHandler)
		case 3:
			io.WriteString(w, ": still here\n\nevent: job\ndata: {\"half\"")
		default:
			write(w, "log", "8", api.LogLine{Seq: 8, Message: "eight"})
			write(w, "job", "", api.Job{ID: "job-1", Status: spore.JobReady})
		}
	}))
	defer server.Close()
	c, err := client.New(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var lines []int64
	if _, err := c.WaitJob(t.Context(), "job-1", func(e client.JobEvent) {
		if e.Line != nil {
			lines = append(lines, e.Line.Seq)
		}
	}); err != nil || len(lines) != 2 || lines[0] != 7 || lines[1] != 8 {
		t.Errorf("%v, %v", lines, err)
	}
}

func TestProgress(t *testing.T) {
	c, svc := newServer(t)
	var steps []string
	k, err := c.InstallKernel(t.Context(), api.KernelRequest{}, func(p api.Progress) { steps = append(steps, p.Step) })
	if err != nil || k.ID == "" || len(steps) < 3 {
		t.Errorf("%v, %v, %v", k, steps, err)
	}
	if report, err := c.Check(t.Context(), true, nil); err != nil || !report.Full {
		t.Error(report, err)
	}
	svc.Fail = func(m string) error {
		if m == "InstallKernel/unpack" {
			return spore.Errorf(spore.CodeDamaged, "not a package")
		}
		return nil
	}
	if _, err := c.InstallKernel(t.Context(), api.KernelRequest{}, nil); spore.CodeOf(err) != spore.CodeDamaged {
		t.Error(err)
	}
}
