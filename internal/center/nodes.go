package center

import (
	"context"
	"maps"
	"sync"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// Node answers one node, a forgotten one too.
func (c *Center) Node(ctx context.Context, id string) (n *spore.Node, err error) {
	err = c.store.View(ctx, func(tx store.Tx) error { n, err = tx.Node(id); return err })
	return n, err
}

// Nodes lists all nodes in the order of their ids, the forgotten ones only when asked for.
func (c *Center) Nodes(ctx context.Context, forgotten bool) (list []*spore.Node, err error) {
	err = c.store.View(ctx, func(tx store.Tx) error { list, err = tx.Nodes(forgotten); return err })
	return list, err
}

// UpdateNode changes what people may set of a node. Replicas follow its labels.
func (c *Center) UpdateNode(ctx context.Context, id string, req NodeUpdate) (*spore.Node, error) {
	if err := checkLabels(req.Labels); err != nil {
		return nil, err
	}
	return c.changeNode(ctx, id, func(n *spore.Node) bool {
		if req.Labels == nil || maps.Equal(n.Labels, req.Labels) {
			return false
		}
		n.Labels = req.Labels
		return true
	})
}

// DrainNode gives a node no new sandboxes and replicas, and has its replicas made elsewhere; with drain false, it is used again.
// Sandboxes that are there go on.
func (c *Center) DrainNode(ctx context.Context, id string, drain bool) (*spore.Node, error) {
	return c.changeNode(ctx, id, func(n *spore.Node) bool {
		if n.Draining == drain {
			return false
		}
		n.Draining = drain
		return true
	})
}

// changeNode writes what change says that it changed.
func (c *Center) changeNode(ctx context.Context, id string, change func(*spore.Node) bool) (n *spore.Node, err error) {
	changed := false
	err = c.update(ctx, func(tx store.Tx) error {
		if n, err = tx.Node(id); err != nil {
			return err
		}
		if n.State == spore.NodeForgotten {
			return spore.Errorf(spore.CodeConflict, "node %s was forgotten", id).WithHint("it is a new one when it reports again")
		}
		if changed = change(n); !changed {
			return nil
		}
		n.UpdatedAt = c.opt.Now()
		return tx.PutNode(n)
	})
	if err != nil {
		return nil, err
	}
	if changed {
		mine := *n
		c.fleet.learn(&mine)
		c.replan()
	}
	return n, nil
}

// NodeStorage answers how full the disks of all nodes are; refresh asks the nodes instead of remembering what they last said.
// One that does not answer says so in LastError, beside what it last said.
func (c *Center) NodeStorage(ctx context.Context, refresh bool) ([]NodeStorageStatus, error) {
	nodes, err := c.Nodes(ctx, false)
	if err != nil {
		return nil, err
	}
	all := make([]NodeStorageStatus, len(nodes))
	for i, n := range nodes {
		all[i] = storageOf(n)
	}
	if !refresh {
		return all, nil
	}
	const atATime = 8
	var asked sync.WaitGroup
	turns := make(chan struct{}, atATime)
	for i, n := range nodes {
		turns <- struct{}{}
		asked.Go(func() {
			defer func() { <-turns }()
			c.refreshStorage(ctx, n.ID, &all[i])
		})
	}
	asked.Wait()
	return all, ctx.Err()
}

func (c *Center) refreshStorage(ctx context.Context, id string, s *NodeStorageStatus) {
	n, err := c.on(id)
	var report *spore.NodeReport
	if err == nil {
		report, err = c.ask(ctx, n)
	}
	if err != nil {
		s.Mode, s.LastError = spore.StorageUnknown, spore.AsError(err).Message
		return
	}
	s.NodeStorage = report.Node.Storage
}

func storageOf(n *spore.Node) NodeStorageStatus {
	s := NodeStorageStatus{NodeID: n.ID, Address: n.Address, NodeStorage: n.Storage}
	if n.State != spore.NodeReady {
		s.LastError = "the node is " + string(n.State)
		if n.StateReason != "" {
			s.LastError += ": " + n.StateReason
		}
	}
	return s
}
