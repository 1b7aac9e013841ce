package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/pgtest"
)

// BenchmarkCreate is the durable record of a new sandbox: its row and its hold on the template, on the disk when Update returns.
func BenchmarkCreate(b *testing.B) {
	cluster := pgtest.New(b, pgtest.Options{Durable: true})
	for _, callers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			s := open(b, cluster.Database(b))
			defer closed(b, s)
			template := row(0)
			update(b, s, func(tx store.Tx) error { return tx.InsertTemplate(template) })
			var next atomic.Int64
			var all sync.WaitGroup
			b.ResetTimer()
			for range callers {
				all.Go(func() {
					for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
						sandbox := &spore.Sandbox{
							ID: spore.NewSandboxID(), State: spore.SandboxCreating, TemplateID: template.ID, NodeID: "n1", Generation: 1,
							CreatedAt: time.Now(), UpdatedAt: time.Now(), EndsAt: time.Now().Add(time.Hour), OnEnd: spore.EndKill,
						}
						ref := &spore.RuntimeRef{
							TemplateID: template.ID, SandboxID: sandbox.ID, NodeID: "n1", Binding: spore.BindingMemoryBacking, SandboxGen: 1,
							Status: spore.RefReserved, AttachedAt: time.Now(),
						}
						err := s.Update(b.Context(), func(tx store.Tx) error { return errors.Join(tx.InsertSandbox(sandbox), tx.PutRef(ref)) })
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			all.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
		})
	}
}

// BenchmarkPage reads one page of a list of 100,000 snapshots.
func BenchmarkPage(b *testing.B) {
	url := pgtest.Start(b)
	s := open(b, url)
	defer closed(b, s)
	const rows = 100_000
	for from := 0; from < rows; from += 1000 {
		update(b, s, func(tx store.Tx) error {
			for n := from; n < from+1000; n++ {
				r := row(n)
				r.Kind, r.Labels, r.Name = spore.KindSnapshot, map[string]string{"team": fmt.Sprint(n % 100), "n": fmt.Sprint(n)}, fmt.Sprintf("name-%d", n)
				r.OriginSandbox = fmt.Sprintf("s%d", n%1000)
				if err := tx.InsertTemplate(r); err != nil {
					return err
				}
			}
			return nil
		})
	}
	execute(b, url, "ANALYZE spore.templates, spore.template_labels") // as the database does by itself, in time
	var middle store.Page
	f := store.TemplateFilter{Paging: store.Paging{Limit: 1000}}
	for range 50 {
		view(b, s, func(tx store.Tx) (err error) { _, middle, err = tx.Templates(f); return err })
		f.After = middle.Next
	}
	for name, f := range map[string]store.TemplateFilter{
		"first":            {Kind: spore.KindSnapshot},
		"middle":           {Kind: spore.KindSnapshot, Paging: store.Paging{After: middle.Next}},
		"status":           {Status: spore.TemplateReady},
		"name":             {Name: "name-77"},
		"origin":           {OriginSandbox: "s7"},
		"label":            {Labels: map[string]string{"team": "7"}},
		"label of one":     {Labels: map[string]string{"n": "7"}},
		"two labels":       {Labels: map[string]string{"n": "7", "team": "7"}},
		"label of none":    {Labels: map[string]string{"n": "none"}},
		"kind with none":   {Kind: spore.KindTemplate},
		"status with none": {Status: spore.TemplateFailed},
		"ephemeral only":   {EphemeralOnly: true},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				view(b, s, func(tx store.Tx) error { _, _, err := tx.Templates(f); return err })
			}
		})
	}
}

// BenchmarkPickUp is the time from the enqueueing of a job to its run.
func BenchmarkPickUp(b *testing.B) {
	s := openAs(b, pgtest.Start(b), "c")
	defer closed(b, s)
	update(b, s, func(tx store.Tx) error { return beat(tx, "c") })
	ran := make(chan struct{})
	err := s.Work(b.Context(), 1, func(context.Context, string, int, bool) error { ran <- struct{}{}; return nil })
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		enqueue(b, s, 1)
		<-ran
	}
}
