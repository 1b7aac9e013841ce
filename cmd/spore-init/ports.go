package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/guest/link"
)

// Names of the virtio-serial ports that the host gives every sandbox.
const (
	portControl = "spore.control"
	portData    = "spore.data"
)

// deviceWait is how long devices may take to show up after their drivers have been loaded.
const deviceWait = 10 * time.Second

// guestPort is one of the two ways to the host.
type guestPort interface {
	link.Port
	// onAbsence sets what is called when no host is connected, and what it returns is called when none has come for a while; see
	// link.Server.Absent. It must be called before the port is read.
	onAbsence(begin func() (giveUp func() bool))
}

// openPorts opens the virtio-serial ports of the machine or, where it has none, the vsock ports in their place. Either may
// take a moment to show up.
func openPorts() (control, data guestPort, err error) {
	for deadline := time.Now().Add(deviceWait); ; time.Sleep(5 * time.Millisecond) {
		var c, d *port
		if c, err = openPort(portControl); err == nil {
			if d, err = openPort(portData); err == nil {
				return c, d, nil
			}
			c.Close()
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, err
		}
		if hasVsock("/sys/bus/virtio/devices") {
			c, err := listenVsock(vsockControl)
			if err != nil {
				return nil, nil, err
			}
			d, err := listenVsock(vsockData)
			return c, d, err
		}
		if time.Now().After(deadline) {
			return nil, nil, fmt.Errorf("the machine has neither virtio-serial ports named %s and %s nor vsock", portControl, portData)
		}
	}
}

// openPort opens the virtio-serial port of that name, if it is there.
func openPort(name string) (*port, error) {
	dev, err := findPort("/sys/class/virtio-ports", name)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join("/dev", dev), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return newPort(f)
}

func findPort(class, name string) (string, error) {
	entries, err := os.ReadDir(class)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		label, err := os.ReadFile(filepath.Join(class, e.Name(), "name"))
		if err == nil && strings.TrimSpace(string(label)) == name {
			return e.Name(), nil
		}
	}
	return "", fs.ErrNotExist
}

// port is a virtio-serial port. While no host is connected its device reads as ended, which is not the end of
// anything: Read waits for the next host instead.
type port struct {
	*os.File
	conn    rawConn
	absence absence
}

type rawConn interface {
	Read(func(fd uintptr) bool) error
	Control(func(fd uintptr)) error
}

func newPort(f *os.File) (*port, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	p := &port{File: f, conn: conn}
	p.absence.away = func() bool { return !p.connected() }
	return p, nil
}

func (p *port) onAbsence(begin func() (giveUp func() bool)) { p.absence.begin = begin }

// Read waits on the runtime's poller. The kernel reports edges, and a host that comes and sends is one.
func (p *port) Read(b []byte) (n int, err error) {
	if len(b) == 0 {
		return 0, nil
	}
	cerr := p.conn.Read(func(fd uintptr) bool {
		for {
			n, err = unix.Read(int(fd), b)
			switch {
			case err == unix.EINTR:
				continue
			case err == unix.EAGAIN:
				return false
			case err == nil && n == 0:
				p.absence.note()
				return false
			}
			return true
		}
	})
	if cerr != nil {
		return 0, cerr
	}
	if err != nil {
		return 0, err
	}
	return n, nil
}

func (p *port) connected() (yes bool) {
	err := p.conn.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		_, err := unix.Poll(fds, 0)
		yes = err == nil && fds[0].Revents&unix.POLLHUP == 0
	})
	return yes && err == nil
}

// streams is the listener that the agent's server accepts the host's streams from.
type streams struct{ c chan net.Conn }

func newStreams() *streams { return &streams{c: make(chan net.Conn)} }

func (s *streams) give(c net.Conn)           { s.c <- c }
func (s *streams) Accept() (net.Conn, error) { return <-s.c, nil }
func (s *streams) Close() error              { return nil }
func (s *streams) Addr() net.Addr            { return &net.UnixAddr{Name: portData, Net: "virtio"} }

// quiet is for what the server says about clients that went away: it is nobody's business, least of all the console's.
func quiet() *log.Logger { return log.New(io.Discard, "", 0) }
