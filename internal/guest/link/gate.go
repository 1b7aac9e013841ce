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

	// Guarded by rd of the lease that there is: the next begins when that has ended.
	seen tail   // the last bytes that came in, whoever read them
	rest []byte // came in behind the nonce, not handed out yet
}

// lease is the data port as one session sees it.
type lease struct {
	gate *gate
	// Held while reading, and while writing. They are the lease's own, so that who comes late to one that has ended does not
	// wait for what the next one reads.
	rd, wr sync.Mutex
	ended  atomic.Bool
	once   sync.Once
}

func (l *lease) Read(p []byte) (int, error) {
	g := l.gate
	l.rd.Lock()
	defer l.rd.Unlock()
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
	l.wr.Lock()
	defer l.wr.Unlock()
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
	seen, err := l.begin()
	if err != nil {
		return err
	}
	rest, err := scan(l, n, seen)
	if err != nil {
		return err
	}
	return l.keep(rest)
}

// begin answers the last bytes that came in, and drops what an earlier session has left.
func (l *lease) begin() ([]byte, error) {
	l.rd.Lock()
	defer l.rd.Unlock()
	if l.ended.Load() {
		return nil, net.ErrClosed
	}
	l.gate.rest = nil
	return append([]byte(nil), l.gate.seen.bytes()...), nil
}

// keep hands out first what was read behind the nonce. A lease that has ended meanwhile has nothing to hand out: what it has read
// is for the host that gave up on it, and would spoil the next session.
func (l *lease) keep(rest []byte) error {
	l.rd.Lock()
	defer l.rd.Unlock()
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
		l.rd.Lock()
		l.wr.Lock()
		g.port.SetReadDeadline(time.Time{})
		g.port.SetWriteDeadline(time.Time{})
		l.wr.Unlock()
		l.rd.Unlock()
	})
	return nil
}
