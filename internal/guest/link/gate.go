package link

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// gate lends the guest's data port to one session after another. Nothing of an earlier session can reach the port once
// its lease has ended: a write that is under way is cut off, and the host skips the torn frame while it looks for the
// nonce.
type gate struct {
	port Port

	rd   sync.Mutex // held while reading; guards the fields below
	seen tail       // the last bytes that came in, whoever read them
	rest []byte     // came in behind the nonce, not handed out yet

	wr sync.Mutex // held while writing
}

// lease is the data port as one session sees it.
type lease struct {
	gate  *gate
	ended atomic.Bool
	once  sync.Once
}

func (l *lease) Read(p []byte) (int, error) {
	g := l.gate
	g.rd.Lock()
	defer g.rd.Unlock()
	if l.ended.Load() {
		return 0, net.ErrClosed
	}
	if len(g.rest) > 0 {
		n := copy(p, g.rest)
		g.rest = g.rest[n:]
		return n, nil
	}
	n, err := g.port.Read(p)
	g.seen.add(p[:n])
	if l.ended.Load() {
		return 0, net.ErrClosed
	}
	return n, err
}

func (l *lease) Write(p []byte) (int, error) {
	g := l.gate
	g.wr.Lock()
	defer g.wr.Unlock()
	if l.ended.Load() {
		return 0, net.ErrClosed
	}
	n, err := g.port.Write(p)
	if err != nil && l.ended.Load() {
		err = net.ErrClosed
	}
	return n, err
}

// find swallows what comes in up to the nonce, which an earlier session may have read already.
func (l *lease) find(n nonce) error {
	l.gate.rd.Lock()
	seen := append([]byte(nil), l.gate.seen.bytes()...)
	l.gate.rest = nil
	l.gate.rd.Unlock()
	rest, err := scan(l, n, seen)
	if err != nil {
		return err
	}
	return l.keep(rest)
}

// keep hands out first what was read behind the nonce. A lease that has ended meanwhile has nothing to hand out: what it has read
// is for the host that gave up on it, and would spoil the next session.
func (l *lease) keep(rest []byte) error {
	l.gate.rd.Lock()
	defer l.gate.rd.Unlock()
	if l.ended.Load() {
		return net.ErrClosed
	}
	l.gate.rest = append(rest[:len(rest):len(rest)], l.gate.rest...)
	return nil
}

// Close ends the lease. When it returns, no read or write of this lease is under way and none will be.
func (l *lease) Close() error {
	l.once.Do(func() {
		l.ended.Store(true)
		g := l.gate
		// A failing deadline would leave us waiting for the locks, which is as right as it is slow.
		g.port.SetReadDeadline(past)
		g.port.SetWriteDeadline(past)
		g.rd.Lock()
		g.wr.Lock()
		g.port.SetReadDeadline(time.Time{})
		g.port.SetWriteDeadline(time.Time{})
		g.wr.Unlock()
		g.rd.Unlock()
	})
	return nil
}
