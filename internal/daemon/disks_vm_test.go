package daemon_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
)

// TestDisks gives a real guest a file of the machine's as a drive, and takes a snapshot of it that the file belongs to.
func TestDisks(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dir, elsewhere := t.TempDir(), t.TempDir()
	disk := filepath.Join(dir, "data.img")
	for _, path := range []string{disk, filepath.Join(elsewhere, "other.img")} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, 16<<20); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", disk).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cfg := serving{Config: daemonConfig(t)}
	cfg.DiskDirs = []string{dir}
	srv := start(t, cfg)
	srv.installKernel(t)
	srv.build(t, "busybox", "busybox")
	create := func(from string, disks ...api.Disk) (*api.Sandbox, error) {
		return srv.CreateSandbox(ctx, api.CreateRequest{Template: from, Disks: disks})
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(elsewhere, "other.img"), link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(elsewhere, "other.img"), link, filepath.Join(dir, "none"), dir} {
		_, err := create("busybox", api.Disk{Path: path})
		if code := spore.CodeOf(err); code != spore.CodeInvalid && code != spore.CodeNotFound {
			t.Errorf("%s: %v", path, err)
		}
	}

	sb, err := create("busybox", api.Disk{Path: disk})
	if err != nil {
		t.Fatal(err)
	}
	if !sb.Cold || len(sb.Disks) != 1 {
		t.Errorf("it is %+v", sb)
	}
	const mount = "mkdir -p /root/m && mount -t ext4 /dev/vdc /root/m"
	srv.sh(t, sb.ID, mount+" && echo one > /root/m/file && echo seen > /root/memory && sync")
	_, err = create("busybox", api.Disk{Path: disk})
	wantCode(t, err, spore.CodeInUse)

	held, err := srv.CreateSnapshot(ctx, sb.ID, api.SnapshotRequest{Name: "point", HoldSeconds: 60})
	if err != nil {
		t.Fatal(err)
	}
	if held.Status != spore.TemplateCreating {
		t.Errorf("it is %s while it is held", held.Status)
	}
	copied := filepath.Join(dir, "copy.img")
	if out, err := exec.Command("cp", "--sparse=always", disk, copied).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	point, err := srv.ReleaseSnapshot(ctx, held.ID, false)
	if err != nil || point.Status != spore.TemplateReady {
		t.Fatalf("%+v, %v", point, err)
	}
	srv.sh(t, sb.ID, "echo two > /root/m/file; sync")
	_, err = srv.Rollback(ctx, sb.ID, "point")
	wantCode(t, err, spore.CodeConflict, disk)
	_, err = srv.Fork(ctx, api.ForkRequest{Source: sb.ID, Count: 1})
	wantCode(t, err, spore.CodeConflict, "disks")
	_, err = create("point")
	wantCode(t, err, spore.CodeConflict, "disks")

	// With the copy the snapshot goes on where it was, and the original where it is.
	again, err := create("point", api.Disk{Path: copied})
	if err != nil {
		t.Fatal(err)
	}
	if got := srv.sh(t, again.ID, "cat /root/m/file /root/memory"); got != "one\nseen" || again.Cold {
		t.Errorf("from the snapshot it reads %q", got)
	}
	if _, err := srv.PauseSandbox(ctx, sb.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := srv.ResumeSandbox(ctx, sb.ID, nil); err != nil {
		t.Fatal(err)
	}
	srv.crash()
	srv = start(t, cfg)
	if got := srv.sh(t, sb.ID, "cat /root/m/file; umount /root/m"); got != "two" {
		t.Errorf("after pause, resume and a crash of the server it reads %q", got)
	}
	srv.clean(t)
	if raw, err := os.ReadFile(disk); err != nil || len(raw) != 16<<20 || !strings.Contains(string(raw), "two\n") {
		t.Errorf("the disk was not left as the guest left it: %d bytes, %v", len(raw), err)
	}
}
