package memory

import "github.com/sporevm/spore"

var nodes = layout[spore.Node]{
	key: func(n *spore.Node) key { return key{a: n.ID} },
}

func (tx *tx) PutNode(n *spore.Node) error {
	if err := tx.writable(); err != nil {
		return err
	}
	if err := exists(spore.NodeTransitions, "node", n.ID, n.State); err != nil {
		return err
	}
	if n.ID == "" {
		return broken("node", n.ID, "it has no id")
	}
	if old := tx.state.nodes.rows.get(nodes.key(n)); old != nil {
		if err := transition(spore.NodeTransitions, "node", n.ID, &old.State, n.State); err != nil {
			return err
		}
	}
	nodes.put(&tx.state.nodes, tx.edit, keepNode(n))
	return nil
}

func (tx *tx) Node(id string) (*spore.Node, error) {
	if err := tx.readable(); err != nil {
		return nil, err
	}
	n := tx.state.nodes.rows.get(key{a: id})
	if n == nil {
		return nil, unknown("node", id)
	}
	return copyNode(n), nil
}

func (tx *tx) Nodes(forgotten bool) ([]*spore.Node, error) {
	if err := tx.readable(); err != nil {
		return nil, err
	}
	var list []*spore.Node
	for n := range tx.state.nodes.rows.up(everything) {
		if forgotten || n.State != spore.NodeForgotten {
			list = append(list, copyNode(n))
		}
	}
	return list, nil
}
