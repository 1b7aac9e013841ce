package usernet

import (
	"container/list"
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

// flows are what has no beginning and no end that anyone could see: UDP and pings. Each ends when it has been silent for some
// time, or when another needs its place.
type flows struct {
	engine *engine
	mu     sync.Mutex
	bySeen *list.List // of *datagrams, the one that was silent longest first
	ping   map[pingKey]*datagrams
}

func newFlows(e *engine) *flows {
	return &flows{engine: e, bySeen: list.New(), ping: map[pingKey]*datagrams{}}
}

// datagrams is one flow.
type datagrams struct {
	all    *flows
	entry  *flow
	place  *list.Element
	idle   time.Duration
	timer  *time.Timer
	ctx    context.Context
	cancel context.CancelFunc
	host   net.Conn
}

// start makes a flow to an address; nil when the policy denies it or it cannot be.
func (all *flows) start(to netip.AddrPort, idle time.Duration, dial func() (net.Conn, error)) (d *datagrams, denied bool) {
	d = &datagrams{all: all, idle: idle}
	d.ctx, d.cancel = context.WithCancel(all.engine.ctx)
	var ok bool
	if d.entry, ok = all.engine.gate.enter(to, false, d.cancel); !ok {
		d.cancel()
		return nil, true
	}
	var err error
	if d.host, err = dial(); err != nil {
		all.engine.failed.Add(1)
		all.engine.gate.leave(d.entry)
		d.cancel()
		return nil, false
	}
	all.engine.opened.Add(1)
	all.mu.Lock()
	if all.bySeen.Len() >= maxFlows {
		all.bySeen.Front().Value.(*datagrams).cancel()
		all.bySeen.Remove(all.bySeen.Front())
	}
	d.place = all.bySeen.PushBack(d)
	all.mu.Unlock()
	d.timer = time.AfterFunc(idle, d.cancel)
	context.AfterFunc(d.ctx, func() { d.host.Close() })
	return d, false
}

// seen notes that the flow is not silent.
func (d *datagrams) seen() {
	d.timer.Reset(d.idle)
	d.all.mu.Lock()
	defer d.all.mu.Unlock()
	d.all.bySeen.MoveToBack(d.place) // nothing happens when it has lost its place
}

// end takes the flow down.
func (d *datagrams) end() {
	d.cancel()
	d.timer.Stop()
	d.all.mu.Lock()
	d.all.bySeen.Remove(d.place)
	d.all.mu.Unlock()
	d.all.engine.gate.leave(d.entry)
}
