package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
)

// period is over how long a share of the processors is counted out, the kernel's own default: a group that has used up its
// share stands still for the rest of it.
const period = 100 * time.Millisecond

// minQuota is the least that the kernel gives out in one period.
const minQuota = time.Millisecond

// Group is the control group of one VM. Its methods may be called from many goroutines at once. They fail with
// spore.CodeNotFound once it is removed.
type Group struct {
	c    *Controller
	id   string
	dirs []string // as Controller.dirs
	top  string   // of the hierarchy, for a group that was not made here
}

// Path is the group's directory, for messages.
func (g *Group) Path() string { return g.dirs[0] }

// Add moves a process, with all its threads, into the group. What it starts later is born there. It fails with
// spore.CodeConflict when the process has ended.
func (g *Group) Add(pid int) error {
	if pid <= 0 {
		return fmt.Errorf("cgroup: %d is no process", pid) // 0 would move this very server
	}
	for _, dir := range g.dirs {
		err := write(dir, "cgroup.procs", strconv.Itoa(pid))
		if errors.Is(err, syscall.ESRCH) {
			return spore.Errorf(spore.CodeConflict, "the process %d has ended", pid).WithCause(err)
		}
		if err != nil {
			return g.explain("add a process to", err)
		}
	}
	return nil
}

// SetCPUs bounds the group to so many processors' worth of time; 0 takes the bound away. It works at once, on running
// processes too. Less than a hundredth of a processor counts as that.
func (g *Group) SetCPUs(cpus float64) error {
	if math.IsNaN(cpus) || cpus < 0 || cpus > spore.MaxVCPUs {
		return spore.Invalidf("limits.cpus", "%v is out of range", cpus)
	}
	quota := max(time.Duration(math.Round(cpus*float64(period))), minQuota)
	var err error
	switch {
	case g.c.info.Version == V2 && cpus == 0:
		err = write(g.dirs[0], "cpu.max", fmt.Sprintf("max %d", period.Microseconds()))
	case g.c.info.Version == V2:
		err = write(g.dirs[0], "cpu.max", fmt.Sprintf("%d %d", quota.Microseconds(), period.Microseconds()))
	case cpus == 0:
		err = write(g.dirs[0], "cpu.cfs_quota_us", "-1")
	default:
		// A new group has this period, but one that was found again may have been made by a server that knew another.
		if err = write(g.dirs[0], "cpu.cfs_period_us", strconv.FormatInt(period.Microseconds(), 10)); err == nil {
			err = write(g.dirs[0], "cpu.cfs_quota_us", strconv.FormatInt(quota.Microseconds(), 10))
		}
	}
	if errors.Is(err, syscall.EINVAL) {
		return spore.Errorf(spore.CodeUnsupported, "the kernel does not let the group of %s have %v processors", g.id, cpus).
			WithHint("a control group above it may be bounded to less").WithCause(err)
	}
	if err != nil {
		return g.explain("bound", err)
	}
	return nil
}

// Usage is what a group has taken since it was made.
type Usage struct {
	CPU          time.Duration // time on processors; 0 where nothing counts it
	Periods      int64         // spans of 100 ms in which it wanted to run while it was bounded
	Throttled    int64         // of those, how many it used up and was stopped in
	ThrottledFor time.Duration // for how long, added up over all processors
}

// Usage tells what the group has taken so far.
func (g *Group) Usage() (Usage, error) {
	text, err := os.ReadFile(filepath.Join(g.dirs[0], "cpu.stat"))
	if err != nil {
		return Usage{}, g.explain("read the usage of", err)
	}
	stat, err := parseStat(text)
	if err != nil {
		return Usage{}, err
	}
	u := Usage{Periods: stat["nr_periods"], Throttled: stat["nr_throttled"]}
	if g.c.info.Version == V2 {
		u.CPU = time.Duration(stat["usage_usec"]) * time.Microsecond
		u.ThrottledFor = time.Duration(stat["throttled_usec"]) * time.Microsecond
		return u, nil
	}
	u.ThrottledFor = time.Duration(stat["throttled_time"])
	text, err = os.ReadFile(filepath.Join(g.dirs[len(g.dirs)-1], "cpuacct.usage"))
	if errors.Is(err, fs.ErrNotExist) && len(g.dirs) == 1 {
		return u, nil // this machine does not count
	}
	if err != nil {
		return Usage{}, g.explain("read the usage of", err)
	}
	ns, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return Usage{}, fmt.Errorf("cgroup: cpuacct.usage: %w", err)
	}
	u.CPU = time.Duration(ns)
	return u, nil
}

// Remove waits until no process is in the group, and removes it. It ends none: when ctx ends first it fails with
// spore.CodeInUse, and the group stays. A group that is gone is no error.
func (g *Group) Remove(ctx context.Context) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		err := g.remove()
		if err == nil {
			return nil
		}
		if !errors.Is(err, syscall.EBUSY) {
			return fmt.Errorf("cgroup: remove the group of %s: %w", g.id, err)
		}
		select {
		case <-ctx.Done():
			return g.busy(ctx.Err())
		case <-time.After(wait):
		}
	}
}

// remove removes what is there of the group's directories.
func (g *Group) remove() error {
	for _, dir := range g.dirs {
		if err := g.c.sys.rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// busy says who is in the group.
func (g *Group) busy(cause error) error {
	who := "processes"
	for _, dir := range g.dirs {
		text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if pids := strings.Fields(string(text)); err == nil && len(pids) > 0 {
			who = "the processes " + strings.Join(pids[:min(len(pids), 10)], ", ")
			break
		}
	}
	return spore.Errorf(spore.CodeInUse, "%s still run in the group of %s", who, g.id).WithCause(cause)
}

func (g *Group) explain(act string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		if _, statErr := os.Stat(g.dirs[0]); errors.Is(statErr, fs.ErrNotExist) {
			return spore.Errorf(spore.CodeNotFound, "the group of %s is gone", g.id).WithCause(err)
		}
	}
	return fmt.Errorf("cgroup: %s the group of %s: %w", act, g.id, err)
}

// write gives the kernel a value. Files of a control group are never made. It goes past package os, which would take EAGAIN for a
// request to wait until the file is ready, forever.
func write(dir, name, value string) error {
	path := filepath.Join(dir, name)
	fail := func(op string, err error) error { return &fs.PathError{Op: op, Path: path, Err: err} }
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_TRUNC|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail("open", err)
	}
	defer unix.Close(fd) // the kernel has answered already
	for {
		switch _, err := unix.Write(fd, []byte(value)); err {
		case nil:
			return nil
		case unix.EINTR:
		default:
			return fail("write", err)
		}
	}
}
