package storetest

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// paged is one kind of row, and ways of listing it.
type paged struct {
	name   string
	insert func(tx store.Tx, n int) error // row n, of which there is one only
	lists  map[string]list
}

type list func(tx store.Tx, p store.Paging) (keys []string, page store.Page, err error)

func keysOf[T any](list []*T, key func(*T) string) []string {
	var keys []string
	for _, row := range list {
		keys = append(keys, key(row))
	}
	return keys
}

// Every list, whatever it is filtered by, goes through all the rows that were there at the beginning, each of them once,
// while others are inserted before, among and after them.
func testPages(t *testing.T, open Open) {
	templates := func(f store.TemplateFilter) list {
		return func(tx store.Tx, p store.Paging) ([]string, store.Page, error) {
			f.Paging = p
			list, page, err := tx.Templates(f)
			return keysOf(list, func(r *spore.Template) string { return r.ID }), page, err
		}
	}
	insertTemplate := func(tx store.Tx, n int) error {
		row := sampleTemplate(n)
		row.Labels = map[string]string{"all": "yes", "n": fmt.Sprint(n)}
		row.CreatedAt = at(n / 3) // several rows share a time
		return tx.InsertTemplate(row)
	}
	sandboxes := func(f store.SandboxFilter) list {
		return func(tx store.Tx, p store.Paging) ([]string, store.Page, error) {
			f.Paging = p
			list, page, err := tx.Sandboxes(f)
			return keysOf(list, func(r *spore.Sandbox) string { return r.ID }), page, err
		}
	}
	insertSandbox := func(tx store.Tx, n int) error {
		row := sampleSandbox(n, sampleTemplate(1<<20).ID)
		row.CreatedAt = at(n / 3)
		row.State = []spore.SandboxState{spore.SandboxRunning, spore.SandboxPaused, spore.SandboxFailed}[n%3]
		return tx.InsertSandbox(row)
	}
	jobs := func(f store.JobFilter) list {
		return func(tx store.Tx, p store.Paging) ([]string, store.Page, error) {
			f.Paging = p
			list, page, err := tx.Jobs(f)
			return keysOf(list, func(r *spore.Job) string { return r.ID }), page, err
		}
	}
	insertJob := func(tx store.Tx, n int) error {
		row := sampleJob(n)
		row.CreatedAt = at(n / 3)
		row.Status = []spore.JobStatus{spore.JobPending, spore.JobRunning, spore.JobFailed}[n%3]
		return tx.InsertJob(row)
	}
	artifacts := func(f store.ArtifactFilter) list {
		return func(tx store.Tx, p store.Paging) ([]string, store.Page, error) {
			f.Paging = p
			list, page, err := tx.Artifacts(f)
			return keysOf(list, func(r *spore.Artifact) string { return r.ID }), page, err
		}
	}
	insertArtifact := func(tx store.Tx, n int) error {
		row := sampleArtifact(n)
		row.CreatedAt = at(n / 3)
		row.Status = []spore.ArtifactStatus{spore.ArtifactReady, spore.ArtifactOrphaned}[n%2]
		return tx.PutArtifact(row)
	}
	replicas := func(f store.ReplicaFilter) list {
		return func(tx store.Tx, p store.Paging) ([]string, store.Page, error) {
			f.Paging = p
			list, page, err := tx.ReplicaPage(f)
			return keysOf(list, func(r *spore.Replica) string { return r.TemplateID + " " + r.NodeID }), page, err
		}
	}
	insertReplica := func(tx store.Tx, n int) error {
		return tx.PutReplica(sampleReplica(sampleTemplate(1<<20).ID, fmt.Sprintf("Node.%d:7", n)))
	}
	aliases := func(f store.AliasFilter) list {
		return func(tx store.Tx, p store.Paging) ([]string, store.Page, error) {
			f.Paging = p
			list, page, err := tx.Aliases(f)
			return keysOf(list, func(r *spore.Alias) string { return r.Label() }), page, err
		}
	}
	insertAlias := func(tx store.Tx, n int) error {
		return tx.PutAlias(spore.Alias{Name: "al", Tag: fmt.Sprintf("%d.x_Y-z", n), TemplateID: sampleTemplate(1 << 20).ID})
	}
	for _, kind := range []paged{
		{"Templates", insertTemplate, map[string]list{
			"all":                templates(store.TemplateFilter{}),
			"by label":           templates(store.TemplateFilter{Labels: map[string]string{"all": "yes"}}),
			"by display name":    templates(store.TemplateFilter{Name: sampleTemplate(0).DisplayName}),
			"by status":          templates(store.TemplateFilter{Status: spore.TemplatePending}),
			"by kind and status": templates(store.TemplateFilter{Kind: spore.KindTemplate, Status: spore.TemplatePending, Deleted: true}),
			"by origin":          templates(store.TemplateFilter{OriginSandbox: "s0"}),
			"by artifact":        templates(store.TemplateFilter{ArtifactID: "rfs-1"}),
			"before a time":      templates(store.TemplateFilter{CreatedBefore: at(4)}),
		}},
		{"Sandboxes", insertSandbox, map[string]list{
			"all":        sandboxes(store.SandboxFilter{}),
			"killed too": sandboxes(store.SandboxFilter{Killed: true}),
			"by state":   sandboxes(store.SandboxFilter{States: []spore.SandboxState{spore.SandboxPaused}}),
			"by states":  sandboxes(store.SandboxFilter{States: []spore.SandboxState{spore.SandboxPaused, spore.SandboxRunning}}),
			"by label":   sandboxes(store.SandboxFilter{Labels: map[string]string{"a": "b"}}),
			"by node":    sandboxes(store.SandboxFilter{NodeID: "n1"}),
			"that end":   sandboxes(store.SandboxFilter{EndsBefore: at(1000)}),
		}},
		{"Jobs", insertJob, map[string]list{
			"all":          jobs(store.JobFilter{}),
			"by statuses":  jobs(store.JobFilter{Statuses: []spore.JobStatus{spore.JobFailed, spore.JobPending}}),
			"by operation": jobs(store.JobFilter{Operation: spore.OpCreate}),
			"by owner":     jobs(store.JobFilter{Owner: "c1"}),
		}},
		{"Artifacts", insertArtifact, map[string]list{
			"all":         artifacts(store.ArtifactFilter{}),
			"by statuses": artifacts(store.ArtifactFilter{Statuses: []spore.ArtifactStatus{spore.ArtifactReady, spore.ArtifactOrphaned}}),
		}},
		{"Replicas", insertReplica, map[string]list{
			"all":      replicas(store.ReplicaFilter{}),
			"by phase": replicas(store.ReplicaFilter{Phase: spore.ReplicaPending}),
		}},
		{"Aliases", insertAlias, map[string]list{
			"all":         aliases(store.AliasFilter{}),
			"by template": aliases(store.AliasFilter{TemplateID: sampleTemplate(1 << 20).ID}),
		}},
	} {
		t.Run(kind.name, func(t *testing.T) { walk(t, fresh(t, open), kind) })
	}
}

// walk goes through all lists of a kind side by side.
func walk(t *testing.T, s store.Store, kind paged) {
	support := sampleTemplate(1 << 20) // what other rows refer to; found by no list
	support.Ephemeral = true
	const there, limit = 17, 3
	update(t, s, func(tx store.Tx) error {
		err := tx.InsertTemplate(support)
		for n := range there {
			err = errors.Join(err, kind.insert(tx, 2*n)) // every other one: the rest comes later, in between
		}
		return err
	})
	walks := make(map[string]*through)
	for name, list := range kind.lists {
		w := &through{list: list, seen: map[string]int{}}
		w.all, w.page = w.read(t, s, store.Paging{Limit: there})
		if len(w.all) == 0 || w.page.Next != "" {
			t.Fatalf("%s: %d rows on the one page, more: %q", name, len(w.all), w.page.Next)
		}
		walks[name] = w
	}
	for n := 0; ; n++ {
		open := 0
		for name, w := range walks {
			if w.next(t, s, limit) {
				open++
				continue
			}
			delete(walks, name)
			if diff := cmp.Diff(w.all, w.order); diff != "" {
				t.Errorf("%s: differs (-on one page +on several):\n%s", name, diff)
			}
			for key, times := range w.seen {
				if times != 1 {
					t.Errorf("%s: %s came %d times", name, key, times)
				}
			}
		}
		if open == 0 {
			return
		}
		if n < there {
			update(t, s, func(tx store.Tx) error { return kind.insert(tx, 2*n+1) })
		}
	}
}

// through is the way through one list.
type through struct {
	list  list
	all   []string // the rows that were there at the beginning, as one page had them
	order []string // those of them that came so far
	seen  map[string]int
	page  store.Page
}

func (w *through) read(t *testing.T, s store.Store, p store.Paging) (keys []string, next store.Page) {
	t.Helper()
	view(t, s, func(tx store.Tx) (err error) {
		keys, next, err = w.list(tx, p)
		return err
	})
	return keys, next
}

// next reads a page and says whether there are more.
func (w *through) next(t *testing.T, s store.Store, limit int) bool {
	t.Helper()
	var keys []string
	keys, w.page = w.read(t, s, store.Paging{Limit: limit, After: w.page.Next})
	for _, key := range keys {
		w.seen[key]++
		if slices.Contains(w.all, key) {
			w.order = append(w.order, key)
		}
	}
	if w.page.Next != "" {
		wantEqual(t, len(keys), limit)
	}
	return w.page.Next != ""
}
