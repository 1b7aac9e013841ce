package storetest

import (
	"errors"
	"fmt"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

func testJobs(t *testing.T, open Open) {
	t.Run("RoundTrip", func(t *testing.T) {
		s := fresh(t, open)
		full, bare := sampleJob(1), &spore.Job{ID: "job-2", Operation: spore.OpDelete, Status: spore.JobPending}
		update(t, s, func(tx store.Tx) error { return errors.Join(tx.InsertJob(full), tx.InsertJob(bare)) })
		wantJob(t, s, full)
		wantJob(t, s, bare)
		full.Status, full.Error, full.Result, full.CancelAsked = spore.JobRunning, nil, nil, false
		update(t, s, func(tx store.Tx) error { return tx.UpdateJob(full) })
		wantJob(t, s, full)
		wantCode(t, s.Update(t.Context(), func(tx store.Tx) error { return tx.InsertJob(bare) }), spore.CodeConflict)
	})

	t.Run("Unknown", func(t *testing.T) {
		s := fresh(t, open)
		view(t, s, func(tx store.Tx) error {
			_, err := tx.Job("job-none")
			wantReason(t, err, spore.CodeNotFound, spore.ReasonOperationNotFound)
			return nil
		})
		wantCode(t, s.Update(t.Context(), func(tx store.Tx) error { return tx.UpdateJob(sampleJob(1)) }), spore.CodeNotFound)
		wantCode(t, s.Update(t.Context(), func(tx store.Tx) error { return tx.Enqueue("job-none", 1) }), spore.CodeNotFound)
	})

	t.Run("OneActive", func(t *testing.T) {
		s := fresh(t, open)
		first, second := sampleJob(1), sampleJob(2)
		second.ResourceID = first.ResourceID
		active := func(want *spore.Job) {
			t.Helper()
			view(t, s, func(tx store.Tx) error {
				got, err := tx.ActiveJob(first.ResourceID)
				wantEqual(t, got, want)
				return err
			})
		}
		insert := func(j *spore.Job) error {
			return s.Update(t.Context(), func(tx store.Tx) error { return tx.InsertJob(j) })
		}
		active(nil)
		wantCode(t, insert(first), "")
		active(first)
		wantReason(t, insert(second), spore.CodeBusy, spore.ReasonInProgress)
		first.Status = spore.JobRunning
		update(t, s, func(tx store.Tx) error { return tx.UpdateJob(first) })
		active(first)
		wantCode(t, insert(second), spore.CodeBusy)
		first.Status = spore.JobReady
		update(t, s, func(tx store.Tx) error { return tx.UpdateJob(first) })
		active(nil)
		wantCode(t, insert(second), "")
		active(second)

		// What only reads the resource, or changes a replica of it, is nobody's rival either.
		for n, op := range []spore.Operation{spore.OpFork, spore.OpSnapshotRollback, spore.OpReplicate} {
			for copy := range 2 {
				j := sampleJob(20 + 2*n + copy)
				j.ResourceID, j.Operation = first.ResourceID, op
				wantCode(t, insert(j), "")
			}
		}
		active(second)

		for n := range 2 { // jobs without a resource are nobody's rivals
			j := sampleJob(10 + n)
			j.ResourceID = ""
			wantCode(t, insert(j), "")
		}
	})

	t.Run("Filters", func(t *testing.T) {
		s := fresh(t, open)
		rows := make([]*spore.Job, 4)
		for i := range rows {
			rows[i] = sampleJob(i)
		}
		rows[1].Status, rows[1].Operation = spore.JobRunning, spore.OpCommit
		rows[2].Status, rows[2].SandboxID = spore.JobFailed, "s-two"
		rows[3].NodeID, rows[3].Owner = "n-three", "c-three"
		update(t, s, func(tx store.Tx) error {
			var err error
			for _, row := range rows {
				err = errors.Join(err, tx.InsertJob(row))
			}
			return err
		})
		for _, c := range []struct {
			name string
			f    store.JobFilter
			want []int
		}{
			{"plain", store.JobFilter{}, []int{3, 2, 1, 0}},
			{"statuses", store.JobFilter{Statuses: []spore.JobStatus{spore.JobFailed, spore.JobRunning}}, []int{2, 1}},
			{"operation", store.JobFilter{Operation: spore.OpCommit}, []int{1}},
			{"resource", store.JobFilter{ResourceID: rows[3].ResourceID}, []int{3}},
			{"sandbox", store.JobFilter{SandboxID: "s-two"}, []int{2}},
			{"sandbox and statuses", store.JobFilter{SandboxID: "s1", Statuses: []spore.JobStatus{spore.JobPending, spore.JobFailed}}, []int{3, 0}},
			{"a status twice", store.JobFilter{Statuses: []spore.JobStatus{spore.JobFailed, spore.JobFailed}}, []int{2}},
			{"statuses and operation", store.JobFilter{Statuses: []spore.JobStatus{spore.JobPending, spore.JobRunning}, Operation: spore.OpCommit}, []int{1}},
			{"node", store.JobFilter{NodeID: "n-three"}, []int{3}},
			{"owner", store.JobFilter{Owner: "c-three"}, []int{3}},
			{"owner of none", store.JobFilter{Owner: "c-none"}, nil},
		} {
			var got []int
			view(t, s, func(tx store.Tx) error {
				list, _, err := tx.Jobs(c.f)
				for _, row := range list {
					for i := range rows {
						if rows[i].ID == row.ID {
							got = append(got, i)
						}
					}
				}
				return err
			})
			t.Run(c.name, func(t *testing.T) { wantEqual(t, got, c.want) })
		}
	})
}

func wantJob(t *testing.T, s store.Store, want *spore.Job) {
	t.Helper()
	view(t, s, func(tx store.Tx) error {
		got, err := tx.Job(want.ID)
		if err == nil {
			wantEqual(t, got, want)
		}
		return err
	})
}

func testJobLog(t *testing.T, open Open) {
	s := fresh(t, open)
	job, other := sampleJob(1), sampleJob(2)
	var want []spore.LogLine
	update(t, s, func(tx store.Tx) error { return errors.Join(tx.InsertJob(job), tx.InsertJob(other)) })
	for n := range 5 {
		line := spore.LogLine{Seq: 99, Time: at(n), Level: "info", Message: fmt.Sprintf("line %d\nof it", n)} // Seq is the store's to give
		update(t, s, func(tx store.Tx) error {
			return errors.Join(tx.AppendJobLog(job.ID, line), tx.AppendJobLog(other.ID, line))
		})
		line.Seq = int64(n + 1)
		want = append(want, line)
	}
	babble := spore.LogLine{Time: at(5), Level: "error", Message: "a\x00b\xff\xfec"}
	update(t, s, func(tx store.Tx) error { return tx.AppendJobLog(job.ID, babble) })
	babble.Seq, babble.Message = 6, "a\uFFFDb\uFFFDc"
	want = append(want, babble)
	for _, c := range []struct {
		after int64
		limit int
		want  []spore.LogLine
	}{{0, 0, want}, {0, 2, want[:2]}, {2, 2, want[2:4]}, {4, 10, want[4:]}, {6, 10, []spore.LogLine{}}} {
		view(t, s, func(tx store.Tx) error {
			got, err := tx.JobLog(job.ID, c.after, c.limit)
			wantEqual(t, got, c.want)
			return err
		})
	}
	view(t, s, func(tx store.Tx) error {
		_, err := tx.JobLog("job-none", 0, 0)
		wantCode(t, err, spore.CodeNotFound)
		return nil
	})
	wantCode(t, s.Update(t.Context(), func(tx store.Tx) error { return tx.AppendJobLog("job-none", want[0]) }), spore.CodeNotFound)
}
