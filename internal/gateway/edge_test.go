package gateway_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/center"
	"github.com/sporevm/spore/internal/gateway"
)

func TestGuard(t *testing.T) {
	for _, c := range []struct {
		name   string
		token  string
		path   string
		header []string
		want   int
	}{
		{"plain", "", "/v1/info", nil, 200},
		{"another host", "", "/v1/info", []string{"Host", "evil.example"}, 401},
		{"another host with a port", "", "/v1/info", []string{"Host", "evil.example:7070"}, 401},
		{"localhost", "", "/v1/info", []string{"Host", "localhost:7070"}, 200},
		{"page of another site", "", "/v1/info", []string{"Origin", "https://evil.example"}, 401},
		{"page without an origin", "", "/v1/info", []string{"Origin", "null"}, 401},
		{"navigation from another site", "", "/v1/info", []string{"Sec-Fetch-Site", "cross-site"}, 401},
		{"other port of this machine", "", "/v1/info", []string{"Sec-Fetch-Site", "same-site"}, 401},
		{"typed by the user", "", "/v1/info", []string{"Sec-Fetch-Site", "none"}, 200},
		{"no token", "0123456789abcdef", "/v1/info", nil, 401},
		{"wrong token", "0123456789abcdef", "/v1/info", []string{"Authorization", "Bearer 0123456789abcdeg"}, 401},
		{"half a token", "0123456789abcdef", "/v1/info", []string{"Authorization", "Bearer 0123456789abcde"}, 401},
		{"token of another kind", "0123456789abcdef", "/v1/info", []string{"Authorization", "Basic 0123456789abcdef"}, 401},
		{"token", "0123456789abcdef", "/v1/info", []string{"Authorization", "bearer 0123456789abcdef"}, 200},
		{"token for the agent", "0123456789abcdef", "/v1/sandboxes/s1/agent/health", nil, 401},
		{"health without a token", "0123456789abcdef", "/healthz", nil, 200},
		{"health elsewhere", "0123456789abcdef", "/healthz/", nil, 401},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := newEdge(t, func(o *gateway.Options) { o.Token = c.token })
			a := e.do("GET", c.path, "", c.header...)
			if a.status != c.want {
				t.Errorf("%d, want %d: %s", a.status, c.want, a.body)
			}
			if c.token != "" && strings.Contains(e.log.String(), c.token) {
				t.Error("the token is in the log")
			}
		})
	}
	open := newEdge(t, func(o *gateway.Options) { o.LoopbackOnly = false })
	open.want(200, "GET", "/v1/info", "", "Host", "spore.example")
}

func FuzzLoopbackHost(f *testing.F) {
	for _, seed := range []string{"127.0.0.1:80", "[::1]:80", "localhost", "a.localhost.", "::ffff:127.0.0.1", "evil.example", "127.0.0.1.evil.example", "localhost.evil"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, host string) {
		if gateway.LoopbackHost(host) && !strings.ContainsAny(host, "lL1") {
			t.Errorf("%q is taken for loopback", host)
		}
	})
}

func TestLogHasNoSecrets(t *testing.T) {
	e := newEdge(t)
	e.do("GET", "/v1/info?pageToken=hush-hush", "", "Authorization", "Bearer hush-hush", "X-Request-Id", "mine")
	a := e.do("POST", "/v1/sandboxes", `{"template": "none", "env": {"TOKEN": "hush-hush"}}`, "X-Request-Id", "bad id\t")
	if log := e.log.String(); strings.Contains(log, "hush-hush") || !strings.Contains(log, "request=mine") || !strings.Contains(log, "status=404") {
		t.Errorf("log: %s", log)
	}
	if id := a.header.Get("X-Request-Id"); len(id) != 16 {
		t.Errorf("request id %q", id)
	}
}

func TestPanicIsInternal(t *testing.T) {
	e := newEdge(t)
	e.svc.Fail = func(method string) error {
		if method == "Info" {
			panic("secret")
		}
		return nil
	}
	a := e.want(500, "GET", "/v1/info", "")
	if strings.Contains(a.body, "secret") || a.error(t).Code != spore.CodeInternal || !strings.Contains(e.log.String(), "secret") {
		t.Errorf("answer %s, log %s", a.body, e.log)
	}
}

// TestBegunIsFinished leaves while a sandbox is being made: it is made all the same.
func TestBegunIsFinished(t *testing.T) {
	e := newEdge(t)
	e.svc.AddTemplate("python")
	begun, gone := make(chan struct{}), make(chan struct{})
	e.svc.Wait = func(ctx context.Context) {
		close(begun)
		<-gone
		if ctx.Err() != nil {
			t.Error("the operation ended with its client")
		}
		if _, capped := ctx.Deadline(); !capped {
			t.Error("the operation has no end")
		}
	}
	ctx, leave := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "POST", e.URL+"/v1/sandboxes", strings.NewReader(`{"template": "python"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	failed := make(chan error, 1)
	go func() {
		_, err := e.Client().Do(req)
		failed <- err
	}()
	<-begun
	leave()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	close(gone)
	e.Close() // waits for the handler
	found, _, err := e.svc.Sandboxes(t.Context(), center.SandboxQuery{Limit: 10})
	if err != nil || len(found) != 1 {
		t.Errorf("sandboxes: %v, %v", found, err)
	}
}

// events reads a stream of events one at a time.
type events struct {
	t    *testing.T
	body io.ReadCloser
	r    *bufio.Reader
}

func (e *edge) stream(method, path string, header ...string) *events {
	e.t.Helper()
	req, err := http.NewRequestWithContext(e.t.Context(), method, e.URL+path, nil)
	if err != nil {
		e.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := e.Client().Do(req)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { resp.Body.Close() })
	if kind := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || kind != "text/event-stream" {
		e.t.Fatalf("%d, %s", resp.StatusCode, kind)
	}
	return &events{e.t, resp.Body, bufio.NewReader(resp.Body)}
}

// next answers the next event as its lines joined with a bar, "" at the end.
func (ev *events) next() string {
	ev.t.Helper()
	var lines []string
	for {
		line, err := ev.r.ReadString('\n')
		if err == io.EOF && len(lines) == 0 {
			return ""
		}
		if err != nil {
			ev.t.Fatal(err)
		}
		if line == "\n" {
			return strings.Join(lines, "|")
		}
		lines = append(lines, strings.TrimSuffix(line, "\n"))
	}
}

func (ev *events) expect(prefix, part string) {
	ev.t.Helper()
	if got := ev.next(); !strings.HasPrefix(got, prefix) || !strings.Contains(got, part) {
		ev.t.Fatalf("event %q, want %q with %q", got, prefix, part)
	}
}

func TestWatchJob(t *testing.T) {
	e := newEdge(t)
	made := decode[api.TemplateJob](t, e.want(202, "POST", "/v1/templates", `{"name": "x", "image": "y"}`))
	watch := e.stream("GET", "/v1/jobs/"+made.Job.ID+"/watch")
	watch.expect("id: 1|event: log|data: ", `"message":"begun"`)
	watch.expect("event: job|data: ", `"status":"RUNNING"`)
	e.svc.Log(made.Job.ID, 40, "half")
	watch.expect("id: 2|event: log|data: ", `"message":"half"`)
	watch.expect("event: job|data: ", `"progress":40`)
	again := e.stream("GET", "/v1/jobs/"+made.Job.ID+"/watch", "Last-Event-ID", "1")
	again.expect("id: 2|event: log|data: ", `"message":"half"`)
	again.expect("event: job|data: ", `"progress":40`)
	e.svc.EndJob(made.Job.ID, spore.Errorf(spore.CodeUnreachable, "no registry"))
	for _, w := range []*events{watch, again} {
		w.expect("event: job|data: ", `"status":"FAILED"`)
		if rest := w.next(); rest != "" {
			t.Errorf("after the end: %s", rest)
		}
	}
	e.want(404, "GET", "/v1/jobs/job-none/watch", "")
	e.want(400, "GET", "/v1/jobs/"+made.Job.ID+"/watch", "", "Last-Event-ID", "last")
	e.want(400, "GET", "/v1/jobs/"+made.Job.ID+"/watch", "", "Last-Event-ID", "99999999999999999999")
}

func TestWatchersDoNotHoldUpTheEnd(t *testing.T) {
	closing := make(chan struct{})
	e := newEdge(t, func(o *gateway.Options) { o.Closing = closing })
	made := decode[api.TemplateJob](t, e.want(202, "POST", "/v1/templates", `{"name": "x", "image": "y"}`))
	watch := e.stream("GET", "/v1/jobs/"+made.Job.ID+"/watch")
	watch.expect("id: 1|event: log", "")
	watch.expect("event: job", "RUNNING")
	close(closing)
	if rest := watch.next(); rest != "" {
		t.Errorf("after the end: %s", rest)
	}
}

func TestHeartbeat(t *testing.T) {
	e := newEdge(t, func(o *gateway.Options) { o.Heartbeat = time.Millisecond })
	made := decode[api.TemplateJob](t, e.want(202, "POST", "/v1/templates", `{"name": "x", "image": "y"}`))
	watch := e.stream("GET", "/v1/jobs/"+made.Job.ID+"/watch")
	for !strings.HasPrefix(watch.next(), ": ") {
	}
}

func TestProgressStreams(t *testing.T) {
	e := newEdge(t)
	check := e.stream("POST", "/v1/check?full=true")
	check.expect("event: progress|data: ", `"step":"layers"`)
	check.expect("event: progress|data: ", `"done":2`)
	check.expect("event: result|data: ", `"full":true`)
	e.svc.Fail = func(method string) error {
		if method == "InstallKernel/unpack" {
			return fmt.Errorf("secret")
		}
		return nil
	}
	install := e.stream("POST", "/v1/kernels", "Content-Type", "application/json")
	install.expect("event: progress|data: ", `"done":0`)
	install.expect("event: progress|data: ", `"done":100`)
	install.expect("event: error|data: ", `"message":"internal error"`)
	e.svc.Fail = func(string) error { return spore.Errorf(spore.CodeUnreachable, "no mirror answers") }
	e.want(502, "POST", "/v1/kernels", "")
}

// guest is an agent in a sandbox, as far as the proxy cares.
func guest(t *testing.T, e *edge, h http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	address := server.Listener.Addr().String()
	e.svc.AgentTransport = &http.Transport{
		DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		},
	}
	t.Cleanup(e.svc.AgentTransport.(*http.Transport).CloseIdleConnections)
	e.svc.AddTemplate("python")
	box := decode[api.Sandbox](t, e.want(201, "POST", "/v1/sandboxes", `{"template": "python"}`))
	return "/v1/sandboxes/" + box.ID + "/agent"
}

func TestAgentProxy(t *testing.T) {
	e := newEdge(t, func(o *gateway.Options) { o.Token = "0123456789abcdef" })
	token := []string{"Authorization", "Bearer 0123456789abcdef"}
	var seen *http.Request
	direct := newEdge(t)
	at := guest(t, direct, func(w http.ResponseWriter, r *http.Request) {
		seen = r
		body, _ := io.ReadAll(r.Body)
		for name, value := range map[string]string{"Set-Cookie": "a=b", "Spore-Error": "internal", "Access-Control-Allow-Origin": "*", "X-Mine": "yes", "Content-Type": "text/html"} {
			w.Header().Set(name, value)
		}
		fmt.Fprintf(w, "<script>%s</script>%s", r.URL.RequestURI(), body)
	})
	e.svc.AgentTransport = direct.svc.AgentTransport
	e.svc.AddTemplate("python")
	e.want(201, "POST", "/v1/sandboxes", `{"template": "python"}`, token...)

	a := e.want(200, "POST", at+"/files?path=/a%20b&username=x", "contents", append(token, "Spore-User", "app", "Cookie", "c=1", "X-Forwarded-For", "10.0.0.1", "X-Metadata-K", "v")...)
	if !strings.HasSuffix(a.body, "contents") || !strings.Contains(a.body, "/files?path=/a%20b&username=x") {
		t.Errorf("answer: %s", a.body)
	}
	if user, _, ok := seen.BasicAuth(); !ok || user != "app" {
		t.Errorf("Authorization: %q", seen.Header.Get("Authorization"))
	}
	for _, name := range []string{"Cookie", "Spore-User", "X-Forwarded-For", "X-Request-Id", "Origin"} {
		if v := seen.Header.Get(name); v != "" {
			t.Errorf("the agent sees %s: %s", name, v)
		}
	}
	if seen.Header.Get("X-Metadata-K") != "v" || seen.Host != "agent" {
		t.Errorf("the agent sees host %s, header %v", seen.Host, seen.Header)
	}
	for _, name := range []string{"Set-Cookie", "Spore-Error", "Access-Control-Allow-Origin"} {
		if v := a.header.Get(name); v != "" {
			t.Errorf("the client sees %s: %s", name, v)
		}
	}
	if a.header.Get("X-Mine") != "yes" || !strings.HasPrefix(a.header.Get("Content-Security-Policy"), "sandbox") || a.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("the client sees %v", a.header)
	}
	e.want(200, "GET", at+"/health", "", token...)
	if seen.Header.Get("Authorization") != "" {
		t.Errorf("the server's token went to the guest")
	}
	direct.want(200, "POST", at+"/process.Process/List", "{}", "Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("me:")))
	if user, _, _ := seen.BasicAuth(); user != "me" {
		t.Errorf("user %q", user)
	}
	direct.want(200, "GET", at+"/logs?follow=true&tail=9", "")
	if seen.URL.RequestURI() != "/logs?follow=true&tail=9" {
		t.Errorf("the agent was asked for %s", seen.URL)
	}
	seen = nil
	for _, path := range []string{
		"/init", "/configure", "/quiesce", "/poweroff", "/status", "/", "", "/Init", "/init/", "/%69nit", "/files%2f..%2finit", "/health/../init",
		"//init", "/process.Process/%2e%2e%2f..%2finit", "/process.Process/", "/process.Process/a/b", "/process.Process/..", "/files/../init",
	} {
		a := direct.do("POST", at+path, "")
		if a.status != 404 || a.header.Get("Spore-Error") != "not_found" {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	if seen != nil {
		t.Errorf("%s reached the agent", seen.URL)
	}
}

func FuzzAgentRoute(f *testing.F) {
	for _, seed := range []string{"/files", "/init", "/process.Process/Start", "/filesystem.Filesystem/../init", "/health/", "/metrics?x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		if gateway.AgentRoute(path) && (filepath.Clean(path) != path || strings.Count(path, "/") > 2) {
			t.Errorf("%q passes", path)
		}
	})
}

func TestAgentStreams(t *testing.T) {
	e := newEdge(t)
	next := make(chan string)
	at := guest(t, e, func(w http.ResponseWriter, r *http.Request) {
		for text := range next {
			io.WriteString(w, text)
			w.(http.Flusher).Flush()
		}
	})
	go func() { next <- "first" }()
	resp, err := e.Client().Post(e.URL+at+"/process.Process/Start", "application/connect+json", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	buf := make([]byte, 16)
	for _, want := range []string{"first", "second"} {
		n, err := io.ReadFull(resp.Body, buf[:len(want)])
		if err != nil || string(buf[:n]) != want {
			t.Fatalf("%q, %v", buf[:n], err)
		}
		if want == "first" {
			next <- "second"
		}
	}
	close(next)
}

// TestAgentAnswersEarly is a guest whose disk is full long before the upload ends.
func TestAgentAnswersEarly(t *testing.T) {
	e := newEdge(t)
	at := guest(t, e, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		io.CopyN(io.Discard, r.Body, 1<<20)
		w.WriteHeader(http.StatusInsufficientStorage)
		io.WriteString(w, `{"code":507,"message":"full"}`)
	})
	resp, err := e.Client().Post(e.URL+at+"/files?path=x", "application/octet-stream", io.LimitReader(zeros{}, 8<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != 507 || !strings.Contains(string(body), "full") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// TestAgentAnswersBeforeTheEnd has the agent's answer begin while the end of the request has not been passed on yet, as a
// busy machine does it. What is left of the request must still be there.
func TestAgentAnswersBeforeTheEnd(t *testing.T) {
	e := newEdge(t)
	at := guest(t, e, nil)
	late := make(chan error, 1)
	e.svc.AgentTransport = roundTripper(func(r *http.Request) (*http.Response, error) {
		if _, err := io.ReadFull(r.Body, make([]byte, 7)); err != nil {
			return nil, err
		}
		answer, in := io.Pipe()
		go func() {
			io.WriteString(in, "begun ")
			time.Sleep(50 * time.Millisecond)
			_, err := r.Body.Read(make([]byte, 1))
			late <- err
			io.WriteString(in, "done")
			in.Close()
		}()
		return &http.Response{StatusCode: 200, Body: answer, Header: http.Header{}, ContentLength: -1, Request: r}, nil
	})
	body := struct{ io.Reader }{strings.NewReader("message")} // of a length that nobody knows
	resp, err := e.Client().Post(e.URL+at+"/process.Process/Start", "application/connect+json", body)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err != nil || string(got) != "begun done" {
		t.Errorf("%q, %v", got, err)
	}
	if err := <-late; err != io.EOF {
		t.Errorf("the end of the request reads as %v", err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestAgentThatIsGone(t *testing.T) {
	e := newEdge(t)
	at := guest(t, e, func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) })
	if a := e.want(502, "GET", at+"/health", ""); a.error(t).Code != spore.CodeUnreachable {
		t.Errorf("%s", a.body)
	}
	e.want(404, "GET", "/v1/sandboxes/s00/agent/health", "")
	e.want(200, "POST", strings.TrimSuffix(at, "/agent")+"/pause", "")
	if a := e.want(409, "GET", at+"/health", ""); a.error(t).Code != spore.CodeConflict {
		t.Errorf("%s", a.body)
	}
}

func FuzzRequestBody(f *testing.F) {
	for _, seed := range []string{`{"name":"x","image":"y"}`, `{"name":1}`, `[]`, `{`, `{"name":"x","image":"y","readiness":{"tcpPort":-1}}`, `null`, `"x"`, "{\"name\":\"\xff\"}", `{"labels":{"a":null}}`, `{"process":{"user":null}}`} {
		f.Add("/v1/templates", seed)
		f.Add("/v1/sandboxes", seed)
		f.Add("/v1/forks", seed)
		f.Add("/v1/sandboxes/s/extend", seed)
	}
	handler := gateway.New(fuzzService(), gateway.Options{})
	f.Fuzz(func(t *testing.T, path, body string) {
		if !strings.HasPrefix(path, "/v1/") || strings.ContainsAny(path, " ?#%\x00\n\r") {
			return
		}
		w := httptest.NewRecorder()
		r, err := http.NewRequest("POST", path, strings.NewReader(body))
		if err != nil {
			return
		}
		r.Header.Set("Content-Type", "application/json")
		handler.ServeHTTP(w, r)
		if w.Code >= 500 && w.Code != 502 {
			t.Errorf("%s %q: %d %s", path, body, w.Code, w.Body)
		}
	})
}
