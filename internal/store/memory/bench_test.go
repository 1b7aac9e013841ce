package memory_test

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/memory"
)

// What a create and a kill cost, in a database that holds some sandboxes: three transactions, the last of them a purge.
func BenchmarkCreateAndKill(b *testing.B) {
	for _, there := range []int{10, 100, 1000} {
		b.Run(fmt.Sprint(there), func(b *testing.B) {
			s := memory.New().Open(memory.Options{Logger: slog.New(slog.DiscardHandler)})
			n := 0
			do := func(fn func(tx store.Tx) error) {
				if err := s.Update(b.Context(), fn); err != nil {
					b.Fatal(err)
				}
			}
			create := func() (*spore.Sandbox, *spore.RuntimeRef) {
				n++
				at := moment.Add(time.Duration(n))
				sandbox := &spore.Sandbox{ID: fmt.Sprintf("s%019d", n), State: spore.SandboxCreating, TemplateID: "tpl-a", CreatedAt: at, UpdatedAt: at}
				ref := &spore.RuntimeRef{TemplateID: "tpl-a", SandboxID: sandbox.ID, SandboxGen: 1, Status: spore.RefReserved}
				do(func(tx store.Tx) error {
					if _, err := tx.Template("tpl-a"); err != nil {
						return err
					}
					return errors.Join(tx.InsertSandbox(sandbox), tx.PutRef(ref))
				})
				return sandbox, ref
			}
			do(func(tx store.Tx) error {
				return tx.InsertTemplate(&spore.Template{ID: "tpl-a", Kind: spore.KindTemplate, Status: spore.TemplateReady, Labels: map[string]string{"a": "b"}})
			})
			for range there {
				create()
			}
			b.ReportAllocs()
			for b.Loop() {
				sandbox, ref := create()
				do(func(tx store.Tx) error {
					sandbox.State, ref.Status = spore.SandboxKilled, spore.RefReleased
					return errors.Join(tx.UpdateSandbox(sandbox), tx.PutRef(ref))
				})
				do(func(tx store.Tx) error {
					_, err := tx.PurgeSandboxes(moment.Add(time.Hour))
					return err
				})
			}
		})
	}
}

func BenchmarkUpdate(b *testing.B) {
	s := memory.New().Open(memory.Options{Logger: slog.New(slog.DiscardHandler)})
	err := s.Update(b.Context(), func(tx store.Tx) error {
		return tx.InsertJob(&spore.Job{ID: "job-a", Operation: spore.OpCreate, Status: spore.JobRunning, ResourceID: "tpl-a"})
	})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		err := s.Update(b.Context(), func(tx store.Tx) error {
			j, err := tx.Job("job-a")
			if err != nil {
				return err
			}
			j.Progress = (j.Progress + 1) % 100
			return tx.UpdateJob(j)
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}
