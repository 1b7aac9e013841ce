package rows

import (
	"errors"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

var jobStates = transition[spore.JobStatus]{
	table: "jobs", key: "id", column: "status", noun: "job", machine: spore.JobTransitions,
	fixed: "id, operation, resource_type, resource_id, sandbox_id, request_id, node_id, artifact_id, owner, created_at",
	changing: `status, redo, nodes_expected, nodes_ready, nodes_failed, phase, progress, pull, attempt_no, retry_of_job_id,
		error, request, result, cancel_asked, started_at, finished_at`,
}.prepared()

var (
	jobColumns = jobStates.columns()
	insertJob  = insertion("jobs", jobColumns)
	selectJob  = "SELECT " + jobColumns + " FROM jobs WHERE id = ?"
)

// The documents that jobs keep as JSON; their keys must not change once they are written.
type (
	// pullDocument is the progress of a pull.
	pullDocument struct {
		BytesTotal     int64 `json:"bytesTotal,omitempty"`
		BytesDone      int64 `json:"bytesDone,omitempty"`
		LayersTotal    int   `json:"layersTotal,omitempty"`
		LayersDone     int   `json:"layersDone,omitempty"`
		BytesPerSecond int64 `json:"bytesPerSecond,omitempty"`
	}
	redoDocument struct {
		Mode        spore.RedoMode `json:"mode,omitempty"`
		Scope       []string       `json:"scope,omitempty"`
		ResumePhase spore.JobPhase `json:"resumePhase,omitempty"`
	}
)

func jobFields(j *spore.Job) []any {
	return []any{
		&j.ID, &j.Operation, &j.ResourceType, &j.ResourceID, &j.SandboxID, asText(&j.RequestID), &j.NodeID, &j.ArtifactID, &j.Owner, asTime(&j.CreatedAt),
		&j.Status, asJSON((*redoDocument)(&j.Redo)), &j.Nodes.Expected, &j.Nodes.Ready, &j.Nodes.Failed,
		&j.Phase, &j.Progress, asJSON((*pullDocument)(&j.Pull)), &j.AttemptNo, &j.RetryOfJobID,
		asJSON(&j.Error), &j.Request, &j.Result, asFlag(&j.CancelAsked), asTime(&j.StartedAt), asTime(&j.FinishedAt),
	}
}

func (tx *Tx) InsertJob(j *spore.Job) error {
	affected, err := tx.exec(insertJob, jobFields(j)...)
	if err != nil || affected > 0 {
		return err
	}
	if err := tx.rival(j); err != nil {
		return err
	}
	return spore.Errorf(spore.CodeConflict, "the id %s is taken", j.ID)
}

// rival is an error when another job is active where j would be.
func (tx *Tx) rival(j *spore.Job) error {
	switch j.Operation {
	case spore.OpFork, spore.OpSnapshotRollback, spore.OpReplicate: // nobody's rivals
		return nil
	}
	if !j.Status.Active() {
		return nil
	}
	rival, err := tx.ActiveJob(j.ResourceID)
	if err != nil || rival == nil || rival.ID == j.ID {
		return err
	}
	return spore.Errorf(spore.CodeBusy, "%s is under way on %s", rival.Operation, j.ResourceID).
		WithHint("wait for it: spore job watch %s", rival.ID).Because(spore.ReasonInProgress)
}

func (tx *Tx) Job(id string) (*spore.Job, error) {
	j, err := selectOne(tx, jobFields, selectJob, id)
	if err == nil && j == nil {
		return nil, unknown("job", id)
	}
	return j, err
}

func (tx *Tx) UpdateJob(j *spore.Job) error {
	_, err := jobStates.write(tx, j.Status, jobFields(j), j.ID)
	if errors.Is(err, ErrUnique) {
		return spore.Errorf(spore.CodeBusy, "another job is under way on %s", j.ResourceID).
			WithHint("wait for it: spore job list").Because(spore.ReasonInProgress)
	}
	return err
}

func (tx *Tx) Jobs(f store.JobFilter) ([]*spore.Job, store.Page, error) {
	l := newest("jobs", jobColumns)
	l.andText("resource_id", f.ResourceID)
	l.andText("sandbox_id", f.SandboxID)
	l.andText("node_id", f.NodeID)
	l.andText("owner", f.Owner)
	switch {
	case len(f.Statuses) > 0 && len(l.where) > 0: // few enough already
		l.andOneOf("status", asAny(f.Statuses))
	case len(f.Statuses) > 0:
		l.eitherOf("status", asAny(f.Statuses))
	}
	l.andText("operation", string(f.Operation))
	return selectPage(tx, l, f.Paging, jobFields, func(j *spore.Job) []any { return []any{nanos(j.CreatedAt), j.ID} })
}

// The words of the index jobs_active, which lets there be one at most.
const selectActiveJob = " FROM jobs WHERE resource_id = ? AND resource_id <> '' AND status IN ('PENDING', 'RUNNING')" +
	" AND operation NOT IN ('FORK', 'SNAPSHOT_ROLLBACK', 'REPLICATE')"

func (tx *Tx) ActiveJob(resourceID string) (*spore.Job, error) {
	return selectOne(tx, jobFields, "SELECT "+jobColumns+selectActiveJob, resourceID)
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
