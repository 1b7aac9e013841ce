package link

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// standing is a session with a guest that reads nothing more, and whose port is full.
func standing(t *testing.T) *Session {
	t.Helper()
	control, guestControl := socketPair(t)
	data, guestData := socketPair(t)
	t.Cleanup(func() { guestControl.Close(); guestData.Close() })
	if err := data.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(data, zeros{}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	if err := data.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	s, err := newSession(control, data, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestStandingGuestHoldsUpNobody(t *testing.T) {
	s := standing(t)
	var all []net.Conn
	for range 2 {
		c, err := s.DialHTTP(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.SetDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(c, zeros{}); !isTimeout(err) {
			t.Errorf("a stream that the guest does not read ends with %v", err)
		}
		all = append(all, c)
	}
	for _, c := range all {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// What too many streams have sent waits for the guest, and no longer than the session.
func TestOutboxIsBounded(t *testing.T) {
	host, guest := socketPair(t)
	defer guest.Close()
	o := newOutbox(host)
	frame := make([]byte, guestWindow)
	ended := make(chan error)
	go func() {
		for {
			if _, err := o.Write(frame); err != nil {
				ended <- err
				return
			}
		}
	}()
	for held := 0; held+len(frame) <= maxHeld; {
		time.Sleep(time.Millisecond)
		o.mu.Lock()
		held = o.held
		o.mu.Unlock()
	}
	if err := o.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) || o.held > maxHeld {
		t.Errorf("%v, with %d bytes held", err, o.held)
	}
}

func TestCloseEndsRead(t *testing.T) {
	held := make(chan struct{})
	s := newWire(t, func(c net.Conn) { <-held; c.Close() }).connect(t)
	defer s.Close()
	defer close(held)
	c, err := s.DialHTTP(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		_, err := c.Read(make([]byte, 1))
		ended <- err
	}()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("a read of a stream that is closed ends with %v", err)
	}
}
