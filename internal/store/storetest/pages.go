package storetest

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// paged is one way of listing one kind of row.
type paged struct {
	name   string
	insert func(tx store.Tx, n int) error // row n, of which there is one only
	list   func(tx store.Tx, p store.Paging) (keys []string, page store.Page, err error)
}

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
	templates := func(f store.TemplateFilter) func(store.Tx, store.Paging) ([]string, store.Page, error) {
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
	sandboxes := func(f store.SandboxFilter) func(store.Tx, store.Paging) ([]string, store.Page, error) {
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
	jobs := func(f store.JobFilter) func(store.Tx, store.Paging) ([]string, store.Page, error) {
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
	artifacts := func(f store.ArtifactFilter) func(store.Tx, store.Paging) ([]string, store.Page, error) {
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
	replicas := func(f store.ReplicaFilter) func(store.Tx, store.Paging) ([]string, store.Page, error) {
		return func(tx store.Tx, p store.Paging) ([]string, store.Page, error) {
			f.Paging = p
			list, page, err := tx.ReplicaPage(f)
			return keysOf(list, func(r *spore.Replica) string { return r.TemplateID + " " + r.NodeID }), page, err
		}
	}
	insertReplica := func(tx store.Tx, n int) error {
		return tx.PutReplica(sampleReplica(sampleTemplate(1<<20).ID, fmt.Sprintf("Node.%d:7", n)))
	}
	aliases := func(f store.AliasFilter) func(store.Tx, store.Paging) ([]string, store.Page, error) {
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
		{"Templates", insertTemplate, templates(store.TemplateFilter{})},
		{"TemplatesByLabel", insertTemplate, templates(store.TemplateFilter{Labels: map[string]string{"all": "yes"}})},
		{"TemplatesByDisplayName", insertTemplate, templates(store.TemplateFilter{Name: sampleTemplate(0).DisplayName})},
		{"TemplatesByStatus", insertTemplate, templates(store.TemplateFilter{Status: spore.TemplatePending})},
		{"TemplatesByKindAndStatus", insertTemplate, templates(store.TemplateFilter{Kind: spore.KindTemplate, Status: spore.TemplatePending, Deleted: true})},
		{"TemplatesByOrigin", insertTemplate, templates(store.TemplateFilter{OriginSandbox: "s0"})},
		{"TemplatesByArtifact", insertTemplate, templates(store.TemplateFilter{ArtifactID: "rfs-1"})},
		{"TemplatesBeforeATime", insertTemplate, templates(store.TemplateFilter{CreatedBefore: at(4)})},
		{"Sandboxes", insertSandbox, sandboxes(store.SandboxFilter{})},
		{"SandboxesKilledToo", insertSandbox, sandboxes(store.SandboxFilter{Killed: true})},
		{"SandboxesByState", insertSandbox, sandboxes(store.SandboxFilter{States: []spore.SandboxState{spore.SandboxPaused}})},
		{"SandboxesByStates", insertSandbox, sandboxes(store.SandboxFilter{States: []spore.SandboxState{spore.SandboxPaused, spore.SandboxRunning}})},
		{"SandboxesByLabel", insertSandbox, sandboxes(store.SandboxFilter{Labels: map[string]string{"a": "b"}})},
		{"SandboxesByNode", insertSandbox, sandboxes(store.SandboxFilter{NodeID: "n1"})},
		{"SandboxesThatEnd", insertSandbox, sandboxes(store.SandboxFilter{EndsBefore: at(1000)})},
		{"Jobs", insertJob, jobs(store.JobFilter{})},
		{"JobsByStatuses", insertJob, jobs(store.JobFilter{Statuses: []spore.JobStatus{spore.JobFailed, spore.JobPending}})},
		{"JobsByOperation", insertJob, jobs(store.JobFilter{Operation: spore.OpCreate})},
		{"JobsByOwner", insertJob, jobs(store.JobFilter{Owner: "c1"})},
		{"Artifacts", insertArtifact, artifacts(store.ArtifactFilter{})},
		{"ArtifactsByStatuses", insertArtifact, artifacts(store.ArtifactFilter{Statuses: []spore.ArtifactStatus{spore.ArtifactReady, spore.ArtifactOrphaned}})},
		{"Replicas", insertReplica, replicas(store.ReplicaFilter{})},
		{"ReplicasByPhase", insertReplica, replicas(store.ReplicaFilter{Phase: spore.ReplicaPending})},
		{"Aliases", insertAlias, aliases(store.AliasFilter{})},
		{"AliasesByTemplate", insertAlias, aliases(store.AliasFilter{TemplateID: sampleTemplate(1 << 20).ID})},
	} {
		t.Run(kind.name, func(t *testing.T) { walk(t, fresh(t, open), kind) })
	}
}

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
	page := func(p store.Paging) (keys []string, next store.Page) {
		t.Helper()
		view(t, s, func(tx store.Tx) (err error) {
			keys, next, err = kind.list(tx, p)
			return err
		})
		return keys, next
	}
	all, next := page(store.Paging{Limit: there})
	if len(all) == 0 || next.Next != "" {
		t.Fatalf("%d rows on the one page, more: %q", len(all), next.Next)
	}
	seen := map[string]int{}
	var order []string
	p, n := store.Paging{Limit: limit}, 0
	for {
		keys, next := page(p)
		for _, key := range keys {
			seen[key]++
			if slices.Contains(all, key) {
				order = append(order, key)
			}
		}
		if next.Next == "" {
			break
		}
		wantEqual(t, len(keys), limit)
		p.After = next.Next
		for range 2 {
			if n < there {
				update(t, s, func(tx store.Tx) error { return kind.insert(tx, 2*n+1) })
				n++
			}
		}
	}
	wantEqual(t, order, all)
	for key, times := range seen {
		if times != 1 {
			t.Errorf("%s came %d times", key, times)
		}
	}
}
