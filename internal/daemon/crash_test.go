package daemon_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/testbed"

	"github.com/sporevm/spore/client"
)

// operation is something that a server can be killed in the middle of. do starts it and waits for its end, if the
// server lives that long.
type operation struct {
	name string
	do   func(ctx context.Context, srv *server, world *world) error
}

// world is what the operations work on.
type world struct {
	image    string
	sandbox  string // running
	snapshot string
}

var operations = []operation{
	{"build", func(ctx context.Context, srv *server, w *world) error {
		tj, err := srv.BuildTemplate(ctx, api.BuildRequest{Name: "victim", Image: w.image, MemoryMiB: 128, DiskMiB: 128})
		if err != nil {
			return err
		}
		_, err = srv.WaitJob(ctx, tj.Job.ID, nil)
		return err
	}},
	{"snapshot", func(ctx context.Context, srv *server, w *world) error {
		_, err := srv.CreateSnapshot(ctx, w.sandbox, api.SnapshotRequest{})
		return err
	}},
	{"fork", func(ctx context.Context, srv *server, w *world) error {
		_, err := srv.Fork(ctx, api.ForkRequest{Source: w.sandbox, Count: 2})
		return err
	}},
	{"rollback", func(ctx context.Context, srv *server, w *world) error {
		_, err := srv.Rollback(ctx, w.sandbox, w.snapshot)
		return err
	}},
	{"pause", func(ctx context.Context, srv *server, w *world) error {
		if _, err := srv.PauseSandbox(ctx, w.sandbox); err != nil {
			return err
		}
		_, err := srv.ResumeSandbox(ctx, w.sandbox, nil)
		return err
	}},
	{"commit", func(ctx context.Context, srv *server, w *world) error {
		tj, err := srv.CommitSandbox(ctx, w.sandbox, api.CommitRequest{Name: "victim"})
		if err != nil {
			return err
		}
		_, err = srv.WaitJob(ctx, tj.Job.ID, nil)
		return err
	}},
	{"create and kill", func(ctx context.Context, srv *server, w *world) error {
		sb, err := srv.CreateSandbox(ctx, api.CreateRequest{Template: w.snapshot})
		if err != nil {
			return err
		}
		return srv.DeleteSandbox(ctx, sb.ID)
	}},
	{"delete", func(ctx context.Context, srv *server, w *world) error {
		snap, err := srv.CreateSnapshot(ctx, w.sandbox, api.SnapshotRequest{Name: "victim"})
		if err != nil {
			return err
		}
		_, err = srv.DeleteSnapshot(ctx, snap.ID, client.DeleteOptions{Force: true})
		return err
	}},
}

// TestKilledAtEachStep kills the server at each step of each operation. The next server settles what was left: every
// job ends, what is listed is there and what is there is listed, the sandbox works, and no process is anyone's.
func TestKilledAtEachStep(t *testing.T) {
	t.Parallel()
	cfg := daemonConfig(t)
	srv := start(t, serving{Config: cfg})
	srv.installKernel(t)
	srv.build(t, "base", "busybox")
	w := &world{image: testbed.Ref(testbed.Image(t, "static"))}
	w.sandbox = srv.create(t, "base").ID
	srv.sh(t, w.sandbox, "echo kept > /root/file")
	snap, err := srv.CreateSnapshot(t.Context(), w.sandbox, api.SnapshotRequest{Name: "kept"})
	if err != nil {
		t.Fatal(err)
	}
	w.snapshot = snap.ID
	srv.stop(t)

	for _, op := range operations {
		t.Run(op.name, func(t *testing.T) {
			steps := stepsOf(t, cfg.DataDir, op, w)
			t.Logf("%d steps", len(steps))
			for _, step := range steps {
				t.Run(strings.ReplaceAll(step, "/", "_"), func(t *testing.T) {
					killedAt(t, cfg.DataDir, op, w, step)
				})
			}
		})
	}
	srv = start(t, serving{Config: cfg})
	srv.clean(t)
}

// stepsOf runs an operation to its end and answers the steps that it came by, each once.
func stepsOf(t *testing.T, dir string, op operation, w *world) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "steps")
	cfg := serving{Steps: file}
	cfg.DataDir = dir
	srv := start(t, cfg)
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
	return steps
}

func killedAt(t *testing.T, dir string, op operation, w *world, step string) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cfg := serving{CrashAt: step}
	cfg.DataDir = dir
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
	srv.checked(t)
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
