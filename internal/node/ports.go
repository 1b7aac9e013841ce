package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sporevm/spore"
)

const (
	// maxForwarded bounds the connections that one sandbox has at a time through its published ports.
	maxForwarded = 1024
	// forwardTimeout bounds how long a guest may take to accept a connection.
	forwardTimeout = 30 * time.Second
)

// ports are the listeners of published ports, by sandbox. They belong to the sandbox rather than to one of its VMs.
type ports struct {
	dial func(ctx context.Context, sandboxID string, port int) (guestConn, error)
	fail func(what string, err error) // told of listeners that do not accept

	mu sync.Mutex
	by map[string]*published
}

// published is what one sandbox has.
type published struct {
	forwards []*forward // in the order that they were asked for
	slots    chan struct{}
}

// forward is one listener and the connections that came through it.
type forward struct {
	spore.PortForward
	addr     netip.Addr
	guest    atomic.Int32
	listener *net.TCPListener

	life context.Context
	end  context.CancelFunc
	all  sync.WaitGroup // the listener, and the connections for as long as they are open to the outside
}

// guestConn is a connection into a guest.
type guestConn interface {
	net.Conn
	CloseWrite() error
}

func newPorts(dial func(context.Context, string, int) (guestConn, error), fail func(string, error)) *ports {
	return &ports{dial: dial, fail: fail, by: map[string]*published{}}
}

// set makes the ports of a sandbox exactly want, all or none, and answers them with the host ports that were picked.
func (p *ports) set(ctx context.Context, sandbox string, want []spore.PortForward) ([]spore.PortForward, error) {
	if err := spore.ValidatePorts(want); err != nil {
		return nil, err
	}
	p.mu.Lock()
	had := p.by[sandbox]
	if had == nil {
		had = &published{slots: make(chan struct{}, maxForwarded)}
	}
	old := slices.Clone(had.forwards)
	next := make([]*forward, len(want))
	for i, w := range want { // those that have a place of their own first
		if w = w.WithDefaults(); w.HostPort != 0 {
			next[i] = takeForward(&old, func(f *forward) bool { return f.HostAddress == w.HostAddress && f.HostPort == w.HostPort })
		}
	}
	for i, w := range want {
		if w = w.WithDefaults(); next[i] == nil && (w.HostPort == 0 || w.Picked) {
			next[i] = takeForward(&old, func(f *forward) bool { return f.Picked && f.HostAddress == w.HostAddress && f.GuestPort == w.GuestPort })
		}
	}
	var fresh []*forward
	for i, w := range want {
		if next[i] != nil {
			continue
		}
		f, err := p.listen(ctx, sandbox, w.WithDefaults())
		if err != nil {
			p.mu.Unlock()
			for _, f := range fresh {
				f.listener.Close()
			}
			return nil, err
		}
		next[i] = f
		fresh = append(fresh, f)
	}
	answer := make([]spore.PortForward, len(want))
	for i, f := range next {
		f.GuestPort = want[i].GuestPort
		f.Picked = f.Picked && (want[i].HostPort == 0 || want[i].Picked)
		f.guest.Store(int32(f.GuestPort))
		answer[i] = f.PortForward
	}
	had.forwards = next
	if p.by[sandbox] = had; len(next) == 0 {
		delete(p.by, sandbox)
		answer = nil
	}
	for _, f := range fresh {
		f.all.Go(func() { p.accept(sandbox, f, had.slots) })
	}
	p.mu.Unlock()
	for _, f := range old {
		f.close()
	}
	return answer, nil
}

// takeForward takes the first forward that is as wanted out of a list.
func takeForward(list *[]*forward, as func(*forward) bool) *forward {
	at := slices.IndexFunc(*list, as)
	if at < 0 {
		return nil
	}
	f := (*list)[at]
	*list = slices.Delete(*list, at, at+1)
	return f
}

// of answers what a sandbox publishes.
func (p *ports) of(sandbox string) (all []spore.PortForward) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if had := p.by[sandbox]; had != nil {
		for _, f := range had.forwards {
			all = append(all, f.PortForward)
		}
	}
	return all
}

// drop ends all that a sandbox publishes.
func (p *ports) drop(sandbox string) {
	p.mu.Lock()
	had := p.by[sandbox]
	delete(p.by, sandbox)
	p.mu.Unlock()
	if had != nil {
		for _, f := range had.forwards {
			f.close()
		}
	}
}

// close ends everything.
func (p *ports) close() {
	p.mu.Lock()
	all := p.by
	p.by = map[string]*published{}
	p.mu.Unlock()
	for _, had := range all {
		for _, f := range had.forwards {
			f.close()
		}
	}
}

// close ends a forward with its connections. What they lead to in the guest, which may take its time or stand still, is not waited for.
func (f *forward) close() {
	f.end()
	f.listener.Close()
	f.all.Wait()
}

// listen opens the listener of a forward. One that was picked before is picked anew when it is not to be had. The caller holds mu.
func (p *ports) listen(ctx context.Context, sandbox string, w spore.PortForward) (*forward, error) {
	addr, err := netip.ParseAddr(w.HostAddress)
	if err != nil {
		return nil, err // ValidatePorts has seen it
	}
	w.Picked = w.Picked || w.HostPort == 0
	network := "tcp4"
	if addr.Is6() && !addr.Is4In6() {
		network = "tcp6"
	}
	open := func(port int) (net.Listener, error) {
		var lc net.ListenConfig
		return lc.Listen(ctx, network, net.JoinHostPort(w.HostAddress, strconv.Itoa(port)))
	}
	l, err := open(w.HostPort)
	if err != nil && w.Picked && w.HostPort != 0 {
		l, err = open(0)
	}
	if err != nil {
		return nil, p.refusal(err, sandbox, w, addr)
	}
	w.HostPort = l.Addr().(*net.TCPAddr).Port
	f := &forward{PortForward: w, addr: addr, listener: l.(*net.TCPListener)}
	f.life, f.end = context.WithCancel(context.Background())
	return f, nil
}

// refusal says why a port cannot be published, as far as the host tells. The caller holds mu.
func (p *ports) refusal(err error, sandbox string, w spore.PortForward, addr netip.Addr) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		taken := &spore.PortTaken{HostAddress: w.HostAddress, HostPort: w.HostPort, By: "another program on the machine"}
		for id, had := range p.by {
			if slices.ContainsFunc(had.forwards, func(f *forward) bool {
				return f.HostPort == w.HostPort && (f.addr == addr || f.addr.IsUnspecified() || addr.IsUnspecified())
			}) {
				taken.By = "sandbox " + id
				if id == sandbox {
					taken.By = "the sandbox itself"
				}
			}
		}
		e := spore.Errorf(spore.CodeConflict, "%w", taken).
			WithHint("name another host port, or 0 for any that is free")
		e.Field = "ports.hostPort"
		return e
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return spore.Invalidf("ports.hostPort", "the server may not listen on port %d", w.HostPort).WithCause(err).
			WithHint("name one from 1024 on, or give the server the right: CAP_NET_BIND_SERVICE")
	case errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EAFNOSUPPORT):
		return spore.Invalidf("ports.hostAddress", "%s is no address of this machine", w.HostAddress).WithCause(err).
			WithHint("such as 127.0.0.1, or 0.0.0.0 for all of the machine's")
	}
	return fmt.Errorf("listen on port %d of %s: %w", w.HostPort, w.HostAddress, err)
}

// accept serves a forward until it is closed.
func (p *ports) accept(sandbox string, f *forward, slots chan struct{}) {
	for {
		conn, err := f.listener.AcceptTCP()
		if f.life.Err() != nil {
			if err == nil {
				reset(conn)
			}
			return
		}
		if err != nil { // no descriptors left: a while later there may be some
			p.fail(fmt.Sprintf("accepting a connection for port %d of %s", f.GuestPort, sandbox), err)
			select {
			case <-time.After(100 * time.Millisecond):
				continue
			case <-f.life.Done():
				return
			}
		}
		select {
		case slots <- struct{}{}:
		default: // as many as one sandbox may have
			reset(conn)
			continue
		}
		f.all.Add(1)
		stop := context.AfterFunc(f.life, func() {
			reset(conn)
			f.all.Done()
		})
		go func() {
			defer func() { <-slots }()
			p.serve(sandbox, f, conn)
			if stop() {
				f.all.Done()
			}
		}()
	}
}

// serve carries one connection to the guest and back. When the guest cannot take it, it is reset at once.
func (p *ports) serve(sandbox string, f *forward, conn *net.TCPConn) {
	ctx, cancel := context.WithTimeout(f.life, forwardTimeout)
	inside, err := p.dial(ctx, sandbox, int(f.guest.Load()))
	cancel()
	if err != nil {
		reset(conn)
		return
	}
	defer context.AfterFunc(f.life, func() { inside.Close() })()
	if errors.Join(splice(conn, inside)...) != nil {
		reset(conn)
	}
	conn.Close()
	inside.Close()
}

// splice copies both ways until both have ended. One that ends in order is passed on as such, and the other goes on; one that breaks
// ends the other too.
func splice(outside *net.TCPConn, inside guestConn) []error {
	results := make(chan error, 2)
	go func() {
		_, err := outside.WriteTo(inside)
		if err == nil {
			err = inside.CloseWrite()
		}
		if err != nil {
			inside.Close()
			reset(outside)
		}
		results <- err
	}()
	go func() {
		_, err := outside.ReadFrom(inside)
		if err == nil {
			err = outside.CloseWrite()
		}
		if err != nil {
			inside.Close()
			reset(outside)
		}
		results <- err
	}()
	return []error{<-results, <-results}
}

// reset ends a connection such that the other end sees that it was not meant to end.
func reset(conn *net.TCPConn) {
	conn.SetLinger(0)
	conn.Close()
}

// Publish makes the published ports of a sandbox that has a VM exactly these.
func (n *Node) Publish(ctx context.Context, sandboxID string, want []spore.PortForward) ([]spore.PortForward, error) {
	n.publishing.Lock() // so that the last VM does not go in between
	defer n.publishing.Unlock()
	if len(n.machinesOf(sandboxID)) == 0 {
		return nil, spore.Errorf(spore.CodeConflict, "sandbox %s has no VM", sandboxID)
	}
	return n.ports.set(ctx, sandboxID, want)
}

// unpublish ends the ports of a sandbox that has no VM any more, nor one that is being started.
func (n *Node) unpublish(sandboxID string) {
	n.publishing.Lock()
	defer n.publishing.Unlock()
	if len(n.machinesOf(sandboxID)) > 0 {
		return
	}
	n.mu.Lock()
	for g := range n.starting {
		if g.sandbox == sandboxID {
			n.mu.Unlock()
			return
		}
	}
	n.mu.Unlock()
	n.ports.drop(sandboxID)
}

// machinesOf answers the VMs of a sandbox, the oldest generation first.
func (n *Node) machinesOf(sandboxID string) (all []*machine) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, m := range n.machines {
		if m.owner.Sandbox == sandboxID {
			all = append(all, m)
		}
	}
	slices.SortFunc(all, func(a, b *machine) int { return cmp.Compare(a.owner.Generation, b.owner.Generation) })
	return all
}
