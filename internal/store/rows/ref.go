package rows

import (
	"errors"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

var refStates = transition[spore.RuntimeRefStatus]{
	table: "runtime_refs", key: "id", column: "status", noun: "runtime ref", machine: spore.RuntimeRefTransitions,
	fixed:    "template_id, sandbox_id, node_id, sandbox_gen, binding, attached_at",
	changing: "status, reason, released_at, lease_until, last_seen_at, last_error",
}.prepared()

var (
	refColumns = refStates.columns()
	insertRef  = insertion("runtime_refs", refColumns)
)

func refFields(r *spore.RuntimeRef) []any {
	return []any{
		&r.TemplateID, &r.SandboxID, &r.NodeID, &r.SandboxGen, &r.Binding, asTime(&r.AttachedAt),
		&r.Status, asText(&r.Reason), asTime(&r.ReleasedAt), asTime(&r.LeaseUntil), asTime(&r.LastSeenAt), asText(&r.LastError),
	}
}

func refFieldsWithID(r *spore.RuntimeRef) []any { return append([]any{&r.ID}, refFields(r)...) }

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
		_, err := refStates.write(tx, r.Status, refFields(r), r.ID)
		return err
	}
	id, err := tx.insert(insertRef, refFields(r)...)
	if err != nil {
		return err
	}
	if id == 0 {
		return refTaken(r)
	}
	r.ID = id
	return nil
}

func refTaken(r *spore.RuntimeRef) error {
	return spore.Errorf(spore.CodeConflict, "generation %d of sandbox %s stands on something already", r.SandboxGen, r.SandboxID)
}

func refListing(f store.RefFilter) *listing {
	l := &listing{table: "runtime_refs"}
	l.andText("template_id", f.TemplateID)
	l.andText("sandbox_id", f.SandboxID)
	l.andText("node_id", f.NodeID)
	l.andOneOf("status", asAny(f.Statuses))
	return l
}

func (tx *Tx) Refs(f store.RefFilter) ([]*spore.RuntimeRef, error) {
	source, args := refListing(f).source()
	query := "SELECT id, " + refColumns + source + " ORDER BY id"
	if f.Limit > 0 {
		query += " LIMIT ?"
		args = append(args, f.Limit)
	}
	return selectRows(tx, refFieldsWithID, query, args...)
}

func (tx *Tx) CountRefs(f store.RefFilter) (int, error) {
	source, args := refListing(f).source()
	count := "SELECT COUNT(*)" + source
	if f.Limit > 0 {
		count = "SELECT COUNT(*) FROM (SELECT 1" + source + " LIMIT ?) AS counted"
		args = append(args, f.Limit)
	}
	var n int
	_, err := tx.scalar(&n, count, args...)
	return n, err
}
