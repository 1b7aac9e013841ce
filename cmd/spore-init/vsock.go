package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Where a machine has vsock and no virtio-serial ports, these vsock ports stand for them.
const (
	vsockControl = 1024
	vsockData    = 1025
)

// deviceVsock is the virtio id of a vsock device.
const deviceVsock = 19

// hasVsock says whether the machine has a vsock device; sys is /sys/bus/virtio/devices.
func hasVsock(sys string) bool {
	devices, err := filepath.Glob(filepath.Join(sys, "*", "device"))
	if err != nil {
		return false
	}
	for _, path := range devices {
		var id int
		if text, err := os.ReadFile(path); err == nil {
			if _, err := fmt.Sscanf(strings.TrimSpace(string(text)), "0x%x", &id); err == nil && id == deviceVsock {
				return true
			}
		}
	}
	return false
}

// vsockPort is a vsock port that looks like a serial one: it is there whether a host is connected or not, and the host
// that connected last is the one that counts. The listener survives a thaw, connections do not.
type vsockPort struct {
	mu           sync.Mutex
	change       *sync.Cond
	conn         hostConn // nil while no host is connected
	read, write  time.Time
	absence      absence
	acceptFailed error
}

// hostConn is a connection of the host.
type hostConn interface {
	io.ReadWriteCloser
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

func newVsockPort() *vsockPort {
	p := &vsockPort{}
	p.change = sync.NewCond(&p.mu)
	p.absence.away = func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.conn == nil
	}
	return p
}

// listenVsock makes the port and takes connections to it for as long as the machine lives.
func listenVsock(number uint32) (*vsockPort, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("vsock: %w", err)
	}
	err = unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: number})
	if err == nil {
		err = unix.Listen(fd, 8)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("vsock port %d: %w", number, err)
	}
	listener := os.NewFile(uintptr(fd), "vsock")
	raw, err := listener.SyscallConn()
	if err != nil {
		return nil, err
	}
	p := newVsockPort()
	go func() {
		defer listener.Close()
		for {
			conn, err := acceptVsock(raw)
			if err != nil {
				p.fail(fmt.Errorf("vsock port %d: %w", number, err))
				return
			}
			p.take(conn)
		}
	}()
	return p, nil
}

// acceptVsock waits for a connection of the host.
func acceptVsock(raw interface {
	Read(func(fd uintptr) bool) error
}) (*os.File, error) {
	for {
		var fd int
		var from unix.Sockaddr
		var err error
		rawErr := raw.Read(func(listener uintptr) bool {
			fd, from, err = unix.Accept4(int(listener), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			return err != unix.EAGAIN
		})
		if rawErr != nil {
			return nil, rawErr
		}
		switch vm, ok := from.(*unix.SockaddrVM); {
		case err == unix.EINTR || err == unix.ECONNABORTED:
		case err == unix.EMFILE || err == unix.ENFILE || err == unix.ENOMEM || err == unix.ENOBUFS:
			time.Sleep(100 * time.Millisecond) // the guest is short of something; this must not be the end of it
		case err != nil:
			return nil, err
		case !ok || vm.CID != unix.VMADDR_CID_HOST: // the guest's own programs have no business here
			unix.Close(fd)
		default:
			return os.NewFile(uintptr(fd), "vsock"), nil
		}
	}
}

// take makes conn the connection that counts.
func (p *vsockPort) take(conn hostConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != nil {
		p.conn.Close()
	}
	p.conn = conn
	conn.SetReadDeadline(p.read) // of a fresh connection neither fails
	conn.SetWriteDeadline(p.write)
	p.change.Broadcast()
}

// fail ends the port.
func (p *vsockPort) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.acceptFailed = err
	p.change.Broadcast()
}

// drop lets go of a connection that has ended.
func (p *vsockPort) drop(conn hostConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	conn.Close()
	if p.conn != conn {
		return
	}
	p.conn = nil
	p.absence.note()
}

// Read waits for a host when none is connected.
func (p *vsockPort) Read(b []byte) (int, error) {
	for {
		conn, err := p.wait()
		if err != nil {
			return 0, err
		}
		n, err := conn.Read(b)
		if n > 0 || errors.Is(err, os.ErrDeadlineExceeded) || len(b) == 0 {
			return n, err
		}
		p.drop(conn)
	}
}

func (p *vsockPort) wait() (hostConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.conn == nil {
		if p.acceptFailed != nil {
			return nil, p.acceptFailed
		}
		if !p.read.IsZero() && !p.read.After(time.Now()) {
			return nil, os.ErrDeadlineExceeded
		}
		p.change.Wait()
	}
	return p.conn, nil
}

// Write fails when no host is connected.
func (p *vsockPort) Write(b []byte) (int, error) {
	p.mu.Lock()
	conn := p.conn
	p.mu.Unlock()
	if conn == nil {
		return 0, net.ErrClosed
	}
	return conn.Write(b)
}

// Close ends the connection. The port itself lives as long as the machine.
func (p *vsockPort) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn == nil {
		return nil
	}
	conn := p.conn
	p.conn = nil
	return conn.Close()
}

// SetReadDeadline holds for the connection that is there and for those that come.
func (p *vsockPort) SetReadDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.read = t
	if d := time.Until(t); !t.IsZero() && d > 0 {
		time.AfterFunc(d, p.change.Broadcast)
	}
	p.change.Broadcast()
	if p.conn == nil {
		return nil
	}
	return p.conn.SetReadDeadline(t)
}

// SetWriteDeadline is as SetReadDeadline.
func (p *vsockPort) SetWriteDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.write = t
	if p.conn == nil {
		return nil
	}
	return p.conn.SetWriteDeadline(t)
}

func (p *vsockPort) onAbsence(begin func() (giveUp func() bool)) { p.absence.begin = begin }
