// Package client is the Go SDK of Spore: it builds templates, starts, snapshots, forks and rolls back sandboxes, runs
// commands and moves files in them, through a server's HTTP API.
//
// Errors of the server come back as *spore.Error with the server's code and reason, so that errors.As and spore.CodeOf work
// as they do inside the server. A server that does not answer is spore.CodeUnreachable, a context that ends spore.CodeCanceled.
//
// When a context ends, the client stops waiting; what the server has begun it finishes all the same. A request that made
// something can be repeated safely under one key: see WithIdempotencyKey.
package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
)

// DefaultURL is where a server listens unless told otherwise.
const DefaultURL = "http://127.0.0.1:7070"

// Client talks to one server. It may be used from many goroutines at once.
type Client struct {
	base string // of HTTP URLs, without a slash at the end
	show string // as the user wrote it
	api  *api.Client
	http *http.Client
}

// Option tunes a Client.
type Option func(*options)

type options struct {
	token     string
	userAgent string
	transport http.RoundTripper
}

// WithToken sends token with every request. A server that listens beyond loopback asks for one.
func WithToken(token string) Option { return func(o *options) { o.token = token } }

// WithTransport sends requests through t. The default keeps a pool of connections of its own.
func WithTransport(t http.RoundTripper) Option { return func(o *options) { o.transport = t } }

// WithUserAgent names the program in the server's log.
func WithUserAgent(name string) Option { return func(o *options) { o.userAgent = name } }

// New makes a client of the server at rawURL: http://HOST:PORT, https://HOST:PORT or unix:PATH; "" is DefaultURL. It
// opens no connection. A URL of another form is spore.CodeInvalid.
func New(rawURL string, opts ...Option) (*Client, error) {
	o := options{userAgent: "spore-go"}
	for _, opt := range opts {
		opt(&o)
	}
	if rawURL == "" {
		rawURL = DefaultURL
	}
	dialer := &net.Dialer{}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 64
	base := strings.TrimRight(rawURL, "/")
	u, err := url.Parse(rawURL)
	switch {
	case err != nil:
		return nil, spore.Invalidf("server", "%q is not a URL", rawURL)
	case u.Scheme == "unix":
		path := strings.TrimPrefix(strings.TrimPrefix(rawURL, "unix:"), "//")
		if path == "" {
			return nil, spore.Invalidf("server", "%q names no socket", rawURL).WithHint("unix:/run/spore.sock")
		}
		transport.Proxy = nil
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return dialer.DialContext(ctx, "unix", path) }
		base = "http://localhost"
	case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.RawQuery == "" && u.User == nil:
	default:
		return nil, spore.Invalidf("server", "%q is not http://HOST:PORT, https://HOST:PORT or unix:PATH", rawURL)
	}
	if o.transport == nil {
		o.transport = transport
	}
	c := &Client{base: base, show: rawURL, http: &http.Client{Transport: &roundTripper{next: o.transport, options: o, show: rawURL}}}
	c.api, err = api.NewClient(base, api.WithHTTPClient(c.http), api.WithRequestEditorFn(addIdempotencyKey))
	if err != nil {
		return nil, spore.Invalidf("server", "%q is not a URL", rawURL).WithCause(err)
	}
	return c, nil
}

// URL is the server's address, as it was given to New.
func (c *Client) URL() string { return c.show }

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

type idempotencyKey struct{}

// WithIdempotencyKey returns a context under which a request that makes or deletes something carries key. The server
// answers the same request with the same key with what the first one made, and another request with spore.CodeConflict.
// Use one key for one request.
func WithIdempotencyKey(ctx context.Context, key string) context.Context {
	return context.WithValue(ctx, idempotencyKey{}, key)
}

func addIdempotencyKey(ctx context.Context, r *http.Request) error {
	if key, ok := ctx.Value(idempotencyKey{}).(string); ok && (r.Method == http.MethodPost || r.Method == http.MethodDelete) {
		r.Header.Set("Idempotency-Key", key)
	}
	return nil
}

// roundTripper identifies the client and turns what goes wrong below HTTP into errors that tell the user what to do.
type roundTripper struct {
	next    http.RoundTripper
	options options
	show    string
}

func (t *roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("User-Agent", t.options.userAgent)
	if t.options.token != "" && r.Header.Get("Authorization") == "" {
		r.Header.Set("Authorization", "Bearer "+t.options.token)
	}
	resp, err := t.next.RoundTrip(r)
	if err == nil {
		return resp, nil
	}
	if ctxErr := r.Context().Err(); ctxErr != nil {
		return nil, canceled(ctxErr)
	}
	return nil, spore.Errorf(spore.CodeUnreachable, "the server at %s does not answer: %s", t.show, plain(err)).WithCause(err).
		WithHint("start one with: spore serve")
}

func canceled(cause error) *spore.Error {
	return spore.Errorf(spore.CodeCanceled, "the request was ended before it was answered").WithCause(cause)
}

// plain is the innermost text of a network error, without addresses that the message names already.
func plain(err error) string {
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		return op.Err.Error()
	}
	return err.Error()
}

// CloseIdleConnections lets http.Client.CloseIdleConnections reach the connections below.
func (t *roundTripper) CloseIdleConnections() {
	if c, ok := t.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

const (
	maxAnswer = 64 << 20
	maxError  = 1 << 20
)

// answer reads the answer of a request as a T.
func answer[T any](resp *http.Response, err error) (*T, error) {
	if err := settle(resp, err); err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var v T
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&v); err != nil {
		if ctxErr := resp.Request.Context().Err(); ctxErr != nil {
			return nil, canceled(ctxErr)
		}
		return nil, spore.Errorf(spore.CodeUnreachable, "the server's answer cannot be read: %w", err)
	}
	return &v, nil
}

// done reads the answer of a request that answers nothing.
func done(resp *http.Response, err error) error {
	if err := settle(resp, err); err != nil {
		return err
	}
	return resp.Body.Close()
}

// settle turns everything but a success into an error, and closes the body of what is none.
func settle(resp *http.Response, err error) error {
	if err != nil {
		var known *spore.Error
		if errors.As(err, &known) {
			return known
		}
		return err
	}
	if resp.StatusCode/100 == 2 {
		return nil
	}
	defer resp.Body.Close()
	return readError(resp)
}

// readError rebuilds the server's error from the wire.
func readError(resp *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxError))
	if err != nil {
		return spore.Errorf(spore.CodeUnreachable, "the server's answer (%s) cannot be read: %w", resp.Status, err)
	}
	var wire api.Error
	if code := spore.Code(resp.Header.Get(errorHeader)); code != "" && resp.Request != nil && resp.Request.Method == http.MethodHead {
		return spore.Errorf(code, "the server answered %s", resp.Status) // there is no more to it
	}
	if err := json.Unmarshal(body, &wire); err != nil || wire.Code == "" {
		return spore.Errorf(spore.CodeUnreachable, "this is not a Spore server: it answered %s", resp.Status).
			WithHint("check --server and SPORE_URL")
	}
	return sporeError(&wire)
}

// sporeError rebuilds an error from the wire.
func sporeError(wire *api.Error) *spore.Error {
	e := &spore.Error{Code: wire.Code, Message: wire.Message, Field: wire.Field, Hint: wire.Hint, Reason: wire.Reason}
	if wire.Cause != "" {
		e.Cause = errors.New(wire.Cause)
	}
	return e
}

// pages lists what comes in pages. An error ends the list.
func pages[T any](ask func(token string) ([]T, string, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) { page(yield, ask) }
}

// page asks for pages until the last one, or until yield has enough.
func page[T any](yield func(T, error) bool, ask func(token string) ([]T, string, error)) {
	token := ""
	for {
		items, next, err := ask(token)
		if err != nil {
			var none T
			yield(none, err)
			return
		}
		for _, item := range items {
			if !yield(item, nil) {
				return
			}
		}
		if next == "" {
			return
		}
		if next == token {
			var none T
			yield(none, fmt.Errorf("the server repeats page %q", token))
			return
		}
		token = next
	}
}
