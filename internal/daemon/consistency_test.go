package daemon_test

import (
	"archive/tar"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
	"github.com/sporevm/spore/internal/daemon"
	"github.com/sporevm/spore/internal/testbed"
)

// roundsVariable sets how many rounds TestMemoryAndDiskAgree makes on each filesystem.
const roundsVariable = "SPORE_TEST_ROUNDS"

// TestMemoryAndDiskAgree snapshots, forks and rolls back a guest that never stops changing 64 MiB in memory and, the
// same, on disk. Whatever comes of it reads back consistent: memory and disk are of one instant.
func TestMemoryAndDiskAgree(t *testing.T) {
	t.Parallel()
	rounds := 12
	if s := os.Getenv(roundsVariable); s != "" {
		var err error
		if rounds, err = strconv.Atoi(s); err != nil || rounds < 1 {
			t.Fatalf("%s is %q", roundsVariable, s)
		}
	}
	image := churnImage(t)
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			if os.Geteuid() != 0 {
				t.Skip("needs root to mount a file system")
			}
			dir := filepath.Join(testbed.MountFS(t, fs, 8<<10), "data")
			srv := start(t, serving{Config: daemon.Config{DataDir: dir}})
			srv.installKernel(t)
			tj, err := srv.BuildTemplate(t.Context(), api.BuildRequest{
				Name: "churn", Image: image, MemoryMiB: 256, DiskMiB: 256,
				Readiness: api.Readiness{Command: []string{"/churn", "verify", "64"}, TimeoutSeconds: 300},
			})
			if err != nil {
				t.Fatal(err)
			}
			srv.await(t, tj)
			churn(t, srv, rounds)
			srv.clean(t)
		})
	}
}

func churnImage(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "churn")
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", binary, "./testdata/churn")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	data, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "image")
	testbed.WriteLayout(t, dir, testbed.NewImage(t, v1.Config{Entrypoint: []string{"/churn"}, WorkingDir: "/"},
		testbed.Tar(t, testbed.Entry{Header: tar.Header{Name: "churn", Mode: 0o755}, Body: data})))
	return testbed.Ref(dir)
}

func churn(t *testing.T, srv *server, rounds int) {
	ctx := t.Context()
	sb := srv.create(t, "churn")
	var snaps []string
	begun := time.Now()
	for round := range rounds {
		snap, err := srv.CreateSnapshot(ctx, sb.ID, api.SnapshotRequest{})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		snaps = append(snaps, snap.ID)
		forks, err := srv.Fork(ctx, api.ForkRequest{Source: snaps[(round*7)%len(snaps)], Count: 1})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if e := forks[0].Error; e != nil {
			t.Fatalf("round %d: fork: %s", round, e.Message)
		}
		srv.verifyChurn(t, forks[0].Sandbox.ID, round, 16)
		srv.kill(t, forks[0].Sandbox.ID)
		if round%3 == 2 {
			if _, err := srv.Rollback(ctx, sb.ID, snaps[(round*5)%len(snaps)]); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			srv.verifyChurn(t, sb.ID, round, 16)
		}
		if len(snaps) == 8 { // drop the older half, so that the disk lasts; what is kept stands on what is dropped
			for _, id := range snaps[:4] {
				if _, err := srv.DeleteSnapshot(ctx, id, client.DeleteOptions{Force: true}); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
			}
			snaps = snaps[4:]
			if _, err := srv.CollectGarbage(ctx, false); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
	}
	t.Logf("%d rounds in %s", rounds, time.Since(begun).Round(time.Second))
	srv.verifyChurn(t, sb.ID, rounds, 1)
	for _, id := range snaps {
		last := srv.create(t, id)
		srv.verifyChurn(t, last.ID, rounds, 1)
		srv.kill(t, last.ID)
	}
}

// verifyChurn has the guest compare every nth page, and wants it to have gone on changing since it was thawed.
func (s *server) verifyChurn(t *testing.T, sandbox string, round, nth int) {
	t.Helper()
	out, err := s.Sandbox(sandbox).Command(t.Context(), "/churn", "verify", strconv.Itoa(nth)).CombinedOutput()
	if err != nil {
		t.Fatalf("round %d: sandbox %s: %v: %s", round, sandbox, err, out)
	}
	if _, err := strconv.ParseUint(strings.TrimSpace(string(out)), 10, 64); err != nil {
		t.Fatalf("round %d: sandbox %s answered %q", round, sandbox, out)
	}
}
