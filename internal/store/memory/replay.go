package memory

import (
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

var replays = layout[store.Replay]{
	key: func(r *store.Replay) key { return key{a: r.Caller, b: r.Key} },
}

func (tx *tx) Replay(caller, name string) (*store.Replay, error) {
	if err := tx.readable(); err != nil {
		return nil, err
	}
	r := tx.state.replays.rows.get(key{a: caller, b: name})
	if r == nil {
		return nil, nil
	}
	out := *r
	return &out, nil
}

func (tx *tx) PutReplay(r store.Replay) error {
	if err := tx.writable(); err != nil {
		return err
	}
	if tx.state.replays.rows.get(replays.key(&r)) != nil {
		return spore.Errorf(spore.CodeConflict, "the idempotency key %q is in use already", r.Key)
	}
	keepTimes(&r.CreatedAt)
	replays.put(&tx.state.replays, tx.edit, &r)
	return nil
}

func (tx *tx) DropReplay(resourceID string) error {
	_, err := tx.dropReplays(func(r *store.Replay) bool { return r.ResourceID == resourceID })
	return err
}

func (tx *tx) PurgeReplays(before time.Time) (int, error) {
	limit := nanos(keepTime(before))
	return tx.dropReplays(func(r *store.Replay) bool { return nanos(r.CreatedAt) < limit })
}

func (tx *tx) dropReplays(which func(*store.Replay) bool) (int, error) {
	if err := tx.writable(); err != nil {
		return 0, err
	}
	var old []*store.Replay
	for r := range tx.state.replays.rows.up(everything) {
		if which(r) {
			old = append(old, r)
		}
	}
	for _, r := range old {
		replays.drop(&tx.state.replays, tx.edit, r)
	}
	return len(old), nil
}
