package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/testbed"
	"github.com/sporevm/spore/internal/vmm/sim"
	"github.com/sporevm/spore/internal/vmm/sim/simguest"
)

// guestServer stands for a server in a guest: simulated guests reach the loopback of the machine. It answers the port.
func guestServer(t *testing.T, serve func(*net.TCPConn)) int {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	var all sync.WaitGroup
	t.Cleanup(func() { l.Close(); all.Wait() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { defer c.Close(); serve(c.(*net.TCPConn)) })
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// dialForward connects to a published port.
func dialForward(t *testing.T, p spore.PortForward) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", net.JoinHostPort(p.HostAddress, strconv.Itoa(p.HostPort)))
	must(t, err)
	t.Cleanup(func() { c.Close() })
	must(t, c.SetDeadline(time.Now().Add(time.Minute)))
	return c.(*net.TCPConn)
}

// wantReset wants a published port to take nothing.
func wantReset(t *testing.T, p spore.PortForward) {
	t.Helper()
	c, err := net.Dial("tcp", net.JoinHostPort(p.HostAddress, strconv.Itoa(p.HostPort)))
	if errors.Is(err, syscall.ECONNRESET) {
		return
	}
	must(t, err)
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(time.Minute)))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection that nobody takes ends with %v", err)
	}
}

func portRig(t *testing.T) (*rig, *spore.Template) {
	r := newRig(t, sim.New(sim.Options{Guest: simguest.New().Serve}), 0)
	_, err := r.Recover(t.Context(), nil)
	must(t, err)
	return r, r.baked(t, testbed.Ref(testbed.Image(t, testbed.Static)), small)
}

// after answers what comes back when all was sent and the sending direction closed.
func echo(c *net.TCPConn) {
	all, err := io.ReadAll(c)
	if err == nil {
		c.Write(append([]byte("all of it: "), all...))
	}
}

func TestForward(t *testing.T) {
	r, tpl := portRig(t)
	s := r.start(t, tpl.ID)
	port := guestServer(t, echo)
	ports, err := r.Publish(t.Context(), s.ID, []spore.PortForward{{GuestPort: port}, {GuestPort: port, HostAddress: "::1"}})
	must(t, err)
	before := runtime.NumGoroutine()
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			c, err := net.Dial("tcp", net.JoinHostPort(ports[i%2].HostAddress, strconv.Itoa(ports[i%2].HostPort)))
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(time.Minute))
			sent := bytes.Repeat([]byte{byte(i)}, 100_000+i)
			go func() {
				c.Write(sent)
				c.(*net.TCPConn).CloseWrite()
			}()
			got, err := io.ReadAll(c)
			if want := append([]byte("all of it: "), sent...); err != nil || !bytes.Equal(got, want) {
				t.Errorf("connection %d: %d bytes of %d, %v", i, len(got), len(want), err)
			}
		})
	}
	all.Wait()
	// What a stream's end leaves behind in the agent's session goes by itself.
	eventually(t, "no goroutine is left of a connection", func() bool { return runtime.NumGoroutine() <= before+20 })

	open := dialForward(t, ports[0])
	_, err = open.Write([]byte("x"))
	must(t, err)
	_, err = r.Publish(t.Context(), s.ID, ports[1:])
	must(t, err)
	if _, err := open.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection through a port that is unpublished ends with %v", err)
	}
	if _, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0].HostPort))); err == nil {
		t.Error("a port that is unpublished takes connections")
	}
}

func TestForwardWithoutServer(t *testing.T) {
	r, tpl := portRig(t)
	s := r.start(t, tpl.ID)
	port := guestServer(t, func(*net.TCPConn) {})
	l, err := net.Listen("tcp4", "127.0.0.1:0") // a port that nobody listens on then
	must(t, err)
	nobody := l.Addr().(*net.TCPAddr).Port
	must(t, l.Close())
	ports, err := r.Publish(t.Context(), s.ID, []spore.PortForward{{GuestPort: nobody}, {GuestPort: port}})
	must(t, err)
	wantReset(t, ports[0])
	_, err = r.Suspend(t.Context(), s, s.ID+"-p1", tpl.ID)
	must(t, err)
	wantReset(t, ports[1]) // at once: the sandbox may stand still for days
	must(t, r.Wake(t.Context(), s.ID, 1))
	c := dialForward(t, ports[1])
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		t.Errorf("a server that hangs up: %q, %v", rest, err)
	}
	must(t, r.Settle(t.Context(), s.ID, 0))
	if _, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[1].HostPort))); err == nil {
		t.Error("a port of a sandbox that is gone takes connections")
	}
}

// TestForwardAcrossGenerations has one VM after the other behind the same port.
func TestForwardAcrossGenerations(t *testing.T) {
	r, tpl := portRig(t)
	s := r.start(t, tpl.ID)
	port := guestServer(t, echo)
	ports, err := r.Publish(t.Context(), s.ID, []spore.PortForward{{GuestPort: port}})
	must(t, err)
	s.Ports = ports
	ask := func() error {
		c := dialForward(t, ports[0])
		c.Write([]byte("x"))
		c.CloseWrite()
		got, err := io.ReadAll(c)
		if err == nil && string(got) != "all of it: x" {
			err = fmt.Errorf("it answers %q", got)
		}
		return err
	}
	must(t, ask())
	for g := 2; g < 4; g++ {
		s.Generation = g
		must(t, r.Start(t.Context(), s, tpl.ID))
		must(t, ask())
		must(t, r.Settle(t.Context(), s.ID, g))
		must(t, ask())
	}
	must(t, r.Close(context.WithoutCancel(t.Context())))
	must(t, r.opt.Frozen.Close())
	r.open(t)
	_, err = r.Recover(t.Context(), []*spore.Sandbox{s})
	must(t, err)
	must(t, ask())
}

func TestForwardsAreBounded(t *testing.T) {
	hold := make(chan struct{})
	p := newPorts(func(context.Context, string, int) (guestConn, error) { <-hold; return nil, errDead }, func(string, error) {})
	ports, err := p.set(t.Context(), "s1", []spore.PortForward{{GuestPort: 1}})
	must(t, err)
	for range maxForwarded {
		dialForward(t, ports[0])
	}
	wantReset(t, ports[0]) // one more than may be
	close(hold)
	p.close()
}

// TestPublishRefusals are what only the machine can tell.
func TestPublishRefusals(t *testing.T) {
	p := newPorts(nil, nil)
	defer p.close()
	taken, err := p.set(t.Context(), "s1", []spore.PortForward{{GuestPort: 1}})
	must(t, err)
	addr := netip.MustParseAddr("127.0.0.1")
	at := func(port int) spore.PortForward {
		return spore.PortForward{HostAddress: "127.0.0.1", HostPort: port, GuestPort: 1}
	}
	for _, c := range []struct {
		name        string
		err         error
		code        spore.Code
		field, word string
	}{
		{"taken", p.refusal(syscall.EADDRINUSE, "s2", at(taken[0].HostPort), addr), spore.CodeConflict, "ports.hostPort", "by sandbox s1"},
		{"taken by nobody we know", p.refusal(syscall.EADDRINUSE, "s2", at(22), addr), spore.CodeConflict, "ports.hostPort", "another program"},
		{"privileged", p.refusal(syscall.EACCES, "s2", at(80), addr), spore.CodeInvalid, "ports.hostPort", "may not listen on port 80"},
		{"no such address", p.refusal(syscall.EADDRNOTAVAIL, "s2", at(80), addr), spore.CodeInvalid, "ports.hostAddress", "127.0.0.1"},
	} {
		if e := spore.AsError(c.err); e.Code != c.code || e.Field != c.field || e.Hint == "" || !strings.Contains(e.Message, c.word) {
			t.Errorf("%s: %+v", c.name, e)
		}
	}
	_, err = p.set(t.Context(), "s2", []spore.PortForward{at(0), at(taken[0].HostPort)})
	wantCode(t, err, spore.CodeConflict)
	if left := p.of("s2"); len(left) > 0 {
		t.Errorf("some were published all the same: %v", left)
	}
	_, err = p.set(t.Context(), "s2", []spore.PortForward{{HostAddress: "203.0.113.1", GuestPort: 1}})
	if e := spore.AsError(err); e == nil || e.Field != "ports.hostAddress" {
		t.Errorf("an address of another machine: %+v", e)
	}
}

// deaf is a connection into a guest that answers nothing and does not end.
type deaf struct {
	guestConn
	open chan struct{}
}

func (d deaf) Read([]byte) (int, error)       { <-d.open; return 0, io.EOF }
func (d deaf) Write(data []byte) (int, error) { <-d.open; return len(data), nil }
func (d deaf) Close() error                   { <-d.open; return nil }
func (d deaf) CloseWrite() error              { return nil }

func TestForwardEndsWithoutItsGuest(t *testing.T) {
	guest := deaf{open: make(chan struct{})}
	dialled := make(chan struct{})
	p := newPorts(func(context.Context, string, int) (guestConn, error) { close(dialled); return guest, nil }, func(string, error) {})
	ports, err := p.set(t.Context(), "s1", []spore.PortForward{{GuestPort: 1}})
	must(t, err)
	c := dialForward(t, ports[0])
	_, err = c.Write([]byte("x"))
	must(t, err)
	<-dialled
	_, err = p.set(t.Context(), "s1", nil)
	must(t, err)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection through a port that is unpublished ends with %v", err)
	}
	close(guest.open)
}
