package daemon_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/daemon"
	"github.com/sporevm/spore/internal/network/usernet"
	"github.com/sporevm/spore/internal/testbed"
	"github.com/sporevm/spore/internal/vmm/firecracker/fcdouble"
)

// TestServedByFirecracker has a server use the stand-in for Firecracker, in two versions side by side, with memory from files and
// from page servers, and takes it through a life with a crash of the server in it.
func TestServedByFirecracker(t *testing.T) {
	if _, err := os.Stat("/dev/kvm"); err != nil || os.Geteuid() != 0 {
		t.Skip("Firecracker's jailer needs root, and it KVM")
	}
	t.Cleanup(func() {
		if err := fcdouble.Clean(); err != nil {
			t.Error(err)
		}
	})
	versions := t.TempDir()
	install := func(version string) {
		t.Helper()
		b := fcdouble.Build(t, fcdouble.Options{Version: version, Guest: fcdouble.GuestAgent})
		dir := filepath.Join(versions, version)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, from := range map[string]string{"firecracker": b.Firecracker, "jailer": b.Jailer} {
			if err := os.Link(from, filepath.Join(dir, name)); err != nil {
				if err := os.Symlink(from, filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	install("1.13.1")
	for _, backend := range []string{daemon.MemoryFile, daemon.MemoryUffd} {
		t.Run(backend, func(t *testing.T) {
			cfg := serving{Config: daemon.Config{
				DataDir: dataDir(t), Engine: daemon.EngineFirecracker, Accel: "auto", FirecrackerDir: versions, FirecrackerPool: 1, MemoryBackend: backend,
			}}
			testServedByFirecracker(t, cfg, func() { install("1.17.0") })
			if err := os.RemoveAll(filepath.Join(versions, "1.17.0")); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func testServedByFirecracker(t *testing.T, cfg serving, upgrade func()) {
	ctx := t.Context()
	srv := start(t, cfg)
	srv.installKernel(t)
	tj, err := srv.BuildTemplate(ctx, api.BuildRequest{
		Name: "old", Image: testbed.Ref(testbed.Image(t, "busybox")), MemoryMiB: 256, DiskMiB: 512, Network: &api.Network{Mode: spore.NetworkUser},
	})
	if err != nil {
		t.Fatal(err)
	}
	srv.await(t, tj)
	a := srv.create(t, "old")
	plugged := func(n int) { t.Helper(); wantPlugged(t, cfg.DataDir, n) }
	plugged(1)
	runs := func(id string) {
		t.Helper()
		if out, err := srv.Sandbox(id).Command(ctx, "/bin/true").CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", id, err, out)
		}
	}
	runs(a.ID)
	snap, err := srv.CreateSnapshot(ctx, a.ID, api.SnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	runs(a.ID)
	b := srv.create(t, snap.ID)
	runs(b.ID)
	plugged(2)
	wantReplaced(t, cfg.DataDir, killNetworks(t, cfg.DataDir)) // by others, on the devices that the VMs have open
	plugged(2)

	srv.crash()
	killNetworks(t, cfg.DataDir)
	upgrade()
	cfg.Engine = daemon.EngineAuto // the directory remembers
	srv = start(t, cfg)
	runs(a.ID)
	runs(b.ID)
	plugged(2)
	if _, err := srv.UpdateSandbox(ctx, a.ID, api.SandboxUpdate{Egress: api.EgressUpdate{Internet: new(bool)}}); err != nil {
		t.Errorf("another policy for a sandbox of the server before: %v", err)
	}
	nodes, err := srv.ListNodes(ctx, false)
	if err != nil || len(nodes) != 1 {
		t.Fatalf("%v, %v", nodes, err)
	}
	node, beside := nodes[0], 0
	for _, c := range node.Installed {
		if c.Engine == daemon.EngineFirecracker && c.StateFormat != node.Components.StateFormat {
			beside++
		}
	}
	if beside != 1 {
		t.Errorf("beside the newest the node has %+v", node.Installed)
	}
	runs(srv.create(t, "old").ID) // by the old version
	srv.build(t, "new", "busybox")
	runs(srv.create(t, "new").ID)
	if _, err := srv.Rollback(ctx, a.ID, snap.ID); err != nil {
		t.Fatal(err)
	}
	runs(a.ID)

	// Without the old version what that has frozen cannot be thawed, and the refusal says what is missing.
	installed, away := filepath.Join(cfg.FirecrackerDir, "1.13.1"), filepath.Join(t.TempDir(), "away")
	if err := os.Rename(installed, away); err != nil {
		t.Fatal(err)
	}
	_, err = srv.CreateSandbox(ctx, api.CreateRequest{Template: "old"})
	if e := spore.AsError(err); e == nil || e.Code != spore.CodeStale || !strings.Contains(e.Hint, "install Firecracker 1.13 or 1.14") ||
		!strings.Contains(e.Message, "it was frozen by Firecracker 1.13.1, format 8.0.0; installed: 1.17.0 (format 12.0.0)") {
		t.Errorf("without the version that froze it: %#v", e)
	}
	if err := os.Rename(away, installed); err != nil {
		t.Fatal(err)
	}

	endHypervisorOf(t, cfg.DataDir, b.ID)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		got, err := srv.GetSandbox(ctx, b.ID)
		if err != nil {
			t.Fatal(err)
		}
		if got.State == spore.SandboxFailed {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the sandbox whose Firecracker was killed is %s", got.State)
		}
	}
	srv.clean(t)
	plugged(0)
}

// wantPlugged waits until there are n network processes, each with a VM on its TAP device, and no VM that lacks one.
func wantPlugged(t *testing.T, dir string, n int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		records, err := filepath.Glob(filepath.Join(dir, "vms", "*", "net.json"))
		if err != nil {
			t.Fatal(err)
		}
		plugged := 0
		for _, path := range records {
			link, err := usernet.Open(filepath.Dir(path))
			if err != nil {
				continue
			}
			if stats, err := link.Stats(t.Context()); err == nil && stats.Connected {
				plugged++
			}
		}
		if plugged == n && len(records) == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("of %d networks %d have a VM; there are to be %d", len(records), plugged, n)
		}
	}
}

// endHypervisorOf kills the Firecracker of a sandbox. A jail hides where its process lives, but its record says which it is.
func endHypervisorOf(t *testing.T, dir, sandbox string) {
	t.Helper()
	owners, err := filepath.Glob(filepath.Join(dir, "vms", "*", "owner.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range owners {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(raw), `"sandbox":"`+sandbox+`"`) {
			continue
		}
		raw, err = os.ReadFile(filepath.Join(filepath.Dir(path), "firecracker", "vm.json"))
		if err != nil {
			t.Fatal(err)
		}
		var record struct {
			PID int `json:"pid"`
		}
		if err := json.Unmarshal(raw, &record); err != nil || record.PID <= 1 {
			t.Fatalf("%s: %v", raw, err)
		}
		if err := syscall.Kill(record.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("sandbox %s has no VM", sandbox)
}
