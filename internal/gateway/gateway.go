package gateway

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/http"
	"time"

	"github.com/sporevm/spore/api"
)

// Options tune the HTTP edge; zero fields take the defaults.
type Options struct {
	// Token is what every request but /healthz must carry as a bearer token. Empty asks for none, which is fit for
	// loopback and unix sockets only.
	Token string
	// LoopbackOnly says that the listener is on loopback or a unix socket. Requests that name another host are then
	// refused, so that a web page cannot reach the server through a name that it controls.
	LoopbackOnly bool
	// Logger gets one line for each request, and the whole of every internal error. Default slog.Default().
	Logger *slog.Logger
	// OperationTimeout caps what goes on after its client has gone. Default 30 minutes.
	OperationTimeout time.Duration
	// Heartbeat is the pause after which a quiet event stream gets a comment line. Default 15 seconds.
	Heartbeat time.Duration
	// MaxBody limits request bodies of the native API, in bytes. Default 1 MiB.
	MaxBody int64
	// Closing ends event streams, agent streams and downloads when it is closed, so that a server with watchers can shut down.
	Closing <-chan struct{}
	// TokenKey makes and proves tokens of artifacts; see TokenKey, the function. Without one a key is made up, and tokens end
	// with the server.
	TokenKey []byte
	// Now is the clock by which those tokens end. Default time.Now.
	Now func() time.Time
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.OperationTimeout == 0 {
		o.OperationTimeout = 30 * time.Minute
	}
	if o.Heartbeat == 0 {
		o.Heartbeat = 15 * time.Second
	}
	if o.MaxBody == 0 {
		o.MaxBody = 1 << 20
	}
	if len(o.TokenKey) == 0 {
		o.TokenKey = make([]byte, tokenKeySize)
		rand.Read(o.TokenKey)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// New makes the handler that serves svc.
func New(svc Service, opt Options) http.Handler {
	opt = opt.withDefaults()
	go described() // it takes a moment, which the first request should not have to wait for
	mux := http.NewServeMux()
	tokens := artifactTokens{key: opt.TokenKey, now: opt.Now}
	strict := api.NewStrictHandlerWithOptions(&native{svc: svc, opt: opt, tokens: tokens}, nil, api.StrictHTTPServerOptions{
		RequestErrorHandlerFunc:  func(w http.ResponseWriter, r *http.Request, err error) { writeError(w, r, bodyError(err, nil)) },
		ResponseErrorHandlerFunc: writeError,
	})
	api.HandlerWithOptions(strict, api.StdHTTPServerOptions{
		BaseRouter:       mux,
		Middlewares:      []api.MiddlewareFunc{detach(opt), admitRequest(opt)},
		ErrorHandlerFunc: func(w http.ResponseWriter, r *http.Request, err error) { writeError(w, r, paramError(err)) },
	})
	mux.Handle("/v1/sandboxes/{id}/agent/{path...}", newAgentProxy(svc, opt))
	mux.HandleFunc("GET /v1/openapi.yaml", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/yaml")
		w.Write(api.Spec)
	})
	mux.HandleFunc("/", unknownRoute(mux))
	return logRequests(opt.Logger, recoverPanics(guard(opt, tokens, mux)))
}

// detach lets an operation that was begun go on when its client goes away: what it makes would otherwise be left half
// made. Reading may end early.
func detach(opt Options) api.MiddlewareFunc {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet || r.Method == http.MethodHead || r.Pattern == "POST /v1/check" || r.Pattern == "POST /v1/sandboxes/preview" {
				next.ServeHTTP(w, r)
				return
			}
			ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), opt.OperationTimeout)
			defer cancel()
			next.ServeHTTP(w, r.WithContext(ctx))
		})
	}
}
