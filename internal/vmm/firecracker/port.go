package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// vsockPorts are the guest's vsock ports behind the ports of the agent channel.
var vsockPorts = map[string]int{vmm.PortControl: 1024, vmm.PortData: 1025}

const (
	// handshakeTime is how long a dial of a running guest waits for it, before it goes on without.
	handshakeTime = 50 * time.Millisecond
	redialTime    = 20 * time.Millisecond
)

// DialPort connects to an agent port. A guest that stands still or does not listen yet is connected to when it does:
// until then what is written waits.
func (m *machine) DialPort(ctx context.Context, port string) (net.Conn, error) {
	number := vsockPorts[port]
	if number == 0 {
		return nil, spore.Invalidf("port", "there is no port %q", port)
	}
	if err := m.usable(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	if old := m.ports[port]; old != nil {
		old.Close()
		delete(m.ports, port)
	}
	m.mu.Unlock()

	conn := m.dialNow(ctx, number)
	if conn == nil {
		var err error
		if conn, err = m.dialLater(number); err != nil {
			return nil, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.released || m.jail.proc.ended() {
		return nil, errors.Join(m.exited(), conn.Close())
	}
	if old := m.ports[port]; old != nil {
		old.Close()
	}
	m.ports[port] = conn
	return conn, nil
}

// hangUp closes all connections to the guest's ports.
func (m *machine) hangUp() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, conn := range m.ports {
		conn.Close()
	}
	clear(m.ports)
}

// dialNow connects to a guest that runs and listens; nil when it does not, or not soon.
func (m *machine) dialNow(ctx context.Context, number int) net.Conn {
	if m.State() != vmm.StateRunning {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	conn, err := m.connect(ctx, number)
	if err != nil {
		return nil // dialLater finds out more
	}
	return conn
}

// connect does Firecracker's handshake for one vsock connection.
func (m *machine) connect(ctx context.Context, number int) (net.Conn, error) {
	conn, err := m.jail.dial(ctx, nameVsock)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err = handshake(conn, number)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	m.eng.believe(m.jail.binary)
	return conn, nil
}

// handshake asks for a port and reads "OK <port>". It reads byte by byte: what follows is the guest's.
func handshake(conn io.ReadWriter, number int) error {
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", number); err != nil {
		return err
	}
	line := make([]byte, 0, 32)
	for len(line) < cap(line) {
		var b [1]byte
		if _, err := io.ReadFull(conn, b[:]); err != nil {
			return err
		}
		if b[0] == '\n' {
			if !strings.HasPrefix(string(line), "OK ") {
				break
			}
			return nil
		}
		line = append(line, b[0])
	}
	return fmt.Errorf("firecracker: the vsock device answers %q", line)
}

// laterConn is the caller's end of a connection that the guest has not taken yet.
type laterConn struct {
	net.Conn
	cancel context.CancelFunc
}

func (c laterConn) Close() error {
	c.cancel()
	return c.Conn.Close()
}

// dialLater returns one end of a pair of sockets at once, and carries bytes between the other end and the guest from
// when that listens.
func (m *machine) dialLater(number int) (net.Conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("firecracker: %w", err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "port")
		ends[i], err = net.FileConn(f)
		if err = errors.Join(err, f.Close()); err != nil {
			unix.Close(fds[1-i]) // already closed when i is 1, which does no harm this early
			return nil, fmt.Errorf("firecracker: %w", err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		defer ends[1].Close()
		guest := m.await(ctx, number)
		if guest == nil {
			return
		}
		defer guest.Close()
		back := make(chan struct{})
		go func() {
			defer close(back)
			io.Copy(ends[1], guest) // either side's end ends both
			ends[1].Close()
			guest.Close()
		}()
		io.Copy(guest, ends[1])
		ends[1].Close()
		guest.Close()
		<-back
	}()
	return laterConn{ends[0], cancel}, nil
}

// await connects once the guest runs and listens; nil when the caller or the VM is gone before.
func (m *machine) await(ctx context.Context, number int) net.Conn {
	tick := time.NewTicker(redialTime)
	defer tick.Stop()
	for {
		if conn, err := m.connect(ctx, number); err == nil {
			return conn
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.jail.proc.done:
			return nil
		case <-tick.C:
		}
	}
}
