package center_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
	"github.com/sporevm/spore/internal/node/simnode"
	"github.com/sporevm/spore/internal/store"
)

// build asks for a template on nodes and does not wait.
func (w *world) build(name, image string, nodes ...string) *spore.Job {
	w.t.Helper()
	_, j, err := w.BuildTemplate(w.t.Context(), center.Idempotency{}, center.BuildRequest{
		Name: name, Image: image, Replicas: spore.ReplicaPolicy{Nodes: nodes}, Resources: spore.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64},
	})
	w.ok(err)
	return j
}

// artifacts lists those in a status, as a client does.
func (w *world) artifacts(s spore.ArtifactStatus) (list []*spore.Artifact) {
	w.t.Helper()
	list, _, err := w.Artifacts(w.t.Context(), center.ArtifactQuery{Statuses: []spore.ArtifactStatus{s}, Limit: 1000})
	w.ok(err)
	return list
}

// only answers the one artifact that is in a status.
func (w *world) only(s spore.ArtifactStatus) *spore.Artifact {
	w.t.Helper()
	list := w.artifacts(s)
	if len(list) != 1 {
		w.t.Fatalf("%d artifacts are %s", len(list), s)
	}
	return list[0]
}

const app = "registry.example/app:1"

// TestArtifactIsBuiltOnce asks for an artifact twice at once: it is PENDING, BUILDING and READY once, for both.
func TestArtifactIsBuiltOnce(t *testing.T) {
	hook := func(step string) {
		if step == "artifact:noted" {
			time.Sleep(time.Minute)
		}
	}
	inWorld(t, 1, center.Options{Hook: hook}, func(t *testing.T, w *world) {
		var pulls atomic.Int32
		w.faulty(func(_, step string) error {
			if step == "build:pull" {
				pulls.Add(1)
				time.Sleep(time.Minute)
			}
			return nil
		})
		first := w.build("one", app)
		w.pass(time.Second)
		a := w.only(spore.ArtifactPending)
		if a.Digest != "" || a.BuildJobID != "" || a.Image.Reference != app {
			t.Errorf("it is asked for as %+v", a)
		}
		w.pass(time.Minute)
		if b := w.only(spore.ArtifactBuilding); b.ID != a.ID || b.BuildJobID != first.ID {
			t.Errorf("it is built as %+v", b)
		}
		last := w.build("two", app)
		w.pass(10 * time.Second)
		if j, err := w.Job(t.Context(), last.ID); err != nil || j.Status != spore.JobRunning || j.ArtifactID != a.ID {
			t.Errorf("the second job is %+v, %v", j, err)
		}
		w.watched(first.ID)
		w.watched(last.ID)
		if b := w.only(spore.ArtifactReady); b.ID != a.ID || b.Digest == "" || b.SizeBytes == 0 {
			t.Errorf("in the end it is %+v", b)
		}
		if got := w.journal.tell(a.ID); got != "PENDING BUILDING READY" || pulls.Load() != 1 {
			t.Errorf("it was %s, and pulled %d times", got, pulls.Load())
		}
		w.sandbox("one")
		w.sandbox("two")
	})
}

func TestArtifactBuildFails(t *testing.T) {
	inWorld(t, 1, center.Options{}, func(t *testing.T, w *world) {
		w.faulty(func(_, step string) error {
			if step == "build:write" {
				return errTold
			}
			return nil
		})
		w.watched(w.build("one", app).ID)
		a := w.only(spore.ArtifactFailed)
		if !strings.Contains(a.LastError, "told to fail") {
			t.Errorf("it failed as %+v", a)
		}
		w.faulty(nil)
		w.watched(w.build("two", app).ID)
		if got := w.journal.tell(a.ID); got != "PENDING BUILDING FAILED BUILDING READY" {
			t.Errorf("it was %s", got)
		}

		// One that failed and that nobody asks for again goes soon.
		w.faulty(func(_, step string) error {
			if step == "build:write" {
				return errTold
			}
			return nil
		})
		w.watched(w.build("three", "registry.example/other:1").ID)
		a = w.only(spore.ArtifactFailed)
		w.pass(3 * time.Minute)
		if got := w.journal.tell(a.ID); got != "PENDING BUILDING FAILED CLEANUP_PENDING gone" {
			t.Errorf("it was %s", got)
		}
	})
}

// TestArtifactIsLost loses the bytes of an artifact: it is FAILED once that is known, and READY when they are there again.
func TestArtifactIsLost(t *testing.T) {
	inWorld(t, 2, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		base := w.template("base", spore.ReplicaPolicy{Min: 2})
		id := base.ArtifactID
		verify := func(want spore.ArtifactStatus) {
			t.Helper()
			v, err := w.VerifyArtifact(ctx, id, true)
			if err != nil || v.Status != want || len(v.Nodes) != 2 {
				t.Errorf("the verdict is %+v, %v", v, err)
			}
		}
		verify(spore.ArtifactReady)
		w.machines[0].HarmArtifact(id, simnode.Rot)
		verify(spore.ArtifactReady) // the other node has it
		w.machines[1].SetReachable(false)
		verify(spore.ArtifactReady) // nobody knows that it has not
		w.machines[1].SetReachable(true)
		w.machines[1].HarmArtifact(id, simnode.Damage)
		verify(spore.ArtifactFailed)
		_, err := w.OpenArtifact(ctx, id)
		w.wants(err, spore.CodeConflict)
		w.watched(w.build("again", app, "n1").ID)
		verify(spore.ArtifactReady)
		f, err := w.OpenArtifact(ctx, id)
		w.ok(err)
		w.ok(f.Close())
		if got := w.journal.tell(id); got != "PENDING BUILDING READY FAILED BUILDING READY" {
			t.Errorf("it was %s", got)
		}
	})
}

// diesBuilding has the server end each time that it builds, until the job is given up: nobody is left to say how the build went.
func diesBuilding(t *testing.T, test func(t *testing.T, w *world, a *spore.Artifact)) {
	t.Helper()
	var w *world
	var deadly atomic.Bool
	hook := func(step string) {
		if step == "artifact:claimed" && deadly.Load() {
			w.store.Kill()
		}
	}
	inWorld(t, 1, center.Options{Hook: hook}, func(t *testing.T, in *world) {
		w = in
		deadly.Store(true)
		j := w.build("one", app)
		for deaths := 0; ; deaths++ {
			w.pass(time.Second)
			now, err := w.Job(t.Context(), j.ID)
			if err == nil && !now.Status.Active() {
				if deaths < 3 || now.Status != spore.JobFailed || !strings.Contains(now.Error.Message, "while this was under way") {
					t.Errorf("after %d deaths the job is %s, %+v", deaths, now.Status, now.Error)
				}
				break
			}
			if deaths > 20 {
				t.Fatal("the job is never given up")
			}
			w.kill()
			w.start()
		}
		deadly.Store(false)
		a := w.only(spore.ArtifactBuilding) // which it is not any more
		if a.BuildJobID != j.ID {
			t.Errorf("it is built by %s", a.BuildJobID)
		}
		for w.journal.tell(a.ID) == "PENDING BUILDING" {
			w.pass(time.Second)
		}
		if a = w.only(spore.ArtifactOrphaned); a.LastError == "" || a.UnusedAt.IsZero() {
			t.Errorf("it is orphaned as %+v", a)
		}
		test(t, w, a)
	})
}

func TestOrphanIsBuiltAfterAll(t *testing.T) {
	diesBuilding(t, func(t *testing.T, w *world, a *spore.Artifact) {
		w.watched(w.build("two", app).ID)
		if got := w.journal.tell(a.ID); got != "PENDING BUILDING ORPHANED BUILDING READY" {
			t.Errorf("it was %s", got)
		}
		w.sandbox("two")
	})
}

func TestOrphanGoes(t *testing.T) {
	diesBuilding(t, func(t *testing.T, w *world, a *spore.Artifact) {
		w.pass(3 * time.Minute)
		if got := w.journal.tell(a.ID); got != "PENDING BUILDING ORPHANED CLEANUP_PENDING gone" {
			t.Errorf("it was %s", got)
		}
		_, err := w.Artifact(t.Context(), a.ID)
		w.wants(err, spore.CodeNotFound)
		if left := w.machines[0].Audit().Artifacts; len(left) != 0 {
			t.Errorf("%v is left on the node", left)
		}
	})
}

// TestUnusedArtifactsAreKeptAWeek removes all that refers to an artifact: it serves the next build for a week, then it goes.
func TestUnusedArtifactsAreKeptAWeek(t *testing.T) {
	const day = 24 * time.Hour
	inWorld(t, 2, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		w.watched(w.build("one", app, "n1").ID)
		a := w.only(spore.ArtifactReady)
		if !a.UnusedAt.IsZero() {
			t.Errorf("it is unused since %s", a.UnusedAt)
		}
		w.remove("one")
		w.pass(2 * time.Minute)
		w.skip(6 * day)
		w.pass(2 * time.Minute)
		if a = w.only(spore.ArtifactReady); a.UnusedAt.IsZero() {
			t.Error("nobody has seen that nothing refers to it")
		}
		builds := w.machines[0].Count("build")
		w.watched(w.build("two", app, "n1").ID)
		w.pass(2 * time.Minute)
		if a = w.only(spore.ArtifactReady); !a.UnusedAt.IsZero() || w.machines[0].Count("build") != builds+1 {
			t.Errorf("in use again it is %+v", a)
		}
		w.skip(30 * day)
		w.pass(2 * time.Minute)
		w.only(spore.ArtifactReady)

		// Its time comes while its node is silent: it waits there, and a build that wants it again has it.
		w.remove("two")
		w.pass(2 * time.Minute)
		w.machines[0].SetReachable(false)
		w.skip(8 * day)
		w.pass(3 * time.Minute)
		if a = w.only(spore.ArtifactCleanupPending); a.TriedAt.IsZero() {
			t.Errorf("its removal was not tried: %+v", a)
		}
		_, err := w.OpenArtifact(ctx, a.ID)
		w.wants(err, spore.CodeConflict)
		w.watched(w.build("three", app, "n2").ID)
		if got := w.journal.tell(a.ID); got != "PENDING BUILDING READY CLEANUP_PENDING BUILDING READY" {
			t.Errorf("it was %s", got)
		}
		w.machines[0].SetReachable(true)
		w.pass(3 * time.Minute)
		w.only(spore.ArtifactReady)
		w.sandbox("three")

		w.journal.forget(a.ID)
		for _, s := range w.sandboxes() {
			w.ok(w.KillSandbox(ctx, s.ID))
		}
		w.remove("three")
		w.pass(2 * time.Minute)
		w.skip(8 * day)
		w.pass(3 * time.Minute)
		if got := w.journal.tell(a.ID); !strings.HasSuffix(got, "CLEANUP_PENDING gone") {
			t.Errorf("it was %s", got)
		}
		for _, m := range w.cluster.Audit() {
			if len(m.Artifacts) != 0 {
				t.Errorf("%v is left on %s", m.Artifacts, m.Node)
			}
		}
		w.rows(func(tx store.Tx) error {
			places, err := tx.Placements(a.ID, "")
			if len(places) != 0 {
				t.Errorf("it is said to lie on %v", places)
			}
			return err
		})
	})
}

func (w *world) sandboxes() []*spore.Sandbox {
	w.t.Helper()
	list, _, err := w.Sandboxes(w.t.Context(), center.SandboxQuery{Limit: 1000})
	w.ok(err)
	return list
}

// TestStuckArtifactsKeepNoOtherFromGoing has hundreds that cannot be removed, and one that can.
func TestStuckArtifactsKeepNoOtherFromGoing(t *testing.T) {
	inWorld(t, 2, center.Options{}, func(t *testing.T, w *world) {
		const stuck = 350
		w.machines[1].SetReachable(false)
		w.rows(func(tx store.Tx) error {
			long := time.Now().Add(-30 * 24 * time.Hour)
			for i := range stuck + 1 {
				a := &spore.Artifact{ID: fmt.Sprintf("rfs-%024d", i), Status: spore.ArtifactFailed, CreatedAt: long, UpdatedAt: long, UnusedAt: long}
				node := "n2"
				if i == stuck {
					node = "n1"
				}
				if err := tx.PutArtifact(a); err != nil {
					return err
				}
				if err := tx.PutPlacement(spore.Placement{ArtifactID: a.ID, NodeID: node, CreatedAt: long}); err != nil {
					return err
				}
			}
			return nil
		})
		w.pass(5 * time.Minute) // a hundred each minute
		if left := w.artifacts(spore.ArtifactCleanupPending); len(left) != stuck {
			t.Errorf("%d are left", len(left))
		}
		last := w.journal.tell(fmt.Sprintf("rfs-%024d", stuck))
		if last != "CLEANUP_PENDING gone" {
			t.Errorf("the one that can go was %s", last)
		}
		w.machines[1].SetReachable(true)
		w.pass(6 * time.Minute)
		if left := w.artifacts(spore.ArtifactCleanupPending); len(left) != 0 {
			t.Errorf("%d are left when their node is back", len(left))
		}
	})
}
