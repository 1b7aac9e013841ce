package rows

import (
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

const jobColumns = `id, operation, resource_type, resource_id, sandbox_id, status, phase, progress, pull,
	attempt_no, retry_of_job_id, error, request, result, cancel_asked, created_at, started_at, finished_at`

// pullDocument is how a job keeps the progress of its pull; its keys must not change once they are written.
type pullDocument struct {
	BytesTotal     int64 `json:"bytesTotal,omitempty"`
	BytesDone      int64 `json:"bytesDone,omitempty"`
	LayersTotal    int   `json:"layersTotal,omitempty"`
	LayersDone     int   `json:"layersDone,omitempty"`
	BytesPerSecond int64 `json:"bytesPerSecond,omitempty"`
}

func jobFields(j *spore.Job) []any {
	return []any{
		&j.ID, &j.Operation, &j.ResourceType, &j.ResourceID, &j.SandboxID, &j.Status, &j.Phase, &j.Progress, asJSON((*pullDocument)(&j.Pull)),
		&j.AttemptNo, &j.RetryOfJobID, asJSON(&j.Error), &j.Request, &j.Result, asFlag(&j.CancelAsked),
		asTime(&j.CreatedAt), asTime(&j.StartedAt), asTime(&j.FinishedAt),
	}
}

var jobStates = transition[spore.JobStatus]{
	table: "jobs", key: "id", column: "status", noun: "job", machine: spore.JobTransitions,
}

func (tx *Tx) InsertJob(j *spore.Job) error {
	affected, err := tx.exec(insertion("jobs", jobColumns), jobFields(j)...)
	if err != nil || affected > 0 {
		return err
	}
	if j.Status.Active() {
		rival, err := tx.ActiveJob(j.ResourceID)
		if err != nil {
			return err
		}
		if rival != nil && rival.ID != j.ID {
			return spore.Errorf(spore.CodeBusy, "%s is under way on %s", rival.Operation, j.ResourceID).
				WithHint("wait for it: spore job watch %s", rival.ID)
		}
	}
	return spore.Errorf(spore.CodeConflict, "the id %s is taken", j.ID)
}

func (tx *Tx) Job(id string) (*spore.Job, error) {
	j, err := selectOne(tx, jobFields, "SELECT "+jobColumns+" FROM jobs WHERE id = ?", id)
	if err == nil && j == nil {
		return nil, unknown("job", id)
	}
	return j, err
}

func (tx *Tx) UpdateJob(j *spore.Job) error {
	return jobStates.apply(tx, j.ID, j.Status, assignments(jobColumns), jobFields(j))
}

func (tx *Tx) Jobs(f store.JobFilter) ([]*spore.Job, store.Page, error) {
	l := &listing{table: "jobs", columns: jobColumns}
	l.andOneOf("status", asAny(f.Statuses))
	l.andText("operation", string(f.Operation))
	l.andText("resource_id", f.ResourceID)
	l.andText("sandbox_id", f.SandboxID)
	return selectPage(tx, l, f.Paging, jobFields, func(j *spore.Job) (time.Time, string) { return j.CreatedAt, j.ID })
}

func (tx *Tx) ActiveJob(resourceID string) (*spore.Job, error) {
	return selectOne(tx, jobFields,
		"SELECT "+jobColumns+" FROM jobs WHERE resource_id = ? AND resource_id <> '' AND status IN ('PENDING', 'RUNNING')"+
			" AND operation NOT IN ('FORK', 'SNAPSHOT_ROLLBACK')", resourceID)
}

func (tx *Tx) Enqueue(jobID string, attempts int) error {
	if attempts < 1 {
		return spore.Invalidf("attempts", "%d is out of range", attempts).WithHint("at least 1")
	}
	place, err := tx.QueuePlace(jobID)
	if err != nil {
		return err
	}
	if err := tx.writable(); err != nil {
		return err
	}
	if place != 0 {
		waiting, err := tx.queue.Waiting(tx.ctx, place, jobID)
		if err != nil || waiting {
			return err
		}
	}
	if place, err = tx.queue.Enqueue(tx.ctx, jobID, attempts); err != nil {
		return err
	}
	_, err = tx.exec("UPDATE jobs SET queue_id = ? WHERE id = ?", place, jobID)
	return err
}

// QueuePlace is the id of the last place that a job was given in the queue, 0 when it never was.
func (tx *Tx) QueuePlace(jobID string) (int64, error) {
	var place int64
	found, err := tx.scalar(&place, "SELECT queue_id FROM jobs WHERE id = ?", jobID)
	if err == nil && !found {
		return 0, unknown("job", jobID)
	}
	return place, err
}
