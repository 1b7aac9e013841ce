package simnode

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sporevm/spore"
)

// Options say what a machine is. The zero value is a machine of middling size named "sim".
type Options struct {
	ID        string
	Address   string
	VCPUs     int // default 16
	MemoryMiB int // default 64 GiB
	// Overcommit is how many times the memory may be promised to sandboxes. Default 4.
	Overcommit int
	DiskBytes  int64 // default 1 TiB
	Limits     spore.StorageLimits
	// Components are its engine and its first guest image; default DefaultComponents.
	Components spore.Components
	// Networks are the modes in which it can connect sandboxes, beside NetworkNone; nil is all there are.
	Networks []spore.NetworkMode
	// Alone is a machine that others cannot reach and that reaches none: Fetch is CodeUnsupported.
	Alone bool
}

// DefaultComponents are those of a machine that sets none.
var DefaultComponents = spore.Components{
	GuestImage: "krn-000000000000000000000001", Agent: "1.0.0", Kernel: "6.1.0-sim", Engine: "sim", StateFormat: "sim-1",
}

// Machine is one simulated machine. It lives on whoever talks to it comes and goes: see Connect. Its own methods are levers
// for tests, and may be called from many goroutines, also from within ClusterOptions.Fault.
type Machine struct {
	cluster *Cluster
	id      string
	opt     Options

	mu        sync.Mutex
	life      int // counts the processes that the node has had
	recovered bool
	cut       bool // does not answer
	current   spore.Components
	kernels   []spore.Components  // guest images installed, the newest last
	modes     []spore.NetworkMode // see Options.Networks
	limits    spore.StorageLimits
	total     int64 // bytes of the disk
	filler    int64 // bytes on it that are not the node's

	artifacts map[string]*artifact
	blobs     map[string]int64 // cached image layers
	manifests map[string]*manifest
	pieces    map[string]*piece
	vms       map[string]*vm
	sandboxes map[string][]*vm               // the same, by sandbox
	ports     map[string][]spore.PortForward // published by this process of the node, by sandbox
	occupied  map[int]bool                   // ports that another program listens on
	serial    int                            // names pieces and VMs

	used     int64 // bytes of artifacts, blobs, pieces and VM disks
	promised int   // MiB, to VMs
	reserved int64
	calls    map[*call]bool // under way
	late     []lateCall
	count    map[string]int
	handles  []*Handle
	faults   []string // violations, in the order they happened
}

func newMachine(c *Cluster, o Options) *Machine {
	o.ID = cmp.Or(o.ID, "sim")
	o.VCPUs = cmp.Or(o.VCPUs, 16)
	o.MemoryMiB = cmp.Or(o.MemoryMiB, 64<<10)
	o.Overcommit = cmp.Or(o.Overcommit, 4)
	o.DiskBytes = cmp.Or(o.DiskBytes, 1<<40)
	o.Limits = cmp.Or(o.Limits, spore.DefaultStorageLimits)
	o.Components = cmp.Or(o.Components, DefaultComponents)
	return &Machine{
		cluster: c, id: o.ID, opt: o, current: o.Components, kernels: []spore.Components{guestPart(o.Components)},
		modes: o.Networks, limits: o.Limits, total: o.DiskBytes, artifacts: map[string]*artifact{}, blobs: map[string]int64{},
		manifests: map[string]*manifest{}, pieces: map[string]*piece{}, calls: map[*call]bool{}, count: map[string]int{},
		vms: map[string]*vm{}, sandboxes: map[string][]*vm{}, ports: map[string][]spore.PortForward{}, occupied: map[int]bool{},
	}
}

// guestPart is what of Components belongs to the guest image.
func guestPart(c spore.Components) spore.Components {
	return spore.Components{GuestImage: c.GuestImage, Agent: c.Agent, Kernel: c.Kernel}
}

// ID is the machine's name.
func (m *Machine) ID() string { return m.id }

// Crash ends the process of the node and begins another: calls under way are cut off, half-made things are cleared away,
// VMs go on running but nobody holds them until Recover.
func (m *Machine) Crash() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.crash()
}

func (m *Machine) crash() {
	m.life++
	m.recovered = false
	m.reserved = 0
	clear(m.calls)
	clear(m.ports)
	for _, a := range m.artifacts {
		a.fresh = nil
	}
}

// PowerLoss ends the machine, VMs and all, and begins it anew. What was committed is there still.
func (m *Machine) PowerLoss() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.powerLoss()
}

// powerLoss leaves the directories of VMs, as a disk does: Recover says that they have ended, and clears them away.
func (m *Machine) powerLoss() {
	m.crash()
	for _, v := range m.vms {
		m.stop(v)
	}
}

// SetReachable says whether controllers and other machines get through to the node. Calls that are under way when it goes
// away do their work, but their answers are lost.
func (m *Machine) SetReachable(yes bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cut = !yes
}

// Reachable says whether the node can be reached.
func (m *Machine) Reachable() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.cut
}

// SetComponents changes what the machine runs, as an upgrade does. A guest image that it does not have yet is installed as
// the newest one; those that it has stay. VMs that run go on under what they were started with.
func (m *Machine) SetComponents(c spore.Components) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.current = c
	guest := guestPart(c)
	m.kernels = append(slices.DeleteFunc(m.kernels, func(k spore.Components) bool { return k.GuestImage == c.GuestImage }), guest)
}

// Components are what the machine runs now.
func (m *Machine) Components() spore.Components {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.current
}

// RemoveKernel uninstalls a guest image, whatever stands on it.
func (m *Machine) RemoveKernel(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kernels = slices.DeleteFunc(m.kernels, func(k spore.Components) bool { return k.GuestImage == id })
}

// Fill sets how many bytes on the disk are not the node's.
func (m *Machine) Fill(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.filler = bytes
}

// FillTo puts so much on the disk that percent of it are in use, if that much is not yet.
func (m *Machine) FillTo(percent int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.filler = max(0, m.total/100*int64(percent)-m.used)
}

// SetDisk changes the size of the disk.
func (m *Machine) SetDisk(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.total = bytes
}

// Count is how many calls of a name ("bake") the node has begun.
func (m *Machine) Count(call string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.count[call]
}

// EndVM makes a VM end by itself, and tells the handles unless a fault at "exit:report" keeps that from them. It answers
// whether there was one running.
func (m *Machine) EndVM(sandboxID string, generation int, reason string) bool {
	m.mu.Lock()
	v := m.find(sandboxID, generation)
	if v == nil || !v.running {
		m.mu.Unlock()
		return false
	}
	m.stop(v)
	var tell []func(string, int, string)
	if v.life == m.life && !v.starting && !m.cut {
		for _, h := range m.handles {
			if h.onExit != nil {
				tell = append(tell, h.onExit)
			}
		}
	}
	m.mu.Unlock()
	if fault := m.cluster.fault; fault != nil && len(tell) > 0 && fault(m.id, "exit:report") != nil {
		return true
	}
	for _, fn := range tell {
		fn(sandboxID, generation, reason)
	}
	return true
}

// violation records that something happened that never may.
func (m *Machine) violation(format string, args ...any) {
	m.faults = append(m.faults, fmt.Sprintf(format, args...))
}

func (m *Machine) newID(prefix string) string {
	m.serial++
	return fmt.Sprintf("%s-%s-%09d", prefix, m.id, m.serial)
}

// report is what Handle.Report answers.
func (m *Machine) report(now time.Time) *spore.NodeReport {
	r := &spore.NodeReport{Recovered: m.recovered, Node: spore.Node{
		ID: m.id, Address: m.opt.Address, Engine: m.current.Engine, Components: m.current, VCPUs: m.opt.VCPUs,
		MemoryMiB: m.opt.MemoryMiB, MemoryPromisedMiB: m.promised, Storage: m.storage(now), Networks: m.networks(),
	}}
	for _, k := range m.kernels {
		if k.GuestImage != m.current.GuestImage {
			r.Node.Installed = append(r.Node.Installed, k)
		}
	}
	for _, v := range m.vms {
		if v.sandbox == "" || v.starting && v.life == m.life {
			continue
		}
		r.Machines = append(r.Machines, spore.Machine{SandboxID: v.sandbox, Generation: v.generation, FrozenID: v.state.id, Running: v.running, Wiring: m.wiring(v)})
		if v.running {
			r.Node.Sandboxes++
		}
	}
	slices.SortFunc(r.Machines, func(a, b spore.Machine) int {
		return cmp.Or(cmp.Compare(a.SandboxID, b.SandboxID), cmp.Compare(a.Generation, b.Generation))
	})
	return r
}

// sortedKeys is the one way in which maps are gone through where order could show.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
