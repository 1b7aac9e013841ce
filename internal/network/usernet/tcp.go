package usernet

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// acceptTCP makes a connection that the guest asks for, in a goroutine of its own. The guest's side is completed only when the
// other one is there, so the guest learns the truth of it.
func (e *engine) acceptTCP(r *tcp.ForwarderRequest) {
	if !e.begin() {
		r.Complete(true)
		return
	}
	defer e.wg.Done()
	to, _ := ends(r.ID())
	c := &connection{engine: e}
	c.ctx, c.cancel = context.WithCancel(e.ctx)
	defer c.cancel()
	f, ok := e.gate.enter(to, true, c.cancel)
	if !ok {
		r.Complete(true)
		return
	}
	defer e.gate.leave(f)
	select {
	case e.tcp <- struct{}{}:
		defer func() { <-e.tcp }()
	default:
		e.failed.Add(1)
		r.Complete(true)
		return
	}
	d := net.Dialer{Timeout: dialTime}
	conn, err := d.DialContext(c.ctx, "tcp4", to.String())
	if err != nil {
		e.failed.Add(1)
		r.Complete(true)
		return
	}
	c.host = conn.(*net.TCPConn)
	var queue waiter.Queue
	ep, tcpErr := r.CreateEndpoint(&queue)
	r.Complete(tcpErr != nil)
	if tcpErr != nil {
		e.failed.Add(1)
		c.host.Close()
		return
	}
	e.opened.Add(1)
	ep.SocketOptions().SetDelayOption(false)
	c.ep, c.guest = ep, gonet.NewTCPConn(&queue, ep)
	c.carry()
}

// begin counts something that runs for the guest; false when the engine ends.
func (e *engine) begin() bool { return e.gate.begin(&e.wg) }

// connection is one TCP connection of the guest, in two halves.
type connection struct {
	engine *engine
	ctx    context.Context
	cancel context.CancelFunc
	host   *net.TCPConn
	guest  *gonet.TCPConn
	ep     tcpip.Endpoint
}

// carry moves data both ways until both sides have said all, or one has broken off, or the connection is cut.
func (c *connection) carry() {
	var broken sync.Once
	abort := func() {
		broken.Do(func() {
			// Each side learns that it is no orderly end.
			c.ep.Abort()
			c.host.SetLinger(0) // fails on a connection that has ended already, which is as good
			c.host.Close()
		})
	}
	stop := context.AfterFunc(c.ctx, abort)
	defer stop()
	var wg sync.WaitGroup
	half := func(move func() error) {
		wg.Go(func() {
			if move() != nil {
				abort()
			}
		})
	}
	half(func() error {
		if err := move(c.host, c.guest, c.pace(c.engine.out)); err != nil {
			return err
		}
		return c.host.CloseWrite()
	})
	half(func() error {
		if err := move(c.guest, c.host, c.pace(c.engine.in)); err != nil {
			return err
		}
		return c.guest.CloseWrite()
	})
	wg.Wait()
	c.host.Close() // has been, if it was broken off
	c.guest.Close()
	c.drain()
}

// drain waits until the guest has taken all that it was sent: until then the connection takes memory, and so its slot. A guest
// that does not is not waited for for ever.
func (c *connection) drain() {
	deadline := time.Now().Add(drainTime)
	for pause := time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		switch tcp.EndpointState(c.ep.State()) {
		case tcp.StateClose, tcp.StateTimeWait, tcp.StateError:
			return
		}
		select {
		case <-c.ctx.Done(): // which aborts it
			return
		case <-time.After(pause):
		}
		if time.Now().After(deadline) {
			c.ep.Abort()
			return
		}
	}
}

// pace waits until a rate lets n bytes of the connection pass.
func (c *connection) pace(b *bucket) func(n int) error {
	return func(n int) error { return b.wait(c.ctx, onWire(n)) }
}

// move copies until the source ends. Reading no faster than the other side takes, and the rate lets pass, is all the flow control
// that there is to do.
func move(to io.Writer, from io.Reader, pace func(n int) error) error {
	buf := make([]byte, chunk)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if err := pace(n); err != nil {
				return err
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
