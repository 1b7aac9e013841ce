package usernet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/network/policy"
)

// gate decides where the guest's traffic may go, and knows all that goes, so that what a new policy denies can be cut.
type gate struct {
	policy atomic.Pointer[policy.Policy]

	changing sync.Mutex // held while the policy is changed
	hosts    []netip.Addr

	mu    sync.Mutex
	pins  map[netip.Addr]pin
	flows map[*flow]struct{}
	ended bool

	denied, cut atomic.Int64
}

// pin is an address that is open because a name led there.
type pin struct {
	name  string
	until time.Time
}

// flow is something of the guest's that goes to an address, allowed by the policy itself or for the sake of a name.
type flow struct {
	to   netip.AddrPort
	tcp  bool
	name string
	end  func() // cuts it; may be called at any time
}

func newGate() *gate { return &gate{pins: map[netip.Addr]pin{}, flows: map[*flow]struct{}{}} }

// set puts a policy into force, and cuts what it denies.
func (g *gate) set(egress spore.Egress) error {
	g.changing.Lock()
	defer g.changing.Unlock()
	hosts, err := hostAddresses()
	if err != nil {
		return err
	}
	return g.apply(egress, hosts)
}

// refresh notices when the host has other addresses than before.
func (g *gate) refresh() error {
	g.changing.Lock()
	defer g.changing.Unlock()
	hosts, err := hostAddresses()
	if err != nil || slices.Equal(hosts, g.hosts) {
		return err
	}
	return g.apply(g.policy.Load().Egress(), hosts)
}

func (g *gate) apply(egress spore.Egress, hosts []netip.Addr) error {
	p, err := policy.Compile(egress, hosts)
	if err != nil {
		return err
	}
	g.hosts = hosts
	g.policy.Store(p)
	var cut []*flow
	g.mu.Lock()
	for addr, pin := range g.pins {
		if !p.Name(pin.name) || !p.Pinnable(addr) {
			delete(g.pins, addr)
		}
	}
	for f := range g.flows {
		if !direct(p, f.to, f.tcp) && (f.name == "" || !p.Name(f.name) || !p.Pinnable(f.to.Addr())) {
			cut = append(cut, f)
		}
	}
	g.mu.Unlock()
	for _, f := range cut {
		f.end()
	}
	g.cut.Add(int64(len(cut)))
	return nil
}

func direct(p *policy.Policy, to netip.AddrPort, tcp bool) bool {
	if tcp {
		return p.AllowsTCP(to)
	}
	return p.Allows(to.Addr())
}

// enter says whether the guest may reach an address and, if so, remembers it as a flow until leave. A flow that is let in is
// cut by every policy after that denies it.
func (g *gate) enter(to netip.AddrPort, tcp bool, end func()) (*flow, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f := &flow{to: to, tcp: tcp, end: end}
	// The policy is read with the lock held: set stores one before it takes the lock to look for flows.
	if !linkPrefix.Contains(to.Addr()) {
		if direct(g.policy.Load(), to, tcp) {
			g.flows[f] = struct{}{}
			return f, true
		}
		if pin, ok := g.pins[to.Addr()]; ok && time.Now().Before(pin.until) {
			f.name = pin.name
			g.flows[f] = struct{}{}
			return f, true
		}
	}
	g.denied.Add(1)
	return nil, false
}

func (g *gate) leave(f *flow) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.flows, f)
}

// open opens addresses for as long as the answer that held them. It fails when the policy has come to deny them meanwhile.
func (g *gate) open(_ context.Context, name string, addrs []netip.Addr, hold time.Duration) error {
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.policy.Load() // with the lock held, as in enter
	for _, a := range addrs {
		if !p.Name(name) || !p.Pinnable(a) {
			return fmt.Errorf("usernet: %s may not lead to %s any more", name, a)
		}
	}
	if len(g.pins)+len(addrs) > maxPins {
		for addr, pin := range g.pins {
			if !now.Before(pin.until) {
				delete(g.pins, addr)
			}
		}
	}
	for _, a := range addrs {
		old, ok := g.pins[a]
		if !ok && len(g.pins) >= maxPins {
			return fmt.Errorf("usernet: %d addresses are open for names already", len(g.pins))
		}
		if until := now.Add(hold); !ok || old.until.Before(until) {
			g.pins[a] = pin{name: name, until: until}
		}
	}
	return nil
}

func (g *gate) pinned() int {
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for _, p := range g.pins {
		if now.Before(p.until) {
			n++
		}
	}
	return n
}

// hostAddresses are those of the host itself, which no guest reaches unless it is told so.
func hostAddresses() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("usernet: the host's addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok && addr.Unmap().Is4() {
				out = append(out, addr.Unmap())
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}

// begin counts something that runs for the guest; false once endAll was called.
func (g *gate) begin(wg *sync.WaitGroup) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended {
		return false
	}
	wg.Add(1)
	return true
}

// endAll ends every flow, and lets nothing begin any more.
func (g *gate) endAll() {
	g.mu.Lock()
	g.ended = true
	var all []*flow
	for f := range g.flows {
		all = append(all, f)
	}
	g.mu.Unlock()
	for _, f := range all {
		f.end()
	}
}

// count is how many connections and other flows there are.
func (g *gate) count() (tcp, other int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for f := range g.flows {
		if f.tcp {
			tcp++
		} else {
			other++
		}
	}
	return tcp, other
}
