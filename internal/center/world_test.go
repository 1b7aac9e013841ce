package center_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
	"github.com/sporevm/spore/internal/node/simnode"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/memory"
)

// world is a center with simulated machines n1, n2, ... and rows in memory, in a bubble of virtual time.
type world struct {
	*center.Center
	t        *testing.T
	db       *memory.Database
	store    *memory.Store
	cluster  *simnode.Cluster
	machines []*simnode.Machine
	handles  []*simnode.Handle
	opt      center.Options
	journal  journal
	fault    atomic.Pointer[func(node, step string) error] // see simnode.ClusterOptions
	ahead    atomic.Int64                                  // how far the center's clock is ahead of time
}

// inWorld runs a test in a world of so many machines.
func inWorld(t *testing.T, machines int, opt center.Options, test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, db: memory.New(), opt: opt}
		w.cluster = simnode.NewCluster(simnode.ClusterOptions{Fault: func(node, step string) error {
			if fault := w.fault.Load(); fault != nil {
				return (*fault)(node, step)
			}
			return nil
		}})
		for i := range machines {
			w.machines = append(w.machines, w.cluster.New(simnode.Options{ID: fmt.Sprint("n", i+1), Address: fmt.Sprintf("10.0.0.%d", i+1)}))
		}
		w.start()
		defer w.stop()
		test(t, w)
	})
}

// start brings up a server, which thinks that all that was there before is dead.
func (w *world) start() {
	w.t.Helper()
	log := slog.New(slog.DiscardHandler)
	w.store = w.db.Open(memory.Options{Logger: log, Alone: true})
	var nodes []center.Node
	w.handles = nil
	for _, m := range w.machines {
		w.handles = append(w.handles, m.Connect())
		nodes = append(nodes, w.handles[len(w.handles)-1])
	}
	opt := w.opt
	opt.Alone, opt.Logger = true, log
	opt.Now = func() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }
	w.Center = center.New(journalled{w.store, &w.journal}, nodes, opt)
	w.ok(w.Start(w.t.Context()))
}

func (w *world) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	w.ok(w.Stop(ctx))
	w.ok(w.store.Close())
}

// kill ends the server as kill -9 does.
func (w *world) kill() {
	w.store.Kill()
	for _, h := range w.handles {
		h.Close()
	}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	_ = w.Stop(over) // what is dead has nothing to say
	synctest.Wait()
}

func (w *world) ok(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// wants fails the test unless err has the code, and the reason if one is given.
func (w *world) wants(err error, code spore.Code, reason ...spore.Reason) {
	w.t.Helper()
	if spore.CodeOf(err) != code || len(reason) > 0 && spore.AsError(err).Reason != reason[0] {
		w.t.Errorf("%v is %s, not %s %v", err, spore.CodeOf(err), code, reason)
	}
	if err != nil && code != spore.CodeNotFound && spore.AsError(err).Hint == "" {
		w.t.Errorf("%v gives no hint", err)
	}
}

// faulty has the machines do as fault says at each step; nil ends that.
func (w *world) faulty(fault func(node, step string) error) {
	if fault == nil {
		w.fault.Store(nil)
		return
	}
	w.fault.Store(&fault)
}

// skip puts the center's clock forward: what takes it weeks is due at once.
func (w *world) skip(d time.Duration) { w.ahead.Add(int64(d)) }

// pass lets time go by until everything is quiet.
func (w *world) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// template builds one, and waits until its replicas are where its policy wants them, or cannot come there.
func (w *world) template(name string, p spore.ReplicaPolicy) *spore.Template {
	w.t.Helper()
	t, j, err := w.BuildTemplate(w.t.Context(), center.Idempotency{}, center.BuildRequest{
		Name: name, Image: "registry.example/app:1", Replicas: p, Author: "ada", Reason: "to try",
		Resources: spore.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64},
	})
	w.ok(err)
	w.ok(w.WatchJob(w.t.Context(), j.ID, 0, func(*spore.Job, []spore.LogLine) error { return nil }))
	w.pass(2 * time.Minute)
	t, err = w.Template(w.t.Context(), t.ID)
	w.ok(err)
	return t
}

func (w *world) sandbox(ref string, nodes ...string) *spore.Sandbox {
	w.t.Helper()
	s, err := w.CreateSandbox(w.t.Context(), center.Idempotency{}, center.CreateRequest{Template: ref, Nodes: nodes})
	w.ok(err)
	return s
}

func (w *world) snapshot(sandboxID string, change ...func(*center.SnapshotRequest)) *spore.Template {
	w.t.Helper()
	var req center.SnapshotRequest
	for _, f := range change {
		f(&req)
	}
	t, err := w.CreateSnapshot(w.t.Context(), center.Idempotency{}, sandboxID, req)
	w.ok(err)
	w.pass(time.Second) // so that no two are of one instant
	return t
}

func (w *world) remove(ref string) {
	w.t.Helper()
	_, err := w.DeleteTemplate(w.t.Context(), center.Idempotency{}, ref, center.DeleteRequest{Force: true})
	w.ok(err)
	w.pass(time.Second)
}

// rows changes what the server wrote, as an older one might have left it.
func (w *world) rows(change func(tx store.Tx) error) {
	w.t.Helper()
	w.ok(w.store.Update(w.t.Context(), change))
}

// replicas is what a template's replicas look like.
func (w *world) replicas(ref string) string {
	w.t.Helper()
	list, err := w.Replicas(w.t.Context(), ref)
	w.ok(err)
	out := ""
	for _, r := range list {
		out += r.NodeID + " " + string(r.Phase) + " " + string(r.CompatStatus) + "; "
	}
	return out
}
