package daemon

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/node"
	"github.com/sporevm/spore/internal/thread"
	"github.com/sporevm/spore/internal/vmm/firecracker/pager"
)

// TestEngineOfADirectory decides which engine serves a data directory, by what is asked, what served it before and what runs there.
func TestEngineOfADirectory(t *testing.T) {
	for _, c := range []struct {
		before, asked, runs, want string
		code                      spore.Code
	}{
		{"", "", "", EngineQEMU, ""},
		{"", EngineAuto, "", EngineQEMU, ""},
		{"", EngineFirecracker, "", EngineFirecracker, ""},
		{EngineFirecracker, "", "", EngineFirecracker, ""},
		{EngineFirecracker, EngineAuto, "firecracker", EngineFirecracker, ""},
		{EngineFirecracker, EngineQEMU, "", EngineQEMU, ""},
		{EngineFirecracker, EngineQEMU, "firecracker", "", spore.CodeConflict},
		{EngineQEMU, EngineFirecracker, "qemu", "", spore.CodeConflict},
		{"", EngineFirecracker, "qemu", "", spore.CodeConflict}, // served before the file was there
		{"", EngineQEMU, "qemu", EngineQEMU, ""},
		{EngineSim, EngineAuto, "", EngineSim, ""},
		{"bochs", EngineAuto, "", "", spore.CodeDamaged},
		{"bochs", EngineQEMU, "", EngineQEMU, ""},
		{"", "bochs", "", "", spore.CodeInvalid},
	} {
		dir := t.TempDir()
		if c.before != "" {
			if err := rememberEngine(dir, c.before); err != nil {
				t.Fatal(err)
			}
		}
		if c.runs != "" {
			resident(t, filepath.Join(dir, "vms", "v0", c.runs))
		}
		got, err := chooseEngine(c.asked, dir)
		if got != c.want || spore.CodeOf(err) != c.code {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
		if c.code == spore.CodeConflict && (!strings.Contains(err.Error(), c.runs) || !strings.Contains(spore.AsError(err).Hint, "--engine "+c.runs)) {
			t.Errorf("%+v: %v, %s", c, err, spore.AsError(err).Hint)
		}
	}
}

// resident has a process live in a directory until the test ends, and answers its pid.
func resident(t *testing.T, dir string) int {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "600")
	cmd.Dir = dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd.Process.Pid
}

func TestResidents(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a [b] *")
	want := map[string]int{
		"v1": resident(t, filepath.Join(dir, "vms/v1/qemu")),
		"v2": resident(t, filepath.Join(dir, "vms/v2/firecracker/firecracker/fc-0/root")),
		"v3": resident(t, filepath.Join(dir, "vms/v3/firecracker/root")),
	}
	resident(t, filepath.Join(dir, "vms/v4/elsewhere"))
	if err := os.MkdirAll(filepath.Join(dir, "vms/v5/qemu"), 0o700); err != nil {
		t.Fatal(err)
	}
	got, err := residents(dir)
	if err != nil || len(got) != len(want) {
		t.Fatalf("%v, %v", got, err)
	}
	for id, pid := range want {
		if got[id] != pid {
			t.Errorf("in %s lives %d, not %d", id, got[id], pid)
		}
	}
	if got, err := residents(filepath.Join(dir, "none")); err != nil || len(got) > 0 {
		t.Errorf("nowhere lives %v, %v", got, err)
	}
}

func TestOrphaned(t *testing.T) {
	dir := t.TempDir()
	ours := resident(t, filepath.Join(dir, "vms/v0123456789abcdef0123/firecracker"))
	other := resident(t, filepath.Join(dir, "vms/else"))
	if orphaned(ours) || orphaned(other) {
		t.Error("a process whose directory is there is an orphan")
	}
	if err := os.RemoveAll(filepath.Join(dir, "vms")); err != nil {
		t.Fatal(err)
	}
	if !orphaned(ours) {
		t.Error("a hypervisor whose directory is gone is none")
	}
	if orphaned(other) {
		t.Error("somebody else's process is one")
	}
	if orphaned(0) {
		t.Error("nobody is one")
	}
}

func TestMemoryBackend(t *testing.T) {
	choose, err := chooseBackend(t.Context(), MemoryFile, t.TempDir())
	if err != nil || choose(1<<30, 1<<30) != pager.BackendFile {
		t.Error(err)
	}
	if _, err := chooseBackend(t.Context(), "tape", t.TempDir()); spore.CodeOf(err) != spore.CodeInvalid {
		t.Error(err)
	}
}

// TestFirecrackerIsRefused asks for what Firecracker cannot do, or where it is not.
func TestFirecrackerIsRefused(t *testing.T) {
	empty := t.TempDir()
	t.Setenv("PATH", empty)
	for name, c := range map[string]struct {
		cfg  Config
		code spore.Code
		word string
	}{
		"emulation":  {Config{Engine: EngineFirecracker, Accel: "tcg"}, spore.CodeInvalid, "emulation"},
		"none there": {Config{Engine: EngineFirecracker, MemoryBackend: MemoryFile, FirecrackerDir: empty}, spore.CodeUnsupported, "not installed"},
		"a backend":  {Config{Engine: EngineFirecracker, MemoryBackend: "tape"}, spore.CodeInvalid, "tape"},
	} {
		c.cfg.DataDir, c.cfg.Listen = t.TempDir(), "127.0.0.1:0"
		err := Serve(t.Context(), c.cfg)
		if spore.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(filepath.Join(c.cfg.DataDir, engineFile)); err == nil {
			t.Errorf("%s: the engine that did not start is remembered", name)
		}
	}
}

// TestNetworksFitTheEngine looks at what is said of network mode user to those who are not root.
func TestNetworksFitTheEngine(t *testing.T) {
	if err := thread.Apart(func() error {
		const nobody = 65534
		if os.Geteuid() == 0 {
			if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 { // of this thread alone
				return errno
			}
		}
		for engine, can := range map[string]bool{EngineQEMU: true, EngineFirecracker: false} {
			n := &networks{by: map[spore.NetworkMode]node.Networks{spore.NetworkUser: userNetworks{}}, no: map[spore.NetworkMode]error{}}
			if err := n.fit(engine, ""); err != nil {
				return err
			}
			why := n.no[spore.NetworkUser]
			if got := n.by[spore.NetworkUser] != nil; got != can || got != (why == nil) {
				t.Errorf("%s: %v, %v", engine, got, why)
			}
			if why != nil && (spore.CodeOf(why) != spore.CodeUnsupported || !strings.Contains(why.Error(), "root") || spore.AsError(why).Hint == "") {
				t.Errorf("%s: %v", engine, why)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
