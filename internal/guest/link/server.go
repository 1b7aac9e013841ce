package link

import (
	"net"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/yamux"
)

// Server is the guest's end of a link.
type Server struct {
	gate  gate
	serve func(net.Conn)

	mu      sync.Mutex // held while the lease changes
	current atomic.Pointer[lease]
}

// NewServer makes the guest's end. Every stream that the host opens is given to serve, in a goroutine of its own; serve
// closes it.
func NewServer(data Port, serve func(stream net.Conn)) *Server {
	return &Server{gate: gate{port: data}, serve: serve}
}

// Run obeys the control port until it ends, and returns why it did.
func (s *Server) Run(control Port) error {
	defer s.Hangup()
	return readResets(control, s.reset)
}

// Hangup drops the session, if there is one: the host is gone. Its streams end; the next RESET makes a new one.
func (s *Server) Hangup() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.swap(nil)
}

// Absent is for when the host is not there, which may pass. The function that it returns is for when it has not: it drops the session
// that there was, and answers false, having done nothing, when another has been made since. That one is of a host that did come, however
// late the guest learns of it, and that will never hear that its session was dropped. Absent may be called within a Read of the port.
func (s *Server) Absent() (hangup func() bool) {
	was := s.current.Load()
	return func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.current.Load() != was {
			return false
		}
		s.swap(nil)
		return true
	}
}

func (s *Server) reset(n nonce) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &lease{gate: &s.gate}
	s.swap(l)
	go s.session(l, n)
}

// swap ends the lease that there is and puts next, which may be nil, in its place.
func (s *Server) swap(next *lease) {
	if was := s.current.Load(); was != nil {
		was.Close()
	}
	s.current.Store(next)
}

// session runs on one lease from the nonce to the end. Any failure ends the lease; the host notices and resets.
func (s *Server) session(l *lease, n nonce) {
	defer l.Close()
	if l.find(n) != nil {
		return
	}
	if _, err := l.Write(n[:]); err != nil {
		return
	}
	mux, err := yamux.Server(&frames{ReadWriteCloser: l}, muxConfig(guestWindow))
	if err != nil {
		return
	}
	defer mux.Close()
	for {
		stream, err := mux.AcceptStream()
		if err != nil {
			return
		}
		go s.serve(stream)
	}
}
