package node

import (
	"context"
	"io"
	"net/http"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/vmm"
)

// Agent answers a transport to the agent of a running sandbox.
func (n *Node) Agent(ctx context.Context, sandboxID string, generation int) (http.RoundTripper, error) {
	m, err := n.machine(sandboxID, generation)
	if err != nil {
		return nil, err
	}
	if m.vm.State() == vmm.StateExited {
		return nil, errDead
	}
	a, err := m.reach(ctx)
	if err != nil {
		return nil, err
	}
	return a.Transport(), nil
}

// dialGuest connects to a port of the oldest VM of a sandbox that runs. One that stands still for good is not waited for.
func (n *Node) dialGuest(ctx context.Context, sandboxID string, port int) (guestConn, error) {
	for _, m := range n.machinesOf(sandboxID) {
		if m.ending.Load() || m.suspended.Load() || m.vm.State() == vmm.StateExited {
			continue
		}
		a, err := m.connect(ctx)
		if err != nil {
			return nil, err
		}
		c, err := a.DialPort(ctx, port)
		if err != nil {
			return nil, err
		}
		return c.(guestConn), nil
	}
	return nil, errDead
}

// Logs answers the output of the image's own process, or of the guest's console.
func (n *Node) Logs(ctx context.Context, sandboxID string, generation int, console bool, limit int) ([]byte, error) {
	m, err := n.machine(sandboxID, generation)
	if err != nil {
		return nil, err
	}
	if console {
		return m.vm.Console(limit)
	}
	ctx, cancel := context.WithTimeout(ctx, greetTimeout)
	defer cancel()
	a, err := m.reach(ctx)
	if err != nil {
		return nil, err
	}
	return readLogs(ctx, a, limit)
}

// reach is connect for a sandbox that was greeted long ago: its guest answers soon or not at all.
func (m *machine) reach(ctx context.Context) (*guest.Agent, error) {
	reaching, cancel := context.WithTimeout(ctx, greetTimeout)
	defer cancel()
	a, err := m.connect(reaching)
	if err != nil {
		return nil, m.unreached(ctx, err, "the agent of the sandbox does not answer")
	}
	return a, nil
}

// readLogs reads what is kept of the output of the image's process, at most limit bytes whatever the guest sends.
func readLogs(ctx context.Context, a *guest.Agent, limit int) ([]byte, error) {
	body, err := a.Logs(ctx, limit, false)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(io.LimitReader(body, int64(limit)))
}
