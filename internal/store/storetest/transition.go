package storetest

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// kept is a row with a state machine, as the tests of transitions see it.
type kept[S ~string, R any] struct {
	machine spore.Transitions[S]
	make    func(n int) R
	status  func(R) *S
	copy    func(R) R
	insert  func(tx store.Tx, row R) error
	update  func(tx store.Tx, row R) error
	read    func(tx store.Tx, row R) (R, error)
	touch   func(row R, n int) // changes a field that is not the status
}

func shallow[T any](p *T) *T { c := *p; return &c }

func keptTemplates() kept[spore.TemplateStatus, *spore.Template] {
	return kept[spore.TemplateStatus, *spore.Template]{
		machine: spore.TemplateTransitions, make: sampleTemplate, copy: shallow[spore.Template],
		status: func(r *spore.Template) *spore.TemplateStatus { return &r.Status },
		insert: store.Tx.InsertTemplate, update: store.Tx.UpdateTemplate,
		read:  func(tx store.Tx, r *spore.Template) (*spore.Template, error) { return tx.Template(r.ID) },
		touch: func(r *spore.Template, n int) { r.LastError = fmt.Sprint(n) },
	}
}

func keptSandboxes(template string) kept[spore.SandboxState, *spore.Sandbox] {
	return kept[spore.SandboxState, *spore.Sandbox]{
		machine: spore.SandboxTransitions, copy: shallow[spore.Sandbox],
		make:   func(n int) *spore.Sandbox { return sampleSandbox(n, template) },
		status: func(r *spore.Sandbox) *spore.SandboxState { return &r.State },
		insert: store.Tx.InsertSandbox, update: store.Tx.UpdateSandbox,
		read:  func(tx store.Tx, r *spore.Sandbox) (*spore.Sandbox, error) { return tx.Sandbox(r.ID) },
		touch: func(r *spore.Sandbox, n int) { r.Generation = n },
	}
}

func keptJobs() kept[spore.JobStatus, *spore.Job] {
	return kept[spore.JobStatus, *spore.Job]{
		machine: spore.JobTransitions, make: sampleJob, copy: shallow[spore.Job],
		status: func(r *spore.Job) *spore.JobStatus { return &r.Status },
		insert: store.Tx.InsertJob, update: store.Tx.UpdateJob,
		read:  func(tx store.Tx, r *spore.Job) (*spore.Job, error) { return tx.Job(r.ID) },
		touch: func(r *spore.Job, n int) { r.AttemptNo = n },
	}
}

func keptRefs(template, sandbox string) kept[spore.RuntimeRefStatus, *spore.RuntimeRef] {
	return kept[spore.RuntimeRefStatus, *spore.RuntimeRef]{
		machine: spore.RuntimeRefTransitions, copy: shallow[spore.RuntimeRef],
		make: func(n int) *spore.RuntimeRef {
			return &spore.RuntimeRef{TemplateID: template, SandboxID: sandbox, SandboxGen: n, Status: spore.RefReserved}
		},
		status: func(r *spore.RuntimeRef) *spore.RuntimeRefStatus { return &r.Status },
		insert: store.Tx.PutRef, update: store.Tx.PutRef,
		read: func(tx store.Tx, r *spore.RuntimeRef) (*spore.RuntimeRef, error) {
			list, err := tx.Refs(store.RefFilter{SandboxID: r.SandboxID})
			for _, ref := range list {
				if ref.ID == r.ID {
					return ref, err
				}
			}
			return nil, err
		},
		touch: func(r *spore.RuntimeRef, n int) { r.Reason = fmt.Sprint(n) },
	}
}

func keptReplicas(template string) kept[spore.ReplicaPhase, *spore.Replica] {
	return kept[spore.ReplicaPhase, *spore.Replica]{
		machine: spore.ReplicaTransitions, copy: shallow[spore.Replica],
		make:   func(n int) *spore.Replica { return sampleReplica(template, fmt.Sprintf("n%d", n)) },
		status: func(r *spore.Replica) *spore.ReplicaPhase { return &r.Phase },
		insert: store.Tx.PutReplica, update: store.Tx.PutReplica,
		read:  func(tx store.Tx, r *spore.Replica) (*spore.Replica, error) { return tx.Replica(r.TemplateID, r.NodeID) },
		touch: func(r *spore.Replica, n int) { r.Attempts = n },
	}
}

func keptArtifacts() kept[spore.ArtifactStatus, *spore.Artifact] {
	return kept[spore.ArtifactStatus, *spore.Artifact]{
		machine: spore.ArtifactTransitions, make: sampleArtifact, copy: shallow[spore.Artifact],
		status: func(r *spore.Artifact) *spore.ArtifactStatus { return &r.Status },
		insert: store.Tx.PutArtifact, update: store.Tx.PutArtifact,
		read:  func(tx store.Tx, r *spore.Artifact) (*spore.Artifact, error) { return tx.Artifact(r.ID) },
		touch: func(r *spore.Artifact, n int) { r.SizeBytes = int64(n) },
	}
}

func keptNodes() kept[spore.NodeState, *spore.Node] {
	return kept[spore.NodeState, *spore.Node]{
		machine: spore.NodeTransitions, make: sampleNode, copy: shallow[spore.Node],
		status: func(r *spore.Node) *spore.NodeState { return &r.State },
		insert: store.Tx.PutNode, update: store.Tx.PutNode,
		read:  func(tx store.Tx, r *spore.Node) (*spore.Node, error) { return tx.Node(r.ID) },
		touch: func(r *spore.Node, n int) { r.Sandboxes = n },
	}
}

// Each state to each other: the store allows exactly what the table allows.
func testTransitions(t *testing.T, open Open) {
	t.Run("Templates", func(t *testing.T) { everyPair(t, fresh(t, open), keptTemplates()) })
	t.Run("Sandboxes", func(t *testing.T) {
		s := fresh(t, open)
		everyPair(t, s, keptSandboxes(withTemplate(t, s)))
	})
	t.Run("Jobs", func(t *testing.T) { everyPair(t, fresh(t, open), keptJobs()) })
	t.Run("Refs", func(t *testing.T) {
		s := fresh(t, open)
		everyPair(t, s, keptRefs(withSandbox(t, s)))
	})
	t.Run("Replicas", func(t *testing.T) {
		s := fresh(t, open)
		everyPair(t, s, keptReplicas(withTemplate(t, s)))
	})
	t.Run("Artifacts", func(t *testing.T) { everyPair(t, fresh(t, open), keptArtifacts()) })
	t.Run("Nodes", func(t *testing.T) { everyPair(t, fresh(t, open), keptNodes()) })
}

func withSandbox(t *testing.T, s store.Store) (template, sandbox string) {
	template = withTemplate(t, s)
	row := sampleSandbox(1, template)
	update(t, s, func(tx store.Tx) error { return tx.InsertSandbox(row) })
	return template, row.ID
}

func everyPair[S ~string, R any](t *testing.T, s store.Store, k kept[S, R]) {
	states := slices.Sorted(maps.Keys(k.machine))
	n := 0
	for _, from := range states {
		for _, to := range append(states, "NO_SUCH_STATE", "") {
			n++
			row := k.make(n)
			*k.status(row) = from
			update(t, s, func(tx store.Tx) error { return k.insert(tx, row) })
			next := k.copy(row)
			*k.status(next) = to
			k.touch(next, 77)
			err := s.Update(t.Context(), func(tx store.Tx) error { return k.update(tx, next) })
			want := next
			if !k.machine.Allows(from, to) {
				want = row
				wantCode(t, err, spore.CodeConflict)
			} else if err != nil {
				t.Fatalf("%s to %s: %v", from, to, err)
			}
			view(t, s, func(tx store.Tx) error {
				got, err := k.read(tx, row)
				wantEqual(t, got, want)
				return err
			})
		}
	}
}

// Random sequences of changes: the row always equals a model that knows nothing but the table.
func testModels(t *testing.T, open Open) {
	t.Run("Templates", func(t *testing.T) { follow(t, fresh(t, open), keptTemplates()) })
	t.Run("Sandboxes", func(t *testing.T) {
		s := fresh(t, open)
		follow(t, s, keptSandboxes(withTemplate(t, s)))
	})
	t.Run("Jobs", func(t *testing.T) { follow(t, fresh(t, open), keptJobs()) })
	t.Run("Refs", func(t *testing.T) {
		s := fresh(t, open)
		follow(t, s, keptRefs(withSandbox(t, s)))
	})
	t.Run("Replicas", func(t *testing.T) {
		s := fresh(t, open)
		follow(t, s, keptReplicas(withTemplate(t, s)))
	})
	t.Run("Artifacts", func(t *testing.T) { follow(t, fresh(t, open), keptArtifacts()) })
	t.Run("Nodes", func(t *testing.T) { follow(t, fresh(t, open), keptNodes()) })
}

func follow[S ~string, R any](t *testing.T, s store.Store, k kept[S, R]) {
	states := slices.Sorted(maps.Keys(k.machine))
	ctx, n := t.Context(), 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		model := k.make(n)
		*k.status(model) = rapid.SampledFrom(states).Draw(rt, "birth")
		if err := s.Update(ctx, func(tx store.Tx) error { return k.insert(tx, model) }); err != nil {
			rt.Fatal(err)
		}
		for range rapid.IntRange(1, 8).Draw(rt, "events") {
			next := k.copy(model)
			*k.status(next) = rapid.SampledFrom(states).Draw(rt, "to")
			k.touch(next, rapid.IntRange(0, 1000).Draw(rt, "touch"))
			failAfter := rapid.Bool().Draw(rt, "rolled back")
			err := s.Update(ctx, func(tx store.Tx) error {
				if err := k.update(tx, next); err != nil {
					return err
				}
				if failAfter {
					return errOnPurpose
				}
				return nil
			})
			allowed := k.machine.Allows(*k.status(model), *k.status(next))
			switch {
			case !allowed:
				if spore.CodeOf(err) != spore.CodeConflict {
					rt.Fatalf("%s to %s: %v", *k.status(model), *k.status(next), err)
				}
			case failAfter:
				if err != errOnPurpose {
					rt.Fatalf("error %v", err)
				}
			case err != nil:
				rt.Fatal(err)
			default:
				model = next
			}
			err = s.View(ctx, func(tx store.Tx) error {
				got, err := k.read(tx, model)
				if diff := cmp.Diff(model, got); diff != "" {
					rt.Fatalf("the row is not what the model is:\n%s", diff)
				}
				return err
			})
			if err != nil {
				rt.Fatal(err)
			}
		}
	})
}
