package link

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// wire is a guest and the host's ends of its ports, which outlive any host.
type wire struct {
	control, data net.Conn // the host's ends
	server        *Server
}

// newWire runs a guest whose streams are handled by serve.
func newWire(t *testing.T, serve func(net.Conn)) *wire {
	t.Helper()
	w := &wire{}
	var guestControl, guestData net.Conn
	w.control, guestControl = socketPair(t)
	w.data, guestData = socketPair(t)
	w.server = NewServer(guestData, serve)
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.server.Run(guestControl)
	}()
	t.Cleanup(func() {
		w.control.Close()
		w.data.Close()
		<-done
		guestControl.Close()
		guestData.Close()
	})
	return w
}

func socketPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]net.Conn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return conns[0], conns[1]
}

// vanishing is a host's port that goes away without a word: what it has written stays, and it reads no more.
type vanishing struct{ net.Conn }

func (v vanishing) Close() error { return v.SetDeadline(past) }

// connect is a new host on the ports.
func (w *wire) connect(t *testing.T) *Session {
	t.Helper()
	for _, c := range []net.Conn{w.control, w.data} {
		if err := c.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := Open(ctx, vanishing{w.control}, vanishing{w.data})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func echo(stream net.Conn) {
	Dispatch(stream, func(c net.Conn) {
		defer c.Close()
		io.Copy(c, c)
	})
}

// checkEcho sends text over a new stream and wants it back.
func checkEcho(t *testing.T, s *Session, text string) {
	t.Helper()
	c, err := s.DialHTTP(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || string(got) != text {
		t.Fatalf("sent %d bytes, got %d back: %v", len(text), len(got), err)
	}
}

func TestStreams(t *testing.T) {
	s := newWire(t, echo).connect(t)
	defer s.Close()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() { checkEcho(t, s, strings.Repeat(fmt.Sprint(i), 100_000)) })
	}
	wg.Wait()
}

func TestStaleBytes(t *testing.T) {
	junk := make([]byte, 10_000)
	rand.Read(junk)
	for name, stale := range map[string][]byte{
		"random":       junk,
		"half a frame": {0, 0, 0, 1, 0, 0},
		"zeros":        make([]byte, 33),
		"a line":       []byte("RESET 0123"),
		"long line":    bytes.Repeat([]byte{'x'}, 3*maxLine),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWire(t, echo)
			for _, c := range []net.Conn{w.control, w.data} {
				if _, err := c.Write(stale); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := w.server.gate.port.Write(stale); err != nil { // from the guest's past
				t.Fatal(err)
			}
			s := w.connect(t)
			defer s.Close()
			checkEcho(t, s, "hello")
		})
	}
}

func TestHostVanishes(t *testing.T) {
	ended := make(chan error, 10)
	w := newWire(t, func(stream net.Conn) {
		Dispatch(stream, func(c net.Conn) {
			defer c.Close()
			_, err := io.Copy(c, c)
			ended <- err
		})
	})
	for round := range 5 {
		s := w.connect(t)
		c, err := s.DialHTTP(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "unfinished"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 3)); err != nil {
			t.Fatal(err)
		}
		s.Close()
		if round%2 == 0 {
			if _, err := rawWrite(w.data, []byte{0, 1, 0}); err != nil { // torn inside a header
				t.Fatal(err)
			}
		}
		next := w.connect(t)
		select {
		case <-ended: // the stream of the host that went away is over
		case <-time.After(time.Minute):
			t.Fatal("the stream outlived its session")
		}
		checkEcho(t, next, "again")
		<-ended
		next.Close()
	}
}

func rawWrite(c net.Conn, p []byte) (int, error) {
	if err := c.SetDeadline(time.Time{}); err != nil {
		return 0, err
	}
	return c.Write(p)
}

func TestGuestBlockedInWrite(t *testing.T) {
	blocked := make(chan struct{}, 1)
	w := newWire(t, func(stream net.Conn) {
		Dispatch(stream, func(c net.Conn) {
			defer c.Close()
			first := make([]byte, 1)
			if _, err := c.Read(first); err != nil {
				return
			}
			if first[0] != 'F' { // not the flood
				c.Write(first)
				return
			}
			blocked <- struct{}{}
			for {
				if _, err := c.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		})
	})
	s := w.connect(t)
	// Many streams, none of them read: more than fits into the port.
	for range 8 {
		c, err := s.DialHTTP(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte{'F'}); err != nil {
			t.Fatal(err)
		}
		<-blocked
	}
	s.Close()
	next := w.connect(t)
	defer next.Close()
	checkEcho(t, next, "x")
}

func TestResetStorm(t *testing.T) {
	w := newWire(t, echo)
	for range 300 {
		n := newNonce()
		if _, err := w.control.Write(resetLine(n)); err != nil {
			t.Fatal(err)
		}
		if _, err := w.data.Write(n[:7]); err != nil {
			t.Fatal(err)
		}
	}
	s := w.connect(t)
	defer s.Close()
	checkEcho(t, s, "calm")
}

// What a lease has read behind its nonce when the next RESET ends it, is that RESET's own nonce; the next session must not take it
// for frames.
func TestEndedLeaseKeepsNothing(t *testing.T) {
	guest, host := socketPair(t)
	defer guest.Close()
	defer host.Close()
	g := &gate{port: guest}
	old := &lease{gate: g}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	if err := old.keep([]byte("the nonce of the next")); !errors.Is(err, net.ErrClosed) || len(g.rest) > 0 {
		t.Errorf("%v; the next session begins with %q", err, g.rest)
	}
	next := &lease{gate: g}
	if err := next.keep([]byte("frames")); err != nil || string(g.rest) != "frames" {
		t.Errorf("%v, %q", err, g.rest)
	}
}

// Who comes late to a lease that has ended is told so, and does not wait for the next one, which may hear nothing for long; nor does
// it take anything away from that.
func TestEndedLeaseIsLeft(t *testing.T) {
	guest, host := socketPair(t)
	defer host.Close()
	g := &gate{port: guest}
	old := &lease{gate: g}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	next := &lease{gate: g}
	if err := next.keep([]byte("frames")); err != nil {
		t.Fatal(err)
	}
	if n, err := next.Read(make([]byte, 6)); err != nil || n != 6 {
		t.Fatal(n, err)
	}
	reading := make(chan error, 1)
	go func() { _, err := next.Read(make([]byte, 1)); reading <- err }()
	for { // until the next one reads
		if !next.rd.TryLock() {
			break
		}
		next.rd.Unlock()
	}
	late := make(chan error, 3)
	go func() {
		_, err := old.Read(make([]byte, 1))
		late <- err
		_, err = old.Write([]byte("late"))
		late <- err
		late <- old.find(newNonce())
	}()
	for range cap(late) {
		select {
		case err := <-late:
			if !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Fatal("it waits for the next one")
		}
	}
	guest.Close()
	<-reading
}

// A guest that takes up a session and drops it at once is found out.
func TestProof(t *testing.T) {
	control, guestControl := socketPair(t)
	data, guestData := socketPair(t)
	for _, c := range []net.Conn{control, guestControl, guestData} {
		defer c.Close()
	}
	s, err := newSession(control, data, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.proof(t.Context(), 50*time.Millisecond); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Error(err)
	}
	<-s.Done()

	w := newWire(t, echo)
	s = w.connect(t)
	defer s.Close()
	if err := s.proof(t.Context(), time.Minute); err != nil {
		t.Error(err)
	}
	checkEcho(t, s, "hello")
}

func TestHangupEndsStreams(t *testing.T) {
	started, ended := make(chan struct{}), make(chan struct{})
	w := newWire(t, func(stream net.Conn) {
		Dispatch(stream, func(c net.Conn) {
			close(started)
			io.Copy(io.Discard, c)
			c.Close()
			close(ended)
		})
	})
	s := w.connect(t)
	defer s.Close()
	c, err := s.DialHTTP(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	<-started
	w.server.Hangup()
	<-ended
}

// A guest may learn of a host's coming only after the host has made its session: that the host was away before is no reason to drop it.
func TestAbsenceThatIsOver(t *testing.T) {
	w := newWire(t, echo)
	first := w.connect(t)
	hangup := w.server.Absent()
	first.Close()
	second := w.connect(t)
	defer second.Close()
	if hangup() {
		t.Error("a session was dropped that was made after the absence")
	}
	checkEcho(t, second, "here")
	c, err := second.DialHTTP(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if hangup := w.server.Absent(); !hangup() {
		t.Error("the session of an absent host was not dropped")
	}
	if w.server.current.Load() != nil {
		t.Error("the session is still there")
	}
}

func TestOpenEndsWithContext(t *testing.T) {
	control, _ := socketPair(t)
	data, _ := socketPair(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("enough")
	time.AfterFunc(20*time.Millisecond, func() { cancel(reason) })
	if _, err := Open(ctx, control, data); !errors.Is(err, reason) {
		t.Fatalf("got %v", err)
	}
	if _, err := data.Write(nil); err == nil {
		t.Fatal("the ports are still open")
	}
}

func TestDialTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	s := newWire(t, echo).connect(t)
	defer s.Close()
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	c, err := s.DialTCP(t.Context(), port)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "through"); err != nil {
		t.Fatal(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != "through" {
		t.Fatalf("%q, %v", got, err)
	}
	c.Close()
	l.Close()
	var refused *RefusedError
	if _, err := s.DialTCP(t.Context(), port); !errors.As(err, &refused) || refused.Port != int(port) {
		t.Fatalf("a closed port: %v", err)
	}
}

func TestUnknownKindIsClosed(t *testing.T) {
	a, b := net.Pipe()
	go Dispatch(b, func(net.Conn) { t.Error("not HTTP") })
	if _, err := a.Write([]byte{'?'}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Read(make([]byte, 1)); err != io.EOF {
		t.Fatal(err)
	}
}
