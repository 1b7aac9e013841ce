// Package firecracker runs VMs on stock Firecracker, 1.10 to 1.17, each in a jail of its own.
//
// A VM's files have fixed names in a root directory of its own, DIR/firecracker/…/root, which the official jailer makes
// the root of a mount namespace: see jail and mount. Nothing is copied there: drives and memory are mounted into that
// namespace once the jailer has made it, so they go when the process does, however it ends, and snapshots name nothing
// that lies outside. Several versions may be installed side by side: a VM boots on the newest and is thawed by one that
// reads its snapshot; see Binary.
package firecracker

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// DefaultUIDBase is the first of the user ids that jails run under.
const DefaultUIDBase = 65100000

// uidRange is how many user ids follow the base.
const uidRange = 1 << 20

// DefaultCgroupParent is the cgroup beneath which every VM has its own.
const DefaultCgroupParent = "spore"

// Options say how an Engine works. The zero value takes firecracker and jailer from PATH.
type Options struct {
	Dir      string   // has directories, one for each version, with a firecracker and its jailer in each
	Binaries []string // paths or names of further binaries; the jailer is looked for beside each
	Jailer   string   // for Binaries without one beside them

	// NoJailer runs VMs without the jailer: as the server's user, without a root directory or namespaces of their own.
	// It is for hosts without root, and no wall holds there but Firecracker's own system call filter.
	NoJailer bool

	StateDir string // where the verdict on KVM is remembered and pooled processes wait; default: nowhere
	// Kernel and Initrd are what the trial boot starts; without a Kernel no trial is made.
	Kernel, Initrd string

	UIDBase      int    // the first of 2^20 user and group ids for jails; default DefaultUIDBase
	CgroupParent string // default DefaultCgroupParent

	// Pool is how many started, unloaded processes wait for VMs, so that starting one is off the way of a create. It
	// needs a StateDir on the file system that the VMs' directories are on. See Close.
	Pool int

	// Pager, if not nil, serves the memory of the thawed VMs that it wants; of others, and without it, the memory file is
	// mapped, and patches are written into a copy of it first.
	Pager Pager

	// ClockRealtime moves the guest's kvmclock on by the time that it was frozen, where the version can. Spore's agent
	// sets the clock itself.
	ClockRealtime bool

	// HugePages asks the host for transparent huge pages under guests' memory, which makes faults fewer and a VM's own
	// memory larger. It needs Firecracker 1.17.
	HugePages bool

	Logger *slog.Logger // default: slog.Default
}

// Engine is the Firecracker engine. It implements vmm.Engine.
type Engine struct {
	opts Options
	log  *slog.Logger
	pool *pool

	trialSilence, trialTime time.Duration

	mu      sync.Mutex
	known   map[string]*Binary // by path
	verdict *verdict

	believed atomic.Bool // a guest answered
}

var _ vmm.Engine = (*Engine)(nil)

var cgroupForm = regexp.MustCompile(`^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$`)

// New returns an engine. It starts nothing; Probe says whether it works here.
func New(opts Options) (*Engine, error) {
	if opts.UIDBase == 0 {
		opts.UIDBase = DefaultUIDBase
	}
	if opts.UIDBase < 0 {
		return nil, spore.Invalidf("uidBase", "%d is not a user id", opts.UIDBase)
	}
	if opts.CgroupParent == "" {
		opts.CgroupParent = DefaultCgroupParent
	}
	if !cgroupForm.MatchString(opts.CgroupParent) {
		return nil, spore.Invalidf("cgroupParent", "%q is not the name of a cgroup", opts.CgroupParent)
	}
	if opts.Pool < 0 || opts.Pool > 0 && opts.StateDir == "" {
		return nil, spore.Invalidf("pool", "a pool of %d processes needs a directory", opts.Pool)
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	e := &Engine{opts: opts, log: opts.Logger, trialSilence: trialSilence, trialTime: trialTime}
	e.pool = newPool(e)
	return e, nil
}

// Name is "firecracker".
func (e *Engine) Name() string { return "firecracker" }

// Installed lists the usable versions on this host, newest first.
func (e *Engine) Installed(ctx context.Context) ([]*Binary, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.binaries(ctx)
}

// Close ends what waits in the pool. VMs go on.
func (e *Engine) Close() error { return e.pool.close() }

// Probe finds the binaries and looks whether KVM works here.
func (e *Engine) Probe(ctx context.Context) (vmm.Info, error) {
	p, err := e.platform(ctx)
	if err != nil {
		return vmm.Info{}, err
	}
	return p.info(), nil
}

// platform is what VMs are started on.
type platform struct {
	all []*Binary // newest first
	cpu processor
}

func (p platform) newest() *Binary { return p.all[0] }

func (p platform) info() vmm.Info {
	return vmm.Info{
		Engine: "firecracker", Version: p.newest().Version.String(), Accel: "kvm",
		StateFormat: stateFormat(p.newest().Snapshot, p.cpu), CPUModel: p.cpu.name, CPUFeatures: p.cpu.features,
	}
}

func (e *Engine) platform(ctx context.Context) (platform, error) {
	if err := ctx.Err(); err != nil {
		return platform{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	all, err := e.binaries(ctx)
	if err != nil {
		return platform{}, err
	}
	if !e.opts.NoJailer {
		if err := e.canJail(all[0]); err != nil {
			return platform{}, err
		}
	}
	if e.opts.HugePages && !all[0].Features.LoadHugePages {
		return platform{}, spore.Errorf(spore.CodeUnsupported, "transparent huge pages were asked for, and Firecracker %s cannot use them", all[0].Version).
			WithHint("install Firecracker 1.17 or newer, or do without")
	}
	cpu, err := hostCPU()
	if err != nil {
		return platform{}, err
	}
	p := platform{all: all, cpu: cpu}
	return p, e.judge(ctx, p)
}

// checkKVM looks whether /dev/kvm is there and opens.
func checkKVM() error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return spore.Errorf(spore.CodeUnsupported, "Firecracker needs KVM, and this host has no /dev/kvm").
			WithHint("load the module kvm_intel or kvm_amd, or use the QEMU engine, which does without")
	case err != nil:
		return spore.Errorf(spore.CodeUnsupported, "Firecracker needs KVM, and /dev/kvm cannot be opened").WithCause(err).
			WithHint("give the server's user access to /dev/kvm, or use the QEMU engine, which does without")
	}
	return f.Close()
}
