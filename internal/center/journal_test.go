package center_test

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// journal keeps what the rows of a world came to say, one commit after the other, so that no state is too short to be seen.
type journal struct {
	mu     sync.Mutex
	rows   map[string][]string
	refuse atomic.Pointer[func(id, state string) error] // a write that is to fail, and its transaction with it
	doubt  atomic.Pointer[bool]                         // the next transaction is undecided, and was kept or not
}

// tell answers the states that a row has been in, in order: phases of a job, and how it ended if not well; phases of a replica
// ("TEMPLATE@NODE"); statuses of an artifact; ids of what was deleted end with "gone".
func (j *journal) tell(id string) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.rows[id], " ")
}

// forget begins the story of a row anew.
func (j *journal) forget(id string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.rows, id)
}

// journalled is a store that writes down what is committed.
type journalled struct {
	store.Store
	journal *journal
}

func (s journalled) Update(ctx context.Context, fn func(tx store.Tx) error) error {
	j := s.journal
	j.mu.Lock() // so that the order is that of the commits
	defer j.mu.Unlock()
	doubt := j.doubt.Swap(nil)
	if doubt != nil && !*doubt {
		return store.ErrUndecided
	}
	var wrote [][2]string
	err := s.Store.Update(ctx, func(tx store.Tx) error {
		wrote = nil
		return fn(&journalledTx{tx, j, &wrote})
	})
	if err != nil {
		return err
	}
	if j.rows == nil {
		j.rows = map[string][]string{}
	}
	for _, w := range wrote {
		id, state := w[0], w[1]
		if told := j.rows[id]; len(told) == 0 || told[len(told)-1] != state {
			j.rows[id] = append(told, state)
		}
	}
	if doubt != nil {
		return store.ErrUndecided
	}
	return nil
}

type journalledTx struct {
	store.Tx
	journal *journal
	wrote   *[][2]string
}

func (tx *journalledTx) note(id, state string, err error) error {
	if refuse := tx.journal.refuse.Load(); err == nil && refuse != nil {
		err = (*refuse)(id, state)
	}
	if err == nil {
		*tx.wrote = append(*tx.wrote, [2]string{id, state})
	}
	return err
}

func jobState(j *spore.Job) string {
	if j.Status == spore.JobFailed || j.Status == spore.JobCancelled {
		return string(j.Status)
	}
	return string(j.Phase)
}

func (tx *journalledTx) InsertJob(j *spore.Job) error {
	return tx.note(j.ID, jobState(j), tx.Tx.InsertJob(j))
}

func (tx *journalledTx) UpdateJob(j *spore.Job) error {
	return tx.note(j.ID, jobState(j), tx.Tx.UpdateJob(j))
}

func (tx *journalledTx) PutReplica(r *spore.Replica) error {
	return tx.note(r.TemplateID+"@"+r.NodeID, string(r.Phase), tx.Tx.PutReplica(r))
}

func (tx *journalledTx) DeleteReplica(templateID, nodeID string) error {
	return tx.note(templateID+"@"+nodeID, "gone", tx.Tx.DeleteReplica(templateID, nodeID))
}

func (tx *journalledTx) PutArtifact(a *spore.Artifact) error {
	return tx.note(a.ID, string(a.Status), tx.Tx.PutArtifact(a))
}

func (tx *journalledTx) DeleteArtifact(id string) error {
	return tx.note(id, "gone", tx.Tx.DeleteArtifact(id))
}
