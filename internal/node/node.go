// Package node is what one machine does: it builds artifacts, boots and freezes templates, thaws sandboxes, captures
// them, and keeps watch over their VMs.
//
// A VM lives in a directory of its own, vms/VMID, whose owner file says which sandbox and generation it is. That file and
// the VM's process are all there is to know about a running VM, so a server that starts anew finds everything by
// reading them. The owner file is written before the process starts and removed after it has ended.
package node

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/frozen"
	"github.com/sporevm/spore/internal/image"
	"github.com/sporevm/spore/internal/kernel"
	"github.com/sporevm/spore/internal/vmm"
)

// Options say what a node is made of.
type Options struct {
	ID      string
	DataDir string // absolute; must exist
	Engine  vmm.Engine
	Images  *image.Store
	Kernels *kernel.Store
	Frozen  *frozen.Store
	Logger  *slog.Logger
	// Pool is how many thawed VMs are kept ready for each template that is in use. 0 keeps none.
	Pool int
	// Overcommit is how many times the machine's memory may be promised to sandboxes, which share most of it. Default 4.
	Overcommit float64
	// Storage says how full the data directory's filesystem may become; the zero value stands for the default limits.
	Storage spore.StorageLimits
	// Networks are the ways of connecting sandboxes that this machine has; NoNetworks says why it lacks others.
	Networks   map[spore.NetworkMode]Networks
	NoNetworks map[spore.NetworkMode]error
	// DiskDirs are the directories from which sandboxes may be given disks. None: they get none.
	DiskDirs []string
	// ReclaimAfter is how long a sandbox must be idle before its memory is taken back, where the engine and the machine can. 0 never
	// takes any.
	ReclaimAfter time.Duration
	// Governor bounds processor time; without one, NoGovernor says why.
	Governor   Governor
	NoGovernor error
}

// generation is one of the VMs that a sandbox has.
type generation struct {
	sandbox string
	number  int
}

// Node is one machine's rooms and VMs. Its methods may be called from many goroutines.
type Node struct {
	opt   Options
	log   *slog.Logger
	cap   *capacity
	guard *guard
	pool  *pool
	ports *ports

	reflinks bool          // files of the data directory can share blocks
	holds    holds         // artifacts and kernels that something is about to stand on
	closing  chan struct{} // closed by Close

	recovering sync.Mutex // one Recover at a time
	publishing sync.Mutex // one change of published ports at a time

	mu        sync.Mutex
	starting  map[generation]chan struct{} // closed when the start that is under way is over
	recovered bool                         // Recover is done
	machines  map[string]*machine          // by vmid, those that are or may become a sandbox's
	links     map[string]Attached          // by vmid, from before they are made until they are gone
	onExit    func(sandboxID string, generation int, reason string)
}

// Open makes a node of its parts. It asks the engine what it can do here, which may take as long as a bounded boot.
func Open(ctx context.Context, opt Options) (*Node, error) {
	if opt.Logger == nil {
		opt.Logger = slog.Default()
	}
	if opt.Overcommit == 0 {
		opt.Overcommit = 4
	}
	if _, err := opt.Engine.Probe(ctx); err != nil {
		return nil, err
	}
	for _, dir := range []string{"vms", "blank"} {
		if err := os.MkdirAll(filepath.Join(opt.DataDir, dir), 0o711); err != nil {
			return nil, err
		}
	}
	limits, err := newCapacity(opt.DataDir, opt.Overcommit)
	if err != nil {
		return nil, err
	}
	guard, err := newGuard(opt.DataDir, opt.Storage)
	if err != nil {
		return nil, err
	}
	n := &Node{
		opt: opt, log: opt.Logger, cap: limits, guard: guard, closing: make(chan struct{}), machines: map[string]*machine{}, links: map[string]Attached{}, starting: map[generation]chan struct{}{},
		reflinks: frozen.Reflinks(filepath.Join(opt.DataDir, "vms")), holds: newHolds(), onExit: func(string, int, string) {},
	}
	n.ports = newPorts(n.dialGuest, func(what string, err error) { n.log.Warn(what, "err", err) })
	n.pool = newPool(n, opt.Pool)
	go n.wakeStanding()
	if opt.ReclaimAfter > 0 {
		go n.reclaimIdle()
	}
	return n, nil
}

// ID is the node's name.
func (n *Node) ID() string { return n.opt.ID }

// Engine says what the hypervisor is and can do here. The answer changes once: when the first kernel is there to try
// hardware acceleration with.
func (n *Node) Engine(ctx context.Context) (vmm.Info, error) { return n.opt.Engine.Probe(ctx) }

// OnExit registers what to call when a VM of a sandbox ended by itself. Call it before Recover.
func (n *Node) OnExit(fn func(sandboxID string, generation int, reason string)) { n.onExit = fn }

// Close lets go of the sandboxes, which go on running, and ends the VMs that are nobody's yet. It is called once.
func (n *Node) Close(ctx context.Context) error {
	n.pool.close(ctx)
	n.ports.close()
	close(n.closing)
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, m := range n.machines {
		m.release()
	}
	n.machines = map[string]*machine{}
	return nil
}

func (n *Node) path(elem ...string) string {
	return filepath.Join(append([]string{n.opt.DataDir}, elem...)...)
}

// machine answers the VM that is a generation of a sandbox.
func (n *Node) machine(sandboxID string, generation int) (*machine, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, m := range n.machines {
		if m.owner.Sandbox == sandboxID && m.owner.Generation == generation && !m.ending.Load() {
			return m, nil
		}
	}
	return nil, spore.Errorf(spore.CodeConflict, "the VM of sandbox %s is not running", sandboxID)
}

func (n *Node) add(m *machine) {
	n.register(m)
	go n.watchNetwork(m)
}

// register is add of a VM whose network has still to be looked at.
func (n *Node) register(m *machine) {
	n.mu.Lock()
	n.machines[m.id] = m
	n.mu.Unlock()
	go n.watch(m)
}

// watch reports a VM that ends without having been told to. Its directory stays, since its console may say why, until
// Settle clears it away.
func (n *Node) watch(m *machine) {
	select {
	case <-m.vm.Done():
	case <-m.held.Done():
	}
	if m.ending.Load() {
		return
	}
	n.mu.Lock()
	sandbox, generation := m.owner.Sandbox, m.owner.Generation
	n.mu.Unlock()
	if sandbox == "" {
		return
	}
	reason := "the guest powered off"
	if err := m.vm.Err(); err != nil {
		reason = fmt.Sprintf("the hypervisor ended: %v", err)
	}
	if why := m.failed.Load(); why != nil {
		reason = *why
	}
	n.onExit(sandbox, generation, reason)
}
