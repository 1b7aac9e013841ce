package frozen

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

const (
	crashDir  = "SPORE_TEST_CRASH_DIR"
	crashStep = "SPORE_TEST_CRASH_STEP"
)

// redo is the id under which the crashing life makes snap-0 again.
const redo = "snap-0+redo"

// TestCrashAtEachStep kills a process that lives a whole life over a store, at the first durable step, then at the
// second, and so on. What is listed afterwards is whole, and after one sweep nothing is left over.
func TestCrashAtEachStep(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a process for each step")
	}
	t.Parallel()
	const most = 500
	var next, ended atomic.Int64
	ended.Store(most)
	var wg sync.WaitGroup
	for range 4 { // they mostly wait for the disk
		wg.Go(func() {
			for n := next.Add(1); n <= ended.Load() && !t.Failed(); n = next.Add(1) {
				if !crashAt(t, n) {
					ended.Store(min(n, ended.Load()))
				}
			}
		})
	}
	wg.Wait()
	if ended.Load() == most {
		t.Fatalf("there is no end after %d steps", most)
	}
	t.Logf("%d steps", ended.Load()-1)
}

// crashAt lives the life up to step n, and says whether that step was reached.
func crashAt(t *testing.T, n int64) bool {
	dir := filepath.Join(tempDir(t), "frozen")
	cmd := exec.Command(os.Args[0], "-test.run=^TestCrashChild$", "-test.count=1")
	cmd.Env = append(os.Environ(), "TMPDIR="+filepath.Dir(dir), crashDir+"="+dir, crashStep+"="+strconv.FormatInt(n, 10))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	killed := errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
	if err != nil && !killed {
		t.Errorf("step %d: %v\n%s", n, err, out)
		return false
	}
	if err := afterCrash(t, dir); err != nil {
		t.Errorf("step %d (%s): %v", n, lastLine(out), err)
	}
	return killed
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
	var step atomic.Int64
	s := must[*Store](t)(Open(dir, Options{MaxLayers: 1, Hook: func(name string) {
		if step.Add(1) == int64(last) {
			fmt.Println(name)
			if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
				panic(err)
			}
			select {}
		}
	}}))
	note := func(id string, r *running) {
		disk := must[[]byte](t)(os.ReadFile(r.disk))
		if err := os.WriteFile(dir+"-"+id, slices.Concat(r.vm.ram, disk), 0o600); err != nil {
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
	if err := s.Pin("s2", must[*Manifest](t)(s.Manifest("snap-0"))); err != nil {
		t.Fatal(err)
	}
	r.vm.page(9, 99)
	note(redo, r)
	r.snapshot(t, s, redo)
	must[*Manifest](t)(s.Promote(t.Context(), redo, "snap-0"))
	must[*Manifest](t)(s.Promote(t.Context(), redo, "snap-0"))
	must[*Manifest](t)(s.Flatten(t.Context(), "snap-1", FlattenOptions{}))
	must[*Manifest](t)(s.Flatten(t.Context(), "snap-2", FlattenOptions{ToBase: true}))
	for _, pin := range []string{"s1", "s2"} {
		if err := s.Unpin(pin); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove("tpl-1"); err != nil {
		t.Fatal(err)
	}
	must[int64](t)(must[*SweepPlan](t)(s.PlanSweep(t.Context(), nil)).Execute(t.Context()))
}

// afterCrash opens the store that a dead process left and says what is wrong with it.
func afterCrash(t *testing.T, dir string) error {
	s, err := Open(dir, Options{})
	if err != nil {
		return err
	}
	defer s.Close()
	entries, err := s.List(t.Context())
	if err != nil {
		return err
	}
	unfinished := false
	for _, e := range entries {
		if e.Err != nil {
			return fmt.Errorf("%s is listed: %w", e.ID, e.Err)
		}
		if err := readBack(t, s, e.Manifest, dir); err != nil {
			return fmt.Errorf("%s is listed: %w", e.ID, err)
		}
		unfinished = unfinished || e.ID == redo
	}
	if unfinished {
		m, err := s.Promote(t.Context(), redo, "snap-0")
		if err == nil {
			err = readBack(t, s, m, dir)
		}
		if err != nil || m.MadeAs != redo {
			return fmt.Errorf("promoted after all: %+v, %w", m, err)
		}
	}
	pins, err := s.Pins()
	if err != nil {
		return err
	}
	for _, name := range pins {
		m, err := s.Pinned(name)
		if err == nil {
			err = readBack(t, s, m, dir)
		}
		if err != nil {
			return fmt.Errorf("pin %s: %w", name, err)
		}
	}
	report, err := s.Check(t.Context(), true)
	if err != nil {
		return err
	}
	for _, p := range report.Problems {
		if p.Kind != ProblemUnreferenced {
			return fmt.Errorf("before the sweep: %+v", p)
		}
	}
	plan, err := s.PlanSweep(t.Context(), nil)
	if err == nil {
		_, err = plan.Execute(t.Context())
	}
	if err != nil {
		return err
	}
	if report, err = s.Check(t.Context(), true); err != nil || len(report.Problems) > 0 {
		return fmt.Errorf("after the sweep: %+v, %v", report, err)
	}
	for _, sub := range []string{dirStaging, dirLeases} {
		left, err := os.ReadDir(s.path(sub))
		if err != nil || len(left) > 0 {
			return fmt.Errorf("%s holds %v, %v", sub, left, err)
		}
	}
	return nil
}

// readBack compares a frozen VM with what was noted of it. A template is noted only after it was made.
func readBack(t *testing.T, s *Store, m *Manifest, dir string) error {
	note := dir + "-" + cmp.Or(m.MadeAs, m.ID)
	img, err := s.OpenManifest(t.Context(), m)
	if err != nil {
		return err
	}
	defer img.Close()
	want, err := os.ReadFile(note)
	if errors.Is(err, os.ErrNotExist) && m.Kind == KindTemplate {
		return nil
	}
	if err != nil {
		return err
	}
	ram := m.Memory.Size
	got := make([]byte, len(want))
	if int64(len(want)) < ram {
		return fmt.Errorf("of %d bytes, %d were noted", ram, len(want))
	}
	if err := errors.Join(readFull(img.Memory(), got[:ram], 0), readFull(img.Disk(), got[ram:], 0)); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return errors.New("it is not what was frozen")
	}
	return nil
}
