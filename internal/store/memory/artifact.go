package memory

import (
	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

var artifacts = layout[spore.Artifact]{
	key: func(a *spore.Artifact) key { return key{a: a.ID} },
	indexes: []index[spore.Artifact]{
		artifactPage: func(a *spore.Artifact) (key, bool) { return artifactAt(a), true },
		artifactFair: func(a *spore.Artifact) (key, bool) { return key{n: nanos(a.TriedAt), b: a.ID}, true },
	},
}

const (
	artifactPage = iota
	artifactFair
)

func artifactAt(a *spore.Artifact) key { return key{n: nanos(a.CreatedAt), b: a.ID} }

var placements = layout[spore.Placement]{
	key: func(p *spore.Placement) key { return key{a: p.ArtifactID, b: p.NodeID} },
	indexes: []index[spore.Placement]{
		placementNode: func(p *spore.Placement) (key, bool) { return key{a: p.NodeID, b: p.ArtifactID}, true },
	},
}

const placementNode = 0

func (tx *tx) artifact(id string) *spore.Artifact { return tx.state.artifacts.rows.get(key{a: id}) }

func (tx *tx) PutArtifact(a *spore.Artifact) error {
	if err := tx.writable(); err != nil {
		return err
	}
	if err := exists(spore.ArtifactTransitions, "artifact", a.ID, a.Status); err != nil {
		return err
	}
	if a.ID == "" {
		return broken("artifact", a.ID, "it has no id")
	}
	if old := tx.artifact(a.ID); old != nil {
		if err := transition(spore.ArtifactTransitions, "artifact", a.ID, &old.Status, a.Status); err != nil {
			return err
		}
	}
	artifacts.put(&tx.state.artifacts, tx.edit, keepArtifact(a))
	return nil
}

func (tx *tx) Artifact(id string) (*spore.Artifact, error) {
	if err := tx.readable(); err != nil {
		return nil, err
	}
	a := tx.artifact(id)
	if a == nil {
		return nil, unknown("artifact", id)
	}
	return copyArtifact(a), nil
}

func (tx *tx) Artifacts(f store.ArtifactFilter) ([]*spore.Artifact, store.Page, error) {
	if err := tx.readable(); err != nil {
		return nil, store.Page{}, err
	}
	l := &listing[spore.Artifact]{list: "artifacts", newest: true, at: artifactAt}
	l.inGroup(tx.state.artifacts.indexes[artifactPage], "")
	before := nanos(keepTime(f.UnusedBefore))
	l.matches = func(a *spore.Artifact) bool {
		return oneOf(f.Statuses, a.Status) && (f.UnusedBefore.IsZero() || !a.UnusedAt.IsZero() && nanos(a.UnusedAt) < before)
	}
	if !f.Fair {
		return l.page(f.Paging, copyArtifact)
	}
	limit, err := limitOf(f.Paging)
	if err != nil {
		return nil, store.Page{}, err
	}
	l.rows, l.newest = tx.state.artifacts.indexes[artifactFair], false
	var list []*spore.Artifact
	for a := range l.walk() {
		if len(list) == limit {
			break
		}
		list = append(list, copyArtifact(a))
	}
	return list, store.Page{}, nil
}

func (tx *tx) DeleteArtifact(id string) error {
	if err := tx.writable(); err != nil {
		return err
	}
	a := tx.artifact(id)
	switch {
	case a == nil:
		return unknown("artifact", id)
	case a.Status != spore.ArtifactCleanupPending:
		return spore.Errorf(spore.CodeConflict, "artifact %s is %s, not %s", id, a.Status, spore.ArtifactCleanupPending)
	}
	for p := range tx.state.placements.rows.up(group(id)) {
		return spore.Errorf(spore.CodeConflict, "bytes of artifact %s may lie on node %s", id, p.NodeID)
	}
	artifacts.drop(&tx.state.artifacts, tx.edit, a)
	return nil
}

func (tx *tx) ArtifactUsers(id string) (int, error) {
	if err := tx.readable(); err != nil {
		return 0, err
	}
	if id == "" {
		return 0, nil
	}
	n := 0
	for range tx.state.replicas.indexes[replicaArtifact].up(group(id)) {
		n++
	}
	for t := range tx.state.templates.indexes[templateArtifact].up(group(id)) {
		if t.Status != spore.TemplateDeleted {
			n++
		}
	}
	for j := range tx.state.jobs.indexes[jobActive].up(everything) {
		if j.ArtifactID == id {
			n++
		}
	}
	return n, nil
}

func (tx *tx) PutPlacement(p spore.Placement) error {
	if err := tx.writable(); err != nil {
		return err
	}
	if p.NodeID == "" {
		return broken("placement", p.ArtifactID, "it names no node")
	}
	if tx.artifact(p.ArtifactID) == nil {
		return unknown("artifact", p.ArtifactID)
	}
	keepTimes(&p.VerifiedAt, &p.CreatedAt)
	placements.put(&tx.state.placements, tx.edit, &p)
	return nil
}

func (tx *tx) Placements(artifactID, nodeID string) ([]spore.Placement, error) {
	if err := tx.readable(); err != nil {
		return nil, err
	}
	rows, span := tx.state.placements.rows, everything
	switch {
	case artifactID != "":
		span = group(artifactID)
	case nodeID != "":
		rows, span = tx.state.placements.indexes[placementNode], group(nodeID)
	}
	var list []spore.Placement
	for p := range rows.up(span) {
		if fits(nodeID, p.NodeID) {
			list = append(list, *p)
		}
	}
	return list, nil
}

func (tx *tx) DeletePlacement(artifactID, nodeID string) error {
	if err := tx.writable(); err != nil {
		return err
	}
	if p := tx.state.placements.rows.get(key{a: artifactID, b: nodeID}); p != nil {
		placements.drop(&tx.state.placements, tx.edit, p)
	}
	return nil
}
