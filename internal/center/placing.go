package center

import (
	"cmp"
	"slices"
	"strings"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// spot is a node that a sandbox might be placed on. whyNot is empty for those it could be.
type spot struct {
	nodeID  string
	whyNot  string
	lost    bool // a READY replica on a node that is not there any more
	outside bool // not among the nodes asked for
	compat  spore.CompatStatus
	freeMiB int

	// What whyNot is said more exactly of, by why.
	replica *spore.Replica
	node    *spore.Node
}

const (
	whyStale   = "it was frozen with components that are no longer there"
	whyNetwork = "it cannot connect sandboxes in mode "
)

// gap is what a spot that is stale lacks.
func (s *spot) gap() spore.Gap {
	return s.replica.CompatPolicy.Gap(s.replica.Bound, s.node.Components, s.node.Installed)
}

// why is whyNot with what it takes longer to say, which is for those alone that are asked.
func (s *spot) why(w wish) string {
	switch s.whyNot {
	case whyStale:
		return s.gap().Why
	case whyNetwork:
		why := whyNetwork + string(w.network)
		if _, because := s.node.Connects(w.network); because != "" {
			why += ": " + because
		}
		return why
	}
	return s.whyNot
}

// wish is what a caller wants of the node: one of scope, if that is not empty, and the preferred one: if it can be had, or, when
// it is hard, no other; and that it has a network mode.
type wish struct {
	scope     []string
	preferred string
	hard      bool
	network   spore.NetworkMode
}

// spots judges every replica of a template: can a sandbox start from it there now?
func (c *Center) spots(t *spore.Template, replicas []*spore.Replica, w wish) []spot {
	all := make([]spot, len(replicas))
	fleet := c.fleet
	fleet.mu.RLock() // once for all of what may be a thousand nodes
	defer fleet.mu.RUnlock()
	for i, r := range replicas {
		can := &all[i]
		n := fleet.known[r.NodeID]
		can.nodeID, can.compat, can.replica, can.node = r.NodeID, spore.CompatUnknown, r, n
		if n != nil && r.Status == spore.ReplicaReady {
			can.compat, can.freeMiB = r.CompatPolicy.Serves(r.Bound, n.Components, n.Installed), fleet.left(n)
		}
		can.outside = len(w.scope) > 0 && !slices.Contains(w.scope, r.NodeID) || w.hard && w.preferred != r.NodeID
		can.lost = r.Status == spore.ReplicaReady && (n == nil || n.State == spore.NodeForgotten)
		switch {
		case r.Status != spore.ReplicaReady:
			can.whyNot = "its replica is " + string(r.Phase)
			if r.ErrorMessage != "" {
				can.whyNot += ": " + r.ErrorMessage
			}
		case n == nil:
			can.whyNot = "the node is not known"
		case n.State != spore.NodeReady:
			can.whyNot = "the node is " + string(n.State)
		case n.Draining:
			can.whyNot = "the node is being drained"
		case len(w.scope) > 0 && !slices.Contains(w.scope, n.ID):
			can.whyNot = "not among the nodes asked for"
		case w.hard && w.preferred != n.ID:
			can.whyNot = "not the node asked for"
		case can.compat == spore.CompatStale:
			can.whyNot = whyStale
		case !connects(n, w.network):
			can.whyNot = whyNetwork
		case n.Storage.Mode == spore.StorageDeleteOnly:
			can.whyNot = "its disk is full"
		case t.Resources.MemoryMiB > n.MemoryMiB:
			can.whyNot = "its memory is smaller than the sandbox's"
		case fleet.members[n.ID] == nil:
			can.whyNot = "this controller has no way to it"
		}
	}
	return all
}

// connects is spore.Node.Connects without the reason.
func connects(n *spore.Node, mode spore.NetworkMode) bool {
	can, _ := n.Connects(mode)
	return can
}

// choose picks the node with the most free memory, the preferred one before all others. Nodes that are full are still
// candidates: a sandbox waits there until others end.
func choose(t *spore.Template, all []spot, w wish) (string, error) {
	best := -1
	better := func(a, b *spot) bool {
		if pa, pb := a.nodeID == w.preferred, b.nodeID == w.preferred; pa != pb {
			return pa
		}
		if d := cmp.Compare(a.freeMiB, b.freeMiB); d != 0 {
			return d > 0
		}
		return a.nodeID < b.nodeID
	}
	for i := range all {
		if all[i].whyNot == "" && (best < 0 || better(&all[i], &all[best])) {
			best = i
		}
	}
	if best >= 0 {
		return all[best].nodeID, nil
	}
	stale, unconnected := map[string]spore.Gap{}, map[string]string{}
	var lost []string
	for i := range all {
		can := &all[i]
		switch {
		case can.whyNot == whyNetwork || can.compat == spore.CompatStale && !can.outside && !connects(can.node, w.network):
			_, unconnected[can.nodeID] = can.node.Connects(w.network)
		case can.compat == spore.CompatStale && !can.outside:
			stale[can.nodeID] = can.gap()
		case can.lost:
			lost = append(lost, can.nodeID)
		}
	}
	if len(stale) > 0 {
		return "", spore.StaleNeedsRedo(t.Label(), stale)
	}
	if len(unconnected) > 0 { // what is stale there too, a redo alone does not cure
		return "", spore.NoNetworkMode(t.Label(), w.network, unconnected)
	}
	if len(lost) > 0 && len(lost) == len(all) {
		return "", spore.Errorf(spore.CodeConflict, "%s %s is only on %s, and no such node is known any more", t.Kind, t.Label(), some(lost)).
			WithHint("make it again elsewhere: spore template redo %s", t.Label()).Because(spore.ReasonReplicaIncomplete)
	}
	e := spore.Errorf(spore.CodeConflict, "%s %s cannot start on any node that may be used", t.Kind, t.Label()).Because(spore.ReasonNoReadyReplica)
	if len(all) > 0 {
		asked := max(0, slices.IndexFunc(all, func(can spot) bool { return !can.outside }))
		e.Message += ": " + all[asked].nodeID + ": " + all[asked].why(w)
		if len(all) > 1 {
			e.Message += ", and others"
		}
	}
	return "", e.WithHint("spore template replicas %s", t.Label())
}

// place decides, inside tx, where a sandbox of t starts. The replicas may be those of a moment ago.
func (c *Center) place(tx store.Tx, t *spore.Template, replicas []*spore.Replica, w wish) (string, []spot, error) {
	for fresh := false; ; fresh = true {
		if fresh {
			var err error
			c.replicas.drop(t.ID)
			if replicas, err = c.replicasOf(tx, t.ID); err != nil {
				return "", nil, err
			}
		}
		all := c.spots(t, replicas, w)
		id, err := choose(t, all, w)
		if err != nil {
			if fresh {
				return "", all, c.elsewhere(t, all, w, err)
			}
			continue
		}
		r, err := tx.Replica(t.ID, id)
		if err == nil && r.Status == spore.ReplicaReady {
			return id, all, nil
		}
		if err != nil && !isNotFound(err) || fresh {
			return "", all, err
		}
	}
}

// elsewhere adds to a refusal by the network mode what would help: a node that has the mode and not the template, and the modes that
// there are where the template is.
func (c *Center) elsewhere(t *spore.Template, all []spot, w wish, refusal error) error {
	e := spore.AsError(refusal)
	if e.Reason != spore.ReasonNoNetworkMode {
		return refusal
	}
	const few = 3
	have := make([]string, 0, len(all))
	var modes []string
	for i := range all {
		have = append(have, all[i].nodeID)
		if all[i].whyNot == whyNetwork && len(modes) < few {
			var can []string
			for _, mode := range all[i].node.Modes() {
				can = append(can, string(mode))
			}
			modes = append(modes, all[i].nodeID+" has "+strings.Join(can, " and "))
		}
	}
	for _, id := range c.fleet.ids() {
		n := c.fleet.facts(id)
		if n == nil || !n.Schedulable() || slices.Contains(have, id) || len(n.Networks) == 0 || !connects(n, w.network) || len(have) > few {
			continue
		}
		return e.WithHint("%s has mode %s; to have it there too: spore template set %s --node %s", id, w.network, t.Label(), strings.Join(append(have, id), " --node "))
	}
	if len(modes) > 0 {
		return e.WithHint("%s; ask for another mode, or see: spore node ls -o wide", strings.Join(modes, ", "))
	}
	return e
}
