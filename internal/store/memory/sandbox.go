package memory

import (
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

var sandboxes = layout[spore.Sandbox]{
	key: func(s *spore.Sandbox) key { return key{a: s.ID} },
	indexes: []index[spore.Sandbox]{
		sandboxPage: func(s *spore.Sandbox) (key, bool) { return sandboxAt(s), true },
		sandboxLive: func(s *spore.Sandbox) (key, bool) { return sandboxAt(s), s.State != spore.SandboxKilled },
		sandboxTemplate: func(s *spore.Sandbox) (key, bool) {
			return key{s.TemplateID, nanos(s.CreatedAt), s.ID}, s.State != spore.SandboxKilled
		},
		sandboxKilled: func(s *spore.Sandbox) (key, bool) {
			return key{n: nanos(s.UpdatedAt), b: s.ID}, s.State == spore.SandboxKilled
		},
	},
}

const (
	sandboxPage = iota
	sandboxLive
	sandboxTemplate // live ones
	sandboxKilled
)

func sandboxAt(s *spore.Sandbox) key { return key{n: nanos(s.CreatedAt), b: s.ID} }

func checkSandbox(s *spore.Sandbox) error {
	switch {
	case s.ID == "":
		return broken("sandbox", s.ID, "it has no id")
	case s.Generation < 0:
		return broken("sandbox", s.ID, "its generation is below zero")
	case !known(s.OnEnd, "", spore.EndKill, spore.EndPause):
		return broken("sandbox", s.ID, "there is no such end")
	}
	return birth(spore.SandboxTransitions, "sandbox", s.ID, s.State)
}

func (tx *tx) sandbox(id string) *spore.Sandbox { return tx.state.sandboxes.rows.get(key{a: id}) }

func (tx *tx) InsertSandbox(s *spore.Sandbox) error {
	if err := tx.writable(); err != nil {
		return err
	}
	if err := checkSandbox(s); err != nil {
		return err
	}
	if tx.sandbox(s.ID) != nil {
		return spore.Errorf(spore.CodeConflict, "the id %s is taken", s.ID)
	}
	if tx.template(s.TemplateID) == nil {
		return unknown("template", s.TemplateID)
	}
	sandboxes.put(&tx.state.sandboxes, tx.edit, keepSandbox(s))
	return nil
}

func (tx *tx) Sandbox(id string) (*spore.Sandbox, error) {
	if err := tx.readable(); err != nil {
		return nil, err
	}
	s := tx.sandbox(id)
	if s == nil {
		return nil, unknown("sandbox", id)
	}
	return copySandbox(s), nil
}

func (tx *tx) UpdateSandbox(s *spore.Sandbox) error {
	if err := tx.writable(); err != nil {
		return err
	}
	var from *spore.SandboxState
	if old := tx.sandbox(s.ID); old != nil {
		from = &old.State
	}
	if err := transition(spore.SandboxTransitions, "sandbox", s.ID, from, s.State); err != nil {
		return err
	}
	if err := checkSandbox(s); err != nil {
		return err
	}
	if tx.template(s.TemplateID) == nil {
		return unknown("template", s.TemplateID)
	}
	sandboxes.put(&tx.state.sandboxes, tx.edit, keepSandbox(s))
	return nil
}

func (tx *tx) Sandboxes(f store.SandboxFilter) ([]*spore.Sandbox, store.Page, error) {
	if err := tx.readable(); err != nil {
		return nil, store.Page{}, err
	}
	all := &tx.state.sandboxes
	l := &listing[spore.Sandbox]{list: "sandboxes", newest: true, at: sandboxAt}
	switch {
	case f.Killed:
		l.inGroup(all.indexes[sandboxPage], "")
	case f.TemplateID != "":
		l.inGroup(all.indexes[sandboxTemplate], f.TemplateID)
	default:
		l.inGroup(all.indexes[sandboxLive], "")
	}
	ends := nanos(keepTime(f.EndsBefore))
	l.matches = func(s *spore.Sandbox) bool {
		return oneOf(f.States, s.State) && fits(f.TemplateID, s.TemplateID) && fits(f.NodeID, s.NodeID) &&
			(f.EndsBefore.IsZero() || !s.EndsAt.IsZero() && nanos(s.EndsAt) <= ends) && hasLabels(s.Labels, f.Labels)
	}
	return l.page(f.Paging, copySandbox)
}

func (tx *tx) PurgeSandboxes(before time.Time) (int, error) {
	if err := tx.writable(); err != nil {
		return 0, err
	}
	var old []*spore.Sandbox
	for s := range tx.state.sandboxes.indexes[sandboxKilled].up(everything) {
		if nanos(s.UpdatedAt) >= nanos(keepTime(before)) {
			break
		}
		if !tx.holds(s.ID) {
			old = append(old, s)
		}
	}
	for _, s := range old {
		var refs []*spore.RuntimeRef
		for r := range tx.state.refs.indexes[refSandbox].up(group(s.ID)) {
			refs = append(refs, r)
		}
		for _, r := range refs {
			runtimeRefs.drop(&tx.state.refs, tx.edit, r)
		}
		sandboxes.drop(&tx.state.sandboxes, tx.edit, s)
	}
	return len(old), nil
}

// holds says whether a sandbox has a ref that is not released.
func (tx *tx) holds(sandboxID string) bool {
	for r := range tx.state.refs.indexes[refSandbox].up(group(sandboxID)) {
		if r.Status != spore.RefReleased {
			return true
		}
	}
	return false
}
