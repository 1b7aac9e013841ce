package daemon_test

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"

	"github.com/sporevm/spore/client"
)

// TestLifecycle takes one image through everything that a user does, on a real hypervisor.
func TestLifecycle(t *testing.T) {
	t.Parallel()
	srv := start(t, serving{Config: daemonConfig(t)})
	ctx := t.Context()
	srv.installKernel(t)
	tpl := srv.build(t, "busybox", "busybox")
	if tpl.Status != spore.TemplateReady {
		t.Fatalf("the template is %s", tpl.Status)
	}

	sb := srv.create(t, "busybox")
	srv.sh(t, sb.ID, "echo one > /root/file; sync")
	one, err := srv.CreateSnapshot(ctx, sb.ID, api.SnapshotRequest{Name: "one"})
	if err != nil {
		t.Fatal(err)
	}
	srv.sh(t, sb.ID, "echo two > /root/file")

	forks, err := srv.Fork(ctx, api.ForkRequest{Source: sb.ID, Count: 4})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range forks {
		if f.Error != nil {
			t.Fatalf("fork: %s", f.Error.Message)
		}
		if got := srv.sh(t, f.Sandbox.ID, "cat /root/file"); got != "two" {
			t.Errorf("a fork reads %q", got)
		}
		srv.sh(t, f.Sandbox.ID, "echo mine > /root/file")
	}
	if got := srv.sh(t, sb.ID, "cat /root/file"); got != "two" {
		t.Errorf("the parent reads %q after its forks wrote", got)
	}

	back, err := srv.Rollback(ctx, sb.ID, "one")
	if err != nil {
		t.Fatal(err)
	}
	if got := srv.sh(t, sb.ID, "cat /root/file"); got != "one" || back.Generation != 2 {
		t.Errorf("after the rollback generation %d reads %q", back.Generation, got)
	}

	commit, err := srv.CommitSandbox(ctx, sb.ID, api.CommitRequest{Name: "committed"})
	if err != nil {
		t.Fatal(err)
	}
	srv.await(t, commit)
	child := srv.create(t, "committed")
	if got := srv.sh(t, child.ID, "cat /root/file"); got != "one" {
		t.Errorf("a sandbox of the committed template reads %q", got)
	}

	if _, err := srv.PauseSandbox(ctx, child.ID); err != nil {
		t.Fatal(err)
	}
	_, err = srv.CreateSnapshot(ctx, child.ID, api.SnapshotRequest{})
	wantCode(t, err, spore.CodeConflict, "PAUSED", "resume")
	if _, err := srv.ResumeSandbox(ctx, child.ID, nil); err != nil {
		t.Fatal(err)
	}
	if got := srv.sh(t, child.ID, "cat /root/file"); got != "one" {
		t.Errorf("after pause and resume it reads %q", got)
	}

	// What stands on a deleted template or snapshot goes on.
	for _, ref := range []string{tpl.ID, one.ID, "committed"} {
		if _, err := srv.DeleteTemplate(ctx, ref, client.DeleteOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := srv.CollectGarbage(ctx, false); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{sb.ID, child.ID, forks[0].Sandbox.ID} {
		srv.sh(t, id, "cat /bin/busybox > /dev/null && cat /root/file")
		if _, err := srv.CreateSnapshot(ctx, id, api.SnapshotRequest{}); err != nil {
			t.Errorf("snapshot of %s, whose template is deleted: %v", id, err)
		}
	}
	srv.clean(t)
}

// TestForksAreStrangers wants two forks of one snapshot to share no identity, and to know what time it is.
func TestForksAreStrangers(t *testing.T) {
	t.Parallel()
	srv := start(t, serving{Config: daemonConfig(t)})
	srv.installKernel(t)
	srv.build(t, "busybox", "busybox")
	sb := srv.create(t, "busybox")
	srv.sh(t, sb.ID, "date -s @1000000000") // a fork that goes on with this is not late by a little
	snap, err := srv.CreateSnapshot(t.Context(), sb.ID, api.SnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	forks, err := srv.Fork(t.Context(), api.ForkRequest{Source: snap.ID, Count: 2})
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(begun) // by which a clock may be late that was set during the fork
	sources := map[string]string{
		"urandom":    "head -c 16 /dev/urandom | od -An -tx1",
		"machine-id": "cat /etc/machine-id",
		"hostname":   "hostname",
		"uuid":       "cat /proc/sys/kernel/random/uuid",
	}
	for name, command := range sources {
		seen := map[string]string{}
		for _, id := range []string{sb.ID, forks[0].Sandbox.ID, forks[1].Sandbox.ID} {
			got := srv.sh(t, id, command)
			if other, twice := seen[got]; twice || got == "" {
				t.Errorf("%s: %s and %s both have %q", name, id, other, got)
			}
			seen[got] = id
		}
	}
	for _, f := range forks {
		before := time.Now().Add(-took)
		raw := srv.sh(t, f.Sandbox.ID, "date +%s")
		after := time.Now()
		guest, err := strconv.ParseInt(raw, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if guest < before.Unix() || guest > after.Unix()+1 {
			t.Errorf("the fork's clock says %d; it is between %d and %d", guest, before.Unix(), after.Unix())
		}
	}
	srv.clean(t)
}

// TestServerDies kills the server under running sandboxes: the next one finds them all, and says so of the one whose
// hypervisor died meanwhile.
func TestServerDies(t *testing.T) {
	t.Parallel()
	cfg := daemonConfig(t)
	srv := start(t, serving{Config: cfg})
	srv.installKernel(t)
	srv.build(t, "busybox", "busybox")
	lives, dies := srv.create(t, "busybox"), srv.create(t, "busybox")
	srv.sh(t, lives.ID, "echo here > /tmp/state")

	srv.crash()
	killVMOf(t, cfg.DataDir, dies.ID)
	srv = start(t, serving{Config: cfg})
	if got := srv.sh(t, lives.ID, "cat /tmp/state"); got != "here" {
		t.Errorf("the adopted sandbox reads %q", got)
	}
	got, err := srv.GetSandbox(t.Context(), dies.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got.State != spore.SandboxFailed || got.StateReason == "" {
		t.Errorf("the sandbox whose VM died is %s (%q)", got.State, got.StateReason)
	}

	// The same while a server watches.
	killVMOf(t, cfg.DataDir, lives.ID)
	deadline := time.Now().Add(time.Minute)
	for {
		got, err := srv.GetSandbox(t.Context(), lives.ID)
		if err != nil {
			t.Fatal(err)
		}
		if got.State == spore.SandboxFailed {
			if !strings.Contains(got.StateReason, "hypervisor") {
				t.Errorf("the reason is %q", got.StateReason)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the sandbox whose VM was killed is still %s", got.State)
		}
		time.Sleep(20 * time.Millisecond)
	}
	_, err = srv.CreateSnapshot(t.Context(), lives.ID, api.SnapshotRequest{})
	wantCode(t, err, spore.CodeConflict, "FAILED")
	srv.clean(t)
}
