package simnode

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
)

// Handle is one controller's connection to a machine. It may be used from many goroutines.
type Handle struct {
	machine *Machine
	closed  bool
	onExit  func(sandboxID string, generation int, reason string)
}

var _ center.Node = (*Handle)(nil)

// Connect makes a connection to the machine.
func (m *Machine) Connect() *Handle {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := &Handle{machine: m}
	m.handles = append(m.handles, h)
	return h
}

// Close ends the connection, as the end of its controller does: later calls fail, and OnExit is not called any more. Calls
// under way go on.
func (h *Handle) Close() {
	h.machine.mu.Lock()
	defer h.machine.mu.Unlock()
	h.closed = true
	h.machine.handles = slices.DeleteFunc(h.machine.handles, func(o *Handle) bool { return o == h })
}

// Machine is what the handle is connected to.
func (h *Handle) Machine() *Machine { return h.machine }

// ID is center.Node's.
func (h *Handle) ID() string { return h.machine.id }

// OnExit is center.Node's.
func (h *Handle) OnExit(fn func(sandboxID string, generation int, reason string)) {
	h.machine.mu.Lock()
	defer h.machine.mu.Unlock()
	h.onExit = fn
}

// Report is center.Node's.
func (h *Handle) Report(ctx context.Context) (*spore.NodeReport, error) {
	return ask(ctx, h, "report", func(c *call) (*spore.NodeReport, error) { return c.m.report(c.m.cluster.now()), nil })
}

// Logs is center.Node's.
func (h *Handle) Logs(ctx context.Context, sandboxID string, generation int, console bool, limit int) ([]byte, error) {
	return ask(ctx, h, "logs", func(c *call) ([]byte, error) {
		v, err := c.m.held(sandboxID, generation)
		if err != nil {
			return nil, err
		}
		text := fmt.Sprintf("sandbox %s stands on %s\n", sandboxID, v.state.id)
		if console {
			text = "[    0.000000] Linux version " + v.state.bound.Kernel + "\n" + text
		}
		return []byte(text[max(0, len(text)-max(limit, 0)):]), nil
	})
}

// Agent is center.Node's. The agent answers GET /health with 204, GET /self with what it is, and GET, PUT and DELETE of
// /files?path=P with files that are captured, diffed and counted like those of a real guest.
func (h *Handle) Agent(ctx context.Context, sandboxID string, generation int) (http.RoundTripper, error) {
	return ask(ctx, h, "agent", func(c *call) (http.RoundTripper, error) {
		_, err := c.m.held(sandboxID, generation)
		if err != nil {
			return nil, err
		}
		return agent{h: h, sandbox: sandboxID, generation: generation}, nil
	})
}

// agent is a transport to the agent of a simulated guest.
type agent struct {
	h          *Handle
	sandbox    string
	generation int
}

// Self is what GET /self of a simulated agent answers, as JSON.
type Self struct {
	SandboxID  string `json:"sandboxID"`
	Generation int    `json:"generation"`
	FrozenID   string `json:"frozenID"`
	Node       string `json:"node"`
}

// maxFile bounds what is put into a simulated file.
const maxFile = 16 << 20

func (a agent) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		var err error
		body, err = io.ReadAll(io.LimitReader(r.Body, maxFile+1))
		if err := errors.Join(err, r.Body.Close()); err != nil {
			return nil, err
		}
	}
	return ask(r.Context(), a.h, "request", func(c *call) (*http.Response, error) {
		if err := c.step("serve"); err != nil {
			return nil, err
		}
		v, err := c.m.held(a.sandbox, a.generation)
		if err != nil {
			return nil, err
		}
		if v.paused {
			return nil, spore.Errorf(spore.CodeUnreachable, "the agent of sandbox %s does not answer: it stands still", a.sandbox)
		}
		status, answer := v.serve(c, r, body)
		return &http.Response{
			Status: fmt.Sprintf("%d %s", status, http.StatusText(status)), StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(answer)), ContentLength: int64(len(answer)), Request: r,
		}, nil
	})
}

func (v *vm) serve(c *call, r *http.Request, body []byte) (status int, answer []byte) {
	path := r.URL.Query().Get("path")
	switch r.Method + " " + r.URL.Path {
	case "GET /health":
		return http.StatusNoContent, nil
	case "GET /self":
		answer, err := json.Marshal(Self{SandboxID: v.sandbox, Generation: v.generation, FrozenID: v.state.id, Node: c.m.id})
		if err != nil {
			return http.StatusInternalServerError, nil
		}
		return http.StatusOK, answer
	case "GET /files":
		if content, ok := v.files[path]; ok {
			return http.StatusOK, []byte(content)
		}
	case "PUT /files":
		if len(body) > maxFile {
			return http.StatusRequestEntityTooLarge, nil
		}
		v.write(c.m, path, string(body))
		return http.StatusNoContent, nil
	case "DELETE /files":
		if _, ok := v.files[path]; ok {
			v.erase(c.m, path)
			return http.StatusNoContent, nil
		}
	}
	return http.StatusNotFound, nil
}

// write puts a file on a VM's disk.
func (v *vm) write(m *Machine, path, content string) {
	v.erase(m, path)
	files := maps.Clone(v.files)
	if files == nil {
		files = map[string]string{}
	}
	files[path] = content
	v.files = files
	v.disk += blockBytes + int64(len(content))
	m.used += blockBytes + int64(len(content))
}

// erase removes a file. What was on the disk when the VM was thawed is shared with its frozen state and takes nothing.
func (v *vm) erase(m *Machine, path string) {
	content, ok := v.files[path]
	if !ok {
		return
	}
	if frozen, was := v.state.files[path]; !was || frozen != content {
		v.disk -= blockBytes + int64(len(content))
		m.used -= blockBytes + int64(len(content))
	}
	v.files = maps.Clone(v.files)
	delete(v.files, path)
}

// Write puts a file on the disk of a running VM, as its guest would.
func (m *Machine) Write(sandboxID string, generation int, path, content string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, err := m.held(sandboxID, generation)
	if err == nil {
		v.write(m, path, content)
	}
	return err
}
