package daemon_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
	"github.com/sporevm/spore/internal/daemon"
	"github.com/sporevm/spore/internal/store/pgtest"
	"github.com/sporevm/spore/internal/testbed"
)

// operation is something that a server can be killed in the middle of. do starts it and waits for its end, if the
// server lives that long.
type operation struct {
	name string
	do   func(ctx context.Context, srv *server, world *world) error
	at   []string // the steps at which it is killed; nil: at all
}

// world is what the operations work on.
type world struct {
	config   daemon.Config
	image    string
	sandbox  string // running
	snapshot string
}

// Steps of operations that boot a guest, which takes long. Of the freezing itself, which snapshot, fork and commit are killed in
// the middle of at every step, a build is killed only where something else is on disk than at the step before.
var (
	ofFreezing  = []string{"stage.owner", "capture.state", "piece.admit", "manifest.write", "publish.manifest", "stage.remove"}
	ofMaking    = []string{"artifact:claimed", "artifact:built", "build:artifact"}
	ofReplacing = []string{
		"replica:distributed", "replica:drafted", "replica:proven", "promote.manifest", "promote.manifest.sync", "promote.unlink", "promote.unlink.sync",
	}
)

var operations = []operation{
	{name: "build", do: func(ctx context.Context, srv *server, w *world) error {
		tj, err := srv.BuildTemplate(ctx, api.BuildRequest{Name: "victim", Image: testbed.Ref(w.image), MemoryMiB: 128, DiskMiB: 128})
		if err != nil {
			return err
		}
		_, err = srv.WaitJob(ctx, tj.Job.ID, nil)
		return err
	}, at: slices.Concat([]string{"job:begun", "artifact:noted", "build:frozen"}, ofMaking, ofFreezing)},
	{name: "snapshot", do: func(ctx context.Context, srv *server, w *world) error {
		_, err := srv.CreateSnapshot(ctx, w.sandbox, api.SnapshotRequest{})
		return err
	}},
	{name: "fork", do: func(ctx context.Context, srv *server, w *world) error {
		_, err := srv.Fork(ctx, api.ForkRequest{Source: w.sandbox, Count: 2})
		return err
	}},
	{name: "rollback", do: func(ctx context.Context, srv *server, w *world) error {
		_, err := srv.Rollback(ctx, w.sandbox, w.snapshot)
		return err
	}},
	{name: "pause", do: func(ctx context.Context, srv *server, w *world) error {
		if _, err := srv.PauseSandbox(ctx, w.sandbox); err != nil {
			return err
		}
		_, err := srv.ResumeSandbox(ctx, w.sandbox, nil)
		return err
	}},
	{name: "commit", do: func(ctx context.Context, srv *server, w *world) error {
		tj, err := srv.CommitSandbox(ctx, w.sandbox, api.CommitRequest{Name: "victim"})
		if err != nil {
			return err
		}
		_, err = srv.WaitJob(ctx, tj.Job.ID, nil)
		return err
	}},
	{name: "create and kill", do: func(ctx context.Context, srv *server, w *world) error {
		sb, err := srv.CreateSandbox(ctx, api.CreateRequest{Template: w.snapshot})
		if err != nil {
			return err
		}
		return srv.DeleteSandbox(ctx, sb.ID)
	}},
	{name: "delete", do: func(ctx context.Context, srv *server, w *world) error {
		snap, err := srv.CreateSnapshot(ctx, w.sandbox, api.SnapshotRequest{Name: "victim"})
		if err != nil {
			return err
		}
		_, err = srv.DeleteSnapshot(ctx, snap.ID, client.DeleteOptions{Force: true})
		return err
	}},
	{name: "redo", do: redo("base", spore.RedoAll), at: slices.Concat([]string{"job:begun"}, ofMaking, ofReplacing[:3], []string{"promote.manifest", "promote.unlink"})},
	{name: "redo of a snapshot", do: redo("kept", spore.RedoAll), at: ofReplacing},
	{name: "heal", do: func(ctx context.Context, srv *server, w *world) error {
		late := filepath.Join(w.config.DataDir, "late") // the image, which is not there when it is built for the first time
		if err := os.Remove(late); err != nil && !os.IsNotExist(err) {
			return err
		}
		tj, err := srv.BuildTemplate(ctx, api.BuildRequest{Name: "victim", Image: testbed.Ref(late), MemoryMiB: 128, DiskMiB: 64})
		if err != nil {
			return err
		}
		if _, err := srv.WaitJob(ctx, tj.Job.ID, nil); spore.CodeOf(err) != spore.CodeNotFound {
			return fmt.Errorf("a build of no image ends with %w", err)
		}
		if err := os.Symlink(w.image, late); err != nil {
			return err
		}
		return redo("victim", spore.RedoFailedOnly)(ctx, srv, w)
	}, at: slices.Concat(ofMaking, ofReplacing[:3])},
}

func redo(ref string, mode spore.RedoMode) func(context.Context, *server, *world) error {
	return func(ctx context.Context, srv *server, _ *world) error {
		j, err := srv.RedoTemplate(ctx, ref, api.RedoRequest{Mode: mode})
		if err != nil {
			return err
		}
		_, err = srv.WaitJob(ctx, j.ID, nil)
		return err
	}
}

// TestKilledAtEachStep kills the server at each step of each operation. The next server settles what was left: every
// job ends, what is listed is there and what is there is listed, the sandbox works, and no process is anyone's.
func TestKilledAtEachStep(t *testing.T) {
	for _, op := range operations {
		t.Run(op.name, func(t *testing.T) {
			t.Parallel()
			killedAtEachStep(t, op, daemonConfig(t))
		})
	}
}

// TestKilledOnPostgres kills the server at the steps of operations whose rows are in PostgreSQL.
func TestKilledOnPostgres(t *testing.T) {
	for name, at := range map[string][]string{
		"create and kill":    nil,
		"snapshot":           {"snapshot:recorded", "capture.state", "snapshot:frozen"},
		"rollback":           nil,
		"redo of a snapshot": {"replica:distributed", "replica:proven", "promote.unlink"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			op := operations[slices.IndexFunc(operations, func(o operation) bool { return o.name == name })]
			op.at = at
			killedAtEachStep(t, op, onPostgres(t, pgtest.Start(t)).Config)
		})
	}
}

func killedAtEachStep(t *testing.T, op operation, cfg daemon.Config) {
	srv := start(t, serving{Config: cfg})
	srv.installKernel(t)
	tj, err := srv.BuildTemplate(t.Context(), smallBuild(t, "base"))
	if err != nil {
		t.Fatal(err)
	}
	srv.await(t, tj)
	w := &world{config: cfg, image: testbed.Image(t, "static")}
	w.sandbox = srv.create(t, "base").ID
	srv.sh(t, w.sandbox, "echo kept > /root/file")
	snap, err := srv.CreateSnapshot(t.Context(), w.sandbox, api.SnapshotRequest{Name: "kept"})
	if err != nil {
		t.Fatal(err)
	}
	w.snapshot = snap.ID
	srv.stop(t)

	steps := stepsOf(t, op, w)
	t.Logf("%d steps", len(steps))
	for _, step := range steps {
		t.Run(strings.ReplaceAll(step, "/", "_"), func(t *testing.T) { killedAt(t, op, w, step) })
	}
	srv = start(t, serving{Config: cfg})
	srv.clean(t)
}

// stepsOf runs an operation to its end and answers the steps that it came by and is killed at, each once.
func stepsOf(t *testing.T, op operation, w *world) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "steps")
	srv := start(t, serving{Config: w.config, Steps: file})
	if err := os.Truncate(file, 0); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if err := op.do(t.Context(), srv, w); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	srv.dropVictims(t)
	srv.stop(t)
	var steps []string
	for _, s := range strings.Fields(string(raw)) {
		if !slices.Contains(steps, s) {
			steps = append(steps, s)
		}
	}
	if len(steps) == 0 {
		t.Fatal("the operation has no steps at all")
	}
	for _, s := range op.at {
		if !slices.Contains(steps, s) {
			t.Errorf("the operation does not come by %s", s)
		}
	}
	if op.at != nil {
		steps = slices.DeleteFunc(steps, func(s string) bool { return !slices.Contains(op.at, s) })
	}
	return steps
}

func killedAt(t *testing.T, op operation, w *world, step string) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cfg := serving{Config: w.config, CrashAt: step}
	srv := start(t, cfg)
	opCtx, giveUp := context.WithCancel(ctx)
	defer giveUp()
	go func(done <-chan struct{}) { <-done; giveUp() }(srv.done) // a client waits for a server to come back
	opErr := op.do(opCtx, srv, w)
	select {
	case <-srv.done:
	case <-time.After(10 * time.Second):
		t.Fatalf("the server was not killed at %s (the operation answered %v)", step, opErr)
	}

	cfg.CrashAt = ""
	srv = start(t, cfg)
	srv.settle(ctx, t)
	report, err := srv.Check(ctx, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range report.Problems {
		if p.Kind == "unreferenced" { // garbage is no damage; it is collected below
			continue
		}
		t.Errorf("fsck: %s: %s: %s", p.Object, p.Kind, p.Detail)
	}
	srv.usable(ctx, t, w)
	srv.dropVictims(t)
	if _, err := srv.CollectGarbage(ctx, false); err != nil {
		t.Fatal(err)
	}
	if report, err = srv.Check(ctx, false, nil); err != nil { // what is left was read whole above
		t.Fatal(err)
	}
	for _, p := range report.Problems {
		t.Errorf("fsck: %s: %s: %s", p.Object, p.Kind, p.Detail)
	}
	srv.noStrays(ctx, t)
	srv.stop(t)
}

// settle waits until no job is active, and fails if any never ends.
func (s *server) settle(ctx context.Context, t *testing.T) {
	t.Helper()
	for {
		active := ""
		for j, err := range s.ListJobs(ctx, api.ListJobsParams{}) {
			if err != nil {
				t.Fatal(err)
			}
			if spore.JobStatus(j.Status).Active() {
				active = j.ID + " " + string(j.Operation)
			}
		}
		if active == "" {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("job %s does not end", active)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// usable wants the world's sandbox to work; one that was left paused is resumed.
func (s *server) usable(ctx context.Context, t *testing.T, w *world) {
	t.Helper()
	sb, err := s.GetSandbox(ctx, w.sandbox)
	if err != nil {
		t.Fatal(err)
	}
	if sb.State == spore.SandboxPaused {
		if _, err := s.ResumeSandbox(ctx, w.sandbox, nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.sh(t, w.sandbox, "cat /root/file"); got != "kept" {
		t.Errorf("the sandbox reads %q", got)
	}
}

// dropVictims removes what the operations made.
func (s *server) dropVictims(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	first := ""
	for sb, err := range s.ListSandboxes(ctx, api.ListSandboxesParams{}) {
		if err != nil {
			t.Fatal(err)
		}
		if first != "" {
			s.kill(t, first) // the list is newest first; the oldest is the world's
		}
		first = sb.ID
	}
	for tpl, err := range s.ListTemplates(ctx, api.ListTemplatesParams{}) {
		if err != nil {
			t.Fatal(err)
		}
		if tpl.Name == "base" || tpl.Name == "kept" {
			continue
		}
		if _, err := s.DeleteTemplate(ctx, tpl.ID, client.DeleteOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
	}
}

// noStrays wants exactly one hypervisor for each running sandbox.
func (s *server) noStrays(ctx context.Context, t *testing.T) {
	t.Helper()
	running := 0
	for sb, err := range s.ListSandboxes(ctx, api.ListSandboxesParams{}) {
		if err != nil {
			t.Fatal(err)
		}
		if sb.State == spore.SandboxRunning {
			running++
		}
	}
	if pids := processesIn(t, filepath.Join(s.dir, "vms")); len(pids) != running {
		t.Errorf("%d sandboxes run, in processes %v", running, pids)
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, "vms"))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != running {
		t.Errorf("%d sandboxes run, in %d directories", running, len(entries))
	}
}
