package centersim

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/memory"
)

// picture is the rows at one moment.
type picture struct {
	templates map[string]*spore.Template
	sandboxes map[string]*spore.Sandbox
	jobs      []*spore.Job
	refs      []*spore.RuntimeRef
	replicas  []*spore.Replica
	artifacts []*spore.Artifact
	placed    []spore.Placement
	nodes     map[string]*spore.Node
}

var held = []spore.RuntimeRefStatus{spore.RefReserved, spore.RefActive}

// look reads all rows, through a store of its own.
func (w *world) look() *picture {
	p := &picture{templates: map[string]*spore.Template{}, sandboxes: map[string]*spore.Sandbox{}, nodes: map[string]*spore.Node{}}
	st := w.db.Open(memory.Options{Controller: "looker", Stepped: true, Logger: w.log})
	defer st.Kill()
	err := st.View(context.Background(), func(tx store.Tx) error {
		all := store.Paging{Limit: 1000}
		templates, _, err := tx.Templates(store.TemplateFilter{Paging: all, Ephemeral: true, Deleted: true})
		if err != nil {
			return err
		}
		for _, t := range templates {
			p.templates[t.ID] = t
		}
		sandboxes, _, err := tx.Sandboxes(store.SandboxFilter{Paging: all, Killed: true})
		if err != nil {
			return err
		}
		for _, s := range sandboxes {
			p.sandboxes[s.ID] = s
		}
		if p.jobs, _, err = tx.Jobs(store.JobFilter{Paging: all, Statuses: []spore.JobStatus{spore.JobPending, spore.JobRunning}}); err != nil {
			return err
		}
		if p.refs, err = tx.Refs(store.RefFilter{Statuses: held}); err != nil {
			return err
		}
		if p.replicas, _, err = tx.ReplicaPage(store.ReplicaFilter{Paging: all}); err != nil {
			return err
		}
		if p.artifacts, _, err = tx.Artifacts(store.ArtifactFilter{Paging: all}); err != nil {
			return err
		}
		if p.placed, err = tx.Placements("", ""); err != nil {
			return err
		}
		nodes, err := tx.Nodes(true)
		for _, n := range nodes {
			p.nodes[n.ID] = n
		}
		return err
	})
	if err != nil {
		w.failf("the rows cannot be read: %v", err)
	}
	return p
}

// check looks at the rules that hold at every moment.
func (w *world) check() {
	p := w.look()
	refs := map[string]*spore.RuntimeRef{}
	for _, r := range p.refs {
		refs[fmt.Sprint(r.SandboxID, "/", r.SandboxGen)] = r
		if s := p.sandboxes[r.SandboxID]; s == nil {
			w.failf("ref %d holds for sandbox %s, which is not there", r.ID, r.SandboxID)
		}
	}
	for _, s := range p.sandboxes {
		if s.State != spore.SandboxRunning && s.State != spore.SandboxCreating {
			continue
		}
		r := refs[fmt.Sprint(s.ID, "/", s.Generation)]
		switch {
		case r == nil:
			w.failf("sandbox %s (%s, generation %d) has no ref", s.ID, s.State, s.Generation)
		case s.State == spore.SandboxRunning && r.Status != spore.RefActive:
			w.failf("sandbox %s runs, and its ref is %s", s.ID, r.Status)
		case r.TemplateID != s.TemplateID || r.NodeID != s.NodeID:
			w.failf("sandbox %s stands on %s at %s, and its ref says %s at %s", s.ID, s.TemplateID, s.NodeID, r.TemplateID, r.NodeID)
		}
	}
	active := map[string]string{}
	for _, j := range p.jobs {
		switch j.Operation {
		case spore.OpFork, spore.OpSnapshotRollback, spore.OpReplicate:
			continue
		}
		if other := active[j.ResourceID]; other != "" {
			w.failf("%s and %s are both at work on %s", other, j.ID, j.ResourceID)
		}
		active[j.ResourceID] = j.ID
	}
	for _, m := range w.machines {
		for _, v := range m.Audit().Violations {
			w.failf("%s: %s", m.ID(), v)
		}
	}
}

// atRest says whether nothing is under way any more.
func (w *world) atRest() bool {
	p := w.look()
	for _, r := range p.refs {
		if r.Status == spore.RefReserved {
			return false
		}
	}
	for _, s := range p.sandboxes {
		if s.State == spore.SandboxCreating {
			return false
		}
	}
	for _, r := range p.replicas {
		if r.Phase != spore.ReplicaPhaseReady && r.Phase != spore.ReplicaPhaseFailed {
			return false
		}
	}
	for _, t := range p.templates {
		switch t.Status {
		case spore.TemplatePending, spore.TemplateCreating, spore.TemplateDeleting:
			return false
		}
	}
	return len(p.jobs) == 0
}

// checkRest looks at the rules that hold when everything has come to rest.
func (w *world) checkRest() {
	p := w.look()
	for _, j := range p.jobs {
		w.failf("job %s (%s of %s, %s %s) is active for ever", j.ID, j.Operation, j.ResourceID, j.Status, j.Phase)
	}
	for _, s := range p.sandboxes {
		if s.State == spore.SandboxCreating {
			w.failf("sandbox %s is CREATING for ever", s.ID)
		}
	}
	for _, t := range p.templates {
		switch t.Status {
		case spore.TemplatePending, spore.TemplateCreating, spore.TemplateDeleting:
			w.failf("%s is %s for ever", t.ID, t.Status)
		}
	}
	for _, r := range p.refs {
		s := p.sandboxes[r.SandboxID]
		switch {
		case r.Status == spore.RefReserved:
			w.failf("the ref of %s on %s is RESERVED for ever", r.SandboxID, r.TemplateID)
		case s != nil && (s.State == spore.SandboxKilled || r.SandboxGen != s.Generation):
			w.failf("a ref of %s (%s, generation %d) on %s was never released", r.SandboxID, s.State, r.SandboxGen, r.TemplateID)
		}
	}
	for _, a := range p.artifacts {
		if a.Status == spore.ArtifactBuilding {
			w.failf("artifact %s is BUILDING for ever", a.ID)
		}
	}
	for _, m := range w.machines {
		w.checkMachine(p, m.ID())
	}
	for _, c := range w.living() {
		for _, what := range c.center.Unfinished() {
			w.failf("%s never comes to %s", c.name, what)
		}
	}
	w.checkTemplates(p)
}

// checkMachine compares a machine with the rows: no VM and no byte without a reason, and none missing.
func (w *world) checkMachine(p *picture, id string) {
	audit := w.cluster.Machine(id).Audit()
	running := map[string]bool{}
	for _, vm := range audit.VMs {
		s := p.sandboxes[vm.SandboxID]
		if s == nil || s.State != spore.SandboxRunning || s.Generation != vm.Generation || s.NodeID != id {
			w.failf("%s: VM %s (%s, generation %d) belongs to nobody", id, vm.ID, vm.SandboxID, vm.Generation)
			continue
		}
		if running[s.ID] = vm.Running; vm.Running && vm.Wiring != s.Wiring() {
			w.failf("%s: sandbox %s is to have ports %+v and limits %+v, and its VM has others", id, s.ID, s.Ports, s.Limits)
		}
	}
	wanted := map[string]bool{}
	for _, s := range p.sandboxes {
		if s.NodeID != id {
			continue
		}
		if s.State == spore.SandboxRunning && !running[s.ID] {
			w.failf("%s: sandbox %s runs, and has no VM", id, s.ID)
		}
		if s.State == spore.SandboxPaused {
			wanted[s.FrozenID] = true
		}
	}
	for _, r := range p.replicas {
		if r.NodeID == id && (r.Status == spore.ReplicaReady || r.CleanupRequired) { // the rows know of it, or that it may be there
			wanted[r.TemplateID] = true
		}
	}
	there := map[string]bool{}
	for _, f := range audit.Frozen {
		there[f.ID] = true
		if !wanted[f.ID] {
			w.failf("%s: frozen state %s belongs to nobody", id, f.ID)
		}
	}
	for _, r := range p.replicas {
		if r.NodeID == id && r.Status == spore.ReplicaReady && !there[r.TemplateID] {
			w.failf("%s: the replica of %s is READY, and is not there", id, r.TemplateID)
		}
	}
	if audit.ReservedBytes != 0 || len(audit.Reservations) != 0 {
		w.failf("%s: %d bytes are reserved for ever", id, audit.ReservedBytes)
	}
}

// checkGarbage has the garbage collected after a long while, and looks whether anything is left that nobody speaks of.
func (w *world) checkGarbage() {
	time.Sleep(3 * time.Hour)
	alive := w.living()
	if _, err := alive[0].center.CollectGarbage(alive[0].life, false); err != nil {
		w.failf("garbage cannot be collected: %v", err)
	}
	p := w.look()
	for _, m := range w.machines {
		audit := m.Audit()
		for _, a := range audit.Artifacts {
			if !slices.ContainsFunc(p.placed, func(q spore.Placement) bool { return q.ArtifactID == a.ID && q.NodeID == m.ID() }) {
				w.failf("%s: artifact %s is not known to be there; needed by %v", m.ID(), a.ID, a.Holders)
			}
		}
		for _, piece := range audit.Pieces {
			if len(piece.Holders) == 0 {
				w.failf("%s: nobody needs piece %s", m.ID(), piece.ID)
			}
		}
	}
}

// checkTemplates compares templates with their replicas.
func (w *world) checkTemplates(p *picture) {
	ready := map[string]int{}
	for _, r := range p.replicas {
		t := p.templates[r.TemplateID]
		if t == nil || t.Status == spore.TemplateDeleted {
			w.failf("there is a replica of %s at %s, which is gone", r.TemplateID, r.NodeID)
			continue
		}
		if r.Status == spore.ReplicaReady {
			ready[r.TemplateID]++
		}
	}
	for _, t := range p.templates {
		serves := t.Status == spore.TemplateReady || t.Status == spore.TemplatePartiallyReady
		if serves != (ready[t.ID] > 0) && t.Status != spore.TemplateDeleted {
			w.failf("%s is %s, with %d replicas ready (%s)", t.ID, t.Status, ready[t.ID], strings.TrimSpace(t.LastError))
		}
	}
}
