package sqlite_test

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// BenchmarkCreate is the durable record of a sandbox that is created: what it stands on and the key that it was asked for under,
// on the disk before it is started, and that it runs, after.
func BenchmarkCreate(b *testing.B) {
	for _, callers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			s := open(b, filepath.Join(b.TempDir(), "spore.db"))
			defer s.Close()
			template := row(0)
			if err := s.Update(b.Context(), func(tx store.Tx) error { return tx.InsertTemplate(template) }); err != nil {
				b.Fatal(err)
			}
			var next atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			for range callers {
				wg.Go(func() {
					for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
						if err := create(b.Context(), s, template.ID); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
		})
	}
}

func create(ctx context.Context, s store.Store, template string) error {
	now := time.Now()
	sandbox := &spore.Sandbox{
		ID: spore.NewSandboxID(), State: spore.SandboxCreating, TemplateID: template, NodeID: "n1", Generation: 1,
		CreatedAt: now, UpdatedAt: now, EndsAt: now.Add(time.Hour), OnEnd: spore.EndKill,
	}
	ref := &spore.RuntimeRef{
		TemplateID: template, SandboxID: sandbox.ID, NodeID: "n1", Binding: spore.BindingMemoryBacking, SandboxGen: 1,
		Status: spore.RefReserved, AttachedAt: now, LeaseUntil: now.Add(time.Minute),
	}
	err := s.Update(ctx, func(tx store.Tx) error {
		if _, err := tx.FindTemplate(template); err != nil {
			return err
		}
		if err := tx.InsertSandbox(sandbox); err != nil {
			return err
		}
		if err := tx.PutRef(ref); err != nil {
			return err
		}
		return tx.PutReplay(store.Replay{Caller: "me", Key: sandbox.ID, Digest: "00ff", ResourceID: sandbox.ID, CreatedAt: now})
	})
	if err != nil {
		return err
	}
	sandbox.State, ref.Status, ref.LastSeenAt = spore.SandboxRunning, spore.RefActive, now
	return s.Update(ctx, func(tx store.Tx) error {
		if err := tx.UpdateSandbox(sandbox); err != nil {
			return err
		}
		return tx.PutRef(ref)
	})
}

// BenchmarkPage reads one page of a list of 100,000 snapshots.
func BenchmarkPage(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "spore.db"))
	defer s.Close()
	const rows = 100_000
	for from := 0; from < rows; from += 1000 {
		err := s.Update(b.Context(), func(tx store.Tx) error {
			for n := from; n < from+1000; n++ {
				r := row(n)
				r.Kind, r.LastError, r.Labels = spore.KindSnapshot, "", map[string]string{"team": fmt.Sprint(n % 100), "n": fmt.Sprint(n)}
				r.OriginSandbox, r.DisplayName = fmt.Sprintf("s%d", n%1000), "nightly"
				r.Labels["all"] = "yes"
				if err := tx.InsertTemplate(r); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	var middle store.Page
	f := store.TemplateFilter{Paging: store.Paging{Limit: 1000}}
	for range 50 {
		err := s.View(b.Context(), func(tx store.Tx) (err error) { _, middle, err = tx.Templates(f); return err })
		if err != nil {
			b.Fatal(err)
		}
		f.After = middle.Next
	}
	for name, f := range map[string]store.TemplateFilter{
		"first":            {Kind: spore.KindSnapshot},
		"middle":           {Kind: spore.KindSnapshot, Paging: store.Paging{After: middle.Next}},
		"status":           {Status: spore.TemplateReady},
		"origin":           {OriginSandbox: "s7"},
		"label":            {Labels: map[string]string{"team": "7"}},
		"label of one":     {Labels: map[string]string{"n": "7"}},
		"label of all":     {Labels: map[string]string{"all": "yes"}},
		"label of none":    {Labels: map[string]string{"all": "no"}},
		"name":             {Name: "name-77"},
		"display name":     {Name: "nightly"},
		"name of none":     {Name: "none"},
		"artifact":         {ArtifactID: "rfs-none"},
		"kind and status":  {Kind: spore.KindSnapshot, Status: spore.TemplateFailed},
		"before":           {CreatedBefore: time.Unix(rows/2, 0)},
		"deleted too":      {Deleted: true, Ephemeral: true},
		"kind with none":   {Kind: spore.KindTemplate},
		"status with none": {Status: spore.TemplateFailed},
		"ephemeral only":   {EphemeralOnly: true},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				err := s.View(b.Context(), func(tx store.Tx) error { _, _, err := tx.Templates(f); return err })
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkPickUp is the time from the enqueueing of a job to its run.
func BenchmarkPickUp(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "spore.db"))
	defer s.Close()
	ran := make(chan struct{})
	err := s.Work(b.Context(), 1, func(context.Context, string, int, bool) error { ran <- struct{}{}; return nil })
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		j := &spore.Job{ID: spore.NewJobID(), Operation: spore.OpCreate, Status: spore.JobPending}
		err := s.Update(b.Context(), func(tx store.Tx) error {
			if err := tx.InsertJob(j); err != nil {
				return err
			}
			return tx.Enqueue(j.ID, 1)
		})
		if err != nil {
			b.Fatal(err)
		}
		<-ran
	}
}
