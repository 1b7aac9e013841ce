package rows

import (
	"errors"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

var artifactStates = transition[spore.ArtifactStatus]{
	table: "artifacts", key: "id", column: "status", noun: "artifact", machine: spore.ArtifactTransitions,
	fixed: "id, created_at",
	changing: `status, image_reference, image_digest, image_platform, process, egress_ca_baked, egress_ca_fingerprint, egress_ca_targets,
		digest, size_bytes, build_job_id, last_error, unused_at, tried_at, updated_at`,
}.prepared()

var artifactColumns = artifactStates.columns()

func artifactFields(a *spore.Artifact) []any {
	return []any{
		&a.ID, asTime(&a.CreatedAt),
		&a.Status, &a.Image.Reference, &a.Image.Digest, &a.Image.Platform, asJSON((*processDocument)(&a.Process)),
		asFlag(&a.EgressCA.Baked), &a.EgressCA.Fingerprint, &a.EgressCA.TargetsWritten,
		&a.Digest, &a.SizeBytes, &a.BuildJobID, asText(&a.LastError), asTime(&a.UnusedAt), asTime(&a.TriedAt), asTime(&a.UpdatedAt),
	}
}

func (tx *Tx) PutArtifact(a *spore.Artifact) error {
	return artifactStates.put(tx, a.Status, artifactFields(a), a.ID)
}

func (tx *Tx) Artifact(id string) (*spore.Artifact, error) {
	a, err := selectOne(tx, artifactFields, "SELECT "+artifactColumns+" FROM artifacts WHERE id = ?", id)
	if err == nil && a == nil {
		return nil, unknown("artifact", id)
	}
	return a, err
}

func (tx *Tx) Artifacts(f store.ArtifactFilter) ([]*spore.Artifact, store.Page, error) {
	l := newest("artifacts", artifactColumns)
	if len(f.Statuses) > 0 {
		l.eitherOf("status", asAny(f.Statuses))
	}
	if !f.UnusedBefore.IsZero() {
		l.and("unused_at <> 0 AND unused_at < ?", nanos(f.UnusedBefore))
	}
	if f.Fair {
		l.order, l.ascending, f.After = []string{"tried_at", "id"}, true, ""
	}
	list, page, err := selectPage(tx, l, f.Paging, artifactFields, func(a *spore.Artifact) []any { return []any{nanos(a.CreatedAt), a.ID} })
	if f.Fair {
		page = store.Page{}
	}
	return list, page, err
}

func (tx *Tx) DeleteArtifact(id string) error {
	affected, err := tx.exec(`DELETE FROM artifacts WHERE id = ? AND status = 'CLEANUP_PENDING'
		AND NOT EXISTS (SELECT 1 FROM placements WHERE artifact_id = artifacts.id)`, id)
	if err != nil && !errors.Is(err, ErrReference) || affected > 0 {
		return err
	}
	a, err := tx.Artifact(id)
	if err != nil {
		return err
	}
	if a.Status != spore.ArtifactCleanupPending {
		return spore.Errorf(spore.CodeConflict, "artifact %s is %s and cannot be removed", id, a.Status)
	}
	return spore.Errorf(spore.CodeConflict, "artifact %s may still have bytes on a node", id)
}

func (tx *Tx) ArtifactUsers(id string) (int, error) {
	var n int
	_, err := tx.scalar(&n, `SELECT (SELECT COUNT(*) FROM replicas WHERE artifact_id = ? AND artifact_id <> '')
		+ (SELECT COUNT(*) FROM templates WHERE artifact_id = ? AND artifact_id <> '' AND status <> 'DELETED')
		+ (SELECT COUNT(*) FROM jobs WHERE artifact_id = ? AND artifact_id <> '' AND status IN ('PENDING', 'RUNNING'))`, id, id, id)
	return n, err
}

const placementColumns = "artifact_id, node_id, verified_at, created_at"

var upsertPlacement = upsertion("placements", "artifact_id, node_id", placementColumns)

func placementFields(p *spore.Placement) []any {
	return []any{&p.ArtifactID, &p.NodeID, asTime(&p.VerifiedAt), asTime(&p.CreatedAt)}
}

func (tx *Tx) PutPlacement(p spore.Placement) error {
	_, err := tx.exec(upsertPlacement, placementFields(&p)...)
	if errors.Is(err, ErrReference) {
		return unknown("artifact", p.ArtifactID)
	}
	return err
}

func (tx *Tx) Placements(artifactID, nodeID string) ([]spore.Placement, error) {
	l := &listing{table: "placements"}
	l.andText("artifact_id", artifactID)
	l.andText("node_id", nodeID)
	source, args := l.source()
	return values(selectRows(tx, placementFields, "SELECT "+placementColumns+source+" ORDER BY artifact_id, node_id", args...))
}

func (tx *Tx) DeletePlacement(artifactID, nodeID string) error {
	_, err := tx.exec("DELETE FROM placements WHERE artifact_id = ? AND node_id = ?", artifactID, nodeID)
	return err
}
