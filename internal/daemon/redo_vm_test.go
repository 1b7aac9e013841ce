package daemon_test

import (
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/testbed"
)

// TestRedoOfRealVMs makes a template and a snapshot again, on a real hypervisor, while sandboxes run on the old ones.
func TestRedoOfRealVMs(t *testing.T) {
	t.Parallel()
	srv := start(t, serving{Config: daemonConfig(t)})
	ctx := t.Context()
	srv.installKernel(t)
	tj, err := srv.BuildTemplate(ctx, smallBuild(t, "base"))
	if err != nil {
		t.Fatal(err)
	}
	base := srv.await(t, tj)
	node := srv.only(t, base.ID).NodeID
	sb := srv.create(t, "base")
	srv.sh(t, sb.ID, "echo kept > /root/file && echo gone > /dev/shm/memory && sync")
	point, err := srv.CreateSnapshot(ctx, sb.ID, api.SnapshotRequest{Name: "point"})
	if err != nil {
		t.Fatal(err)
	}
	before := srv.create(t, "point")
	if got := srv.sh(t, before.ID, "cat /root/file /dev/shm/memory; cat /proc/sys/kernel/random/boot_id"); got[:9] != "kept\ngone" {
		t.Errorf("a sandbox of the snapshot reads %q", got)
	}

	redo := func(ref string, req api.RedoRequest) {
		t.Helper()
		j, err := srv.RedoTemplate(ctx, ref, req)
		if err != nil {
			t.Fatal(err)
		}
		if j, err = srv.WaitJob(ctx, j.ID, nil); err != nil || j.Nodes.Ready != 1 {
			t.Fatalf("the redo of %s: %+v, %v", ref, j.Nodes, err)
		}
	}
	redo("point", api.RedoRequest{Mode: spore.RedoNodes, Nodes: []string{node}})
	after := srv.create(t, "point")
	if got := srv.sh(t, after.ID, "cat /root/file; ls /dev/shm"); got != "kept" {
		t.Errorf("with fresh memory for the same disk it reads %q", got)
	}
	if got := srv.sh(t, after.ID, "cat /proc/sys/kernel/random/boot_id"); got == srv.sh(t, before.ID, "cat /proc/sys/kernel/random/boot_id") {
		t.Error("it is of the same boot as before")
	}
	if again, err := srv.GetSnapshot(ctx, "point"); err != nil || again.ID != point.ID || again.Status != spore.TemplateReady {
		t.Errorf("the snapshot is %+v, %v", again, err)
	}

	redo("base", api.RedoRequest{})
	fresh := srv.create(t, "base")
	srv.sh(t, fresh.ID, "test ! -e /root/file && echo new > /root/file")
	for id, want := range map[string]string{sb.ID: "kept", before.ID: "kept", after.ID: "kept", fresh.ID: "new"} {
		if got := srv.sh(t, id, "cat /root/file && busybox true"); got != want {
			t.Errorf("sandbox %s reads %q", id, got)
		}
	}
	// What runs on the old ones can be captured, rolled back and ended like anything else.
	if _, err := srv.CreateSnapshot(ctx, sb.ID, api.SnapshotRequest{Name: "later"}); err != nil {
		t.Error(err)
	}
	if _, err := srv.Rollback(ctx, before.ID, "point"); err != nil {
		t.Error(err)
	}
	if got := srv.sh(t, before.ID, "cat /root/file; ls /dev/shm"); got != "kept" {
		t.Errorf("rolled back to the new one it reads %q", got)
	}
	srv.clean(t)
}

// smallBuild asks for a template of busybox that takes little memory and disk.
func smallBuild(t *testing.T, name string) api.BuildRequest {
	t.Helper()
	return api.BuildRequest{Name: name, Image: testbed.Ref(testbed.Image(t, "busybox")), MemoryMiB: 128, DiskMiB: 64}
}

// only is the one replica that a template has.
func (s *server) only(t *testing.T, ref string) api.Replica {
	t.Helper()
	list, err := s.ListReplicas(t.Context(), ref)
	if err != nil || len(list) != 1 || list[0].Status != spore.ReplicaReady {
		t.Fatalf("the replicas of %s are %+v, %v", ref, list, err)
	}
	return list[0]
}
