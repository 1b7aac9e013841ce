// Package guest is the host's side of talking to the agent inside a sandbox.
package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/guest/link"
)

// Names of the ports that dial is asked for.
const (
	portControl = "spore.control"
	portData    = "spore.data"
)

// Dialer opens the host's end of one of a VM's agent ports.
type Dialer func(ctx context.Context, port string) (net.Conn, error)

// Agent is the agent of one running VM. It stays usable while the VM is paused, when calls wait, and finds the guest
// again by itself when the connection was lost. Its methods may be called from many goroutines.
//
// Only one Agent may talk to a VM at a time: a newer one takes the guest over and ends the streams of the older.
type Agent struct {
	dial      Dialer
	watcher   Watcher
	patience  patience
	transport *http.Transport
	rpc       rpc

	mu       sync.Mutex
	session  *link.Session
	dialling chan struct{} // closed when the dial that is under way is done; nil when there is none
	closed   bool
}

// Watcher is how the host of a VM takes part in watching over the connection. Either function may be nil.
type Watcher struct {
	// Runs says whether the guest runs: nothing is expected of one that stands still. Without it, the guest always runs.
	Runs func() bool
	// Silent hears of a guest that ran for so long without answering, and whose connection is given up for it.
	Silent func(time.Duration)
}

// Connect finds the agent, waiting for it until ctx ends: a guest that is booting answers when its agent is up. It
// fails with spore.CodeUnreachable. A guest that runs and answers nothing for a minute is taken to have dropped the connection:
// requests under way fail, and the next makes a new one.
func Connect(ctx context.Context, dial Dialer, w Watcher) (*Agent, error) {
	return open(ctx, dial, w, patience{look: 10 * time.Second, silence: time.Minute})
}

func open(ctx context.Context, dial Dialer, w Watcher, p patience) (*Agent, error) {
	if w.Runs == nil {
		w.Runs = func() bool { return true }
	}
	if w.Silent == nil {
		w.Silent = func(time.Duration) {}
	}
	a := &Agent{dial: dial, watcher: w, patience: p}
	a.transport = &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return a.DialAgent(ctx) },
		DisableCompression:  true, // what the agent sends is passed on as it is
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     time.Minute,
	}
	a.rpc = newRPC(a)
	if _, err := a.connected(ctx); err != nil {
		return nil, err
	}
	return a, nil
}

// Close ends the connection and everything that goes over it. The guest goes on.
func (a *Agent) Close() error {
	a.mu.Lock()
	a.closed = true
	s := a.session
	a.session = nil
	a.mu.Unlock()
	var err error
	if s != nil {
		err = s.Close()
	}
	a.transport.CloseIdleConnections()
	return err
}

var errClosed = errors.New("the connection to the agent has been closed")

// connected returns the session, after making a new one if there is none that lives.
func (a *Agent) connected(ctx context.Context) (*link.Session, error) {
	for {
		a.mu.Lock()
		if a.closed {
			a.mu.Unlock()
			return nil, unreachable(errClosed)
		}
		if s := a.session; s != nil {
			select {
			case <-s.Done():
				a.session = nil
			default:
				a.mu.Unlock()
				return s, nil
			}
		}
		if wait := a.dialling; wait != nil {
			a.mu.Unlock()
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return nil, unreachable(context.Cause(ctx))
			}
		}
		a.dialling = make(chan struct{})
		a.mu.Unlock()

		s, err := a.redial(ctx)

		a.mu.Lock()
		close(a.dialling)
		a.dialling = nil
		if err == nil && a.closed {
			err = errClosed
			s.Close()
		}
		if err == nil {
			a.session = s
			go a.watch(s)
		}
		a.mu.Unlock()
		if err != nil {
			return nil, unreachable(err)
		}
		return s, nil
	}
}

// A guest that was just thawed or resumed may end connections that were made a moment too early, so one that was cut off is
// made again, so many times.
const (
	redials    = 10
	redialWait = 20 * time.Millisecond
)

func (a *Agent) redial(ctx context.Context) (*link.Session, error) {
	for try := 1; ; try++ {
		control, err := a.dial(ctx, portControl)
		if err != nil {
			return nil, err
		}
		data, err := a.dial(ctx, portData)
		if err != nil {
			control.Close()
			return nil, err
		}
		s, err := link.Open(ctx, control, data)
		if err == nil || ctx.Err() != nil || try == redials {
			return s, err
		}
		select {
		case <-time.After(time.Duration(try) * redialWait):
		case <-ctx.Done():
			return nil, err
		}
	}
}

func unreachable(err error) error {
	return spore.Errorf(spore.CodeUnreachable, "the sandbox's agent cannot be reached: %w", err).
		WithHint("the guest's console log tells whether it has booted and what its init says")
}

// Transport carries HTTP requests to the agent; scheme and host of their URLs are ignored. It serves a reverse proxy.
func (a *Agent) Transport() http.RoundTripper { return a.transport }

// DialAgent opens a connection to the agent's HTTP server.
func (a *Agent) DialAgent(ctx context.Context) (net.Conn, error) {
	s, err := a.connected(ctx)
	if err != nil {
		return nil, err
	}
	c, err := s.DialHTTP(ctx)
	if err != nil {
		return nil, unreachable(err)
	}
	return c, nil
}

// DialPort connects to a TCP port on the guest's loopback. It fails with spore.CodeUnreachable: when nothing listens
// there the error wraps a *link.RefusedError. The connection has a CloseWrite method.
func (a *Agent) DialPort(ctx context.Context, port int) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, spore.Invalidf("port", "%d is not a TCP port", port)
	}
	s, err := a.connected(ctx)
	if err != nil {
		return nil, err
	}
	c, err := s.DialTCP(ctx, uint16(port))
	var refused *link.RefusedError
	if errors.As(err, &refused) {
		return nil, spore.Errorf(spore.CodeUnreachable, "nothing answers on port %d of the sandbox", port).WithCause(err).
			WithHint("start a server on port %d inside the sandbox; it may listen on the loopback alone", port)
	}
	if err != nil {
		return nil, unreachable(fmt.Errorf("port %d: %w", port, err))
	}
	return c, nil
}
