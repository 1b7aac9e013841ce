package memory

import (
	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

var jobs = layout[spore.Job]{
	key: func(j *spore.Job) key { return key{a: j.ID} },
	indexes: []index[spore.Job]{
		jobPage:     func(j *spore.Job) (key, bool) { return jobAt(j), true },
		jobActive:   func(j *spore.Job) (key, bool) { return jobAt(j), j.Status.Active() },
		jobResource: func(j *spore.Job) (key, bool) { return key{j.ResourceID, nanos(j.CreatedAt), j.ID}, j.ResourceID != "" },
		jobSandbox:  func(j *spore.Job) (key, bool) { return key{j.SandboxID, nanos(j.CreatedAt), j.ID}, j.SandboxID != "" },
		jobChanging: func(j *spore.Job) (key, bool) { return key{a: j.ResourceID}, changes(j) },
	},
}

const (
	jobPage = iota
	jobActive
	jobResource
	jobSandbox
	jobChanging // one for each resource
)

func jobAt(j *spore.Job) key { return key{n: nanos(j.CreatedAt), b: j.ID} }

// changes says whether a job has its resource for itself.
func changes(j *spore.Job) bool {
	return j.Status.Active() && j.ResourceID != "" && !known(j.Operation, spore.OpFork, spore.OpSnapshotRollback, spore.OpReplicate)
}

func checkJob(j *spore.Job) error {
	switch {
	case j.ID == "":
		return broken("job", j.ID, "it has no id")
	case !known(j.Operation, spore.OpCreate, spore.OpRedo, spore.OpCommit, spore.OpLegacy, spore.OpDelete, spore.OpReplicate,
		spore.OpSnapshotCreate, spore.OpSnapshotRollback, spore.OpSnapshotDelete, spore.OpFork, spore.OpFlatten):
		return broken("job", j.ID, "there is no such operation")
	case !known(j.ResourceType, "", spore.KindTemplate, spore.KindSnapshot):
		return broken("job", j.ID, "there is no such kind of resource")
	case j.Progress < 0 || j.Progress > 100:
		return broken("job", j.ID, "its progress is out of range")
	}
	return birth(spore.JobTransitions, "job", j.ID, j.Status)
}

func (tx *tx) job(id string) *spore.Job { return tx.state.jobs.rows.get(key{a: id}) }

// rivalOf is an error when another job has the resource of j for itself, and j wants it too.
func (tx *tx) rivalOf(j *spore.Job) error {
	if !changes(j) {
		return nil
	}
	rival := tx.state.jobs.indexes[jobChanging].get(key{a: j.ResourceID})
	if rival == nil || rival.ID == j.ID {
		return nil
	}
	return spore.Errorf(spore.CodeBusy, "%s is under way on %s", rival.Operation, j.ResourceID).
		WithHint("wait for it: spore job watch %s", rival.ID).Because(spore.ReasonInProgress)
}

func (tx *tx) InsertJob(j *spore.Job) error {
	if err := tx.writable(); err != nil {
		return err
	}
	if err := checkJob(j); err != nil {
		return err
	}
	if err := tx.rivalOf(j); err != nil {
		return err
	}
	if tx.job(j.ID) != nil {
		return spore.Errorf(spore.CodeConflict, "the id %s is taken", j.ID)
	}
	jobs.put(&tx.state.jobs, tx.edit, keepJob(j))
	return nil
}

func (tx *tx) Job(id string) (*spore.Job, error) {
	if err := tx.readable(); err != nil {
		return nil, err
	}
	j := tx.job(id)
	if j == nil {
		return nil, unknown("job", id)
	}
	return copyJob(j), nil
}

func (tx *tx) UpdateJob(j *spore.Job) error {
	if err := tx.writable(); err != nil {
		return err
	}
	var from *spore.JobStatus
	if old := tx.job(j.ID); old != nil {
		from = &old.Status
	}
	if err := transition(spore.JobTransitions, "job", j.ID, from, j.Status); err != nil {
		return err
	}
	if err := checkJob(j); err != nil {
		return err
	}
	if err := tx.rivalOf(j); err != nil {
		return err
	}
	jobs.put(&tx.state.jobs, tx.edit, keepJob(j))
	return nil
}

func (tx *tx) Jobs(f store.JobFilter) ([]*spore.Job, store.Page, error) {
	if err := tx.readable(); err != nil {
		return nil, store.Page{}, err
	}
	all := &tx.state.jobs
	l := &listing[spore.Job]{list: "jobs", newest: true, at: jobAt}
	switch {
	case f.ResourceID != "":
		l.inGroup(all.indexes[jobResource], f.ResourceID)
	case f.SandboxID != "":
		l.inGroup(all.indexes[jobSandbox], f.SandboxID)
	case len(f.Statuses) > 0 && !oneOf(f.Statuses, spore.JobReady) && !oneOf(f.Statuses, spore.JobFailed) && !oneOf(f.Statuses, spore.JobCancelled):
		l.inGroup(all.indexes[jobActive], "")
	default:
		l.inGroup(all.indexes[jobPage], "")
	}
	l.matches = func(j *spore.Job) bool {
		return oneOf(f.Statuses, j.Status) && fits(f.Operation, j.Operation) && fits(f.ResourceID, j.ResourceID) &&
			fits(f.SandboxID, j.SandboxID) && fits(f.NodeID, j.NodeID) && fits(f.Owner, j.Owner)
	}
	return l.page(f.Paging, copyJob)
}

func (tx *tx) ActiveJob(resourceID string) (*spore.Job, error) {
	if err := tx.readable(); err != nil {
		return nil, err
	}
	j := tx.state.jobs.indexes[jobChanging].get(key{a: resourceID})
	if j == nil {
		return nil, nil
	}
	return copyJob(j), nil
}

const maxLogLines = 1000

func (tx *tx) AppendJobLog(jobID string, line spore.LogLine) error {
	if err := tx.writable(); err != nil {
		return err
	}
	if !known(line.Level, "info", "warn", "error") {
		return broken("log line of job", jobID, "there is no such level")
	}
	if tx.job(jobID) == nil {
		return unknown("job", jobID)
	}
	line.Seq = 1
	for last := range tx.state.logs.down(group(jobID)) {
		line.Seq = last.Seq + 1
		break
	}
	keepText(&line.Message)
	keepTimes(&line.Time)
	tx.state.logs.put(tx.edit, key{a: jobID, n: line.Seq}, &line)
	return nil
}

func (tx *tx) JobLog(jobID string, after int64, limit int) ([]spore.LogLine, error) {
	if err := tx.readable(); err != nil {
		return nil, err
	}
	if tx.job(jobID) == nil {
		return nil, unknown("job", jobID)
	}
	if limit <= 0 || limit > maxLogLines {
		limit = maxLogLines
	}
	span := group(jobID)
	if after > 0 {
		span.from = key{a: jobID, n: after}.after()
	}
	lines := []spore.LogLine{}
	for line := range tx.state.logs.up(span) {
		if len(lines) == limit {
			break
		}
		lines = append(lines, *line)
	}
	return lines, nil
}
