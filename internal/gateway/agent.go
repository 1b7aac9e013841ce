package gateway

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/http/httputil"
	"strings"

	"github.com/sporevm/spore"
)

const agentPattern = "/v1/sandboxes/{id}/agent/{path...}"

// UserHeader chooses the guest user that a call to an agent acts as. It is a header of its own because Authorization
// carries the server's token.
const UserHeader = "Spore-User"

// agentRoute says whether a path of the agent is meant for users. The agent has others, with which the server brings up
// and freezes the guest; whoever reaches those can break it.
func agentRoute(path string) bool {
	for _, service := range []string{"/process.Process/", "/filesystem.Filesystem/"} {
		if method, ok := strings.CutPrefix(path, service); ok {
			return method != "" && !strings.ContainsAny(method, "/.%")
		}
	}
	switch path {
	case "/files", "/health", "/logs", "/metrics":
		return true
	}
	return false
}

type agentKey struct{}

// agentTarget is what one proxied request needs.
type agentTarget struct {
	path      string
	transport http.RoundTripper
}

// newAgentProxy leads /v1/sandboxes/{id}/agent/… to the agent of that sandbox, streaming both ways.
func newAgentProxy(svc Service, opt Options) http.Handler {
	proxy := &httputil.ReverseProxy{
		FlushInterval:  -1,
		Rewrite:        rewriteForAgent,
		Transport:      agentTransport{},
		ModifyResponse: cleanAgentAnswer,
		ErrorHandler:   agentError,
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := "/" + r.PathValue("path")
		if !agentRoute(path) {
			writeError(w, r, spore.Errorf(spore.CodeNotFound, "the agent has nothing at %s", path))
			return
		}
		transport, err := svc.Agent(r.Context(), r.PathValue("id"))
		if err != nil {
			writeError(w, r, err)
			return
		}
		if err := takeBody(w, r, path); err != nil {
			writeError(w, r, err)
			return
		}
		ctx, cancel := endWith(r.Context(), opt.Closing)
		defer cancel()
		ctx = context.WithValue(ctx, agentKey{}, &agentTarget{path: path, transport: transport})
		proxy.ServeHTTP(w, r.WithContext(ctx))
	})
}

// maxMessage bounds the request of one call to an agent's services, in bytes. Only uploads, and input that is streamed,
// are larger.
const maxMessage = 16 << 20

// takeBody reads a request to the end before it is passed on. An agent begins to answer a call as soon as it has read the
// message in it, and once an answer has begun, what is left of the request, if only its end, can no longer be read:
// passing it on would fail, and cut off the answer. Uploads are passed on as they come, and are to be answered late; input
// that is streamed goes on beside the answer.
func takeBody(w http.ResponseWriter, r *http.Request, path string) error {
	switch path {
	case "/files":
		return nil
	case "/process.Process/StreamInput":
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return err
		}
		return nil
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxMessage))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return spore.Errorf(spore.CodeInvalid, "the request is larger than %d MiB", maxMessage>>20).WithHint("upload large contents to /files")
	case err != nil:
		return spore.Errorf(spore.CodeCanceled, "the request was cut off").WithCause(err)
	}
	r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
	if len(body) == 0 {
		r.Body = http.NoBody
	}
	return nil
}

type agentTransport struct{}

func (agentTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	return r.Context().Value(agentKey{}).(*agentTarget).transport.RoundTrip(r)
}

// rewriteForAgent lets through what the agent needs to know and nothing about the client or the server.
func rewriteForAgent(p *httputil.ProxyRequest) {
	target := p.In.Context().Value(agentKey{}).(*agentTarget)
	out := p.Out
	out.URL.Scheme, out.URL.Host = "http", "agent"
	out.URL.Path, out.URL.RawPath = target.path, ""
	out.Host = "agent"
	for _, name := range []string{"Cookie", "Origin", "Referer", "X-Request-Id", "X-Api-Key", "X-Real-Ip", UserHeader} {
		out.Header.Del(name)
	}
	if _, isToken := bearer(p.In); isToken {
		out.Header.Del("Authorization")
	}
	if user := p.In.Header.Get(UserHeader); user != "" {
		out.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":")))
	}
}

// cleanAgentAnswer keeps a hostile guest from speaking for the server: to browsers, which would run its pages as the
// server's own, and to clients, which would take its errors for the server's.
func cleanAgentAnswer(r *http.Response) error {
	for _, name := range []string{
		"Set-Cookie", "Clear-Site-Data", "Strict-Transport-Security", "Service-Worker-Allowed", "Refresh", "Server",
		"WWW-Authenticate", "Access-Control-Allow-Origin", "Access-Control-Allow-Credentials", "X-Request-Id", "X-Content-Type-Options",
		"Cache-Control", ErrorHeader,
	} {
		r.Header.Del(name)
	}
	r.Header.Set("Content-Security-Policy", "sandbox; default-src 'none'")
	return nil
}

// agentError answers for an agent that does not.
func agentError(w http.ResponseWriter, r *http.Request, err error) {
	var known *spore.Error
	switch {
	case errors.As(err, &known):
	case r.Context().Err() != nil:
		err = r.Context().Err()
	default:
		err = spore.Errorf(spore.CodeUnreachable, "the agent of the sandbox does not answer").WithCause(err).
			WithHint("spore sandbox show tells whether the sandbox still runs, spore sandbox logs --console what it said last")
		logOf(r.Context()).Warn("agent does not answer", "path", r.URL.Path, "err", err.(*spore.Error).Cause)
	}
	writeError(w, r, err)
}
