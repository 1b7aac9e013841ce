package memory

import (
	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

var replicas = layout[spore.Replica]{
	key: func(r *spore.Replica) key { return key{a: r.TemplateID, b: r.NodeID} },
	indexes: []index[spore.Replica]{
		replicaNode: func(r *spore.Replica) (key, bool) { return key{a: r.NodeID, b: r.TemplateID}, true },
		replicaArtifact: func(r *spore.Replica) (key, bool) {
			return key{a: r.ArtifactID, b: r.TemplateID + "\x00" + r.NodeID}, r.ArtifactID != ""
		},
	},
}

const (
	replicaNode = iota
	replicaArtifact
)

// named is what messages call a replica.
func named(templateID, nodeID string) string { return templateID + " on node " + nodeID }

func checkReplica(r *spore.Replica) error {
	id := named(r.TemplateID, r.NodeID)
	switch {
	case r.Status != spore.ReplicaReady && r.Status != spore.ReplicaFailed:
		return broken("replica", id, "there is no such status")
	case !known(r.CompatStatus, "", spore.CompatOK, spore.CompatStale, spore.CompatUnknown, spore.CompatMissing):
		return broken("replica", id, "there is no such verdict")
	case !known(r.CompatPolicy, "", spore.PolicyStrict, spore.PolicyGuestOnly):
		return broken("replica", id, "there is no such policy")
	}
	if r.LastErrorPhase != "" {
		return birth(spore.ReplicaTransitions, "replica", id, r.LastErrorPhase)
	}
	return nil
}

func (tx *tx) PutReplica(r *spore.Replica) error {
	if err := tx.writable(); err != nil {
		return err
	}
	id := named(r.TemplateID, r.NodeID)
	if err := exists(spore.ReplicaTransitions, "replica", id, r.Phase); err != nil {
		return err
	}
	if err := checkReplica(r); err != nil {
		return err
	}
	if old := tx.state.replicas.rows.get(replicas.key(r)); old != nil {
		if err := transition(spore.ReplicaTransitions, "replica", id, &old.Phase, r.Phase); err != nil {
			return err
		}
	}
	if tx.template(r.TemplateID) == nil {
		return unknown("template", r.TemplateID)
	}
	replicas.put(&tx.state.replicas, tx.edit, keepReplica(r))
	return nil
}

func (tx *tx) Replica(templateID, nodeID string) (*spore.Replica, error) {
	if err := tx.readable(); err != nil {
		return nil, err
	}
	r := tx.state.replicas.rows.get(key{a: templateID, b: nodeID})
	if r == nil {
		return nil, unknown("replica", named(templateID, nodeID))
	}
	return copyReplica(r), nil
}

func (tx *tx) Replicas(templateID string) ([]*spore.Replica, error) {
	if err := tx.readable(); err != nil {
		return nil, err
	}
	var list []*spore.Replica
	for r := range tx.state.replicas.rows.up(group(templateID)) {
		list = append(list, copyReplica(r))
	}
	return list, nil
}

func (tx *tx) ReplicaPage(f store.ReplicaFilter) ([]*spore.Replica, store.Page, error) {
	if err := tx.readable(); err != nil {
		return nil, store.Page{}, err
	}
	l := &listing[spore.Replica]{
		list: "replicas", rows: tx.state.replicas.rows, span: everything, at: replicas.key,
		matches: func(r *spore.Replica) bool {
			return fits(f.NodeID, r.NodeID) && fits(f.Status, r.Status) && fits(f.Phase, r.Phase) && fits(f.Compat, r.CompatStatus)
		},
	}
	if f.NodeID != "" {
		l.rows, l.span = tx.state.replicas.indexes[replicaNode], group(f.NodeID)
		l.place = func(k key) key {
			// Where the node's own replica of the template would be, or the end of those before it.
			at := key{a: f.NodeID, b: k.a}
			if k.b > f.NodeID {
				at = at.after()
			}
			return at
		}
	}
	return l.page(f.Paging, copyReplica)
}

func (tx *tx) DeleteReplica(templateID, nodeID string) error {
	if err := tx.writable(); err != nil {
		return err
	}
	if r := tx.state.replicas.rows.get(key{a: templateID, b: nodeID}); r != nil {
		replicas.drop(&tx.state.replicas, tx.edit, r)
	}
	return nil
}
