package sqlite_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/sqlite"
)

func TestSmoke(t *testing.T) {
	ctx := t.Context()
	s, err := sqlite.Open(ctx, filepath.Join(t.TempDir(), "a?b %41.db"), sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ran := make(chan string, 1)
	if err := s.Work(ctx, 2, func(ctx context.Context, id string, attempt int, last bool) error { ran <- id; return nil }); err != nil {
		t.Fatal(err)
	}
	id := spore.NewJobID()
	start := time.Now()
	err = s.Update(ctx, func(tx store.Tx) error {
		if err := tx.InsertTemplate(&spore.Template{ID: "tpl-1", Name: "a", Kind: spore.KindTemplate, Status: spore.TemplatePending, CreatedAt: time.Now()}); err != nil {
			return err
		}
		if err := tx.InsertSandbox(&spore.Sandbox{ID: "s1", TemplateID: "tpl-1", State: spore.SandboxCreating}); err != nil {
			return err
		}
		if err := tx.PutRef(&spore.RuntimeRef{TemplateID: "tpl-1", SandboxID: "s1", Status: spore.RefReserved}); err != nil {
			return err
		}
		if err := tx.InsertJob(&spore.Job{ID: id, Operation: spore.OpCreate, ResourceID: "tpl-1", Status: spore.JobPending}); err != nil {
			return err
		}
		return tx.Enqueue(id, 3)
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := <-ran; got != id {
		t.Fatal(got)
	}
	t.Log(time.Since(start))
	if err := s.Stop(ctx); err != nil {
		t.Fatal(err)
	}
}
