package rows

import (
	"errors"
	"strings"

	"github.com/sporevm/spore"
)

const refColumns = "template_id, sandbox_id, node_id, binding, sandbox_gen, status, reason, attached_at, released_at"

func refFields(r *spore.RuntimeRef) []any {
	return []any{
		&r.TemplateID, &r.SandboxID, &r.NodeID, &r.Binding, &r.SandboxGen, &r.Status, asText(&r.Reason),
		asTime(&r.AttachedAt), asTime(&r.ReleasedAt),
	}
}

func refFieldsWithID(r *spore.RuntimeRef) []any { return append([]any{&r.ID}, refFields(r)...) }

var refStates = transition[spore.RuntimeRefStatus]{
	table: "runtime_refs", key: "id", column: "status", noun: "runtime ref", machine: spore.RuntimeRefTransitions,
}

func (tx *Tx) PutRef(r *spore.RuntimeRef) error {
	err := tx.putRef(r)
	switch {
	case errors.Is(err, ErrUnique):
		return refTaken(r)
	case errors.Is(err, ErrReference):
		return spore.Errorf(spore.CodeNotFound, "there is no sandbox %s, or no template %s, that a runtime ref could join", r.SandboxID, r.TemplateID)
	}
	return err
}

func (tx *Tx) putRef(r *spore.RuntimeRef) error {
	if r.ID != 0 {
		return refStates.apply(tx, r.ID, r.Status, assignments(refColumns), refFields(r))
	}
	if err := tx.writable(); err != nil { // it goes through query, which does not ask
		return err
	}
	var id int64
	inserted, err := tx.scalar(&id, insertion("runtime_refs", refColumns)+" RETURNING id", refFields(r)...)
	if err != nil {
		return err
	}
	if !inserted {
		return refTaken(r)
	}
	r.ID = id
	return nil
}

func refTaken(r *spore.RuntimeRef) error {
	return spore.Errorf(spore.CodeConflict, "generation %d of sandbox %s stands on something already", r.SandboxGen, r.SandboxID)
}

func (tx *Tx) Refs(templateID, sandboxID string, statuses ...spore.RuntimeRefStatus) ([]*spore.RuntimeRef, error) {
	l := &listing{}
	l.andText("template_id", templateID)
	l.andText("sandbox_id", sandboxID)
	l.andOneOf("status", asAny(statuses))
	query := "SELECT id, " + refColumns + " FROM runtime_refs"
	if len(l.where) > 0 {
		query += " WHERE " + strings.Join(l.where, " AND ")
	}
	return selectRows(tx, refFieldsWithID, query+" ORDER BY id", l.args...)
}
