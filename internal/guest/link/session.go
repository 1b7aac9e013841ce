package link

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/yamux"
)

// Session is the host's end of a link that both sides have agreed on.
type Session struct {
	mux     *yamux.Session
	control Port
	rtt     time.Duration
}

// firstRetry is how long an unanswered RESET is waited for at first. An answer takes a guest under software emulation
// some ten milliseconds; a guest that boots will find the lines when it opens its ports.
const (
	firstRetry = time.Second
	lastRetry  = 8 * time.Second
)

// Open resyncs with the guest and returns the session. It tries again until the guest answers or ctx ends. It takes
// both ports over: they are closed with the session, or before Open fails.
func Open(ctx context.Context, control, data Port) (*Session, error) {
	s, err := open(ctx, control, data)
	if err != nil {
		control.Close()
		data.Close()
		return nil, err
	}
	return s, nil
}

func open(ctx context.Context, control, data Port) (*Session, error) {
	// Both ends of an unanswered attempt unblock when ctx does.
	stop := context.AfterFunc(ctx, func() {
		control.SetWriteDeadline(past)
		data.SetWriteDeadline(past)
		data.SetReadDeadline(past)
	})
	defer stop()
	var seen tail
	again := false
	for wait := firstRetry; ; wait, again = min(2*wait, lastRetry), true {
		n, start := newNonce(), time.Now()
		rest, err := attempt(ctx, control, data, n, &seen, wait)
		switch {
		case err == nil:
			if !stop() {
				return nil, fmt.Errorf("the guest did not answer: %w", context.Cause(ctx))
			}
			if err := data.SetReadDeadline(time.Time{}); err != nil {
				return nil, err
			}
			s, err := newSession(control, data, rest, time.Since(start))
			if err == nil && again {
				err = s.proof(ctx, lastRetry)
			}
			return s, err
		case ctx.Err() != nil:
			return nil, fmt.Errorf("the guest did not answer: %w", context.Cause(ctx))
		case !isTimeout(err):
			return nil, fmt.Errorf("agent channel: %w", err)
		}
	}
}

// attempt sends one RESET and waits for its answer. seen carries the end of what earlier attempts read.
func attempt(ctx context.Context, control, data Port, n nonce, seen *tail, wait time.Duration) ([]byte, error) {
	deadline := time.Now().Add(wait)
	if err := errors.Join(control.SetWriteDeadline(deadline), data.SetWriteDeadline(deadline), data.SetReadDeadline(deadline)); err != nil {
		return nil, err
	}
	if ctx.Err() != nil { // the deadlines above may have undone those of AfterFunc
		return nil, context.Cause(ctx)
	}
	if _, err := control.Write(resetLine(n)); err != nil {
		return nil, err
	}
	if _, err := data.Write(n[:]); err != nil {
		return nil, err
	}
	rest, err := scan(recorder{data, seen}, n, seen.bytes())
	if err != nil {
		return nil, err
	}
	return rest, errors.Join(control.SetWriteDeadline(time.Time{}), data.SetWriteDeadline(time.Time{}))
}

type recorder struct {
	Port
	seen *tail
}

func (r recorder) Read(p []byte) (int, error) {
	n, err := r.Port.Read(p)
	r.seen.add(p[:n])
	return n, err
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

func newSession(control, data Port, rest []byte, rtt time.Duration) (*Session, error) {
	out := newOutbox(&prefixed{Port: data, rest: rest})
	mux, err := yamux.Client(&frames{ReadWriteCloser: out}, muxConfig(hostWindow))
	if err != nil {
		out.Close()
		return nil, err
	}
	return &Session{mux: mux, control: control, rtt: rtt}, nil
}

// prefixed gives back what was read too far.
type prefixed struct {
	Port
	rest []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.rest) > 0 {
		n := copy(b, p.rest)
		p.rest = p.rest[n:]
		return n, nil
	}
	return p.Port.Read(b)
}

// proof has the guest answer once within the session. After several RESETs that is worth a round trip: nobody but the guest knows
// which of them it obeys, and of a session that it has dropped the host hears nothing.
func (s *Session) proof(ctx context.Context, wait time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, wait, errors.New("the guest took up the session and does not answer in it"))
	defer cancel()
	err := s.Ping(ctx)
	if err != nil {
		s.mux.Close()
	}
	return err
}

// Ping has the guest answer once within the session. A guest that stands still answers when it runs on; ctx ends the wait.
func (s *Session) Ping(ctx context.Context) error {
	answer := make(chan error, 1)
	go func() {
		_, err := s.mux.Ping()
		answer <- err
	}()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the guest did not answer: %w", context.Cause(ctx))
	}
}

// Streams is how many streams are open.
func (s *Session) Streams() int { return s.mux.NumStreams() }

// RTT is how long the guest took to answer the RESET.
func (s *Session) RTT() time.Duration { return s.rtt }

// Done is closed when the session has ended, because of Close, or because the ports did.
func (s *Session) Done() <-chan struct{} { return s.mux.CloseChan() }

// Close ends the session, its streams and the ports.
func (s *Session) Close() error {
	return errors.Join(s.mux.Close(), s.control.Close())
}

// open opens a stream. The multiplexer makes an opener wait while too many streams have not been taken by the guest,
// which a paused guest does not, so ctx must be heeded here.
func (s *Session) open(ctx context.Context) (*yamux.Stream, error) {
	type opened struct {
		stream *yamux.Stream
		err    error
	}
	c := make(chan opened, 1)
	go func() {
		stream, err := s.mux.OpenStream()
		c <- opened{stream, err}
	}()
	select {
	case o := <-c:
		return o.stream, o.err
	case <-ctx.Done():
		go func() {
			if o := <-c; o.err == nil {
				o.stream.Close()
			}
		}()
		return nil, context.Cause(ctx)
	}
}
