package main

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestHasVsock(t *testing.T) {
	dir := t.TempDir()
	for dev, id := range map[string]string{"virtio0": "0x0002\n", "virtio1": "nonsense"} {
		if err := os.MkdirAll(filepath.Join(dir, dev), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, dev, "device"), []byte(id), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if hasVsock(dir) || hasVsock(dir+"-missing") {
		t.Error("a vsock device is seen where there is none")
	}
	if err := os.WriteFile(filepath.Join(dir, "virtio1", "device"), []byte("0x0013\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if !hasVsock(dir) {
		t.Error("the vsock device is not seen")
	}
}

func TestVsockPort(t *testing.T) {
	p := newVsockPort()
	gone := make(chan struct{}, 1)
	p.onAbsence(func() func() bool {
		return func() bool {
			gone <- struct{}{}
			return true
		}
	})
	if _, err := p.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write without a host: %v", err)
	}

	got := make(chan string)
	go func() {
		buf := make([]byte, 16)
		for {
			n, err := p.Read(buf)
			if err != nil {
				got <- err.Error()
				return
			}
			got <- string(buf[:n])
		}
	}()
	for _, word := range []string{"one", "two"} { // the second replaces the first
		host, guest := net.Pipe()
		p.take(guest)
		if _, err := io.WriteString(host, word); err != nil {
			t.Fatal(err)
		}
		if read := <-got; read != word {
			t.Fatalf("read %q, want %q", read, word)
		}
		if word == "two" {
			host.Close()
		}
	}
	<-gone // no host comes after the second

	// A deadline ends a Read that waits for a host, and holds for one that comes.
	if err := p.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if read := <-got; read != os.ErrDeadlineExceeded.Error() {
		t.Errorf("a Read past its deadline: %s", read)
	}
	host, guest := net.Pipe()
	defer host.Close()
	p.take(guest)
	if _, err := p.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a Read past its deadline: %v", err)
	}
	if err := p.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if err := p.SetReadDeadline(time.Now().Add(5 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a Read with a deadline: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	p.fail(io.ErrUnexpectedEOF)
	if err := p.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Read(make([]byte, 1)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Read of a port that has failed: %v", err)
	}
}
