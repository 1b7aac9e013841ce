package rows

import (
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

const replayColumns = "caller, key, digest, resource_id, created_at"

var insertReplay = insertion("replays", replayColumns)

func replayFields(r *store.Replay) []any {
	return []any{asText(&r.Caller), asText(&r.Key), &r.Digest, &r.ResourceID, asTime(&r.CreatedAt)}
}

func (tx *Tx) Replay(caller, key string) (*store.Replay, error) {
	return selectOne(tx, replayFields, "SELECT "+replayColumns+" FROM replays WHERE caller = ? AND key = ?", caller, key)
}

func (tx *Tx) PutReplay(r store.Replay) error {
	affected, err := tx.exec(insertReplay, replayFields(&r)...)
	if err == nil && affected == 0 {
		return spore.Errorf(spore.CodeConflict, "the idempotency key %q is in use already", r.Key)
	}
	return err
}

func (tx *Tx) DropReplay(resourceID string) error {
	_, err := tx.exec("DELETE FROM replays WHERE resource_id = ?", resourceID)
	return err
}

func (tx *Tx) PurgeReplays(before time.Time) (int, error) {
	affected, err := tx.exec("DELETE FROM replays WHERE created_at < ?", asTime(&before))
	return int(affected), err
}
