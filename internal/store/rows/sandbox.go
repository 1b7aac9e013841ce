package rows

import (
	"errors"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

const sandboxColumns = `id, state, state_reason, template_id, node_id, generation,
	vcpus, memory_mib, disk_mib, labels, env, cold, frozen_id,
	created_at, updated_at, ends_at, on_end`

func sandboxFields(s *spore.Sandbox) []any {
	return []any{
		&s.ID, &s.State, asText(&s.StateReason), &s.TemplateID, &s.NodeID, &s.Generation,
		&s.Resources.VCPUs, &s.Resources.MemoryMiB, &s.Resources.DiskMiB, asMap(&s.Labels), asMap(&s.Env), asFlag(&s.Cold), &s.FrozenID,
		asTime(&s.CreatedAt), asTime(&s.UpdatedAt), asTime(&s.EndsAt), &s.OnEnd,
	}
}

var sandboxStates = transition[spore.SandboxState]{
	table: "sandboxes", key: "id", column: "state", noun: "sandbox", machine: spore.SandboxTransitions,
}

func (tx *Tx) InsertSandbox(s *spore.Sandbox) error {
	affected, err := tx.exec(insertion("sandboxes", sandboxColumns), sandboxFields(s)...)
	switch {
	case errors.Is(err, ErrReference):
		return unknown("template", s.TemplateID)
	case err == nil && affected == 0:
		return spore.Errorf(spore.CodeConflict, "the id %s is taken", s.ID)
	}
	return err
}

func (tx *Tx) Sandbox(id string) (*spore.Sandbox, error) {
	s, err := selectOne(tx, sandboxFields, "SELECT "+sandboxColumns+" FROM sandboxes WHERE id = ?", id)
	if err == nil && s == nil {
		return nil, unknown("sandbox", id)
	}
	return s, err
}

func (tx *Tx) UpdateSandbox(s *spore.Sandbox) error {
	err := sandboxStates.apply(tx, s.ID, s.State, assignments(sandboxColumns), sandboxFields(s))
	if errors.Is(err, ErrReference) {
		return unknown("template", s.TemplateID)
	}
	return err
}

func (tx *Tx) Sandboxes(f store.SandboxFilter) ([]*spore.Sandbox, store.Page, error) {
	l := &listing{table: "sandboxes", columns: sandboxColumns}
	if !f.Killed {
		l.and("state <> 'KILLED'")
	}
	l.andOneOf("state", asAny(f.States))
	l.andText("template_id", f.TemplateID)
	if !f.EndsBefore.IsZero() {
		l.and("ends_at <> 0 AND ends_at <= ?", asTime(&f.EndsBefore))
		l.rare = true
	}
	l.andLabels(tx.dialect, f.Labels)
	return selectPage(tx, l, f.Paging, sandboxFields, func(s *spore.Sandbox) (time.Time, string) { return s.CreatedAt, s.ID })
}

func (tx *Tx) PurgeSandboxes(before time.Time) (int, error) {
	// Refs that are not released yet keep the row: they hold a template, and somebody has to notice and release them.
	const purgeable = `state = 'KILLED' AND updated_at < ? AND NOT EXISTS (
		SELECT 1 FROM runtime_refs WHERE sandbox_id = sandboxes.id AND status <> 'RELEASED')`
	_, err := tx.exec("DELETE FROM runtime_refs WHERE sandbox_id IN (SELECT id FROM sandboxes WHERE "+purgeable+")", asTime(&before))
	if err != nil {
		return 0, err
	}
	affected, err := tx.exec("DELETE FROM sandboxes WHERE "+purgeable, asTime(&before))
	return int(affected), err
}
