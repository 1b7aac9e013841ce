// Package link carries byte streams between host and guest over two plain serial ports, and finds its feet again after
// a thaw, when both directions hold stale bytes and the guest remembers a session that nobody else does.
//
// The control port carries lines of text, host to guest. The data port carries, after a resync, a multiplexed session
// whose streams the host opens. A resync goes like this: the host writes "RESET <nonce>" on control and the 16 bytes of
// the nonce on data; the guest drops whatever session it has, swallows data up to the nonce, and writes the nonce back;
// the host swallows data up to it. From there on both ends know that what they read was meant for them. The guest takes
// a RESET at any time, and the newest wins.
package link

import (
	"io"
	"time"

	"github.com/hashicorp/yamux"
)

// Port is one end of a serial port: a unix socket on the host, a virtio-serial device in the guest. A deadline in the
// past must end a Read or Write that is under way.
type Port interface {
	io.ReadWriteCloser
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}

// past is a deadline that has been missed already.
var past = time.Unix(1, 0)

// closeTimeout is how long a stream may be half closed before it is reset. It is what ends a guest's write to a host that
// does not read any more.
const closeTimeout = time.Minute

// How much each end takes in of a stream that nobody reads, in bytes. The host has more room, and a guest that waits for
// leave to send waits long when it is emulated.
const (
	guestWindow = 256 << 10
	hostWindow  = 1 << 20
)

// muxConfig has no timers on live streams: a VM may stand still for days between two frames of one session.
func muxConfig(window uint32) *yamux.Config {
	c := yamux.DefaultConfig()
	c.MaxStreamWindowSize = window
	c.EnableKeepAlive = false
	c.StreamOpenTimeout = 0
	c.StreamCloseTimeout = closeTimeout
	c.ConnectionWriteTimeout = 30 * 24 * time.Hour
	c.LogOutput = io.Discard // a session that ends says why through its error
	return c
}
