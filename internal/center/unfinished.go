package center

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/sporevm/spore"
)

// unfinished is what must come to pass but could not when it was due: the disk was full, say. It is tried again until it
// has. It need not outlive the server, since the next one settles the same by looking at rows and node.
type unfinished struct {
	mu   sync.Mutex
	todo map[string]func(context.Context) error // by what it is
}

// insist does what must come to pass whatever becomes of the request that led to it, and goes on trying when it fails.
// do looks at the rows anew each time, since others go on meanwhile.
func (c *Center) insist(ctx context.Context, what string, do func(context.Context) error) {
	err := do(context.WithoutCancel(ctx))
	if err == nil {
		return
	}
	c.log.Error("this failed and will be tried again", "what", what, "err", err)
	c.unfinished.mu.Lock()
	defer c.unfinished.mu.Unlock()
	if c.unfinished.todo == nil {
		c.unfinished.todo = map[string]func(context.Context) error{}
	}
	c.unfinished.todo[what] = do
}

// finishUp tries what is unfinished again.
func (c *Center) finishUp(ctx context.Context) error {
	c.unfinished.mu.Lock()
	todo := maps.Clone(c.unfinished.todo)
	c.unfinished.mu.Unlock()
	for _, what := range slices.Sorted(maps.Keys(todo)) {
		if ctx.Err() != nil {
			return nil
		}
		if err := todo[what](ctx); err != nil {
			c.log.Debug("it failed again", "what", what, "err", err)
			continue
		}
		c.unfinished.mu.Lock()
		delete(c.unfinished.todo, what)
		c.unfinished.mu.Unlock()
		c.log.Info("what had failed is done", "what", what)
	}
	return nil
}

// Unfinished lists what must come to pass and could not yet. It is tried again every second.
func (c *Center) Unfinished() []string {
	c.unfinished.mu.Lock()
	defer c.unfinished.mu.Unlock()
	return slices.Sorted(maps.Keys(c.unfinished.todo))
}

// forget removes a frozen state that nothing is to stand on. What has none is fine.
func (c *Center) forget(ctx context.Context, nodeID, frozenID string) {
	if nodeID == "" {
		return // nothing was begun anywhere
	}
	c.insist(ctx, "forget "+frozenID+" on "+nodeID, func(ctx context.Context) error {
		if n := c.fleet.facts(nodeID); n != nil && n.State == spore.NodeForgotten {
			return nil
		}
		n, err := c.on(nodeID)
		if err != nil {
			return err
		}
		return ignoreNotFound(n.Forget(ctx, frozenID))
	})
}
