package link

import (
	"net"
	"sync"

	"github.com/hashicorp/yamux"
)

// Server is the guest's end of a link.
type Server struct {
	gate  gate
	serve func(net.Conn)

	mu      sync.Mutex
	current *lease
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
	if s.current != nil {
		s.current.Close()
		s.current = nil
	}
}

func (s *Server) reset(n nonce) {
	s.Hangup()
	l := &lease{gate: &s.gate}
	s.mu.Lock()
	s.current = l
	s.mu.Unlock()
	go s.session(l, n)
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
