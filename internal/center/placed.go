package center

import (
	"context"
	"sync"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// replicaCache keeps the replicas of templates that sandboxes start from: with a thousand nodes, reading them takes many times
// longer than choosing among them. What it answers may be a moment old; the row of the one that is chosen is read again in the
// transaction that relies on it.
type replicaCache struct {
	mu      sync.Mutex
	sets    map[string]replicaSet
	changes int // counts the drops
}

type replicaSet struct {
	replicas []*spore.Replica
	read     time.Time
}

// Sets are read again after a while, since other controllers write replicas too. One that is alone knows of every change.
const (
	replicasGoOff      = 2 * time.Second
	replicasGoOffAlone = time.Minute
	maxReplicaSets     = 10_000
)

// replicasOf answers the replicas of a template. What was read in a transaction that writes is kept: those take turns, so
// whoever changes a replica after that comes later, and drops the set. What was read in a glimpse is kept if nothing was dropped
// since before it began.
func (c *Center) replicasOf(tx store.Tx, templateID string) ([]*spore.Replica, error) {
	now, age := c.opt.Now(), replicasGoOff
	if c.opt.Alone {
		age = replicasGoOffAlone
	}
	if known, ok := c.replicas.get(templateID, now.Add(-age)); ok {
		return known, nil
	}
	replicas, err := tx.Replicas(templateID)
	if err != nil {
		return nil, err
	}
	switch tx := tx.(type) {
	case *placements:
		c.replicas.keep(templateID, replicaSet{replicas, now}, -1)
	case *glimpse:
		c.replicas.keep(templateID, replicaSet{replicas, now}, tx.changes)
	}
	return replicas, nil
}

// glimpse is a transaction that only reads, and may be of a moment ago by now.
type glimpse struct {
	store.Tx
	changes int // that the cache had seen before it began
}

// glimpse is store.View for those who place sandboxes.
func (c *Center) glimpse(ctx context.Context, fn func(tx store.Tx) error) error {
	changes := c.replicas.seen()
	return c.store.View(ctx, func(tx store.Tx) error { return fn(&glimpse{tx, changes}) })
}

func (r *replicaCache) seen() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changes
}

func (r *replicaCache) get(templateID string, since time.Time) ([]*spore.Replica, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	set, ok := r.sets[templateID]
	return set.replicas, ok && set.read.After(since)
}

// keep keeps a set, if there were just so many changes so far; -1 is any number.
func (r *replicaCache) keep(templateID string, set replicaSet, changes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if changes >= 0 && changes != r.changes {
		return
	}
	if r.sets == nil || len(r.sets) >= maxReplicaSets {
		r.sets = map[string]replicaSet{}
	}
	r.sets[templateID] = set
}

func (r *replicaCache) drop(templateID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changes++
	delete(r.sets, templateID)
}

// placements is a transaction that sees to it that no changed replica stays in the cache: neither while it goes on, nor when it
// is over, since others may have read meanwhile what it took back.
type placements struct {
	store.Tx
	cache   *replicaCache
	changed []string // ids of templates
}

func (p *placements) PutReplica(r *spore.Replica) error {
	p.change(r.TemplateID)
	return p.Tx.PutReplica(r)
}

func (p *placements) DeleteReplica(templateID, nodeID string) error {
	p.change(templateID)
	return p.Tx.DeleteReplica(templateID, nodeID)
}

func (p *placements) change(templateID string) {
	p.changed = append(p.changed, templateID)
	p.cache.drop(templateID)
}

func (p *placements) over() {
	for _, id := range p.changed {
		p.cache.drop(id)
	}
}
