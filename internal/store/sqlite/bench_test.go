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

// BenchmarkCreate is the durable record of a new sandbox: its row and its hold on the template, on the disk when Update returns.
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
						sandbox := &spore.Sandbox{
							ID: spore.NewSandboxID(), State: spore.SandboxCreating, TemplateID: template.ID, NodeID: "n1", Generation: 1,
							CreatedAt: time.Now(), UpdatedAt: time.Now(), EndsAt: time.Now().Add(time.Hour), OnEnd: spore.EndKill,
						}
						ref := &spore.RuntimeRef{
							TemplateID: template.ID, SandboxID: sandbox.ID, NodeID: "n1", Binding: spore.BindingMemoryBacking, SandboxGen: 1,
							Status: spore.RefReserved, AttachedAt: time.Now(),
						}
						err := s.Update(b.Context(), func(tx store.Tx) error {
							if err := tx.InsertSandbox(sandbox); err != nil {
								return err
							}
							return tx.PutRef(ref)
						})
						if err != nil {
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
				r.OriginSandbox = fmt.Sprintf("s%d", n%1000)
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
