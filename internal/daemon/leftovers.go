package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/cgroup"
	"github.com/sporevm/spore/internal/network"
	"github.com/sporevm/spore/internal/network/usernet"
	"github.com/sporevm/spore/internal/node"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/firecracker"
	"github.com/sporevm/spore/internal/vmm/qemu"
)

// Kinds of a Leftover.
const (
	LeftoverVM      = "vm"      // a hypervisor that no sandbox needs
	LeftoverOrphan  = "orphan"  // a hypervisor whose data directory is gone
	LeftoverPool    = "pool"    // hypervisors that were started ahead
	LeftoverNetwork = "network" // what an isolated network is made of
	LeftoverCgroup  = "cgroup"
)

// Leftover is something on this host that a server which is gone has left there.
type Leftover struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Detail string `json:"detail,omitempty"`
}

// CleanConfig says what Clean removes.
type CleanConfig struct {
	DataDir   string
	Sandboxes bool // the sandboxes that go on running without a server as well
	DryRun    bool // nothing: only tell
	Logger    *slog.Logger
}

// Clean removes from this host what a server on a data directory has left there, and answers what that was, or would be: VMs that
// are nobody's, their networks and control groups, and hypervisors of data directories that are gone. Sandboxes that run are kept, for the next
// server takes them over, unless they are to go as well. What is in the data directory is left to the next server.
// It fails with spore.CodeConflict while a server uses the directory. What cannot be removed keeps nothing else from being removed.
func Clean(ctx context.Context, cfg CleanConfig) ([]Leftover, error) {
	path, err := filepath.Abs(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	release, err := alone(path)
	if err != nil {
		return nil, err
	}
	defer release()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c := cleaning{CleanConfig: cfg, dir: path}
	for _, step := range []func(context.Context) error{c.machines, c.waiting, c.orphans, c.networks, c.groups, c.jails} {
		if ctx.Err() != nil {
			return c.found, errors.Join(append(c.errs, ctx.Err())...)
		}
		if err := step(ctx); err != nil {
			c.errs = append(c.errs, err)
		}
	}
	return c.found, errors.Join(c.errs...)
}

// alone makes sure that no server uses a data directory, which may not be there at all.
func alone(dir string) (release func(), err error) {
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, spore.Invalidf("data", "the data directory cannot be used: %v", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, spore.Errorf(spore.CodeConflict, "a server runs on %s, and looks after what it has", dir).WithHint("spore gc and spore fsck ask the server")
	}
	return func() { lock.Close() }, nil
}

// cleaning is one run of Clean.
type cleaning struct {
	CleanConfig
	dir   string
	keep  []string // VMs of sandboxes that go on
	found []Leftover
	errs  []error
}

func (c *cleaning) note(kind, name, format string, args ...any) {
	c.found = append(c.found, Leftover{Kind: kind, Name: name, Detail: fmt.Sprintf(format, args...)})
}

// machines ends VMs that no sandbox needs, with what only they had.
func (c *cleaning) machines(ctx context.Context) error {
	live, err := residents(c.dir)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(c.dir, "vms"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	engines, err := c.engines()
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		id := e.Name()
		dir := filepath.Join(c.dir, "vms", id)
		pid, runs := live[id]
		sandbox, err := node.SandboxOf(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.Logger.Warn("the owner file of a VM cannot be read; the VM is taken for nobody's", "vm", id, "err", err)
			sandbox = ""
		}
		if runs && sandbox != "" && !c.Sandboxes {
			c.keep = append(c.keep, id)
			continue
		}
		switch {
		case runs && sandbox != "":
			c.note(LeftoverVM, id, "process %d, of sandbox %s", pid, sandbox)
		case runs:
			c.note(LeftoverVM, id, "process %d, of no sandbox", pid)
		}
		if c.DryRun {
			continue
		}
		for _, engine := range engines {
			errs = append(errs, engine.Clean(ctx, dir)) // of a VM that has ended it removes what was beside the process
		}
		errs = append(errs, usernet.Clean(ctx, dir))
	}
	return errors.Join(errs...)
}

// engines are those that may have started VMs. None of them has to work here.
func (c *cleaning) engines() ([]vmm.Engine, error) {
	q, err := qemu.New(qemu.Options{Accel: qemu.AccelTCG, Logger: c.Logger})
	if err != nil {
		return nil, err
	}
	f, err := c.firecracker()
	return []vmm.Engine{q, f}, err
}

func (c *cleaning) firecracker() (*firecracker.Engine, error) {
	return firecracker.New(firecracker.Options{StateDir: c.dir, Pager: pagers{log: c.Logger}, Logger: c.Logger})
}

// waiting ends the hypervisors that were started ahead.
func (c *cleaning) waiting(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(c.dir, "firecracker-pool"))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		c.note(LeftoverPool, e.Name(), "a Firecracker that was started ahead")
	}
	if c.DryRun {
		return nil
	}
	f, err := c.firecracker()
	if err != nil {
		return err
	}
	return f.CleanPool(ctx)
}

// orphans ends hypervisors whose directory was removed under them: no server can find them again.
func (c *cleaning) orphans(ctx context.Context) error {
	var errs []error
	err := eachProcess(func(pid int) error {
		if !orphaned(pid) {
			return ctx.Err()
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return nil // it has ended
		}
		defer unix.Close(fd)
		if !orphaned(pid) { // the pid is somebody else's by now
			return nil
		}
		c.note(LeftoverOrphan, fmt.Sprint(pid), "the directory of this hypervisor is gone")
		if c.DryRun {
			return nil
		}
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("end process %d: %w", pid, err))
		}
		return nil
	})
	return errors.Join(append(errs, err)...)
}

// networks removes what isolated networks of VMs that are gone were made of.
func (c *cleaning) networks(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return nil // there are none
	}
	dir, done, err := networksDir(c.dir)
	if err != nil {
		return err
	}
	m, err := network.New(network.Options{Dir: dir, Log: c.Logger})
	if err != nil {
		return errors.Join(err, done())
	}
	var found []network.Leftover
	if c.DryRun {
		found, err = m.Leftovers(c.keep)
	} else {
		found, err = m.Clean(ctx, c.keep)
	}
	for _, l := range found {
		c.note(LeftoverNetwork, l.Name, "%s", l.Kind)
	}
	return errors.Join(err, m.Close(), done())
}

// groups removes the control groups of VMs that are gone.
func (c *cleaning) groups(ctx context.Context) error {
	owner, err := cgroup.Fingerprint(c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	g, err := cgroup.Open(ctx, cgroup.Options{Owner: owner})
	if spore.CodeOf(err) == spore.CodeUnsupported {
		return nil // so there are none
	}
	if err != nil {
		return err
	}
	ids, err := g.List()
	if err != nil {
		return err
	}
	for _, id := range ids {
		if !slices.Contains(c.keep, id) {
			c.note(LeftoverCgroup, id, "bounds the processor time of a VM")
		}
	}
	if c.DryRun {
		return nil
	}
	_, err = g.Clean(ctx, func(id string) bool { return slices.Contains(c.keep, id) })
	return err
}

// jailAge is how old the control group of a jail must be before it counts as left behind: in one that is being made there is no
// process yet.
const jailAge = time.Minute

// jails removes the control groups of Firecrackers that are gone, of whichever data directory they were: nothing but their names is left of them.
func (c *cleaning) jails(context.Context) error {
	var errs []error
	for _, dir := range firecracker.EmptyCgroups(firecracker.DefaultCgroupParent) {
		fi, err := os.Stat(dir)
		if err != nil || time.Since(fi.ModTime()) < jailAge {
			continue
		}
		c.note(LeftoverCgroup, filepath.Base(dir), "of a Firecracker that has ended")
		if c.DryRun {
			continue
		}
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EBUSY) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// remains says whether something is left on this host, in a sentence.
func remains(ctx context.Context, cfg Config) Finding {
	f := Finding{Name: "leftovers", Verdict: FindingOK, Detail: "none"}
	found, err := Clean(ctx, CleanConfig{DataDir: cfg.DataDir, DryRun: true, Logger: cfg.Logger})
	if spore.CodeOf(err) == spore.CodeConflict {
		f.Detail = spore.AsError(err).Message
		return f
	}
	if err != nil {
		return broken(f.Name, FindingWarn, err)
	}
	if len(found) == 0 {
		return f
	}
	count := map[string]int{}
	for _, l := range found {
		count[l.Kind]++
	}
	var parts []string
	for _, kind := range []string{LeftoverVM, LeftoverOrphan, LeftoverPool, LeftoverNetwork, LeftoverCgroup} {
		if n := count[kind]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, kind))
		}
	}
	f.Verdict, f.Detail, f.Hint = FindingWarn, "a server that is gone has left: "+strings.Join(parts, ", "), "spore doctor --clean --dry-run"
	return f
}
