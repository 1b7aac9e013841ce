package rows

import (
	"errors"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

var replicaPhases = transition[spore.ReplicaPhase]{
	table: "replicas", key: "template_id, node_id", column: "phase", noun: "replica", machine: spore.ReplicaTransitions,
	fixed: "template_id, node_id",
	changing: `status, phase, artifact_id, last_job_id, last_error_phase, error_message, cleanup_required, attempts, retry_at,
		guest_image, agent, kernel, engine, engine_version, state_format, cpu,
		compat_status, compat_policy, compat_checked_at, verified_at, updated_at`,
}.prepared()

var (
	replicaColumns = replicaPhases.columns()
	selectReplicas = "SELECT " + replicaColumns + " FROM replicas WHERE template_id = ? ORDER BY node_id"
	selectReplica  = "SELECT " + replicaColumns + " FROM replicas WHERE template_id = ? AND node_id = ?"
)

func replicaFields(r *spore.Replica) []any {
	return []any{
		&r.TemplateID, &r.NodeID,
		&r.Status, &r.Phase, &r.ArtifactID, &r.LastJobID, &r.LastErrorPhase, asText(&r.ErrorMessage), asFlag(&r.CleanupRequired), &r.Attempts, asTime(&r.RetryAt),
		&r.Bound.GuestImage, &r.Bound.Agent, &r.Bound.Kernel, &r.Bound.Engine, &r.Bound.EngineVersion, &r.Bound.StateFormat, asText(&r.Bound.CPU),
		&r.CompatStatus, &r.CompatPolicy, asTime(&r.CompatCheckedAt), asTime(&r.VerifiedAt), asTime(&r.UpdatedAt),
	}
}

func (tx *Tx) PutReplica(r *spore.Replica) error {
	err := replicaPhases.put(tx, r.Phase, replicaFields(r), r.TemplateID, r.NodeID)
	if errors.Is(err, ErrReference) {
		return unknown("template", r.TemplateID)
	}
	return err
}

func (tx *Tx) Replica(templateID, nodeID string) (*spore.Replica, error) {
	r, err := selectOne(tx, replicaFields, selectReplica, templateID, nodeID)
	if err == nil && r == nil {
		return nil, unknown("replica", templateID, nodeID)
	}
	return r, err
}

func (tx *Tx) Replicas(templateID string) ([]*spore.Replica, error) {
	return selectRows(tx, replicaFields, selectReplicas, templateID)
}

func (tx *Tx) ReplicaPage(f store.ReplicaFilter) ([]*spore.Replica, store.Page, error) {
	l := &listing{table: "replicas", columns: replicaColumns, order: []string{"template_id", "node_id"}, ascending: true}
	l.andText("node_id", f.NodeID)
	l.andText("status", string(f.Status))
	l.andText("phase", string(f.Phase))
	l.andText("compat_status", string(f.Compat))
	return selectPage(tx, l, f.Paging, replicaFields, func(r *spore.Replica) []any { return []any{r.TemplateID, r.NodeID} })
}

func (tx *Tx) DeleteReplica(templateID, nodeID string) error {
	_, err := tx.exec("DELETE FROM replicas WHERE template_id = ? AND node_id = ?", templateID, nodeID)
	return err
}
