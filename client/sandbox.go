package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"connectrpc.com/connect"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api/filesystem/filesystemconnect"
	"github.com/sporevm/spore/api/process/processconnect"
)

// Headers between client and server that the API's description does not list as parameters.
const (
	userHeader  = "Spore-User"
	errorHeader = "Spore-Error"
)

// Sandbox is a running sandbox, for running commands and moving files in it.
type Sandbox struct {
	id    string
	agent string // base URL of its agent
	http  *http.Client
	proc  processconnect.ProcessClient
	files filesystemconnect.FilesystemClient
}

// Sandbox answers a handle to the sandbox with that id. It asks the server nothing: whether there is such a sandbox
// shows with the first use.
func (c *Client) Sandbox(id string) *Sandbox {
	agent := c.base + "/v1/sandboxes/" + url.PathEscape(id) + "/agent"
	h := &http.Client{Transport: &agentTransport{next: c.http.Transport}}
	return &Sandbox{
		id: id, agent: agent, http: h,
		proc:  processconnect.NewProcessClient(h, agent),
		files: filesystemconnect.NewFilesystemClient(h, agent),
	}
}

// ID is the sandbox's id.
func (s *Sandbox) ID() string { return s.id }

// agentTransport tells the server's refusals from the agent's answers: they come back as errors.
type agentTransport struct{ next http.RoundTripper }

func (t *agentTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(r)
	if err != nil || resp.Header.Get(errorHeader) == "" {
		return resp, err
	}
	defer resp.Body.Close()
	return nil, readError(resp)
}

// setUser makes a call to the agent act as a guest user; "" is the image's own.
func setUser(h http.Header, user string) {
	if user != "" {
		h.Set(userHeader, user)
	}
}

// FollowLogs copies to w the newest limit bytes of what the image's own process printed, and what it prints from then on,
// until it ends or ctx does. A limit of 0 is all that the sandbox has kept.
func (s *Sandbox) FollowLogs(ctx context.Context, limit int, w io.Writer) error {
	target := s.agent + "/logs?follow=true"
	if limit > 0 {
		target += "&tail=" + strconv.Itoa(limit)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return err
	}
	resp, err := s.do(r, "the log")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err = io.Copy(w, resp.Body); err != nil && ctx.Err() != nil {
		return canceled(ctx.Err())
	}
	return err
}

// do sends a request that is none of the services' to the agent; about names what it is about.
func (s *Sandbox) do(r *http.Request, about string) (*http.Response, error) {
	resp, err := s.http.Do(r)
	if err != nil {
		if ctxErr := r.Context().Err(); ctxErr != nil {
			return nil, canceled(ctxErr)
		}
		return nil, agentError(err)
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		return nil, fileError(resp, about)
	}
	return resp, nil
}

var codeOfConnect = map[connect.Code]spore.Code{
	connect.CodeCanceled:           spore.CodeCanceled,
	connect.CodeDeadlineExceeded:   spore.CodeCanceled,
	connect.CodeInvalidArgument:    spore.CodeInvalid,
	connect.CodeOutOfRange:         spore.CodeInvalid,
	connect.CodeNotFound:           spore.CodeNotFound,
	connect.CodeAlreadyExists:      spore.CodeConflict,
	connect.CodePermissionDenied:   spore.CodeConflict,
	connect.CodeFailedPrecondition: spore.CodeConflict,
	connect.CodeAborted:            spore.CodeConflict,
	connect.CodeResourceExhausted:  spore.CodeNoSpace,
	connect.CodeUnimplemented:      spore.CodeUnsupported,
	connect.CodeUnavailable:        spore.CodeUnreachable,
	connect.CodeUnauthenticated:    spore.CodeUnauthenticated,
}

// agentError makes a *spore.Error of what a call to the agent came back with. Errors of the server on the way there stay
// what they are.
func agentError(err error) error {
	if err == nil {
		return nil
	}
	var known *spore.Error
	if errors.As(err, &known) {
		return known
	}
	var remote *connect.Error
	if !errors.As(err, &remote) || !connect.IsWireError(err) && remote.Code() != connect.CodeCanceled && remote.Code() != connect.CodeDeadlineExceeded {
		return spore.Errorf(spore.CodeUnreachable, "the connection to the sandbox broke: %w", err)
	}
	code, ok := codeOfConnect[remote.Code()]
	if !ok {
		code = spore.CodeInternal
	}
	return spore.Errorf(code, "%s", remote.Message()).WithCause(remote)
}

var codeOfStatus = map[int]spore.Code{
	http.StatusBadRequest:          spore.CodeInvalid,
	http.StatusUnauthorized:        spore.CodeUnauthenticated,
	http.StatusForbidden:           spore.CodeConflict,
	http.StatusNotFound:            spore.CodeNotFound,
	http.StatusConflict:            spore.CodeConflict,
	http.StatusInsufficientStorage: spore.CodeNoSpace,
	http.StatusBadGateway:          spore.CodeUnreachable,
	http.StatusServiceUnavailable:  spore.CodeUnreachable,
}

// fileError makes a *spore.Error of the agent's answer to a request about a file's contents.
func fileError(resp *http.Response, path string) error {
	var wire struct {
		Message string `json:"message"`
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxError))
	if err != nil || json.Unmarshal(body, &wire) != nil || wire.Message == "" {
		wire.Message = resp.Status
	}
	code, ok := codeOfStatus[resp.StatusCode]
	if !ok {
		code = spore.CodeInternal
	}
	return spore.Errorf(code, "%s: %s", path, wire.Message)
}
