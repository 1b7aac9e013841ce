package cli_test

import (
	"bytes"
	"context"
	"flag"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/cli"
	"github.com/sporevm/spore/internal/gateway"
	"github.com/sporevm/spore/internal/gateway/gatewaytest"
)

var update = flag.Bool("update", false, "write golden files anew")

// shell runs command lines against a server over a Service in memory.
type shell struct {
	t     testing.TB
	svc   *gatewaytest.Service
	env   map[string]string
	stdin io.Reader
	opt   cli.Options

	stderr io.Writer // told of what goes to standard error, too
	onBody func(method, path string, body []byte)
}

func newShell(t testing.TB) *shell {
	t.Helper()
	svc := gatewaytest.New()
	svc.AutoFinish = true
	closing := make(chan struct{})
	s := &shell{t: t, svc: svc, stdin: strings.NewReader("")}
	edge := gateway.New(svc, gateway.Options{LoopbackOnly: true, Logger: slog.New(slog.DiscardHandler), Closing: closing})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.onBody != nil && r.Method != http.MethodGet && r.Method != http.MethodDelete {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			s.onBody(r.Method, r.URL.Path, body)
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		edge.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		close(closing)
		server.CloseClientConnections()
		server.Close()
	})
	s.env = map[string]string{"SPORE_URL": server.URL}
	return s
}

// outcome is what a command line printed and how it ended.
type outcome struct {
	code        int
	out, errOut string
}

func (s *shell) run(args ...string) outcome { return s.runContext(s.t.Context(), args...) }

func (s *shell) runContext(ctx context.Context, args ...string) outcome {
	var out, errOut buffer
	opt := s.opt
	opt.Args, opt.Stdin, opt.Stdout, opt.Stderr = args, s.stdin, &out, &errOut
	if s.stderr != nil {
		opt.Stderr = io.MultiWriter(&errOut, s.stderr)
	}
	opt.Getenv = func(k string) string { return s.env[k] }
	opt.Now = func() time.Time { return gatewaytest.Start.Add(90 * time.Minute) }
	opt.Version = "0.1.0"
	code := cli.Run(ctx, opt)
	return outcome{code, out.String(), errOut.String()}
}

// want runs a command line and expects an exit code; -1 is any.
func (s *shell) want(code int, args ...string) outcome {
	s.t.Helper()
	o := s.run(args...)
	if o.code != code && code >= 0 {
		s.t.Fatalf("spore %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), o.code, code, o.out, o.errOut)
	}
	return o
}

// buffer is a bytes.Buffer for writers that are many.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
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
