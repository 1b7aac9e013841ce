package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/frozen"
	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/vmm"
)

// greetTimeout bounds how long a thawed guest may take to answer. A thaw takes a fraction of a second; a machine that is
// busy with a hundred others takes longer.
const greetTimeout = 2 * time.Minute

// Start brings up one generation of a sandbox from a frozen state: out of the pool when it has one ready, else by a thaw.
// One that runs already is left as it is: a call may arrive twice.
func (n *Node) Start(ctx context.Context, s *spore.Sandbox, frozenID string) error {
	err := n.start(ctx, s, frozenID)
	if err != nil {
		n.unpublish(s.ID)
	}
	return err
}

func (n *Node) start(ctx context.Context, s *spore.Sandbox, frozenID string) error {
	over, err := n.begin(ctx, generation{s.ID, s.Generation})
	if err != nil {
		return err
	}
	defer over()
	if m, err := n.machine(s.ID, s.Generation); err == nil {
		if m.vm.State() == vmm.StateExited {
			return spore.Errorf(spore.CodeConflict, "VM %d of sandbox %s has ended", s.Generation, s.ID).WithHint("start the next generation")
		}
		return ctx.Err()
	}
	if len(s.Ports) > 0 { // before the long part: one may be taken
		n.publishing.Lock()
		_, err := n.ports.set(ctx, s.ID, s.Ports)
		n.publishing.Unlock()
		if err != nil {
			return err
		}
	}
	release, err := n.guard.reserve("starting "+s.ID, 0, toStart) // a VM of the pool asks for no room itself
	if err != nil {
		return err
	}
	release()
	if m := n.poolFor(s, frozenID); m != nil {
		err := n.claim(ctx, m, s)
		if err == nil {
			n.pool.used(frozenID)
			return nil
		}
		n.log.Warn("a VM of the pool was not fit for use", "vm", m.id, "err", err)
		if err := n.end(context.WithoutCancel(ctx), m); err != nil {
			return err // its owner file may still name the generation that a thaw would have
		}
	}
	own := owner{Sandbox: s.ID, Generation: s.Generation, Network: s.Network, Limits: s.Limits}
	bring := n.thaw
	if cold, err := n.boots(s, frozenID); err != nil {
		return err
	} else if cold {
		bring = n.coldStart
	}
	m, err := n.makingRoom(ctx, bring, frozenID, own, s)
	if err != nil {
		return err
	}
	n.add(m)
	n.pool.used(frozenID)
	return nil
}

// poolFor answers a VM of the pool that will do for s. Their cables are unplugged, and stay so.
func (n *Node) poolFor(s *spore.Sandbox, frozenID string) *machine {
	if s.Network.Connected() || len(s.Disks) > 0 {
		return nil
	}
	return n.pool.take(frozenID)
}

// begin waits until no other call starts the same VM.
func (n *Node) begin(ctx context.Context, g generation) (over func(), err error) {
	for {
		n.mu.Lock()
		other, under := n.starting[g]
		if !under {
			mine := make(chan struct{})
			n.starting[g] = mine
			n.mu.Unlock()
			return func() {
				n.mu.Lock()
				delete(n.starting, g)
				n.mu.Unlock()
				close(mine)
			}, nil
		}
		n.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// makingRoom brings up a VM that is wanted: those of the pool, which nobody uses yet, must not keep it away.
func (n *Node) makingRoom(ctx context.Context, bring func(context.Context, string, owner, *spore.Sandbox) (*machine, error), frozenID string, o owner, s *spore.Sandbox) (*machine, error) {
	m, err := bring(ctx, frozenID, o, s)
	if spore.CodeOf(err) == spore.CodeBusy && n.pool.empty(ctx) {
		m, err = bring(ctx, frozenID, o, s)
	}
	return m, err
}

// claim makes a VM of the pool a sandbox's: the owner file says so first, then the guest gets its new identity.
func (n *Node) claim(ctx context.Context, m *machine, s *spore.Sandbox) error {
	o := m.owner
	o.Sandbox, o.Generation = s.ID, s.Generation
	if err := writeOwner(n.machineDir(m.id), o); err != nil {
		return err
	}
	if s.Limits != (spore.Limits{}) {
		var err error
		if o, err = n.adjust(ctx, m, o, s); err != nil {
			return err
		}
	}
	if err := m.vm.Resume(ctx); err != nil {
		return err
	}
	if err := m.greet(ctx, s, nil); err != nil {
		return err
	}
	n.mu.Lock()
	m.owner = o
	n.mu.Unlock()
	if m.vm.State() == vmm.StateExited { // watch took it for nobody's
		return errDead
	}
	return nil
}

// thaw starts a VM from a frozen state and greets its agent. s is nil for a VM that will wait in the pool. The machine
// is not registered yet. On error nothing is left.
func (n *Node) thaw(ctx context.Context, frozenID string, o owner, s *spore.Sandbox) (_ *machine, err error) {
	img, err := n.opt.Frozen.OpenImage(ctx, frozenID)
	if err != nil {
		return nil, err
	}
	defer img.Close()
	shape := img.Manifest.Shape
	for _, id := range []string{shape.Artifact, shape.Kernel} { // until the pin says so
		n.holds.hold(id)
		defer n.holds.drop(id)
	}
	if err := n.fits(ctx, shape, frozenID); err != nil {
		return nil, err
	}
	if _, err := startsCold(shape, s, frozenID); err != nil {
		return nil, err
	}
	drives, err := n.disks(s)
	if err != nil {
		return nil, err
	}
	release, err := n.guard.reserve("starting from "+frozenID, n.cloneBytes(img.DiskBytes()), toStart)
	if err != nil {
		return nil, err
	}
	defer release()
	id := newMachineID()
	if err := n.cap.take(ctx, id, shape.MemoryMiB); err != nil {
		return nil, err
	}
	m := n.newMachine(id, deadVM{}, o)
	defer func() {
		if err == nil {
			return
		}
		if end := n.end(context.WithoutCancel(ctx), m); end != nil {
			n.log.Error("clearing away after a failed thaw", "vm", id, "err", end)
		}
	}()
	done := n.cap.starting(ctx)
	if done == nil {
		return nil, spore.Errorf(spore.CodeBusy, "too many sandboxes are starting").WithCause(ctx.Err()).WithHint("try again in a moment")
	}
	defer done()

	o.FrozenID, o.Shape = frozenID, shape
	if o.Config, err = n.config(ctx, id, shape, img.BaseMemory); err != nil {
		return nil, err
	}
	o.Config.Drives = append(o.Config.Drives, drives...)
	throttle(&o.Config, o.Limits)
	m.owner = o
	if _, err := n.makeDir(id, o); err != nil {
		return nil, err
	}
	link, err := n.plug(ctx, &o, s)
	if err != nil {
		return nil, err
	}
	if m.owner = o; o.Config.NIC != nil {
		if err := writeOwner(n.machineDir(id), o); err != nil {
			return nil, err
		}
	}
	if err := n.opt.Frozen.Pin(id, img.Manifest); err != nil {
		return nil, err
	}
	if err := img.CloneDisk(ctx, n.diskPath(id)); err != nil {
		return nil, err
	}
	vm, err := n.opt.Engine.Thaw(ctx, o.Config, img.VM)
	if err != nil {
		return nil, err
	}
	m.vm = vm
	if o.Limits.CPUs != 0 {
		if err := n.govern(ctx, m, o.Limits.CPUs); err != nil {
			return nil, err
		}
	}
	if err := vm.Resume(ctx); err != nil {
		return nil, err
	}
	if err := m.greet(ctx, s, link); err != nil {
		return nil, err
	}
	n.cap.landed(id)
	return m, nil
}

// fits says whether a frozen state can be thawed by what this node runs.
func (n *Node) fits(ctx context.Context, shape frozen.Shape, frozenID string) error {
	now, err := n.Engine(ctx)
	if err != nil {
		return err
	}
	beside, err := n.versions(ctx)
	if err != nil {
		return err
	}
	gap := spore.EngineGap(components(vmm.Info(shape.Engine)), components(now), beside)
	if gap.Why == "" {
		return nil
	}
	e := spore.Errorf(spore.CodeStale, "%s cannot be thawed on node %s: %s", frozenID, n.opt.ID, gap.Why)
	if gap.Cure != "" {
		return e.WithHint("install %s beside what is there, or make it anew with what is there: spore template redo", gap.Cure)
	}
	return e.WithHint("make it anew with what is there: spore template redo; or start it on a machine like the one that froze it")
}

// config is the VM that a shape describes, with this node's paths.
func (n *Node) config(ctx context.Context, id string, shape frozen.Shape, memory string) (vmm.Config, error) {
	bundle, err := n.opt.Kernels.Get(shape.Kernel)
	if err != nil {
		return vmm.Config{}, err
	}
	if err := n.opt.Images.VerifyQuick(ctx, shape.Artifact); err != nil {
		return vmm.Config{}, err
	}
	rootfs, err := n.opt.Images.Get(shape.Artifact)
	if err != nil {
		return vmm.Config{}, err
	}
	return vmm.Config{
		ID: id, Dir: n.machineDir(id), VCPUs: shape.VCPUs, MemoryMiB: shape.MemoryMiB,
		Kernel: bundle.VmlinuzPath(), Initrd: bundle.InitrdPath(), Cmdline: shape.Cmdline, Memory: memory,
		Drives: []vmm.Drive{
			{ID: "rootfs", Path: rootfs.Path, ReadOnly: true},
			{ID: "disk", Path: n.diskPath(id)},
		},
	}, nil
}

// greet waits for the agent and gives the guest an identity of its own: that of s, or a passing one for the pool.
func (m *machine) greet(ctx context.Context, s *spore.Sandbox, link *Link) error {
	greeting, cancel := context.WithTimeout(ctx, greetTimeout)
	defer cancel()
	a, err := m.connect(greeting)
	if err == nil {
		var facts guest.Facts
		facts, err = a.Greet(greeting, identity(s, link))
		for _, w := range facts.Warnings {
			m.node.log.Warn("a guest could not do all that it was greeted with", "vm", m.id, "warning", w)
		}
	}
	if err != nil {
		return m.unreached(ctx, err, "the agent of a thawed guest did not answer")
	}
	return nil
}

// identity makes what sets one thaw of a frozen state apart from every other.
func identity(s *spore.Sandbox, link *Link) guest.Identity {
	var machineID [16]byte
	rand.Read(machineID[:])
	id := guest.Identity{MachineID: hex.EncodeToString(machineID[:]), DropConnections: true}
	if s != nil {
		id.SandboxID, id.TemplateID, id.Hostname, id.Env = s.ID, s.TemplateID, s.ID, s.Env
	}
	if link != nil {
		link.addresses(&id)
		id.Env = proxied(s.Env, s.Network.Egress.Proxy)
	}
	return id
}

// Settle ends every generation of a sandbox but keep, running or dead. When one does not end, the others are ended all
// the same, and the node goes on trying.
func (n *Node) Settle(ctx context.Context, sandboxID string, keep int) error {
	n.mu.Lock()
	var gone []*machine
	for _, m := range n.machines {
		if m.owner.Sandbox == sandboxID && (keep == 0 || m.owner.Generation != keep) {
			gone = append(gone, m)
		}
	}
	n.mu.Unlock()
	var errs []error
	for _, m := range gone {
		errs = append(errs, n.end(ctx, m))
	}
	n.unpublish(sandboxID)
	return errors.Join(errs...)
}
