package simnode

import (
	"fmt"
	"slices"

	"github.com/sporevm/spore"
)

// Audit is everything on a machine at one instant, in an order that does not change from run to run.
type Audit struct {
	Node          string
	Recovered     bool
	VMs           []AuditVM
	Frozen        []AuditFrozen
	Pieces        []AuditPiece
	Artifacts     []AuditPiece
	LayerBytes    int64 // of cached image layers
	Reservations  []AuditReservation
	UsedBytes     int64
	ReservedBytes int64
	PromisedMiB   int
	// Violations are what happened and never may: bytes removed that something needed, sums that do not add up.
	Violations []string
}

// AuditVM is one VM. SandboxID is empty for a template that boots and for a probe.
type AuditVM struct {
	ID         string
	SandboxID  string
	Generation int
	FrozenID   string
	Running    bool
	Paused     bool
	Starting   bool
	Held       bool // by the node's present process; the others wait for Recover
	Wiring     string
}

// AuditFrozen is one frozen state.
type AuditFrozen struct {
	ID       string
	Artifact string
	Bound    spore.Components
	Pieces   []string
	Files    map[string]string // on its disk
	Err      error             // what is wrong with it, as a full verification finds
}

// AuditPiece is a piece of frozen states, or an artifact, and who needs it.
type AuditPiece struct {
	ID      string
	Bytes   int64
	Holders []string // frozen states, sandboxes, calls under way; an artifact that awaits its first bake: "a build"
}

// AuditReservation is what a call that is under way has been promised.
type AuditReservation struct {
	Call  string
	Bytes int64
}

// Audit lists what is on the machine.
func (m *Machine) Audit() Audit {
	m.mu.Lock()
	defer m.mu.Unlock()
	a := Audit{Node: m.id, Recovered: m.recovered, UsedBytes: m.used, ReservedBytes: m.reserved, PromisedMiB: m.promised, Violations: slices.Clone(m.faults)}
	var used, reserved int64
	promised := 0
	for _, id := range sortedKeys(m.vms) {
		v := m.vms[id]
		a.VMs = append(a.VMs, AuditVM{
			ID: id, SandboxID: v.sandbox, Generation: v.generation, FrozenID: v.state.id, Running: v.running, Paused: v.paused,
			Starting: v.starting, Held: v.life == m.life, Wiring: m.wiring(v),
		})
		used += v.disk
		if v.running {
			promised += v.state.resources.MemoryMiB
		}
	}
	for _, id := range sortedKeys(m.ports) {
		if len(m.sandboxes[id]) == 0 {
			a.Violations = append(a.Violations, "ports are published of "+id+", which has no VM")
		}
	}
	for _, id := range sortedKeys(m.manifests) {
		s := m.manifests[id]
		f := AuditFrozen{ID: id, Artifact: s.artifact, Bound: s.bound, Files: s.files, Err: m.whole(s, true)}
		for _, p := range s.pieces() {
			f.Pieces = append(f.Pieces, p.id)
		}
		a.Frozen = append(a.Frozen, f)
	}
	needed := m.reach()
	for _, id := range sortedKeys(m.pieces) {
		used += m.pieces[id].bytes
		slices.Sort(needed[id])
		a.Pieces = append(a.Pieces, AuditPiece{ID: id, Bytes: m.pieces[id].bytes, Holders: needed[id]})
	}
	for _, id := range sortedKeys(m.artifacts) {
		used += m.artifacts[id].bytes
		p := AuditPiece{ID: id, Bytes: m.artifacts[id].bytes, Holders: m.artifactUsers(id)}
		if m.awaited(m.artifacts[id]) {
			p.Holders = append(p.Holders, "a build")
		}
		a.Artifacts = append(a.Artifacts, p)
	}
	for _, bytes := range m.blobs {
		a.LayerBytes += bytes
	}
	for c := range m.calls {
		reserved += c.reserved
		if c.reserved > 0 {
			a.Reservations = append(a.Reservations, AuditReservation{Call: c.name, Bytes: c.reserved})
		}
	}
	slices.SortFunc(a.Reservations, func(x, y AuditReservation) int {
		return slices.Compare([]string{x.Call, fmt.Sprint(x.Bytes)}, []string{y.Call, fmt.Sprint(y.Bytes)})
	})
	if used+a.LayerBytes != m.used || reserved != m.reserved || promised != m.promised {
		a.Violations = append(a.Violations, fmt.Sprintf("the sums do not add up: %d bytes used, not %d; %d reserved, not %d; %d MiB promised, not %d",
			used+a.LayerBytes, m.used, reserved, m.reserved, promised, m.promised))
	}
	return a
}

// Audit lists what is on all machines, in the order of their ids.
func (c *Cluster) Audit() []Audit {
	var all []Audit
	for _, m := range c.Machines() {
		all = append(all, m.Audit())
	}
	return all
}
