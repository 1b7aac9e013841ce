package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
	"github.com/sporevm/spore/internal/daemon"
	"github.com/sporevm/spore/internal/testbed"
)

// failedBuild builds a template and answers how that failed.
func (s *server) failedBuild(t *testing.T, req api.BuildRequest) error {
	t.Helper()
	if req.Name == "" {
		req.Name = "refused"
	}
	tj, err := s.BuildTemplate(t.Context(), req)
	if err != nil {
		return err
	}
	job, failure := s.WaitJob(t.Context(), tj.Job.ID, nil)
	if job == nil {
		t.Fatal(failure)
	}
	made, err := s.GetTemplate(t.Context(), tj.Template.ID)
	if err != nil {
		t.Fatal(err)
	}
	if made.Status != spore.TemplateFailed || made.LastError == "" {
		t.Errorf("the template is %s (%q)", made.Status, made.LastError)
	}
	return failure
}

// TestRefusedImages gives the builder images that cannot become templates.
func TestRefusedImages(t *testing.T) {
	t.Parallel()
	srv := start(t, serving{Config: daemonConfig(t)})
	srv.installKernel(t)
	registry := testbed.Registry(t)
	dir := t.TempDir()
	busybox := testbed.Image(t, "busybox")

	empty := filepath.Join(dir, "empty.tar")
	noise := filepath.Join(dir, "noise.tar")
	for path, body := range map[string]string{empty: "", noise: strings.Repeat("no archive ", 999)} {
		if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, image string
		code        spore.Code
		words       []string
	}{
		{"unknown image", registry + "/nobody/nothing:here", spore.CodeNotFound, []string{"nobody/nothing"}},
		{"unreachable registry", "127.0.0.1:1/some:thing", spore.CodeUnreachable, nil},
		{"wrong platform", testbed.Ref(foreign(t, dir, busybox)), spore.CodeInvalid, []string{"arm64"}},
		{"broken layer", testbed.Ref(broken(t, dir, busybox)), spore.CodeDamaged, []string{"sha256:"}},
		{"empty archive", "oci-archive:" + empty, spore.CodeInvalid, []string{"empty"}},
		{"no archive", "docker-archive:" + noise, spore.CodeInvalid, nil},
		{"missing archive", "oci-archive:" + filepath.Join(dir, "none.tar"), spore.CodeNotFound, []string{"none.tar"}},
		{"missing layout", "oci:" + filepath.Join(dir, "none"), spore.CodeNotFound, []string{"none"}},
		{"a dash", "-rf", spore.CodeInvalid, []string{"image"}},
		{"nothing", "", spore.CodeInvalid, []string{"image"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			wantCode(t, srv.failedBuild(t, api.BuildRequest{Image: c.image}), c.code, c.words...)
		})
	}
	srv.clean(t)
}

// foreign is a layout of an image for another architecture.
func foreign(t *testing.T, dir, from string) string {
	t.Helper()
	image := testbed.LayoutImage(t, from)
	file, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.Architecture = "arm64"
	if image, err = mutate.ConfigFile(image, file); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, "foreign")
	testbed.WriteLayout(t, to, image)
	return to
}

// broken is a layout with a flipped byte in a layer.
func broken(t *testing.T, dir, from string) string {
	t.Helper()
	image := testbed.LayoutImage(t, from)
	to := filepath.Join(dir, "broken")
	testbed.WriteLayout(t, to, image)
	layers, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	flip(t, filepath.Join(to, "blobs", digest.Algorithm, digest.Hex), 100)
	return to
}

// flip changes one byte of a file, at the offset or at its end when it is shorter.
func flip(t *testing.T, path string, offset int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	offset = min(offset, st.Size()-1)
	var b [1]byte
	if _, err := f.ReadAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x40
	if _, err := f.WriteAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
}

// TestRefusedRequests asks for what cannot be: nothing comes of it.
func TestRefusedRequests(t *testing.T) {
	t.Parallel()
	srv := start(t, serving{Config: daemonConfig(t)})
	srv.installKernel(t)
	ctx := t.Context()
	image := testbed.Ref(testbed.Image(t, "busybox"))
	srv.build(t, "taken", "busybox")

	for _, c := range []struct {
		name  string
		req   api.BuildRequest
		code  spore.Code
		words []string
	}{
		{"upper case", api.BuildRequest{Name: "Upper", Image: image}, spore.CodeInvalid, []string{"name"}},
		{"like an id", api.BuildRequest{Name: "tpl-0", Image: image}, spore.CodeInvalid, []string{"name"}},
		{"taken", api.BuildRequest{Name: "taken", Image: image}, spore.CodeConflict, []string{"taken"}},
		{"too many processors", api.BuildRequest{Image: image, VCPUs: runtime.NumCPU() + 1}, spore.CodeInvalid, []string{"vcpus"}},
		{"absurd processors", api.BuildRequest{Image: image, VCPUs: -1}, spore.CodeInvalid, []string{"vcpus"}},
		{"little memory", api.BuildRequest{Image: image, MemoryMiB: 1}, spore.CodeInvalid, []string{"memoryMiB"}},
		{"too much memory", api.BuildRequest{Image: image, MemoryMiB: 1 << 19}, spore.CodeInvalid, []string{"memoryMiB"}},
		{"too large a disk", api.BuildRequest{Image: image, DiskMiB: 1 << 24}, spore.CodeInvalid, []string{"diskMiB"}},
		{"two probes", api.BuildRequest{Image: image, Readiness: api.Readiness{TCPPort: 1, HTTPPath: "/"}}, spore.CodeInvalid, []string{"readiness"}},
		{"no such kernel", api.BuildRequest{Image: image, KernelID: "krn-000000000000000000000000"}, spore.CodeNotFound, []string{"krn-"}},
		{"bad certificate", api.BuildRequest{Image: image, EgressCA: "none"}, spore.CodeInvalid, []string{"egressCA"}},
	} {
		t.Run(c.name, func(t *testing.T) { wantCode(t, srv.failedBuild(t, c.req), c.code, c.words...) })
	}

	t.Run("readiness never", func(t *testing.T) {
		err := srv.failedBuild(t, api.BuildRequest{Image: image, MemoryMiB: 128, Readiness: api.Readiness{
			Command: []string{"/bin/sh", "-c", "echo I am not ready > /dev/console; exit 1"}, TimeoutSeconds: 3,
		}})
		wantCode(t, err, spore.CodeInvalid, "readiness", "I am not ready")
	})
	t.Run("create", func(t *testing.T) {
		_, err := srv.CreateSandbox(ctx, api.CreateRequest{Template: "none"})
		wantCode(t, err, spore.CodeNotFound, "none")
		_, err = srv.CreateSandbox(ctx, api.CreateRequest{Template: "taken", TTLSeconds: -1})
		wantCode(t, err, spore.CodeInvalid, "ttlSeconds")
		_, err = srv.CreateSandbox(ctx, api.CreateRequest{Template: "taken", OnEnd: "explode"})
		wantCode(t, err, spore.CodeInvalid, "onEnd")
		_, err = srv.Fork(ctx, api.ForkRequest{Source: "taken", Count: 100000})
		wantCode(t, err, spore.CodeInvalid, "count")
	})
	t.Run("idempotency", func(t *testing.T) {
		keyed := client.WithIdempotencyKey(ctx, "the-key")
		made := make([]*api.Sandbox, 4)
		var all sync.WaitGroup
		for i := range made {
			all.Go(func() {
				var err error
				if made[i], err = srv.CreateSandbox(keyed, api.CreateRequest{Template: "taken"}); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		for _, m := range made {
			if m == nil || m.ID != made[0].ID || m.State != spore.SandboxRunning {
				t.Fatalf("the replays answered %v", made)
			}
		}
		_, err := srv.CreateSandbox(keyed, api.CreateRequest{Template: "taken", TTLSeconds: 60})
		wantCode(t, err, spore.CodeConflict, "the-key")
		srv.kill(t, made[0].ID)
	})
	t.Run("gone", func(t *testing.T) {
		sb := srv.create(t, "taken")
		srv.kill(t, sb.ID)
		_, err := srv.CreateSnapshot(ctx, sb.ID, api.SnapshotRequest{})
		wantCode(t, err, spore.CodeNotFound, sb.ID)
		wantCode(t, srv.DeleteSandbox(ctx, sb.ID), spore.CodeNotFound, sb.ID)
		_, err = srv.Sandbox(sb.ID).Command(ctx, "true").Output()
		if err == nil {
			t.Error("a command ran in a sandbox that is gone")
		}
	})
	t.Run("vanishing", func(t *testing.T) {
		// Snapshots race with the death of the hypervisor: each succeeds or is refused, and nothing hangs or is left.
		sb := srv.create(t, "taken")
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				_, err := srv.CreateSnapshot(ctx, sb.ID, api.SnapshotRequest{})
				if code := spore.CodeOf(err); err != nil && code != spore.CodeConflict && code != spore.CodeNotFound {
					t.Errorf("%q: %v", code, err)
				}
			})
		}
		killVMOf(t, srv.dir, sb.ID)
		all.Wait()
	})
	srv.clean(t)
}

// TestHostileCommands runs what misbehaves inside a sandbox.
func TestHostileCommands(t *testing.T) {
	t.Parallel()
	srv := start(t, serving{Config: daemonConfig(t)})
	srv.installKernel(t)
	tj, err := srv.BuildTemplate(t.Context(), api.BuildRequest{
		Name: "busybox", Image: testbed.Ref(testbed.Image(t, "busybox")), MemoryMiB: 256, DiskMiB: 64,
	})
	if err != nil {
		t.Fatal(err)
	}
	srv.await(t, tj)
	ctx := t.Context()
	id := srv.create(t, "busybox").ID

	t.Run("missing file", func(t *testing.T) {
		_, err := srv.Sandbox(id).Command(ctx, "/no/such/file").Output()
		if !errors.Is(err, client.ErrCommandNotFound) || !strings.Contains(fmt.Sprint(err), "/no/such/file") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("flood", func(t *testing.T) {
		var n counter
		cmd := srv.Sandbox(id).Command(ctx, "/bin/sh", "-c", "head -c 5000000 /dev/zero; exit 7")
		cmd.Stdout = &n
		err := cmd.Run()
		var exit *client.ExitError
		if !errors.As(err, &exit) || exit.Code != 7 || n != 5000000 {
			t.Errorf("%d bytes and %v", n, err)
		}
	})
	t.Run("ignores SIGTERM", func(t *testing.T) {
		cmd := srv.Sandbox(id).Command(ctx, "/bin/sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done")
		out, in := io.Pipe()
		cmd.Stdout = in
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		if _, err := io.ReadFull(out, make([]byte, 3)); err != nil {
			t.Fatal(err)
		}
		go io.Copy(io.Discard, out)
		if err := cmd.Signal(ctx, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			t.Fatalf("it ended: %v", err)
		case <-time.After(500 * time.Millisecond):
		}
		if err := cmd.Signal(ctx, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		var exit *client.ExitError
		if err := <-ended; !errors.As(err, &exit) || exit.Code != 128+9 {
			t.Errorf("it ended with %v", err)
		}
	})
	t.Run("full guest disk", func(t *testing.T) {
		err := srv.Sandbox(id).Files().Write(ctx, "/root/huge", io.LimitReader(zeros{}, 1<<30))
		wantCode(t, err, spore.CodeNoSpace)
		if got := srv.sh(t, id, "ls /root"); got != "" {
			t.Errorf("a failed copy left %q", got)
		}
		srv.sh(t, id, "echo fine > /root/small && cat /root/small")
	})
	srv.clean(t)
}

type counter int64

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestFullHostDisk fills the host's disk under a build and under a snapshot.
func TestFullHostDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a file system")
	}
	mount := testbed.MountFS(t, "ext4", 1024)
	srv := start(t, serving{Config: daemon.Config{DataDir: filepath.Join(mount, "data")}})
	srv.installKernel(t)
	srv.build(t, "busybox", "busybox")
	sb := srv.create(t, "busybox")
	srv.sh(t, sb.ID, "head -c 60000000 /dev/urandom > /dev/shm/dirt && md5sum /dev/shm/dirt > /root/sum")

	ballast := filepath.Join(mount, "ballast")
	fill := func(leaveMiB int) {
		t.Helper()
		if err := os.RemoveAll(ballast); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(ballast)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := syscall.Fallocate(int(f.Fd()), 0, 0, int64(testbed.FreeMiB(t, mount)-leaveMiB)<<20); err != nil {
			t.Fatal(err)
		}
	}
	for _, leave := range []int{8, 30} { // below the guard, and so little that it ends in the middle
		fill(leave)
		_, err := srv.CreateSnapshot(t.Context(), sb.ID, api.SnapshotRequest{})
		wantCode(t, err, spore.CodeNoSpace, "MiB")
		wantCode(t, srv.failedBuild(t, api.BuildRequest{
			Image: testbed.Ref(testbed.Image(t, "static")), MemoryMiB: 128, DiskMiB: 64,
		}), spore.CodeNoSpace)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	srv.sh(t, sb.ID, "md5sum -c /root/sum")
	if _, err := srv.CreateSnapshot(t.Context(), sb.ID, api.SnapshotRequest{}); err != nil {
		t.Errorf("with room again: %v", err)
	}
	srv.clean(t)
}

// TestHundredForks starts far more forks than the machine has processors: each starts, or is refused by name.
func TestHundredForks(t *testing.T) {
	srv := start(t, serving{Config: daemonConfig(t)})
	srv.installKernel(t)
	tj, err := srv.BuildTemplate(t.Context(), api.BuildRequest{
		Name: "small", Image: testbed.Ref(testbed.Image(t, "busybox")), MemoryMiB: 128, DiskMiB: 64,
	})
	if err != nil {
		t.Fatal(err)
	}
	srv.await(t, tj)
	sb := srv.create(t, "small")
	forks, err := srv.Fork(t.Context(), api.ForkRequest{Source: sb.ID, Count: 100})
	if err != nil {
		t.Fatal(err)
	}
	started := 0
	for _, f := range forks {
		switch {
		case f.Sandbox != nil:
			started++
		case f.Error.Code != spore.CodeBusy && f.Error.Code != spore.CodeNoSpace:
			t.Errorf("a fork was refused with %s: %s", f.Error.Code, f.Error.Message)
		}
	}
	t.Logf("%d of 100 started", started)
	if started == 0 {
		t.Error("no fork started")
	}
	for _, f := range forks {
		if f.Sandbox != nil {
			srv.sh(t, f.Sandbox.ID, "true")
			break
		}
	}
	srv.clean(t)
}

// TestDataDirectory serves where it should not.
func TestDataDirectory(t *testing.T) {
	cfg := daemonConfig(t)
	cfg.Listen, cfg.Engine = "127.0.0.1:0", "sim"
	srv := start(t, serving{Config: cfg})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	wantCode(t, daemon.Serve(ctx, cfg), spore.CodeConflict, "in use", fmt.Sprint(srv.cmd.Process.Pid))
	srv.stop(t)

	version := filepath.Join(cfg.DataDir, "VERSION")
	for content, code := range map[string]spore.Code{"999\n": spore.CodeConflict, "rubbish": spore.CodeDamaged} {
		if err := os.WriteFile(version, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		wantCode(t, daemon.Serve(ctx, cfg), code)
	}

	public := cfg
	public.DataDir, public.Listen = dataDir(t), "0.0.0.0:0"
	wantCode(t, daemon.Serve(ctx, public), spore.CodeInvalid, "token")
}
