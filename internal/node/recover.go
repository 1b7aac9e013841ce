package node

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

const (
	// adoptTimeout bounds how long the hypervisor of one VM may take to answer a server that starts anew.
	adoptTimeout = 30 * time.Second
	// adoptions is how many VMs are taken over at a time: one that does not answer must not keep the others waiting.
	adoptions = 16
)

// Recover takes over the VMs that an earlier server left: each that is the generation of a sandbox in want is adopted,
// every other one (template boots, VMs of the pool, generations that do not count) is ended and cleared away. The answer
// says, for each in want that could not be adopted, why. What is wrong with one VM stops none of the others. VMs that
// this server started or took over itself are left as they are.
func (n *Node) Recover(ctx context.Context, want []*spore.Sandbox) (map[string]error, error) {
	n.recovering.Lock()
	defer n.recovering.Unlock()
	r := recovery{node: n, wanted: map[string]*spore.Sandbox{}, failed: map[string]error{}, keep: map[string]bool{}}
	for _, s := range want {
		r.wanted[s.ID] = s
		r.failed[s.ID] = spore.Errorf(spore.CodeConflict, "its VM is gone, with all that it had on disk")
	}
	entries, err := os.ReadDir(n.path("vms"))
	if err != nil {
		return nil, err
	}
	var g errgroup.Group
	g.SetLimit(adoptions)
	for _, e := range entries {
		g.Go(func() error {
			r.settle(ctx, e.Name())
			return ctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if err := r.dropPins(); err != nil {
		return nil, err
	}
	if err := r.links(ctx); err != nil {
		return nil, err
	}
	n.mu.Lock()
	n.recovered = true
	n.mu.Unlock()
	return r.failed, nil
}

// recovery is one run of Recover.
type recovery struct {
	node *Node

	mu     sync.Mutex
	wanted map[string]*spore.Sandbox // a sandbox goes as its VM is found
	failed map[string]error          // by sandbox
	keep   map[string]bool           // VMs that are there still, and need their pins

	adopted []*machine
}

// settle adopts or ends the VM in one directory.
func (r *recovery) settle(ctx context.Context, id string) {
	n := r.node
	if n.knows(id) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.keep[id] = true
		for sandbox, s := range r.wanted {
			if m, err := n.machine(sandbox, s.Generation); err == nil && m.id == id && m.vm.State() != vmm.StateExited {
				delete(r.failed, sandbox)
			}
		}
		return
	}
	o, err := readOwner(n.machineDir(id))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.log.Error("the owner file of a VM cannot be read; the VM is taken for nobody's", "vm", id, "err", err)
	}
	if s := r.claim(o); err == nil && s != nil {
		m, err := n.adopt(ctx, id, o)
		if err == nil && len(s.Ports) > 0 {
			n.publishing.Lock()
			_, taken := n.ports.set(ctx, s.ID, s.Ports)
			n.publishing.Unlock()
			if taken != nil { // the sandbox goes on; whoever asks for a report sees that they are not published
				n.log.Error("publishing the ports of a sandbox again", "sandbox", s.ID, "err", taken)
			}
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.keep[id] = true
		if r.failed[o.Sandbox] = err; err == nil {
			delete(r.failed, o.Sandbox)
			r.adopted = append(r.adopted, m)
		}
		return
	}
	o.Config.ID = id
	m := n.newMachine(id, n.dead(id), owner{Config: o.Config, Shape: o.Shape, Network: o.Network, Limits: o.Limits, Governed: o.Governed})
	if err := n.end(ctx, m); err != nil {
		n.log.Error("a VM that is nobody's does not end", "vm", id, "err", err)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.keep[id] = true
		return
	}
	n.log.Info("cleared away a VM that is nobody's", "vm", id, "sandbox", o.Sandbox, "generation", o.Generation)
}

// knows says whether a VM is one that this server deals with already.
func (n *Node) knows(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.machines[id] != nil || n.cap.has(id)
}

// claim answers the sandbox for which a VM is the one that counts, nil when it is none's; of two that say so, one is.
func (r *recovery) claim(o owner) *spore.Sandbox {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.wanted[o.Sandbox]
	if s == nil || s.Generation != o.Generation {
		return nil
	}
	delete(r.wanted, o.Sandbox)
	return s
}

// adopt takes one VM over. One that cannot be taken over is ended, but keeps its directory, since the console may say
// what was wrong, until its sandbox is killed or rolled back.
func (n *Node) adopt(ctx context.Context, id string, o owner) (*machine, error) {
	ctx, cancel := context.WithTimeout(ctx, adoptTimeout)
	defer cancel()
	vm, err := n.opt.Engine.Adopt(ctx, o.Config)
	if err == nil {
		// A capture may have been under way: whoever was to let the guest run on is gone.
		if err = vm.Resume(ctx); err == nil {
			n.cap.hold(id, o.Config.MemoryMiB)
			if o.Network.Connected() {
				n.mu.Lock()
				n.links[id] = Attached{VM: id, Dir: n.machineDir(id), Network: o.Network, Limits: o.Limits}
				n.mu.Unlock()
			}
			m := n.newMachine(id, vm, o)
			n.register(m)
			return m, nil
		}
		err = errors.Join(err, vm.Release())
	}
	switch spore.CodeOf(err) {
	case spore.CodeCanceled:
		err = spore.Errorf(spore.CodeUnreachable, "its hypervisor did not answer the new server within %s", adoptTimeout).WithCause(err)
	case spore.CodeInternal:
		err = spore.Errorf(spore.CodeConflict, "its VM could not be taken over: %w", err)
	}
	m := n.newMachine(id, n.dead(id), o)
	kill, cancelKill := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancelKill()
	if kill := m.vm.Kill(kill); kill != nil {
		n.log.Error("a VM that cannot be taken over does not end", "vm", id, "sandbox", o.Sandbox, "err", kill)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.machines[id] = m // so that Settle finds what it left
	return nil, err
}

func (n *Node) dead(id string) deadVM { return deadVM{dir: n.machineDir(id), engine: n.opt.Engine} }

// dropPins removes the pins of VMs that are gone.
func (r *recovery) dropPins() error {
	pins, err := r.node.opt.Frozen.Pins()
	if err != nil {
		return err
	}
	for _, p := range pins {
		if r.keep[p] {
			continue
		}
		if err := r.node.opt.Frozen.Unpin(p); err != nil {
			r.node.log.Error("dropping the pin of a VM that is gone", "vm", p, "err", err)
		}
	}
	return nil
}
