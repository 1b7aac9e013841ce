package pager

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
)

// writeTimeout bounds how long a server that does not read can hold the pager up.
const writeTimeout = 2 * time.Second

// hub is the pager's end of all control connections.
type hub struct {
	log  *slog.Logger
	stop func() // called when a server orders the end

	mu     sync.Mutex
	conns  map[net.Conn]bool
	now    report  // the state
	server *server // nil before there is one
}

func newHub(log *slog.Logger, stop func()) *hub {
	return &hub{log: log, stop: stop, conns: map[net.Conn]bool{}, now: report{Kind: reportState, State: stateWaiting}}
}

// listen takes connections until l is closed.
func (h *hub) listen(l net.Listener) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of descriptors, at worst; whoever wants in tries again.
			h.log.Warn("accept a server", "error", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		go h.talk(conn, newLines(conn))
	}
}

// talk tells the state and takes orders until the connection ends.
func (h *hub) talk(conn net.Conn, in lines) {
	h.mu.Lock()
	ok := h.send(conn, h.now)
	if ok && h.server != nil && h.server.isRecorded() {
		ok = h.send(conn, report{Kind: reportRecorded})
	}
	h.conns[conn] = ok
	h.mu.Unlock()
	for ok {
		var o order
		if err := in.next(&o); err != nil {
			if err != io.EOF {
				h.log.Warn("read an order", "error", err)
			}
			break
		}
		ok = h.obey(conn, o)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.conns, conn)
	if err := conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		h.log.Warn("end of a control connection", "error", err)
	}
}

func (h *hub) obey(conn net.Conn, o order) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch o.Op {
	case opStats:
		var s Stats
		if h.server != nil {
			s = h.server.stats()
		}
		return h.send(conn, report{Kind: reportStats, Seq: o.Seq, Stats: &s})
	case opHotSet:
		r := report{Kind: reportHotSet, Seq: o.Seq}
		if h.server != nil {
			if hot := h.server.hotSet(); hot != nil {
				r.HotSet = hot.append(nil)
			}
		}
		return h.send(conn, r)
	case opStop:
		h.stop()
		return true
	}
	h.log.Warn("an order that is not known", "op", o.Op)
	return false
}

// send writes one report. Callers hold mu.
func (h *hub) send(conn net.Conn, r report) bool {
	line, err := encodeLine(r)
	if err == nil {
		err = conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	}
	if err == nil {
		_, err = conn.Write(line)
	}
	if err != nil {
		h.log.Warn("tell the server", "report", r.Kind, "error", err)
	}
	return err == nil
}

// tell sends a report to all servers that are connected. One that cannot be reached is let go.
func (h *hub) tell(r report) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r.Kind == reportState {
		h.now = r
	}
	for conn := range h.conns {
		if !h.send(conn, r) {
			if err := conn.Close(); err != nil {
				h.log.Warn("end of a control connection", "error", err)
			}
			delete(h.conns, conn)
		}
	}
}

// serves makes a server answer for stats and hot set.
func (h *hub) serves(s *server) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.server = s
}
