package rows

import (
	"errors"

	"github.com/sporevm/spore"
)

const replicaColumns = `template_id, node_id, status, phase, artifact_id, last_job_id, error_message,
	guest_image_version, agent_version, kernel_version, engine, state_format, updated_at`

func replicaFields(r *spore.Replica) []any {
	return []any{
		&r.TemplateID, &r.NodeID, &r.Status, &r.Phase, &r.ArtifactID, &r.LastJobID, asText(&r.ErrorMessage),
		&r.GuestImageVersion, &r.AgentVersion, &r.KernelVersion, &r.Engine, &r.StateFormat, asTime(&r.UpdatedAt),
	}
}

func (tx *Tx) PutReplica(r *spore.Replica) error {
	fields := replicaFields(r)
	_, err := tx.exec(
		"INSERT INTO replicas ("+replicaColumns+") VALUES ("+parameters(len(fields))+
			") ON CONFLICT (template_id, node_id) DO UPDATE SET "+assignments(replicaColumns),
		append(fields, fields...)...)
	if errors.Is(err, ErrReference) {
		return unknown("template", r.TemplateID)
	}
	return err
}

func (tx *Tx) Replicas(templateID string) ([]*spore.Replica, error) {
	return selectRows(tx, replicaFields, "SELECT "+replicaColumns+" FROM replicas WHERE template_id = ? ORDER BY node_id", templateID)
}

func (tx *Tx) DeleteReplica(templateID, nodeID string) error {
	_, err := tx.exec("DELETE FROM replicas WHERE template_id = ? AND node_id = ?", templateID, nodeID)
	return err
}
