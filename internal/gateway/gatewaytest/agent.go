package gatewaytest

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/sporevm/spore/internal/agent"
)

// Agent answers a transport to a real agent, which runs its commands on this machine. It goes with the test.
func Agent(t testing.TB) http.RoundTripper {
	return Guest(t, agent.New(agent.Options{Reaper: agent.NewReaper(false)}).Handler())
}

// Guest answers a transport to a handler that plays the agent. It goes with the test.
func Guest(t testing.TB, h http.Handler) http.RoundTripper {
	server := httptest.NewServer(h)
	address := server.Listener.Addr().String()
	transport := &http.Transport{
		DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		},
	}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		server.CloseClientConnections()
		server.Close()
	})
	return transport
}
