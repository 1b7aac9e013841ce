package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/sporevm/spore/internal/network/policy"
	"github.com/sporevm/spore/internal/network/resolver"
)

// nameServer answers one guest, at the gateway's address in its namespace.
type nameServer struct {
	stop context.CancelFunc
	done chan struct{}
}

// openNames begins to answer the guest's questions. The sockets are made inside the namespace and served from here.
func (m *Manager) openNames(s *space) error {
	if s.names != nil {
		return nil
	}
	var udp net.PacketConn
	var tcp net.Listener
	at := netip.AddrPortFrom(Gateway, 53)
	err := m.inside(s, func() (err error) {
		if udp, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at)); err != nil {
			return err
		}
		tcp, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		if udp != nil {
			udp.Close()
		}
		return err
	}
	r := resolver.New(resolver.Options{
		Policy: func() *policy.Policy { return s.policy.Load() },
		Pin: func(_ context.Context, name string, addrs []netip.Addr, hold time.Duration) error {
			return m.pin(s, name, addrs, hold)
		},
		ResolvConf: m.opt.ResolvConf, Servers: m.opt.Nameservers, Logger: m.log.With("network", s.name),
	})
	ctx, stop := context.WithCancel(context.Background())
	n := &nameServer{stop: stop, done: make(chan struct{})}
	s.names = n
	go func() {
		defer close(n.done)
		if err := r.Serve(ctx, udp, tcp); err != nil {
			m.log.Error("a guest's names are no longer answered", "network", s.name, "err", err)
		}
	}()
	return nil
}

// closeNames stops answering and waits until the sockets are closed: while one is open, the namespace stays. The caller does not hold
// s.mu, which an answer under way may be waiting for.
func (s *space) closeNames() error {
	s.mu.Lock()
	n := s.names
	s.names = nil
	s.mu.Unlock()
	if n != nil {
		n.stop()
		<-n.done
	}
	return nil
}

var errPolicyChanged = errors.New("the policy has changed meanwhile")

// pin opens addresses that a name has resolved to. The resolver judged by the policy of a moment ago; what counts is that of now.
func (m *Manager) pin(s *space, name string, addrs []netip.Addr, hold time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.names == nil {
		return errPolicyChanged
	}
	p := s.policy.Load()
	if !p.Name(name) {
		return errPolicyChanged
	}
	now := time.Now()
	for addr, pin := range s.pins {
		if pin.until.Before(now) {
			delete(s.pins, addr)
		}
	}
	fresh := map[netip.Addr]pin{}
	for _, addr := range addrs {
		addr = addr.Unmap()
		if !p.Pinnable(addr) {
			return errPolicyChanged
		}
		// Another name may hold it for longer.
		if until := now.Add(hold); until.After(s.pins[addr].until) {
			fresh[addr] = pin{domain: name, until: until}
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	if err := m.inside(s, func() error { return theInner.pin(fresh) }); err != nil {
		return err
	}
	for addr, pin := range fresh {
		s.pins[addr] = pin
	}
	return nil
}
