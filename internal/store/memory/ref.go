package memory

import (
	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

var runtimeRefs = layout[spore.RuntimeRef]{
	key: func(r *spore.RuntimeRef) key { return key{n: r.ID} },
	indexes: []index[spore.RuntimeRef]{
		refTemplate: func(r *spore.RuntimeRef) (key, bool) { return key{a: r.TemplateID, n: r.ID}, true },
		refSandbox:  func(r *spore.RuntimeRef) (key, bool) { return key{a: r.SandboxID, n: r.ID}, true },
		refHeld:     func(r *spore.RuntimeRef) (key, bool) { return refHeldKey(r), r.Status != spore.RefReleased },
		refOpen:     func(r *spore.RuntimeRef) (key, bool) { return key{n: r.ID}, r.Status != spore.RefReleased },
	},
}

const (
	refTemplate = iota
	refSandbox
	refHeld // one for each generation of a sandbox
	refOpen
)

func refHeldKey(r *spore.RuntimeRef) key { return key{a: r.SandboxID, n: int64(r.SandboxGen)} }

func (tx *tx) PutRef(r *spore.RuntimeRef) error {
	if err := tx.writable(); err != nil {
		return err
	}
	if r.ID == 0 {
		if err := birth(spore.RuntimeRefTransitions, "runtime ref", r.ID, r.Status); err != nil {
			return err
		}
	} else {
		var from *spore.RuntimeRefStatus
		if old := tx.state.refs.rows.get(runtimeRefs.key(r)); old != nil {
			from = &old.Status
		}
		if err := transition(spore.RuntimeRefTransitions, "runtime ref", r.ID, from, r.Status); err != nil {
			return err
		}
	}
	if r.Status != spore.RefReleased {
		if rival := tx.state.refs.indexes[refHeld].get(refHeldKey(r)); rival != nil && rival.ID != r.ID {
			return spore.Errorf(spore.CodeConflict, "generation %d of sandbox %s stands on something already", r.SandboxGen, r.SandboxID)
		}
	}
	if tx.sandbox(r.SandboxID) == nil || tx.template(r.TemplateID) == nil {
		return spore.Errorf(spore.CodeNotFound, "there is no sandbox %s, or no template %s, that a runtime ref could join", r.SandboxID, r.TemplateID)
	}
	row := keepRef(r)
	if row.ID == 0 {
		tx.state.lastRef++
		row.ID = tx.state.lastRef
		r.ID = row.ID
	}
	runtimeRefs.put(&tx.state.refs, tx.edit, row)
	return nil
}

func (tx *tx) Refs(f store.RefFilter) ([]*spore.RuntimeRef, error) {
	if err := tx.readable(); err != nil {
		return nil, err
	}
	var list []*spore.RuntimeRef
	tx.eachRef(&f, func(r *spore.RuntimeRef) { list = append(list, copyRef(r)) })
	return list, nil
}

func (tx *tx) CountRefs(f store.RefFilter) (int, error) {
	if err := tx.readable(); err != nil {
		return 0, err
	}
	n := 0
	tx.eachRef(&f, func(*spore.RuntimeRef) { n++ })
	return n, nil
}

func (tx *tx) eachRef(f *store.RefFilter, do func(*spore.RuntimeRef)) {
	all := &tx.state.refs
	rows, span := all.rows, everything
	switch {
	case f.SandboxID != "":
		rows, span = all.indexes[refSandbox], group(f.SandboxID)
	case f.TemplateID != "":
		rows, span = all.indexes[refTemplate], group(f.TemplateID)
	case len(f.Statuses) > 0 && !oneOf(f.Statuses, spore.RefReleased):
		rows = all.indexes[refOpen]
	}
	n := 0
	for r := range rows.up(span) {
		if fits(f.TemplateID, r.TemplateID) && fits(f.SandboxID, r.SandboxID) && fits(f.NodeID, r.NodeID) && oneOf(f.Statuses, r.Status) {
			do(r)
			if n++; n == f.Limit {
				return
			}
		}
	}
}
