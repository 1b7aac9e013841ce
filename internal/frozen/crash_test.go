package frozen

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

const (
	crashDir  = "SPORE_TEST_CRASH_DIR"
	crashStep = "SPORE_TEST_CRASH_STEP"
)

// TestCrashAtEachStep kills a process that lives a whole life over a store, at the first durable step, then at the
// second, and so on. What is listed afterwards is whole, and after one sweep nothing is left over.
func TestCrashAtEachStep(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a process for each step")
	}
	const most = 500
	for n := 1; n < most; n++ {
		dir := filepath.Join(t.TempDir(), "frozen")
		cmd := exec.Command(os.Args[0], "-test.run=^TestCrashChild$", "-test.count=1")
		cmd.Env = append(os.Environ(), crashDir+"="+dir, crashStep+"="+strconv.Itoa(n))
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		killed := errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
		if err != nil && !killed {
			t.Fatalf("step %d: %v\n%s", n, err, out)
		}
		afterCrash(t, dir, fmt.Sprintf("step %d (%s)", n, lastLine(out)))
		if !killed {
			t.Logf("%d steps", n-1)
			return
		}
	}
	t.Fatalf("there is no end after %d steps", most)
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

// TestCrashChild is the life that TestCrashAtEachStep ends early. What each frozen VM must look like is written down
// beside the store before it is committed.
func TestCrashChild(t *testing.T) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		t.Skip("runs in a process of its own")
	}
	last, err := strconv.Atoi(os.Getenv(crashStep))
	if err != nil {
		t.Fatal(err)
	}
	step := 0
	s := must[*Store](t)(Open(dir, Options{MaxLayers: 1, Hook: func(name string) {
		if step++; step == last {
			fmt.Println(name)
			if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
				panic(err)
			}
			select {}
		}
	}}))
	note := func(id string, r *running) {
		disk := must[[]byte](t)(os.ReadFile(r.disk))
		doc := must[[]byte](t)(json.Marshal([][]byte{r.vm.ram, disk}))
		if err := os.WriteFile(dir+"-"+id, doc, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	template(t, s, "tpl-1", 32)
	r := thaw(t, s, "tpl-1")
	note("tpl-1", r)
	if err := s.Pin("s1", r.parent); err != nil {
		t.Fatal(err)
	}
	for i := range int64(3) {
		id := fmt.Sprintf("snap-%d", i)
		r.vm.page(i, byte(i)+10)
		writeDisk(t, r.disk, 256, map[int64]byte{i: byte(i) + 10})
		note(id, r)
		r.parent = r.snapshot(t, s, id)
		if err := s.Pin("s1", r.parent); err != nil {
			t.Fatal(err)
		}
	}
	must[*Manifest](t)(s.Flatten(t.Context(), "snap-1", FlattenOptions{}))
	must[*Manifest](t)(s.Flatten(t.Context(), "snap-2", FlattenOptions{ToBase: true}))
	if err := s.Unpin("s1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove("tpl-1"); err != nil {
		t.Fatal(err)
	}
	must[int64](t)(must[*SweepPlan](t)(s.PlanSweep(t.Context(), nil)).Execute(t.Context()))
}

func afterCrash(t *testing.T, dir, when string) {
	t.Helper()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	defer s.Close()
	for _, e := range must[[]Entry](t)(s.List(t.Context())) {
		if e.Err != nil {
			t.Fatalf("%s: %s is listed but %v", when, e.ID, e.Err)
		}
		img, err := s.OpenImage(t.Context(), e.ID)
		if err != nil {
			t.Fatalf("%s: %s is listed but %v", when, e.ID, err)
		}
		var want [][]byte
		if doc, err := os.ReadFile(dir + "-" + e.ID); err == nil { // a template is noted only after it was made
			if err := json.Unmarshal(doc, &want); err != nil {
				t.Fatal(err)
			}
			ram, disk := make([]byte, len(want[0])), make([]byte, len(want[1]))
			if err := errors.Join(readFull(img.Memory(), ram, 0), readFull(img.Disk(), disk, 0)); err != nil {
				t.Fatalf("%s: %s: %v", when, e.ID, err)
			}
			if !bytes.Equal(ram, want[0]) || !bytes.Equal(disk, want[1]) {
				t.Fatalf("%s: %s is not what was frozen", when, e.ID)
			}
		}
		if err := img.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range must[[]string](t)(s.Pins()) {
		m := must[*Manifest](t)(s.Pinned(name))
		must[*Image](t)(s.OpenManifest(t.Context(), m)).Close()
	}
	for _, p := range must[*Report](t)(s.Check(t.Context(), true)).Problems {
		if p.Kind != ProblemUnreferenced {
			t.Fatalf("%s: before the sweep: %+v", when, p)
		}
	}
	must[int64](t)(must[*SweepPlan](t)(s.PlanSweep(t.Context(), nil)).Execute(t.Context()))
	if report := must[*Report](t)(s.Check(t.Context(), true)); len(report.Problems) > 0 {
		t.Fatalf("%s: after the sweep: %+v", when, report.Problems)
	}
	for _, sub := range []string{dirStaging, dirLeases} {
		if left := must[[]os.DirEntry](t)(os.ReadDir(s.path(sub))); len(left) > 0 {
			t.Fatalf("%s: %s holds %v", when, sub, left)
		}
	}
}
