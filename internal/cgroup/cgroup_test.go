package cgroup

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	spore "github.com/sporevm/spore"
)

// The test's own program is also the process that is bounded: it does nothing but take time.
func TestMain(m *testing.M) {
	if os.Getenv("SPORE_CGROUP_BURN") != "" {
		for n := 0; n >= 0; n = (n + 1) % 1000 {
			runtime.Gosched() // never ends
		}
	}
	if os.Getpid() == 1 {
		runAsInit()
	}
	os.Exit(m.Run())
}

func burn(t *testing.T) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "SPORE_CGROUP_BURN=1", "GOMAXPROCS=1")
	must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantCode(t *testing.T, what string, err error, want spore.Code) {
	t.Helper()
	if got := spore.CodeOf(err); got != want {
		t.Errorf("%s: code %q, want %q: %v", what, got, want, err)
	}
}

// openHere opens the control groups of this machine, or skips where there are none to be had.
func openHere(t *testing.T) *Controller {
	t.Helper()
	owner, err := Fingerprint(t.TempDir())
	must(t, err)
	c, err := Open(t.Context(), Options{Owner: owner})
	if want := os.Getenv("SPORE_CGROUP_WANT"); want != "" && (err != nil || c.Info().Version != Version(want)) {
		t.Fatalf("no version %s: %v", want, err)
	}
	if spore.CodeOf(err) == spore.CodeUnsupported {
		t.Skip(err)
	}
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if ids, err := c.List(); err != nil || len(ids) > 0 {
			t.Errorf("groups are left: %v, %v", ids, err)
		}
		if _, err := c.Clean(ctx, func(string) bool { return false }); err != nil {
			t.Error(err)
		}
		must(t, c.Close())
	})
	return c
}

func create(t *testing.T, c *Controller, id string) *Group {
	t.Helper()
	g, err := c.Create(t.Context(), id)
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		must(t, g.Remove(ctx))
	})
	return g
}

// share measures how much of a processor the process, alone in the group, takes.
func share(t *testing.T, g *Group, pid int, window time.Duration) float64 {
	t.Helper()
	outside := time.Now()
	before, err := g.Usage()
	must(t, err)
	began := time.Now() // before the first reading, as the end is after the last: no delay between makes the share look greater
	cpuBefore := cpuTime(t, pid)
	time.Sleep(window) // the length of the measurement
	cpu, wall := cpuTime(t, pid)-cpuBefore, time.Since(began)
	after, err := g.Usage()
	must(t, err)
	const step = 20 * time.Millisecond // by which the kernel brings its counts up to date
	if counted := after.CPU - before.CPU; counted < cpu-step || counted > time.Since(outside)+step {
		t.Errorf("the group took %s and its only process %s", counted, cpu)
	}
	return float64(cpu) / float64(wall)
}

// cpuTime is how long a process was on a processor.
func cpuTime(t *testing.T, pid int) (total time.Duration) {
	t.Helper()
	threads, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/schedstat")
	must(t, err)
	for _, path := range threads {
		text, err := os.ReadFile(path)
		must(t, err)
		ns, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
		must(t, err)
		total += time.Duration(ns)
	}
	return total
}

// favour lets the group have processors before all others of this machine, which has other things to do, so that its bound is
// all that holds it back.
func favour(t *testing.T, g *Group) {
	t.Helper()
	name, most, usual := "cpu.shares", "262144", "1024"
	if g.c.info.Version == V2 {
		name, most, usual = "cpu.weight", "10000", "100"
	}
	for _, dir := range []string{g.c.dirs[0], g.dirs[0]} {
		if err := write(dir, name, most); err != nil {
			t.Logf("the group is not favoured: %v", err)
		}
	}
	t.Cleanup(func() {
		if err := write(g.c.dirs[0], name, usual); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("take back the favour: %v", err)
		}
	})
}

// hold looks whether the process takes want of a processor, within 15 %. It never may take more, but in a guest, whose time stands
// still and jumps as the machine around it likes; that it takes less for once is looked at again.
func hold(t *testing.T, g *Group, pid int, want float64) {
	t.Helper()
	guest := os.Getenv("SPORE_CGROUP_WANT") != ""
	const tries = 10
	for range tries {
		before, err := g.Usage()
		must(t, err)
		got := share(t, g, pid, 2*time.Second)
		after, err := g.Usage()
		must(t, err)
		t.Logf("bounded to %.2f processors, it takes %.3f; stopped in %d of %d periods", want, got, after.Throttled-before.Throttled, after.Periods-before.Periods)
		if got > want*1.15 && !guest {
			t.Fatalf("it takes %.3f of a processor, bounded to %.2f", got, want)
		}
		if got >= want*0.85 && got <= want*1.15 {
			return
		}
	}
	t.Errorf("it does not take %.2f of a processor in any of %d measurements", want, tries)
}

func TestShareIsHeld(t *testing.T) {
	c := openHere(t)
	t.Logf("%+v", c.Info())
	g := create(t, c, "busy")
	must(t, g.SetCPUs(0.5))
	cmd := burn(t)
	must(t, g.Add(cmd.Process.Pid))
	favour(t, g)
	hold(t, g, cmd.Process.Pid, 0.5)
	if u, err := g.Usage(); err != nil || u.Throttled == 0 || u.ThrottledFor == 0 || u.Periods < u.Throttled {
		t.Errorf("%+v, %v", u, err)
	}
	again, err := c.Get("busy") // as after a restart
	must(t, err)
	must(t, again.SetCPUs(0.2))
	hold(t, again, cmd.Process.Pid, 0.2)
	must(t, again.SetCPUs(0))
	before, err := g.Usage()
	must(t, err)
	share(t, g, cmd.Process.Pid, time.Second)
	if after, err := g.Usage(); err != nil || after.Throttled > before.Throttled+1 {
		t.Errorf("it is held back without a bound: %+v, then %+v (%v)", before, after, err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	wantCode(t, "Remove while a process runs", g.Remove(ctx), spore.CodeInUse)
	_, err = c.Create(t.Context(), "busy")
	wantCode(t, "Create while a process runs", err, spore.CodeConflict)
	if _, err := c.Clean(t.Context(), func(string) bool { return false }); spore.CodeOf(err) != spore.CodeInUse || !strings.Contains(err.Error(), strconv.Itoa(cmd.Process.Pid)) {
		t.Errorf("Clean while a process runs: %v", err)
	}
	if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the process was ended: %v", err)
	}
	removed := make(chan error, 1)
	go func() { removed <- g.Remove(t.Context()) }()
	must(t, cmd.Process.Kill())
	cmd.Wait()
	must(t, <-removed)
	must(t, g.Remove(t.Context()))
	wantCode(t, "Add after Remove", g.Add(os.Getpid()), spore.CodeNotFound)
	wantCode(t, "SetCPUs after Remove", g.SetCPUs(1), spore.CodeNotFound)
	_, err = g.Usage()
	wantCode(t, "Usage after Remove", err, spore.CodeNotFound)
	_, err = c.Get("busy")
	wantCode(t, "Get after Remove", err, spore.CodeNotFound)
}

func TestServersLeaveEachOtherAlone(t *testing.T) {
	a, b := openHere(t), openHere(t)
	create(t, a, "one")
	two := create(t, a, "two")
	create(t, b, "one")
	ended := burn(t)
	must(t, two.Add(ended.Process.Pid))
	must(t, ended.Process.Kill())
	ended.Wait()
	wantCode(t, "Add of a process that has ended", two.Add(ended.Process.Pid), spore.CodeConflict)
	if ids, err := a.List(); err != nil || !slices.Equal(ids, []string{"one", "two"}) {
		t.Fatal(ids, err)
	}
	removed, err := a.Clean(t.Context(), func(id string) bool { return id == "one" })
	if err != nil || !slices.Equal(removed, []string{"two"}) {
		t.Error(removed, err)
	}
	if ids, err := b.List(); err != nil || !slices.Equal(ids, []string{"one"}) {
		t.Error(ids, err)
	}
	if _, err := a.Create(t.Context(), "one"); err != nil { // what is empty is used again
		t.Error(err)
	}
	must(t, b.Release(t.Context(), "one"))
	must(t, b.Close())
	if _, err := a.Get("one"); err != nil {
		t.Errorf("a group went with another server: %v", err)
	}
	must(t, a.Release(t.Context(), "one"))
	must(t, a.Close())
	must(t, a.Close())
	again, err := b.Create(t.Context(), "later") // although the folder may be gone
	must(t, err)
	must(t, again.SetCPUs(0.5))
	must(t, again.Remove(t.Context()))
}

func TestGovern(t *testing.T) {
	c := openHere(t)
	ctx := t.Context()
	cmd := burn(t)
	pid := cmd.Process.Pid
	must(t, c.Govern(ctx, "vm", pid, nil, 0))
	if ids, err := c.List(); err != nil || len(ids) > 0 {
		t.Errorf("a group without need: %v, %v", ids, err)
	}
	must(t, c.Govern(ctx, "vm", pid, nil, 0.3))
	must(t, c.Govern(ctx, "vm", pid, nil, 0.1))
	g, err := c.Get("vm")
	must(t, err)
	favour(t, g)
	hold(t, g, pid, 0.1)
	must(t, c.Recover(ctx, []string{"vm"}))
	must(t, c.Govern(ctx, "vm", pid, nil, 0))
	must(t, cmd.Process.Kill())
	cmd.Wait()
	must(t, c.Release(ctx, "vm"))
	must(t, c.Release(ctx, "vm"))
	wantCode(t, "Govern of a process that has ended", c.Govern(ctx, "vm", pid, nil, 1), spore.CodeConflict)
	if ids, err := c.List(); err != nil || len(ids) > 0 {
		t.Errorf("a group is left: %v, %v", ids, err)
	}
	_, err = c.Create(ctx, "dead")
	must(t, err)
	must(t, c.Recover(ctx, nil))
}

// A VM that was put into a group, with limits, stays under them when its processor time is bounded.
func TestGovernWhereItIs(t *testing.T) {
	c, ctx := openHere(t), t.Context()
	i := slices.IndexFunc(c.sys.mounts, func(m mount) bool { return m.v2 })
	if i < 0 || os.Geteuid() != 0 {
		if os.Getenv("SPORE_CGROUP_WANT") != "" {
			t.Fatal("this guest was made for it")
		}
		t.Skip("it takes root, and control groups of version 2")
	}
	above := filepath.Join(c.sys.mounts[i].point, "spore-test-"+c.owner)
	own := filepath.Join(above, "vm")
	must(t, os.MkdirAll(own, 0o755))
	t.Cleanup(func() { must(t, errors.Join(os.Remove(own), os.Remove(above))) })
	limited := c.info.Version == V2
	if limited {
		must(t, enableDownTo(c.sys.mounts[i].point, above, "pids"))
		must(t, write(own, "pids.max", "77"))
	}
	cmd := burn(t)
	pid := cmd.Process.Pid
	must(t, write(own, "cgroup.procs", strconv.Itoa(pid)))
	stays := func() {
		t.Helper()
		if procs, err := words(own, "cgroup.procs"); err != nil || !slices.Equal(procs, []string{strconv.Itoa(pid)}) {
			t.Errorf("in its own group are %v, %v", procs, err)
		}
		if max, err := words(own, "pids.max"); limited && (err != nil || !slices.Equal(max, []string{"77"})) {
			t.Errorf("its limit is %v, %v", max, err)
		}
	}
	must(t, c.Govern(ctx, "vm", pid, []string{own}, 0))
	must(t, c.Govern(ctx, "vm", pid, []string{own}, 0.3))
	stays()
	if limited {
		if ids, err := c.List(); err != nil || len(ids) > 0 {
			t.Errorf("it has another group: %v, %v", ids, err)
		}
		g, err := c.given("vm", []string{own})
		must(t, err)
		hold(t, g, pid, 0.3)
		// As it was left by a server that moved it.
		moved, err := c.Create(ctx, "vm")
		must(t, err)
		must(t, moved.Add(pid))
		must(t, c.Govern(ctx, "vm", pid, []string{own}, 0.2))
		stays()
		must(t, c.Govern(ctx, "vm", pid, []string{own}, 0))
		if max, err := words(own, "cpu.max"); err != nil || max[0] != "max" {
			t.Errorf("the bound is not lifted: %v, %v", max, err)
		}
		stays()
	}
	must(t, cmd.Process.Kill())
	cmd.Wait()
	must(t, c.Release(ctx, "vm"))
	must(t, c.Recover(ctx, nil))
	wantCode(t, "Govern of a process that has ended", c.Govern(ctx, "vm", pid, []string{own}, 0.3), spore.CodeConflict)
}

func TestBadInput(t *testing.T) {
	_, err := Open(t.Context(), Options{Owner: "../.."})
	wantCode(t, "Open", err, spore.CodeInternal)
	c := openHere(t)
	for _, id := range []string{"", "../x", "a/b", ".", strings.Repeat("x", 65)} {
		_, err := c.Create(t.Context(), id)
		wantCode(t, "Create "+id, err, spore.CodeInvalid)
		_, err = c.Get(id)
		wantCode(t, "Get "+id, err, spore.CodeInvalid)
	}
	g := create(t, c, "x")
	for _, cpus := range []float64{-1, 1e9} {
		wantCode(t, "SetCPUs", g.SetCPUs(cpus), spore.CodeInvalid)
	}
	if err := g.Add(0); err == nil {
		t.Error("the server itself was added")
	}
}

func TestFingerprint(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(dir, link))
	a, err := Fingerprint(dir)
	must(t, err)
	b, err := Fingerprint(link)
	must(t, err)
	other, err := Fingerprint(t.TempDir())
	must(t, err)
	if a != b || a == other || !ownerForm.MatchString(a) {
		t.Error(a, b, other)
	}
}
