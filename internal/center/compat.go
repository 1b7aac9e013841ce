package center

import (
	"context"
	"slices"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// compatBatch is how many replicas are written in one transaction.
const compatBatch = 200

// verdict says whether a replica fits its node. While a node does not say what it has, what was found STALE stays so.
func verdict(r *spore.Replica, n *spore.Node) spore.CompatStatus {
	if n == nil {
		return spore.CompatUnknown
	}
	if n.Components.GuestImage == "" && r.CompatStatus == spore.CompatStale {
		return spore.CompatStale
	}
	return r.CompatPolicy.Serves(r.Bound, n.Components, n.Installed)
}

// usable says whether a replica is one that sandboxes may start from, and so one to be judged.
func usable(r *spore.Replica) bool { return r.Status == spore.ReplicaReady }

// scanCompat judges the READY replicas on some nodes anew and writes down what is different.
func (c *Center) scanCompat(ctx context.Context, nodeIDs ...string) error {
	for _, id := range nodeIDs {
		if err := c.scanNode(ctx, id, &CompatScan{}); err != nil {
			return err
		}
	}
	return nil
}

// ScanCompat judges the replicas on some nodes anew; no nodes means all.
func (c *Center) ScanCompat(ctx context.Context, nodes []string) (*CompatScan, error) {
	var err error
	if nodes, err = c.chosenNodes(ctx, nodes); err != nil {
		return nil, err
	}
	scan := &CompatScan{Nodes: nodes}
	for _, id := range nodes {
		if err := c.scanNode(ctx, id, scan); err != nil {
			return nil, err
		}
	}
	return scan, nil
}

// chosenNodes checks that the nodes named exist; with none named it answers all. Either way in order, and each once.
func (c *Center) chosenNodes(ctx context.Context, named []string) (ids []string, err error) {
	var all []*spore.Node
	if err := c.store.View(ctx, func(tx store.Tx) error { all, err = tx.Nodes(false); return err }); err != nil {
		return nil, err
	}
	ids = []string{}
	for _, n := range all {
		ids = append(ids, n.ID)
	}
	if len(named) == 0 {
		return ids, nil
	}
	for _, id := range named {
		if !slices.Contains(ids, id) {
			return nil, spore.Invalidf("nodes", "there is no node %q", id).WithHint("spore node ls").Because(spore.ReasonNoNodes)
		}
	}
	return slices.Compact(slices.Sorted(slices.Values(named))), nil
}

// scanNode judges the replicas of one node, page by page, and adds what it finds to scan.
func (c *Center) scanNode(ctx context.Context, nodeID string, scan *CompatScan) error {
	f := store.ReplicaFilter{Paging: store.Paging{Limit: compatBatch}, NodeID: nodeID, Status: spore.ReplicaReady}
	for {
		var page store.Page
		var moved []*spore.Replica
		judged, stale := 0, 0
		err := c.store.View(ctx, func(tx store.Tx) error {
			moved, judged, stale = nil, 0, 0
			n, err := tx.Node(nodeID)
			if err != nil {
				return err
			}
			var list []*spore.Replica
			if list, page, err = tx.ReplicaPage(f); err != nil {
				return err
			}
			for _, r := range list {
				v := verdict(r, n)
				judged++
				if v == spore.CompatStale {
					stale++
				}
				if v != r.CompatStatus {
					moved = append(moved, r)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		scan.Replicas, scan.Stale = scan.Replicas+judged, scan.Stale+stale
		if len(moved) > 0 {
			n, err := c.writeVerdicts(ctx, nodeID, moved)
			if err != nil {
				return err
			}
			scan.Changed += n
		}
		if page.Next == "" {
			return nil
		}
		f.After = page.Next
	}
}

// writeVerdicts judges replicas once more, as they and their node are now, and writes what is different.
func (c *Center) writeVerdicts(ctx context.Context, nodeID string, list []*spore.Replica) (changed int, err error) {
	err = c.update(ctx, func(tx store.Tx) error {
		changed = 0
		n, err := tx.Node(nodeID)
		if err != nil {
			return err
		}
		for _, old := range list {
			r, err := tx.Replica(old.TemplateID, nodeID)
			if isNotFound(err) {
				continue
			}
			if err != nil {
				return err
			}
			v := verdict(r, n)
			if !usable(r) || v == r.CompatStatus {
				continue
			}
			r.CompatStatus, r.CompatCheckedAt = v, c.opt.Now()
			if err := tx.PutReplica(r); err != nil {
				return err
			}
			changed++
		}
		return nil
	})
	return changed, err
}

// AdoptBaseline declares that UNKNOWN replicas were frozen with what their nodes have now, and answers how many. Those on
// nodes that do not answer, or do not say what they have, stay UNKNOWN.
func (c *Center) AdoptBaseline(ctx context.Context, req AdoptRequest) (adopted int, err error) {
	nodes, err := c.chosenNodes(ctx, req.Nodes)
	if err != nil {
		return 0, err
	}
	var unknown []*spore.Replica
	err = c.store.View(ctx, func(tx store.Tx) error {
		unknown = nil
		if req.Template != "" {
			t, err := tx.FindTemplate(req.Template)
			if err != nil {
				return err
			}
			unknown, err = tx.Replicas(t.ID)
			unknown = slices.DeleteFunc(unknown, func(r *spore.Replica) bool { return !slices.Contains(nodes, r.NodeID) })
			return err
		}
		for _, id := range nodes {
			n, err := tx.Node(id)
			if err != nil {
				return err
			}
			f := store.ReplicaFilter{NodeID: id, Status: spore.ReplicaReady}
			all, err := allPages(f.Paging, func(p store.Paging) ([]*spore.Replica, store.Page, error) {
				f.Paging = p
				list, page, err := tx.ReplicaPage(f)
				return slices.DeleteFunc(list, func(r *spore.Replica) bool { return !adopt(r, n) }), page, err
			})
			if err != nil {
				return err
			}
			unknown = append(unknown, all...)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	for batch := range slices.Chunk(unknown, compatBatch) {
		n, err := c.adoptBatch(ctx, batch)
		adopted += n
		if err != nil {
			return adopted, err
		}
	}
	return adopted, nil
}

// adoptBatch adopts those that are still UNKNOWN.
func (c *Center) adoptBatch(ctx context.Context, batch []*spore.Replica) (adopted int, err error) {
	err = c.update(ctx, func(tx store.Tx) error {
		adopted = 0
		for _, old := range batch {
			n, err := tx.Node(old.NodeID)
			if err != nil {
				return err
			}
			r, err := tx.Replica(old.TemplateID, old.NodeID)
			if isNotFound(err) {
				continue
			}
			if err != nil {
				return err
			}
			if !adopt(r, n) {
				continue
			}
			r.CompatStatus, r.CompatCheckedAt = spore.CompatOK, c.opt.Now()
			if err := tx.PutReplica(r); err != nil {
				return err
			}
			adopted++
		}
		return nil
	})
	return adopted, err
}

// adopt fills in what a replica does not know of itself with what its node has. False, and nothing of r changed, when r is not
// UNKNOWN, or would not be OK by that.
func adopt(r *spore.Replica, n *spore.Node) bool {
	if !usable(r) || n.State != spore.NodeReady || r.CompatPolicy.Serves(r.Bound, n.Components, n.Installed) != spore.CompatUnknown {
		return false
	}
	b, image := r.Bound, n.Components
	if b.GuestImage == "" { // nothing is known, so not of the processor either
		b.GuestImage, b.CPU = image.GuestImage, image.CPU
	}
	if at := slices.IndexFunc(n.Installed, func(i spore.Components) bool { return i.GuestImage == b.GuestImage }); at >= 0 && b.GuestImage != image.GuestImage {
		image = n.Installed[at]
	}
	for _, f := range []struct {
		bound *string
		now   string
	}{{&b.Agent, image.Agent}, {&b.Kernel, image.Kernel}, {&b.Engine, n.Components.Engine}, {&b.StateFormat, n.Components.StateFormat},
		{&b.EngineVersion, n.Components.EngineVersion}} {
		if *f.bound == "" {
			*f.bound = f.now
		}
	}
	if r.CompatPolicy.Serves(b, n.Components, n.Installed) != spore.CompatOK {
		return false
	}
	r.Bound = b
	return true
}
