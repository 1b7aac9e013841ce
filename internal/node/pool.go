package node

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/frozen"
)

// hotFor is how long after its last use a template's VMs are kept ready.
const hotFor = 10 * time.Minute

// pool keeps a few thawed, greeted and paused VMs for each template that is in use, so that a create need not wait for
// a hypervisor to start. It fills up only while nobody is waiting for a start.
type pool struct {
	node *Node
	size int

	mu     sync.Mutex
	ready  map[string][]*machine // by frozen id
	last   map[string]time.Time  // when the frozen id was last used
	making string                // the frozen id that a VM is being made for; "" once that was drained
	wake   chan struct{}
	stop   context.CancelFunc
	filled sync.WaitGroup
}

func newPool(n *Node, size int) *pool {
	ctx, cancel := context.WithCancel(context.Background())
	p := &pool{node: n, size: size, ready: map[string][]*machine{}, last: map[string]time.Time{}, wake: make(chan struct{}, 1), stop: cancel}
	if size > 0 {
		p.filled.Go(func() { p.run(ctx) })
	}
	return p
}

// take answers a VM that is ready for a frozen state, or nil.
func (p *pool) take(frozenID string) *machine {
	p.mu.Lock()
	defer p.mu.Unlock()
	for list := p.ready[frozenID]; len(list) > 0; list = p.ready[frozenID] {
		m := list[len(list)-1]
		p.ready[frozenID] = list[:len(list)-1]
		select {
		case <-m.vm.Done():
			go p.discard(context.Background(), m)
		default:
			return m
		}
	}
	return nil
}

// used notes that a template was just started from, which makes it worth keeping VMs ready for. Snapshots are not: most
// are started from once, if ever.
func (p *pool) used(frozenID string) {
	if p.size == 0 || kindOf(frozenID) != frozen.KindTemplate {
		return
	}
	p.mu.Lock()
	p.last[frozenID] = time.Now()
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// count is how many VMs are ready.
func (p *pool) count() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, list := range p.ready {
		n += len(list)
	}
	return n
}

func (p *pool) run(ctx context.Context) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-tick.C:
			p.cool(ctx)
		}
		p.fill(ctx)
	}
}

// fill makes one VM after the other until every template in use has its share.
func (p *pool) fill(ctx context.Context) {
	for ctx.Err() == nil {
		id := p.wanting()
		if id == "" {
			return
		}
		if !p.node.cap.idle() { // creates go first
			select {
			case <-ctx.Done():
				return
			case <-time.After(20 * time.Millisecond):
			}
			continue
		}
		if err := p.fillOne(ctx, id); err != nil {
			if ctx.Err() == nil && !isNotFound(err) {
				p.node.log.Warn("filling the pool", "frozen", id, "err", err)
			}
			p.forget(id)
		}
	}
}

func (p *pool) fillOne(ctx context.Context, id string) error {
	p.mu.Lock()
	p.making = id
	p.mu.Unlock()
	m, err := p.node.thaw(ctx, id, owner{}, nil)
	if err != nil {
		return err
	}
	if err := m.warm(ctx); err != nil {
		p.discard(ctx, m)
		return err
	}
	p.node.add(m)
	p.mu.Lock()
	_, wanted := p.last[id]
	wanted = wanted && p.making == id
	if wanted {
		p.ready[id] = append(p.ready[id], m)
	}
	p.mu.Unlock()
	if !wanted { // forgotten, or replaced, while it was being made
		p.discard(ctx, m)
	}
	return nil
}

// warm runs the path that the first command of a sandbox takes, so that the hypervisor has translated it and the guest
// has its pages, then lets the VM stand still.
func (m *machine) warm(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, greetTimeout)
	defer cancel()
	a, err := m.connect(ctx)
	if err != nil {
		return err
	}
	if err := a.Warm(ctx); err != nil {
		return err
	}
	return m.vm.Pause(ctx)
}

func (p *pool) wanting() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id := range p.last {
		if len(p.ready[id]) < p.size {
			return id
		}
	}
	return ""
}

func (p *pool) forget(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.last, id)
}

// cool ends the VMs of templates that have not been used for a while.
func (p *pool) cool(ctx context.Context) {
	p.mu.Lock()
	var cold []string
	for id, at := range p.last {
		if time.Since(at) > hotFor {
			cold = append(cold, id)
		}
	}
	for id := range p.ready { // some were made, then one could not be
		if _, hot := p.last[id]; !hot {
			cold = append(cold, id)
		}
	}
	p.mu.Unlock()
	for _, id := range cold {
		p.drain(ctx, id)
	}
}

// drain ends the VMs that are ready for one frozen state and makes no more. It answers whether there were any.
func (p *pool) drain(ctx context.Context, id string) bool {
	p.mu.Lock()
	list := p.ready[id]
	delete(p.ready, id)
	delete(p.last, id)
	if p.making == id {
		p.making = ""
	}
	p.mu.Unlock()
	for _, m := range list {
		p.discard(ctx, m)
	}
	return len(list) > 0
}

// empty ends all VMs that are ready and answers whether there were any.
func (p *pool) empty(ctx context.Context) bool {
	p.mu.Lock()
	ids := slices.Collect(maps.Keys(p.ready))
	p.mu.Unlock()
	some := false
	for _, id := range ids {
		some = p.drain(ctx, id) || some
	}
	return some
}

func (p *pool) discard(ctx context.Context, m *machine) {
	if err := p.node.end(context.WithoutCancel(ctx), m); err != nil {
		p.node.log.Error("ending a VM of the pool", "vm", m.id, "code", spore.CodeOf(err), "err", err)
	}
}

func (p *pool) close(ctx context.Context) {
	p.stop()
	p.filled.Wait()
	p.empty(ctx)
}
