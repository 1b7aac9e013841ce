package node

import (
	"context"
	"maps"
	"time"

	"github.com/sporevm/spore/internal/vmm"
)

// standingLook is the time from one look for VMs that have stopped by themselves to the next.
const standingLook = 5 * time.Second

// wakeStanding sets VMs going that have stopped by themselves, until the node is closed: QEMU stops one when its disk's file finds no
// room, and nobody tells when there is some again.
func (n *Node) wakeStanding() {
	tick := time.NewTicker(standingLook)
	defer tick.Stop()
	seen := map[string]bool{}
	for {
		select {
		case <-n.closing:
			return
		case <-tick.C:
			n.lookForStanding(seen)
		}
	}
}

// lookForStanding looks once at each VM of a sandbox. seen are those that stood still at the last look, too: while there is no room, a VM
// that was set going stops again at its next write.
func (n *Node) lookForStanding(seen map[string]bool) {
	n.mu.Lock()
	machines := maps.Clone(n.machines)
	maps.DeleteFunc(machines, func(_ string, m *machine) bool { return m.owner.Sandbox == "" })
	n.mu.Unlock()
	maps.DeleteFunc(seen, func(id string, _ bool) bool { return machines[id] == nil })
	for id, m := range machines {
		if m.freeze.TryLock() { // else it may stand still for a capture
			seen[id] = m.goOn(seen[id])
			m.freeze.Unlock()
		}
	}
}

// goOn has a VM run on that has stopped by itself, and says whether it had. One that is known for it is not told of again. The caller
// holds freeze.
func (m *machine) goOn(known bool) bool {
	if m.ending.Load() || m.suspended.Load() || m.vm.State() != vmm.StatePaused {
		return false
	}
	if !known {
		m.node.log.Warn("a VM has stopped by itself, as for want of room on the machine's disk; it is set going until it goes on", "vm", m.id)
	}
	ctx, cancel := context.WithTimeout(m.held, wakeTimeout)
	defer cancel()
	if err := m.vm.Resume(ctx); err != nil && !known && m.vm.State() != vmm.StateExited {
		m.node.log.Error("a VM that has stopped by itself cannot be set going; trying again", "vm", m.id, "err", err)
	}
	return true
}
