package node

import (
	"context"
	"os"

	"github.com/sporevm/spore"
)

// Recover takes over the VMs that an earlier server left: each that is the generation of a sandbox in want is adopted,
// every other one (template boots, VMs of the pool, generations that do not count) is ended and cleared away. The answer
// says, for each in want that could not be adopted, why.
func (n *Node) Recover(ctx context.Context, want []*spore.Sandbox) (map[string]error, error) {
	generation := map[string]int{}
	failed := map[string]error{}
	for _, s := range want {
		generation[s.ID] = s.Generation
		failed[s.ID] = spore.Errorf(spore.CodeConflict, "its VM is gone, with all that it had on disk")
	}
	entries, err := os.ReadDir(n.path("vms"))
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, e := range entries {
		id := e.Name()
		o, err := readOwner(n.machineDir(id))
		if err == nil && o.Sandbox != "" && generation[o.Sandbox] == o.Generation {
			known[id] = true
			failed[o.Sandbox] = n.adopt(ctx, id, o)
			continue
		}
		if err := n.opt.Engine.Clean(ctx, n.machineDir(id)); err != nil {
			return nil, err
		}
		n.log.Info("cleared away a VM that is nobody's", "vm", id, "sandbox", o.Sandbox, "generation", o.Generation)
		if err := n.clear(id); err != nil {
			return nil, err
		}
	}
	for id, err := range failed {
		if err == nil {
			delete(failed, id)
		}
	}
	return failed, n.dropPins(known)
}

// adopt takes one VM over. One whose process is gone keeps its directory, since the console may say why it ended, until
// its sandbox is killed or rolled back.
func (n *Node) adopt(ctx context.Context, id string, o owner) error {
	m := &machine{id: id, node: n, owner: o}
	vm, err := n.opt.Engine.Adopt(ctx, o.Config)
	if err != nil {
		n.remember(m)
		return err
	}
	m.vm = vm
	n.cap.hold(id, o.Config.MemoryMiB)
	// A capture may have been under way: whoever was to let the guest run on is gone.
	if err := vm.Resume(ctx); err != nil {
		return err
	}
	n.add(m)
	return nil
}

// remember keeps a VM whose process is gone, so that Settle finds what it left.
func (n *Node) remember(m *machine) {
	m.vm = deadVM{dir: n.machineDir(m.id)}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.machines[m.id] = m
}

// dropPins removes the pins of VMs that are gone.
func (n *Node) dropPins(known map[string]bool) error {
	pins, err := n.opt.Frozen.Pins()
	if err != nil {
		return err
	}
	for _, p := range pins {
		if !known[p] {
			if err := n.opt.Frozen.Unpin(p); err != nil {
				return err
			}
		}
	}
	return nil
}
