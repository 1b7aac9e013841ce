package gateway_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"

	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/gateway"
	"github.com/sporevm/spore/internal/gateway/gatewaytest"
)

// edge is an HTTP edge over a Service in memory. It holds every answer against the description of the API.
type edge struct {
	*httptest.Server
	t      *testing.T
	svc    *gatewaytest.Service
	log    *syncBuffer
	router routers.Router
}

func newEdge(t *testing.T, change ...func(*gateway.Options)) *edge {
	t.Helper()
	e := &edge{t: t, svc: gatewaytest.New(), log: &syncBuffer{}}
	opt := gateway.Options{LoopbackOnly: true, Logger: slog.New(slog.NewTextHandler(e.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Heartbeat: time.Hour}
	for _, f := range change {
		f(&opt)
	}
	e.Server = httptest.NewServer(gateway.New(e.svc, opt))
	t.Cleanup(e.Close)
	doc := description(t)
	doc.Servers = openapi3.Servers{{URL: e.URL}}
	var err error
	if e.router, err = legacy.NewRouter(doc); err != nil {
		t.Fatal(err)
	}
	return e
}

func description(t *testing.T) *openapi3.T {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(api.Spec)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// answer is what a request came back with.
type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) error(t *testing.T) api.Error {
	t.Helper()
	var e api.Error
	if err := json.Unmarshal([]byte(a.body), &e); err != nil || e.Code == "" {
		t.Fatalf("answer %d is no error: %s", a.status, a.body)
	}
	return e
}

// do sends a request; header is name, value, name, value. The answer must be as the API's description says.
func (e *edge) do(method, path, body string, header ...string) answer {
	e.t.Helper()
	req, err := http.NewRequest(method, e.URL+path, strings.NewReader(body))
	if err != nil {
		e.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
			continue
		}
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := e.Client().Do(req)
	if err != nil {
		e.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		e.t.Fatal(err)
	}
	e.validate(req, resp, raw)
	return answer{resp.StatusCode, resp.Header, string(raw)}
}

func (e *edge) validate(req *http.Request, resp *http.Response, body []byte) {
	e.t.Helper()
	check, err := http.NewRequest(req.Method, req.URL.String(), nil)
	if err != nil {
		e.t.Fatal(err)
	}
	route, params, err := e.router.FindRoute(check)
	if err != nil {
		if resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusMethodNotAllowed || strings.Contains(req.URL.Path, "/agent/") || strings.HasSuffix(req.URL.Path, "openapi.yaml") {
			return
		}
		e.t.Fatalf("%s %s is not described, but answered %d", req.Method, req.URL.Path, resp.StatusCode)
	}
	in := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: check, PathParams: params, Route: route},
		Status:                 resp.StatusCode, Header: resp.Header, Options: &openapi3filter.Options{IncludeResponseStatus: true},
	}
	in.SetBodyBytes(body)
	if err := openapi3filter.ValidateResponse(context.Background(), in); err != nil {
		e.t.Errorf("%s %s: the answer is not as described: %v", req.Method, req.URL.Path, err)
	}
}

// want sends a request and expects a status.
func (e *edge) want(status int, method, path, body string, header ...string) answer {
	e.t.Helper()
	a := e.do(method, path, body, header...)
	if a.status != status {
		e.t.Fatalf("%s %s %s: %d, want %d: %s", method, path, body, a.status, status, a.body)
	}
	return a
}

func decode[T any](t *testing.T, a answer) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(a.body), &v); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
	return v
}

func init() {
	for _, kind := range []string{"text/event-stream", "application/octet-stream", "text/plain"} {
		openapi3filter.RegisterBodyDecoder(kind, openapi3filter.FileBodyDecoder)
	}
}

func fuzzService() *gatewaytest.Service {
	svc := gatewaytest.New()
	svc.AddTemplate("python")
	return svc
}
