package link

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
)

// Kind is the first byte of a stream and says what it is for.
type Kind byte

const (
	KindHTTP Kind = 'H' // HTTP/1.1 requests to the agent
	KindTCP  Kind = 'T' // two bytes of port number follow; the guest connects and answers with a verdict
)

// A verdict is one byte, and after verdictFailed one byte of length and that many of text.
const (
	verdictOK     = 0
	verdictFailed = 1
)

// RefusedError says why the guest could not connect to one of its own ports.
type RefusedError struct {
	Port   int
	Reason string // as the guest's kernel puts it
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("port %d in the sandbox: %s", e.Port, e.Reason)
}

// DialHTTP opens a stream to the agent's HTTP server.
func (s *Session) DialHTTP(ctx context.Context) (net.Conn, error) {
	mux, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	return &stream{Stream: mux, head: []byte{byte(KindHTTP)}}, nil
}

// stream is the host's end of one stream.
type stream struct {
	*yamux.Stream
	head []byte // goes out with the first bytes that are written: one frame less for the guest to wake up for

	reading sync.Mutex // held while reading
	closed  atomic.Bool
}

func (s *stream) Read(p []byte) (int, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	if s.closed.Load() {
		return 0, net.ErrClosed
	}
	n, err := s.Stream.Read(p)
	if err != nil && s.closed.Load() {
		err = net.ErrClosed
	}
	return n, err
}

func (s *stream) Write(p []byte) (int, error) {
	if s.head == nil {
		return s.Stream.Write(p)
	}
	n, err := s.Stream.Write(append(s.head, p...))
	n = max(0, n-len(s.head))
	s.head = nil
	return n, err
}

// CloseWrite tells the guest that nothing more will come. What the guest has still to say it must say within a minute.
func (s *stream) CloseWrite() error { return s.Stream.Close() }

// Close ends the stream, and a Read that is under way. What the guest still sends is thrown away, so that it sees the end rather than
// wait for room.
func (s *stream) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	err := s.Stream.Close()
	s.Stream.SetReadDeadline(past)
	go func() {
		s.reading.Lock() // from here on nobody else reads
		s.Stream.SetReadDeadline(time.Time{})
		s.reading.Unlock()
		io.Copy(io.Discard, s.Stream) // ends with the stream, which closeTimeout bounds
	}()
	return err
}

// DialTCP connects to a TCP port on the guest's loopback. It fails with *RefusedError when the guest cannot.
func (s *Session) DialTCP(ctx context.Context, port uint16) (net.Conn, error) {
	mux, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	conn := &stream{Stream: mux}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(past) })
	err = requestTCP(conn, port)
	if !stop() && err == nil || err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func requestTCP(stream io.ReadWriter, port uint16) error {
	if _, err := stream.Write(binary.BigEndian.AppendUint16([]byte{byte(KindTCP)}, port)); err != nil {
		return err
	}
	var b [255]byte
	if _, err := io.ReadFull(stream, b[:1]); err != nil {
		return fmt.Errorf("no verdict on port %d: %w", port, err)
	}
	switch b[0] {
	case verdictOK:
		return nil
	case verdictFailed:
		if _, err := io.ReadFull(stream, b[:1]); err != nil {
			return err
		}
		reason := b[:b[0]]
		if _, err := io.ReadFull(stream, reason); err != nil {
			return err
		}
		return &RefusedError{Port: int(port), Reason: string(reason)}
	}
	return fmt.Errorf("verdict %d on port %d is unknown", b[0], port)
}

// headTimeout bounds how long the guest waits for the head of a stream, which the host sends with its first bytes.
const headTimeout = time.Hour

// Dispatch reads the head of a stream in the guest. HTTP streams go to the function it is given; TCP streams are
// connected to the loopback and copied until both sides are done.
func Dispatch(stream net.Conn, http func(net.Conn)) {
	var head [3]byte
	stream.SetReadDeadline(time.Now().Add(headTimeout))
	if _, err := io.ReadFull(stream, head[:1]); err != nil {
		stream.Close()
		return
	}
	switch Kind(head[0]) {
	case KindHTTP:
		stream.SetReadDeadline(time.Time{})
		http(stream)
	case KindTCP:
		defer stream.Close()
		if _, err := io.ReadFull(stream, head[1:]); err != nil {
			return
		}
		stream.SetReadDeadline(time.Time{})
		forward(stream, binary.BigEndian.Uint16(head[1:]))
	default: // a host that is newer than we are; it sees the stream end
		stream.Close()
	}
}

// forward connects stream to a port of the guest. The IPv4 loopback is tried first: most servers listen on it.
func forward(stream net.Conn, port uint16) {
	conn, err := net.DialTCP("tcp4", nil, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(port)})
	if err != nil {
		var err6 error
		if conn, err6 = net.DialTCP("tcp6", nil, &net.TCPAddr{IP: net.IPv6loopback, Port: int(port)}); err6 != nil {
			reason := err.Error()
			reason = reason[:min(len(reason), 255)]
			// The host that asked may be gone; then nobody is left to tell.
			stream.Write(append([]byte{verdictFailed, byte(len(reason))}, reason...))
			return
		}
	}
	defer conn.Close()
	if _, err := stream.Write([]byte{verdictOK}); err != nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := io.Copy(conn, stream); err != nil {
			conn.Close() // broken, not merely done: the other direction cannot go on either
			return
		}
		conn.CloseWrite()
	}()
	io.Copy(stream, conn)
	stream.Close() // half a close: the host may still send
	<-done
}
