package center

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// fleet is the nodes that this controller can ask, and what was last known of all nodes.
type fleet struct {
	mu      sync.RWMutex
	members map[string]Node
	known   map[string]*spore.Node // rows, as last read or written here
	placed  map[string]int         // MiB promised here since a node last reported
}

func newFleet(nodes []Node) *fleet {
	f := &fleet{members: map[string]Node{}, known: map[string]*spore.Node{}, placed: map[string]int{}}
	for _, n := range nodes {
		f.members[n.ID()] = n
	}
	return f
}

// ids lists the nodes that can be asked, in order.
func (f *fleet) ids() []string {
	f.mu.RLock()
	defer f.mu.RUnlock()
	ids := make([]string, 0, len(f.members))
	for id := range f.members {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (f *fleet) node(id string) Node {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.members[id]
}

// facts answers what is known of a node, nil when nothing is.
func (f *fleet) facts(id string) *spore.Node {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.known[id]
}

// learn takes over rows. Those of nodes that reported since have their promises counted anew.
func (f *fleet) learn(nodes ...*spore.Node) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range nodes {
		if old := f.known[n.ID]; old == nil || n.SeenAt.After(old.SeenAt) {
			delete(f.placed, n.ID)
		}
		f.known[n.ID] = n
	}
}

// promise counts memory given to a sandbox on a node until the node reports it itself.
func (f *fleet) promise(id string, mib int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.placed[id] += mib
}

// free is the memory of a node that nobody was promised, as far as is known.
func (f *fleet) free(n *spore.Node) int {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.left(n)
}

// left is free for a caller who holds the lock.
func (f *fleet) left(n *spore.Node) int { return n.MemoryMiB - n.MemoryPromisedMiB - f.placed[n.ID] }

// Join adds a node, or replaces the way to it. It may be called at any time.
func (c *Center) Join(ctx context.Context, n Node) error {
	c.fleet.mu.Lock()
	c.fleet.members[n.ID()] = n
	c.fleet.mu.Unlock()
	n.OnExit(c.sandboxExited)
	return c.visit(ctx, n)
}

// on answers the node of that id, or why it cannot be asked.
func (c *Center) on(id string) (Node, error) {
	if n := c.fleet.node(id); n != nil {
		return n, nil
	}
	return nil, spore.Errorf(spore.CodeUnreachable, "node %s cannot be reached", id).
		WithHint("spore node info %s; if it is gone for good: spore node forget %s", id, id)
}

func errNoNodes(format string, args ...any) *spore.Error {
	return spore.Errorf(spore.CodeInvalid, "%s", fmt.Sprintf(format, args...)).
		WithHint("see which there are: spore node ls").Because(spore.ReasonNoNodes)
}

// admit is nil when a VM of this size could run on some node.
func (c *Center) admit(r spore.Resources) error {
	err := error(errNoNodes("there is no node"))
	for _, id := range c.fleet.ids() {
		n, lost := c.on(id)
		if lost != nil {
			continue
		}
		if err = n.Admit(r); err == nil {
			return nil
		}
	}
	return err
}

// visitTimeout bounds how long a node may take to say how it is.
const visitTimeout = 5 * time.Second

// visit asks a node how it is, and writes that down. VMs that an earlier process of the node left are taken over first.
func (c *Center) visit(ctx context.Context, n Node) error {
	report, err := c.ask(ctx, n)
	if err != nil {
		return c.missed(ctx, n.ID(), err)
	}
	if !report.Recovered {
		if err := c.takeOver(ctx, n); err != nil {
			return err
		}
		if report, err = c.ask(ctx, n); err != nil {
			return c.missed(ctx, n.ID(), err)
		}
	}
	if err := c.seen(ctx, &report.Node); err != nil {
		return err
	}
	return c.compareMachines(ctx, n, report)
}

func (c *Center) ask(ctx context.Context, n Node) (*spore.NodeReport, error) {
	ctx, cancel := context.WithTimeout(ctx, visitTimeout)
	defer cancel()
	return n.Report(ctx)
}

// seen writes what a node said of itself; what people have set stays.
func (c *Center) seen(ctx context.Context, said *spore.Node) error {
	var row *spore.Node
	changed := false
	err := c.update(ctx, func(tx store.Tx) error {
		now := c.opt.Now()
		old, err := tx.Node(said.ID)
		if err != nil && !isNotFound(err) {
			return err
		}
		fresh := *said
		row = &fresh
		row.State, row.StateReason, row.SeenAt, row.UpdatedAt, row.CreatedAt = spore.NodeReady, "", now, now, now
		if old != nil && old.State != spore.NodeForgotten {
			row.Labels, row.Draining, row.CreatedAt = old.Labels, old.Draining, old.CreatedAt
		}
		if row.Address == "" && old != nil {
			row.Address = old.Address
		}
		changed = old == nil || !slices.Equal(old.Installed, row.Installed) || old.Components != row.Components || old.State != row.State
		return tx.PutNode(row)
	})
	if err != nil {
		return err
	}
	c.fleet.learn(row)
	if changed {
		return c.scanCompat(ctx, row.ID)
	}
	return nil
}

// missed notes that a node did not answer. It counts as unreachable once it has been silent for a while.
func (c *Center) missed(ctx context.Context, id string, cause error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var row *spore.Node
	err := c.update(ctx, func(tx store.Tx) (err error) {
		row, err = tx.Node(id)
		if isNotFound(err) {
			row = nil
			return nil
		}
		now := c.opt.Now()
		if err != nil || row.State != spore.NodeReady || now.Sub(row.SeenAt) < c.opt.NodeTimeout {
			return err
		}
		row.State, row.StateReason, row.UpdatedAt = spore.NodeUnreachable, spore.AsError(cause).Message, now
		if err := tx.PutNode(row); err != nil {
			return err
		}
		return c.noteOnRefs(tx, id, row.StateReason)
	})
	if err == nil && row != nil {
		c.fleet.learn(row)
	}
	return err
}

// visitAll asks every node how it is, a few at a time.
func (c *Center) visitAll(ctx context.Context) error {
	const atATime = 8
	var all sync.WaitGroup
	turns := make(chan struct{}, atATime)
	for _, id := range c.fleet.ids() {
		n, err := c.on(id)
		if err != nil {
			continue
		}
		turns <- struct{}{}
		all.Go(func() {
			defer func() { <-turns }()
			if err := c.visit(ctx, n); err != nil && ctx.Err() == nil {
				c.log.Error("asking a node how it is", "node", id, "err", err)
			}
		})
	}
	all.Wait()
	return c.readNodes(ctx)
}

// readNodes reads the rows of nodes that others may have written.
func (c *Center) readNodes(ctx context.Context) error {
	var rows []*spore.Node
	err := c.store.View(ctx, func(tx store.Tx) (err error) { rows, err = tx.Nodes(true); return err })
	if err == nil {
		c.fleet.learn(rows...)
	}
	return err
}
