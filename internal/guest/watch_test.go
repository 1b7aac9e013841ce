package guest

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/guest/link"
)

// silent is a guest on pipes whose sessions can be dropped behind the host's back.
type silent struct {
	server *link.Server
	ports  map[string]net.Conn // the host's ends
	asked  chan struct{}       // a request came in
	answer chan struct{}       // and is answered when this is closed
}

func newSilent(t *testing.T) *silent {
	g := &silent{ports: map[string]net.Conn{}, asked: make(chan struct{}, 8), answer: make(chan struct{})}
	host, control := socketPair(t)
	g.ports[portControl] = lasting{host}
	host, data := socketPair(t)
	g.ports[portData] = lasting{host}
	streams := listener{streams: make(chan net.Conn, 8)}
	streams.closed, streams.close = context.WithCancel(context.Background())
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.asked <- struct{}{}
		select {
		case <-g.answer:
		case <-r.Context().Done():
		}
	})}
	done := make(chan struct{})
	go srv.Serve(streams)
	g.server = link.NewServer(data, func(c net.Conn) { link.Dispatch(c, func(c net.Conn) { streams.streams <- c }) })
	go func() {
		defer close(done)
		g.server.Run(control)
	}()
	t.Cleanup(func() {
		srv.Close()
		for _, c := range []net.Conn{control, data, g.ports[portControl].(lasting).Conn, g.ports[portData].(lasting).Conn} {
			c.Close()
		}
		<-done
	})
	return g
}

func (g *silent) dial(_ context.Context, port string) (net.Conn, error) {
	c := g.ports[port]
	return c, c.SetDeadline(time.Time{})
}

func socketPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "port"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// lasting is a host's port: it can be opened again after it was closed.
type lasting struct{ net.Conn }

func (l lasting) Close() error { return l.SetDeadline(time.Unix(1, 0)) }

// listener accepts the streams that it is given.
type listener struct {
	streams chan net.Conn
	closed  context.Context
	close   func()
}

func (l listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.streams:
		return c, nil
	case <-l.closed.Done():
		return nil, net.ErrClosed
	}
}

func (l listener) Close() error {
	l.close()
	return nil
}

func (l listener) Addr() net.Addr { return &net.UnixAddr{} }

func get(a *Agent) chan error {
	done := make(chan error, 1)
	go func() {
		res, err := (&http.Client{Transport: a.Transport()}).Get("http://guest/")
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			res.Body.Close()
		}
		done <- err
	}()
	return done
}

var hasty = patience{look: 5 * time.Millisecond, silence: 400 * time.Millisecond}

func TestDroppedSessionIsNoticed(t *testing.T) {
	g := newSilent(t)
	silences := make(chan time.Duration, 8)
	a, err := open(t.Context(), g.dial, Watcher{Silent: func(d time.Duration) { silences <- d }}, hasty)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	waiting := get(a)
	<-g.asked
	select {
	case err := <-waiting:
		t.Fatalf("a request that takes its time ended: %v", err)
	case <-time.After(3 * hasty.silence): // pings go to and fro
	}
	g.server.Hangup()
	if err := <-waiting; err == nil {
		t.Error("a request whose session was dropped was answered")
	}
	if d := <-silences; d < hasty.silence {
		t.Errorf("the guest was given up after %v", d)
	}
	close(g.answer)
	if err := <-get(a); err != nil {
		t.Errorf("the next request: %v", err)
	}
}

func TestStandingGuestIsWaitedFor(t *testing.T) {
	g := newSilent(t)
	var looks atomic.Int32
	a, err := open(t.Context(), g.dial, Watcher{Runs: func() bool { looks.Add(1); return false }}, hasty)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	waiting := get(a)
	<-g.asked
	g.server.Hangup() // it answers nothing any more, as one that stands still
	for looks.Load() < 3*int32(hasty.silence/hasty.look) {
		time.Sleep(hasty.look)
	}
	select {
	case err := <-waiting:
		t.Errorf("a request to a guest that stands still ended: %v", err)
	default:
	}
	a.Close()
	<-waiting
}
