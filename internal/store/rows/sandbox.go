package rows

import (
	"database/sql/driver"
	"encoding/json"
	"errors"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

var sandboxStates = transition[spore.SandboxState]{
	table: "sandboxes", key: "id", column: "state", noun: "sandbox", machine: spore.SandboxTransitions,
	fixed: "id, template_id, node_id, labels, created_at",
	changing: `state, state_reason, generation, vcpus, memory_mib, disk_mib, env, cold, origin, frozen_id,
		updated_at, ends_at, on_end, wiring`,
}.prepared()

var (
	sandboxColumns = sandboxStates.columns()
	insertSandbox  = insertion("sandboxes", sandboxColumns)
	selectSandbox  = "SELECT " + sandboxColumns + " FROM sandboxes WHERE id = ?"
	sandboxLabels  = labelled{"sandboxes", "sandbox_labels"}
)

func sandboxFields(s *spore.Sandbox) []any {
	return []any{
		&s.ID, &s.TemplateID, &s.NodeID, asMap(&s.Labels), asTime(&s.CreatedAt),
		&s.State, asText(&s.StateReason), &s.Generation, &s.Resources.VCPUs, &s.Resources.MemoryMiB, &s.Resources.DiskMiB,
		asMap(&s.Env), asFlag(&s.Cold), &s.Origin, &s.FrozenID, asTime(&s.UpdatedAt), asTime(&s.EndsAt), &s.OnEnd, wiringColumn{s},
	}
}

// wiringColumn keeps what a sandbox is connected to and bounded by as one document, which for most is empty.
type wiringColumn struct{ s *spore.Sandbox }

// wiringDocument is its form; its keys must not change once they are written.
type wiringDocument struct {
	Network spore.Network       `json:"network,omitzero"`
	Ports   []spore.PortForward `json:"ports,omitempty"`
	Limits  spore.Limits        `json:"limits,omitzero"`
	Disks   []spore.Disk        `json:"disks,omitempty"`
}

func (c wiringColumn) Value() (driver.Value, error) {
	s := c.s
	if s.Network.IsZero() && len(s.Ports) == 0 && s.Limits == (spore.Limits{}) && len(s.Disks) == 0 {
		return "{}", nil
	}
	text, err := json.Marshal(wiringDocument{s.Network, s.Ports, s.Limits, s.Disks})
	return string(text), err
}

func (c wiringColumn) Scan(src any) error {
	text, err := textOf(src)
	if err != nil {
		return err
	}
	var d wiringDocument
	if string(text) != "{}" {
		err = json.Unmarshal(text, &d)
	}
	c.s.Network, c.s.Ports, c.s.Limits, c.s.Disks = d.Network, d.Ports, d.Limits, d.Disks
	return err
}

func (tx *Tx) InsertSandbox(s *spore.Sandbox) error {
	affected, err := tx.exec(insertSandbox, sandboxFields(s)...)
	switch {
	case errors.Is(err, ErrReference):
		return unknown("template", s.TemplateID)
	case err != nil:
		return err
	case affected == 0:
		return spore.Errorf(spore.CodeConflict, "the id %s is taken", s.ID)
	}
	return sandboxLabels.put(tx, s.ID, s.CreatedAt, s.Labels, true)
}

func (tx *Tx) Sandbox(id string) (*spore.Sandbox, error) {
	s, err := selectOne(tx, sandboxFields, selectSandbox, id)
	if err == nil && s == nil {
		return nil, unknown("sandbox", id)
	}
	return s, err
}

func (tx *Tx) UpdateSandbox(s *spore.Sandbox) error {
	relabel, err := sandboxStates.write(tx, s.State, sandboxFields(s), s.ID)
	switch {
	case errors.Is(err, ErrReference):
		return unknown("template", s.TemplateID)
	case err != nil || !relabel:
		return err
	}
	return sandboxLabels.put(tx, s.ID, s.CreatedAt, s.Labels, false)
}

func (tx *Tx) Sandboxes(f store.SandboxFilter) ([]*spore.Sandbox, store.Page, error) {
	l := newest("sandboxes", sandboxColumns)
	l.andText("template_id", f.TemplateID)
	l.andText("node_id", f.NodeID)
	if !f.EndsBefore.IsZero() {
		l.and("ends_at <> 0 AND ends_at <= ?", nanos(f.EndsBefore))
		l.rare = true
	}
	few := len(l.where) > 0 || len(f.Labels) > 0
	if !f.Killed {
		l.and("state <> 'KILLED'")
	}
	switch {
	case few:
		l.andOneOf("state", asAny(f.States))
	case len(f.States) > 0:
		l.eitherOf("state", asAny(f.States))
	case f.Killed:
		l.eitherOf("state", []any{"CREATING", "RUNNING", "PAUSED", "FAILED", "KILLED"})
	default:
		l.eitherOf("state", []any{"CREATING", "RUNNING", "PAUSED", "FAILED"})
	}
	label, err := tx.narrowest(sandboxLabels.narrowings(f.Labels))
	if err != nil {
		return nil, store.Page{}, err
	}
	sandboxLabels.filter(l, f.Labels, labelOf(label))
	return selectPage(tx, l, f.Paging, sandboxFields, func(s *spore.Sandbox) []any { return []any{nanos(s.CreatedAt), s.ID} })
}

func (tx *Tx) PurgeSandboxes(before time.Time) (int, error) {
	// Refs that are not released yet keep the row: they hold a template, and somebody has to notice and release them.
	const purgeable = `state = 'KILLED' AND updated_at < ? AND NOT EXISTS (
		SELECT 1 FROM runtime_refs WHERE sandbox_id = sandboxes.id AND status <> 'RELEASED')`
	_, err := tx.exec("DELETE FROM runtime_refs WHERE sandbox_id IN (SELECT id FROM sandboxes WHERE "+purgeable+")", nanos(before))
	if err != nil {
		return 0, err
	}
	affected, err := tx.exec("DELETE FROM sandboxes WHERE "+purgeable, nanos(before))
	return int(affected), err
}
