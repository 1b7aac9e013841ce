package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// vsockPorts stand for the serial ports on machines that have vsock instead.
var vsockPorts = map[string]uint32{"spore.control": 1024, "spore.data": 1025}

// hasVsock says whether the machine has a vsock device.
func hasVsock() bool {
	ids, _ := filepath.Glob("/sys/bus/virtio/devices/*/device")
	for _, path := range ids {
		if text, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(text)) == "0x0013" {
			return true
		}
	}
	return false
}

// vsock is the host's latest connection to a vsock port. It reads like a serial port: as ended while nobody is connected.
type vsock struct {
	mu   sync.Mutex
	conn *os.File
}

func listenVsock(number uint32) (*vsock, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: number})
	}
	if err == nil {
		err = unix.Listen(fd, 8)
	}
	if err != nil {
		return nil, fmt.Errorf("vsock port %d: %w", number, err)
	}
	v := &vsock{}
	go func() {
		for {
			conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				fmt.Println("vmmtest guest: accept:", err)
				return
			}
			v.mu.Lock()
			if v.conn != nil {
				v.conn.Close()
			}
			v.conn = os.NewFile(uintptr(conn), "vsock")
			v.mu.Unlock()
		}
	}()
	return v, nil
}

func (v *vsock) current() *os.File {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.conn
}

func (v *vsock) Read(b []byte) (int, error) {
	conn := v.current()
	if conn == nil {
		return 0, io.EOF
	}
	n, err := conn.Read(b)
	if err != nil {
		v.mu.Lock()
		if v.conn == conn {
			v.conn = nil
		}
		v.mu.Unlock()
		conn.Close()
		return n, io.EOF // of the connection; the next one goes on
	}
	return n, nil
}

// Write drops what nobody is there to read.
func (v *vsock) Write(b []byte) (int, error) {
	if conn := v.current(); conn != nil {
		conn.Write(b)
	}
	return len(b), nil
}
