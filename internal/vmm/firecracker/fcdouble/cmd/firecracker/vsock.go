package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// vsock is the vsock device with its socket on the host.
type vsock struct {
	cfg      vsockConfig
	listener *net.UnixListener

	mu    sync.Mutex
	conns map[*vsockConn]struct{}
	next  uint32
}

// firstHostPort is where the ports of the host's ends begin.
const firstHostPort = 1 << 30

func bindVsock(cfg vsockConfig) (*vsock, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: cfg.UDS, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // it is never removed, which is why a second VM cannot be loaded beside it
	return &vsock{cfg: cfg, listener: l, conns: map[*vsockConn]struct{}{}, next: firstHostPort}, nil
}

func (v *vsock) close() { v.listener.Close() }

// serve accepts connections of the host. Nothing is accepted while the VM is paused.
func (v *vsock) serve(m *machine) {
	go func() {
		for {
			c, err := v.listener.AcceptUnix()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			go v.connect(m, c)
		}
	}()
}

// connect reads which port a host wants and connects it when a guest listens there.
func (v *vsock) connect(m *machine, c *net.UnixConn) {
	m.waitRunning()
	in := bufio.NewReaderSize(c, 32)
	port, err := readPort(in)
	m.waitRunning()
	accept := m.guest.listener(port)
	if err != nil || accept == nil {
		c.Close() // no answer: that is how the host learns of it
		return
	}
	conn := &vsockConn{UnixConn: c, m: m, v: v, data: make(chan []byte), dead: make(chan struct{})}
	v.mu.Lock()
	v.next++
	host := v.next
	v.conns[conn] = struct{}{}
	v.mu.Unlock()
	if _, err := fmt.Fprintf(c, "OK %d\n", host); err != nil {
		conn.Close()
		return
	}
	go conn.pump(in)
	accept(conn)
}

// readPort reads "CONNECT 52\n".
func readPort(in *bufio.Reader) (uint32, error) {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	words := strings.Fields(string(line))
	if len(words) < 2 || !strings.EqualFold(words[0], "connect") {
		return 0, errors.New("invalid port request")
	}
	port, err := strconv.ParseUint(words[1], 10, 32)
	return uint32(port), err
}

// resetAll is what a snapshot does to the connections of the VM that it is taken of: once it runs again the guest finds them
// reset. The host's ends stay as they are until something is sent on them.
func (v *vsock) resetAll() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for c := range v.conns {
		close(c.dead)
	}
	clear(v.conns)
}

// vsockConn is the guest's end of a connection.
type vsockConn struct {
	*net.UnixConn
	m    *machine
	v    *vsock
	data chan []byte   // what the host sends; closed at its end
	dead chan struct{} // closed when a snapshot has reset the guest's end
	rest []byte
	late deadline
}

// deadline is when a read is given up.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	over  chan struct{} // closed when it has passed
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.over // it closes the channel that we had
	}
	d.timer = nil
	select {
	case <-d.channel():
		d.over = make(chan struct{})
	default:
	}
	if wait := time.Until(t); !t.IsZero() && wait <= 0 {
		close(d.over)
	} else if !t.IsZero() {
		over := d.over
		d.timer = time.AfterFunc(wait, func() { close(over) })
	}
}

func (d *deadline) channel() chan struct{} {
	if d.over == nil {
		d.over = make(chan struct{})
	}
	return d.over
}

func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.channel()
}

// SetReadDeadline ends a Read that is under way when it passes.
func (c *vsockConn) SetReadDeadline(t time.Time) error {
	c.late.set(t)
	return nil
}

// SetDeadline sets both deadlines.
func (c *vsockConn) SetDeadline(t time.Time) error {
	c.late.set(t)
	return c.UnixConn.SetWriteDeadline(t)
}

// pump brings what the host sends. Of a connection that was reset the guest knows nothing any more: it answers whatever comes
// with a reset, and so the host learns of it.
func (c *vsockConn) pump(in *bufio.Reader) {
	defer close(c.data)
	for {
		b := make([]byte, 32<<10)
		n, err := in.Read(b)
		if err != nil {
			if c.isDead() {
				c.UnixConn.Close()
			}
			return
		}
		select {
		case c.data <- b[:n]:
		case <-c.dead:
			c.m.waitRunning()
			c.UnixConn.Close()
			return
		}
	}
}

func (c *vsockConn) isDead() bool {
	select {
	case <-c.dead:
		return true
	default:
		return false
	}
}

func (c *vsockConn) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		c.m.waitRunning()
		select {
		case <-c.dead:
		case <-c.late.wait():
			return 0, os.ErrDeadlineExceeded
		case b, ok := <-c.data:
			if !ok {
				return 0, io.EOF
			}
			c.rest = b
		}
		c.m.waitRunning() // what came while the VM was paused is read when it runs
	}
	if c.isDead() {
		return 0, syscall.ECONNRESET
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (c *vsockConn) Write(p []byte) (int, error) {
	c.m.waitRunning()
	if c.isDead() {
		return 0, syscall.ECONNRESET
	}
	return c.UnixConn.Write(p)
}

// Close ends the connection, from the guest's side. Of one that was reset the host does not learn so.
func (c *vsockConn) Close() error {
	c.v.mu.Lock()
	delete(c.v.conns, c)
	c.v.mu.Unlock()
	if c.isDead() {
		return nil
	}
	return c.UnixConn.Close()
}
