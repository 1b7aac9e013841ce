package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
)

// maxAnswer bounds what is read of an answer: a VMM that was taken over by its guest may say anything.
const maxAnswer = 1 << 20

// APIError is a request that Firecracker refused.
type APIError struct {
	Method, Path string
	Status       int    // of HTTP
	Message      string // Firecracker's fault_message; empty when it gave none
}

func (e *APIError) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("firecracker: %s %s: status %d", e.Method, e.Path, e.Status)
	}
	return fmt.Sprintf("firecracker: %s %s: %s", e.Method, e.Path, e.Message)
}

// errHungUp marks errors of a request that the process did not live to answer.
var errHungUp = errors.New("firecracker: the process does not answer any more")

// client talks to one Firecracker through its Unix socket, one connection kept open. Firecracker takes one request at a
// time, so callers serialise theirs.
type client struct{ http *http.Client }

func newClient(dial func(ctx context.Context) (net.Conn, error)) *client {
	return &client{http: &http.Client{Transport: &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		MaxIdleConns:       1,
		DisableCompression: true,
	}}}
}

func (c *client) close() { c.http.CloseIdleConnections() }

// do sends one request; in and out may be nil.
func (c *client) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("firecracker: %s %s: %w", method, path, err)
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://firecracker"+path, body)
	if err != nil {
		return fmt.Errorf("firecracker: %s %s: %w", method, path, err)
	}
	req.Header.Set("Accept", "application/json")
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return transportError(ctx, method, path, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return transportError(ctx, method, path, err)
	}
	if resp.StatusCode/100 != 2 {
		return &APIError{Method: method, Path: path, Status: resp.StatusCode, Message: faultMessage(text)}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("firecracker: %s %s: unreadable answer: %w", method, path, err)
	}
	return nil
}

// transportError tells a caller that gave up from a process that does not answer.
func transportError(ctx context.Context, method, path string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("%w (%s %s): %w", errHungUp, method, path, err)
}

// faultMessage reads the body of a refusal.
func faultMessage(text []byte) string {
	var fault struct {
		Message string `json:"fault_message"`
	}
	if json.Unmarshal(text, &fault) != nil {
		return printable(text, 500)
	}
	return printable([]byte(fault.Message), 4000)
}

// printable cuts text to limit bytes without control characters, for messages.
func printable(text []byte, limit int) string {
	text = bytes.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r < ' ' || r == 0x7f || r == 0xfffd:
			return -1
		}
		return r
	}, text)
	if len(text) > limit {
		text = text[:limit]
	}
	return string(bytes.TrimSpace(text))
}
