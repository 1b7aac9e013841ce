package center

import (
	"context"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// replicaRows is a transaction with the replicas of one template and nothing else.
type replicaRows struct {
	store.Tx
	rows *[]*spore.Replica
}

func (t replicaRows) Replicas(string) ([]*spore.Replica, error) { return *t.rows, nil }

func (t replicaRows) PutReplica(r *spore.Replica) error {
	*t.rows = append(*t.rows, r)
	return nil
}

func (replicaRows) Guard(string) error { return nil }

// replicaStore holds what views see until a write is over.
type replicaStore struct {
	store.Store
	rows []*spore.Replica
	lose bool // the next transaction is lost, and run again
}

func (s *replicaStore) View(_ context.Context, fn func(store.Tx) error) error {
	seen := s.rows
	return fn(replicaRows{rows: &seen})
}

func (s *replicaStore) Update(_ context.Context, fn func(store.Tx) error) error {
	next := s.rows[:len(s.rows):len(s.rows)]
	if s.lose {
		s.lose = false
		if err := fn(replicaRows{rows: &next}); err != nil {
			return err
		}
		next = s.rows[:len(s.rows):len(s.rows)]
	}
	err := fn(replicaRows{rows: &next})
	if err == nil {
		s.rows = next
	}
	return err
}

// A set of replicas that a reader began to read before a change, and kept after it, would be believed by all who come later.
func TestReplicasThatAreKept(t *testing.T) {
	s := &replicaStore{}
	now := time.Now()
	c := &Center{store: s, opt: Options{Alone: true, Now: func() time.Time { return now }}}
	ctx := t.Context()
	add := func(node string) func(store.Tx) error {
		return func(tx store.Tx) error { return tx.PutReplica(&spore.Replica{TemplateID: "tpl", NodeID: node}) }
	}
	count := func(want int, where string) {
		t.Helper()
		err := c.glimpse(ctx, func(tx store.Tx) error {
			replicas, err := c.replicasOf(tx, "tpl")
			if len(replicas) != want {
				t.Errorf("%s: %d replicas, not %d", where, len(replicas), want)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	count(0, "at first")
	err := c.glimpse(ctx, func(tx store.Tx) error {
		if err := c.update(ctx, add("n1")); err != nil {
			return err
		}
		_, err := c.replicasOf(tx, "tpl") // sees what was before, and must not leave that behind
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	count(1, "after a change during a glimpse")
	err = c.update(ctx, func(tx store.Tx) error {
		if err := add("n2")(tx); err != nil {
			return err
		}
		if replicas, err := c.replicasOf(tx, "tpl"); err != nil || len(replicas) != 2 {
			t.Errorf("inside the change: %d replicas, %v", len(replicas), err)
		}
		return context.Canceled
	})
	if err != context.Canceled {
		t.Fatal(err)
	}
	count(1, "after a change that was taken back")
	s.lose = true
	runs := 0
	err = c.update(ctx, func(tx store.Tx) error {
		if runs++; runs > 1 {
			return nil // it finds nothing to do any more
		}
		if err := add("n3")(tx); err != nil {
			return err
		}
		_, err := c.replicasOf(tx, "tpl")
		return err
	})
	if err != nil || runs != 2 {
		t.Fatalf("%d runs, %v", runs, err)
	}
	count(1, "after a change that was lost")
	s.rows = nil // behind the center's back
	count(1, "while the set is good")
	now = now.Add(2 * replicasGoOffAlone)
	count(0, "when it has gone off")
}
