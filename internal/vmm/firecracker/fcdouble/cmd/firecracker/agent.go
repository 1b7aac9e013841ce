package main

import (
	"net"
	"sync"

	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/sim/simguest"
)

// agent is a guest with the agent of simulated VMs in it: enough for a machine to boot, greet, use and freeze it.
type agent struct {
	mu      sync.Mutex
	waiting map[string]waiting
}

// waiting is a port of a pair that waits for the other.
type waiting struct {
	conn net.Conn
	done chan struct{} // closed when the pair has been served
}

func newAgent(*guest) *agent { return &agent{waiting: map[string]waiting{}} }

func (a *agent) serve(g *guest, port string, conn net.Conn) {
	other := vmm.PortData
	if port == vmm.PortData {
		other = vmm.PortControl
	}
	mine := waiting{conn, make(chan struct{})}
	a.mu.Lock()
	partner, ok := a.waiting[other]
	if !ok {
		if old, ok := a.waiting[port]; ok { // its partner never came, and the host has tried again
			close(old.done)
		}
		a.waiting[port] = mine
		a.mu.Unlock()
		<-mine.done
		return
	}
	delete(a.waiting, other)
	a.mu.Unlock()
	defer close(partner.done)
	control, data := conn, partner.conn
	if port == vmm.PortData {
		control, data = data, control
	}
	simguest.Play(g, control, data)
}
