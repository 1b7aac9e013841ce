package daemon_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/daemon"
	"github.com/sporevm/spore/internal/testbed"
)

// TestDeadServerIsClearedAway kills a server that has a sandbox with a network and a limit, and looks at what may be removed of it
// and what may not.
func TestDeadServerIsClearedAway(t *testing.T) {
	t.Parallel()
	cfg := daemonConfig(t)
	mode := spore.NetworkUser
	if os.Geteuid() == 0 {
		mode = spore.NetworkIsolated
	}
	srv := start(t, serving{Config: cfg})
	srv.installKernel(t)
	tj, err := srv.BuildTemplate(t.Context(), api.BuildRequest{
		Name: "net", Image: testbed.Ref(testbed.Image(t, "busybox")), MemoryMiB: 256, DiskMiB: 512, Network: &api.Network{Mode: mode},
	})
	if err != nil {
		t.Fatal(err)
	}
	srv.await(t, tj)
	req := api.CreateRequest{Template: "net"}
	if os.Geteuid() == 0 {
		req.Limits.CPUs = 0.9
	}
	sb, err := srv.CreateSandbox(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	clean := func(c daemon.CleanConfig) []daemon.Leftover {
		t.Helper()
		c.DataDir = cfg.DataDir
		found, err := daemon.Clean(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		return slices.DeleteFunc(found, func(l daemon.Leftover) bool {
			return l.Kind == daemon.LeftoverOrphan || strings.HasPrefix(l.Name, "fc-")
		}) // other servers'
	}
	if _, err := daemon.Clean(t.Context(), daemon.CleanConfig{DataDir: cfg.DataDir}); spore.CodeOf(err) != spore.CodeConflict {
		t.Errorf("with a server that runs: %v", err)
	}

	srv.crash()
	// What the dead server kept ready for nobody may go; the sandbox may not.
	for _, l := range clean(daemon.CleanConfig{}) {
		if l.Kind == daemon.LeftoverVM || l.Kind == daemon.LeftoverCgroup {
			t.Errorf("a sandbox was taken for a leftover: %+v", l)
		}
	}
	other := cfg
	other.Engine, other.Listen = daemon.EngineFirecracker, "127.0.0.1:0"
	if err := daemon.Serve(t.Context(), other); spore.CodeOf(err) != spore.CodeConflict || !strings.Contains(err.Error(), "qemu") {
		t.Errorf("with another engine: %v", err)
	}
	srv = start(t, serving{Config: cfg})
	srv.sh(t, sb.ID, "true")
	srv.crash()

	kinds := func(all []daemon.Leftover) map[string]bool {
		set := map[string]bool{}
		for _, l := range all {
			set[l.Kind] = true
		}
		return set
	}
	planned := kinds(clean(daemon.CleanConfig{Sandboxes: true, DryRun: true}))
	if !planned[daemon.LeftoverVM] || os.Geteuid() == 0 && (!planned[daemon.LeftoverNetwork] || !planned[daemon.LeftoverCgroup]) {
		t.Errorf("planned is %v", planned)
	}
	if len(processesIn(t, cfg.DataDir)) == 0 {
		t.Error("a rehearsal ended the sandbox")
	}
	if done := kinds(clean(daemon.CleanConfig{Sandboxes: true})); !done[daemon.LeftoverVM] {
		t.Errorf("removed is %v", done)
	}
	for _, l := range clean(daemon.CleanConfig{Sandboxes: true}) {
		if l.Kind != daemon.LeftoverNetwork { // of other servers whose directory is gone; ours are looked for below
			t.Errorf("the second time there is %+v", l)
		}
	}
	if pids := processesIn(t, cfg.DataDir); len(pids) > 0 {
		t.Errorf("processes %v are left", pids)
	}
	if left := links(t, cfg.DataDir); len(left) > 0 {
		t.Errorf("links %v are left", left)
	}

	srv = start(t, serving{Config: cfg})
	got, err := srv.GetSandbox(t.Context(), sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got.State != spore.SandboxFailed || got.StateReason == "" {
		t.Errorf("the sandbox is %s (%q)", got.State, got.StateReason)
	}
	srv.clean(t)
}

// TestCleanOfNoDirectory clears up after a data directory that is not there, and makes none.
func TestCleanOfNoDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone", "data")
	found, err := daemon.Clean(t.Context(), daemon.CleanConfig{DataDir: dir, DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range found {
		if l.Kind != daemon.LeftoverOrphan && l.Kind != daemon.LeftoverNetwork && !strings.HasPrefix(l.Name, "fc-") { // those are of others
			t.Errorf("found %+v", l)
		}
	}
	if _, err := os.Stat(filepath.Dir(dir)); !os.IsNotExist(err) {
		t.Errorf("it was made: %v", err)
	}
}
