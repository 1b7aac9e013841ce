package link

import (
	"io"
	"net"
	"sync"
)

// maxHeld bounds what an outbox holds, in bytes: what 64 streams may send to a guest that takes nothing in.
const maxHeld = 64 * guestWindow

// outbox holds what is on its way to a guest that stands still, perhaps for days: the hypervisor does not read meanwhile. All streams
// share one port, and none of them must be kept from ending, nor from heeding its deadlines, by what another has sent. How much
// a stream may send before the guest has taken it in is bounded by its window.
type outbox struct {
	io.ReadWriteCloser
	sent chan struct{} // closed when nothing is being written any more

	mu      sync.Mutex
	changed sync.Cond // of all below
	waiting []byte
	held    int // bytes of waiting, and of what is being written
	err     error
}

func newOutbox(port io.ReadWriteCloser) *outbox {
	o := &outbox{ReadWriteCloser: port, sent: make(chan struct{})}
	o.changed.L = &o.mu
	go o.send()
	return o
}

func (o *outbox) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.err == nil && o.held > 0 && o.held+len(p) > maxHeld {
		o.changed.Wait()
	}
	if o.err != nil {
		return 0, o.err
	}
	o.waiting = append(o.waiting, p...)
	o.held += len(p)
	o.changed.Broadcast()
	return len(p), nil
}

// send writes out what is waiting, all of it at a time, until the outbox is closed or the port fails.
func (o *outbox) send() {
	defer close(o.sent)
	var out []byte
	for {
		o.mu.Lock()
		for o.err == nil && len(o.waiting) == 0 {
			o.changed.Wait()
		}
		if o.err != nil {
			o.mu.Unlock()
			return
		}
		out, o.waiting = o.waiting, out[:0]
		o.mu.Unlock()
		if _, err := o.ReadWriteCloser.Write(out); err != nil {
			o.fail(err)
			o.ReadWriteCloser.Close() // whoever reads learns of it, too
			return
		}
		o.mu.Lock()
		o.held -= len(out)
		o.changed.Broadcast()
		o.mu.Unlock()
		if cap(out) > maxKept {
			out = nil
		}
	}
}

// fail makes err the answer to every Write from now on, unless there is one.
func (o *outbox) fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		o.err = err
	}
	o.changed.Broadcast()
}

// Close closes the port. What is still waiting is dropped; when Close returns nothing is being written.
func (o *outbox) Close() error {
	o.fail(net.ErrClosed)
	err := o.ReadWriteCloser.Close()
	<-o.sent
	return err
}
