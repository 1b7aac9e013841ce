package simnode

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/sporevm/spore"
)

// vm is one VM, of a sandbox or (sandbox "") of a template that boots or a state that is probed.
type vm struct {
	id         string
	sandbox    string
	generation int
	life       int       // the process of the node that holds it
	starting   bool      // Start has not ended
	running    bool      // its process lives
	paused     bool      // it stands still
	capturing  bool      // a capture is under way
	state      *manifest // that it stands on
	network    spore.Network
	limits     spore.Limits
	files      map[string]string
	disk       int64 // bytes
}

// label names the VM for people: by its sandbox, when it is one's.
func (v *vm) label() string { return cmp.Or(v.sandbox, v.id) }

var errEnded = spore.Errorf(spore.CodeConflict, "the VM has ended")

// newVM makes a VM that goes when the call fails.
func (c *call) newVM(sandbox string, generation int, state *manifest) (*vm, error) {
	m := c.m
	if limit := m.opt.MemoryMiB * m.opt.Overcommit; m.promised+state.resources.MemoryMiB > limit {
		return nil, spore.Errorf(spore.CodeBusy, "%d MiB of memory are promised to sandboxes already; %d MiB more would exceed the limit of %d MiB",
			m.promised, state.resources.MemoryMiB, limit).WithHint("end or pause some sandboxes")
	}
	v := &vm{
		id: m.newID("vm"), sandbox: sandbox, generation: generation, life: m.life, starting: true, running: true, state: state,
		files: maps.Clone(state.files), disk: diskBytes,
	}
	c.grow(v.disk)
	m.promised += state.resources.MemoryMiB
	m.vms[v.id] = v
	if sandbox != "" {
		m.sandboxes[sandbox] = append(m.sandboxes[sandbox], v)
	}
	c.onError(func() { m.removeVM(v) })
	return v, nil
}

// stop ends a VM's process; what it left on disk stays.
func (m *Machine) stop(v *vm) {
	if v.running {
		v.running = false
		m.promised -= v.state.resources.MemoryMiB
	}
}

// removeVM ends a VM and clears away what it had. It is idempotent.
func (m *Machine) removeVM(v *vm) {
	m.stop(v)
	if m.vms[v.id] == nil {
		return
	}
	m.used -= v.disk
	delete(m.vms, v.id)
	if v.sandbox == "" {
		return
	}
	rest := slices.DeleteFunc(m.sandboxes[v.sandbox], func(o *vm) bool { return o == v })
	if len(rest) == 0 {
		delete(m.sandboxes, v.sandbox)
		m.unpublish(v.sandbox)
		return
	}
	m.sandboxes[v.sandbox] = rest
}

// find answers the VM that is a generation of a sandbox, whatever state it is in; nil when there is none.
func (m *Machine) find(sandbox string, generation int) *vm {
	for _, v := range m.sandboxes[sandbox] {
		if v.generation == generation {
			return v
		}
	}
	return nil
}

// held answers a VM of a sandbox that runs and that this process of the node has hold of.
func (m *Machine) held(sandbox string, generation int) (*vm, error) {
	for _, v := range m.sandboxes[sandbox] {
		if v.generation == generation && v.life == m.life && !v.starting && v.running {
			return v, nil
		}
	}
	return nil, spore.Errorf(spore.CodeConflict, "the VM of sandbox %s is not running", sandbox)
}

// thaw makes a VM from a frozen state.
func (c *call) thaw(sandbox string, generation int, frozenID string) (*vm, error) {
	m := c.m
	s, err := m.frozen(frozenID)
	if err != nil {
		return nil, err
	}
	if err := m.fits(s); err != nil {
		return nil, err
	}
	if err := m.whole(s, false); err != nil {
		return nil, err
	}
	if err := m.verifyArtifact(s.artifact, false); err != nil {
		return nil, err
	}
	if err := c.reserve(forRunning, diskBytes); err != nil {
		return nil, err
	}
	return c.newVM(sandbox, generation, s)
}

// fits says whether a frozen state can be thawed by what the machine runs now.
func (m *Machine) fits(s *manifest) error {
	b := s.bound
	if gap := spore.EngineGap(b, m.current, nil); gap.Why != "" {
		return spore.Errorf(spore.CodeStale, "%s cannot be thawed on node %s: %s", s.id, m.id, gap.Why).WithHint("make it again: spore template redo")
	}
	_, err := m.bind(b.GuestImage)
	return err
}

// Start is center.Node's. A generation that runs already on the same frozen state is as it should be.
func (h *Handle) Start(ctx context.Context, s *spore.Sandbox, frozenID string) error {
	id, generation, mine := s.ID, s.Generation, *s
	_, err := ask(ctx, h, "start", func(c *call) (any, error) {
		m := c.m
		if err := c.step("begin"); err != nil {
			return nil, err
		}
		if v := m.find(id, generation); v != nil {
			switch {
			case v.starting && v.life == m.life:
				return nil, spore.Errorf(spore.CodeBusy, "generation %d of sandbox %s is being started", generation, id)
			case v.running && v.life == m.life && v.state.id == frozenID:
				return nil, nil
			}
			return nil, spore.Errorf(spore.CodeConflict, "generation %d of sandbox %s is there already", generation, id)
		}
		if f := m.manifests[frozenID]; f != nil && mine.Network.Connected() && !f.nic {
			e := spore.Errorf(spore.CodeConflict, "%s was frozen without a network device", frozenID)
			e.Field = "network.mode"
			return nil, e
		}
		if can, why := (&spore.Node{Networks: m.networks()}).Connects(mine.Network.Mode); !can {
			e := spore.Errorf(spore.CodeUnsupported, "node %s cannot connect sandboxes in mode %s: %s", m.id, mine.Network.Mode, why)
			e.Field = "network.mode"
			return nil, e.WithHint("start it on another node")
		}
		v, err := c.thaw(id, generation, frozenID)
		if err != nil {
			return nil, err
		}
		v.network, v.limits = mine.Network, mine.Limits
		if len(mine.Ports) > 0 {
			if _, err := m.publish(id, mine.Ports); err != nil {
				return nil, err
			}
		}
		for _, at := range []string{"thawed", "greeted"} {
			if err := c.step(at); err != nil {
				return nil, err
			}
		}
		if !v.running {
			return nil, errEnded
		}
		v.starting = false
		return nil, nil
	})
	return err
}

// Settle is center.Node's.
func (h *Handle) Settle(ctx context.Context, sandboxID string, keep int) error {
	_, err := ask(ctx, h, "settle", func(c *call) (any, error) {
		if err := c.step("begin"); err != nil {
			return nil, err
		}
		var errs []error
		for _, v := range slices.Clone(c.m.sandboxes[sandboxID]) {
			if v.starting && v.life == c.m.life || keep != 0 && v.generation == keep {
				continue
			}
			if err := c.step("end"); errors.Is(err, errGone) {
				return nil, err
			} else if err != nil {
				errs = append(errs, err)
				continue
			}
			c.m.removeVM(v)
		}
		return nil, errors.Join(errs...)
	})
	return err
}

// Recover is center.Node's. VMs that this process of the node started are not touched, so that it can be asked twice.
func (h *Handle) Recover(ctx context.Context, want []*spore.Sandbox) (map[string]error, error) {
	wanted, ports := map[string]int{}, map[string][]spore.PortForward{}
	for _, s := range want {
		wanted[s.ID], ports[s.ID] = s.Generation, slices.Clone(s.Ports)
	}
	return ask(ctx, h, "recover", func(c *call) (map[string]error, error) {
		m := c.m
		if err := c.step("begin"); err != nil {
			return nil, err
		}
		failed := map[string]error{}
		for _, id := range sortedKeys(m.vms) {
			v := m.vms[id]
			if v == nil || v.life == m.life {
				continue
			}
			if err := c.step("vm"); err != nil {
				return nil, err
			}
			if m.vms[id] != v || v.life == m.life { // taken care of meanwhile
				continue
			}
			if v.sandbox == "" || wanted[v.sandbox] != v.generation {
				m.removeVM(v)
				continue
			}
			v.life, v.starting, v.paused, v.capturing = m.life, false, false, false
			if !v.running {
				failed[v.sandbox] = spore.Errorf(spore.CodeConflict, "its VM ended while nobody watched over it")
			}
			if list := ports[v.sandbox]; len(list) > 0 {
				// One that is taken is not published, and the report shows it.
				_, _ = m.publish(v.sandbox, list)
			}
		}
		for _, id := range sortedKeys(wanted) {
			if _, err := m.held(id, wanted[id]); err != nil && failed[id] == nil {
				failed[id] = spore.Errorf(spore.CodeConflict, "its VM is gone, with all that it had on disk")
			}
		}
		m.recovered = true
		return failed, nil
	})
}

// Admit is center.Node's. It asks nothing of the machine that could fail.
func (h *Handle) Admit(r spore.Resources) error {
	o := h.machine.opt
	switch {
	case r.VCPUs > o.VCPUs:
		return spore.Invalidf("vcpus", "%d is more than node %s has", r.VCPUs, o.ID).WithHint("it has %d", o.VCPUs)
	case r.MemoryMiB > o.MemoryMiB:
		return spore.Invalidf("memoryMiB", "%d MiB is more than node %s has", r.MemoryMiB, o.ID).WithHint("it has %d MiB", o.MemoryMiB)
	case int64(r.DiskMiB) > o.DiskBytes/mib:
		return spore.Invalidf("diskMiB", "%d MiB is more than the disk of node %s holds", r.DiskMiB, o.ID).WithHint("it holds %d MiB", o.DiskBytes/mib)
	}
	return nil
}
