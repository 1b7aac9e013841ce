// Package qemu runs VMs on stock QEMU, 7.2 and newer: with KVM where a trial boot has shown that it works, by software
// emulation elsewhere.
//
// Everything that QEMU names lies under a fixed relative name in a directory of the VM's own, DIR/qemu, which is also
// its root directory: see workdir. QEMU opens what it needs as the server's user, then drops to a user of its own
// before the guest runs its first instruction. Whatever comes later, device state above all, is handed over as open
// files through the monitor socket.
package qemu

import (
	"context"
	"fmt"
	"hash/fnv"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// Ways to run guests, for Options.Accel.
const (
	AccelAuto = "auto" // KVM if a trial boot succeeds, else software emulation
	AccelKVM  = "kvm"  // KVM or nothing
	AccelTCG  = "tcg"  // software emulation
)

// DefaultUIDBase is the first of the user ids that VMs run under when the server runs as root.
const DefaultUIDBase = 64000000

// uidRange is how many user ids follow the base.
const uidRange = 1 << 20

// Options say how an Engine works. The zero value is usable.
type Options struct {
	Binary   string // path or name of the hypervisor; default "qemu-system-x86_64"
	Accel    string // AccelAuto (default), AccelKVM or AccelTCG
	StateDir string // where the verdict on KVM is remembered; default: nowhere, so that every process tries again

	// Kernel and Initrd are what the trial boot under KVM starts; Initrd may be empty. Without a Kernel the one of the
	// first VM to boot is taken.
	Kernel, Initrd string

	// UIDBase is the first of 2^20 user and group ids that VMs run under when the server runs as root; default
	// DefaultUIDBase. A negative value keeps the server's user.
	UIDBase int

	Logger *slog.Logger // default: slog.Default
}

// Engine is the QEMU engine. It implements vmm.Engine.
type Engine struct {
	opts Options
	log  *slog.Logger

	trialSilence, trialTime time.Duration

	mu      sync.Mutex
	host    *hypervisor // what the binary is, once known
	verdict *verdict    // on KVM, once known
}

var _ vmm.Engine = (*Engine)(nil)

// New returns an engine. It starts nothing; Probe says whether it works here.
func New(opts Options) (*Engine, error) {
	if opts.Binary == "" {
		opts.Binary = "qemu-system-x86_64"
	}
	switch opts.Accel {
	case "":
		opts.Accel = AccelAuto
	case AccelAuto, AccelKVM, AccelTCG:
	default:
		return nil, spore.Invalidf("accel", "%q is not a way to run guests", opts.Accel).WithHint("use auto, kvm or tcg")
	}
	if opts.UIDBase == 0 {
		opts.UIDBase = DefaultUIDBase
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	return &Engine{opts: opts, log: opts.Logger, trialSilence: trialSilence, trialTime: trialTime}, nil
}

// Name is "qemu".
func (e *Engine) Name() string { return "qemu" }

// Probe finds the hypervisor and, unless software emulation was asked for, tries KVM with a bounded boot the first
// time.
func (e *Engine) Probe(ctx context.Context) (vmm.Info, error) {
	p, err := e.platform(ctx, e.opts.Kernel, e.opts.Initrd)
	if err != nil {
		return vmm.Info{}, err
	}
	return p.info(), nil
}

// platform is what a VM is started on: a binary and a way to run guests. It decides the device state's format.
type platform struct {
	*hypervisor
	accel, reason string
	cpu           string // for -cpu
	cpuName       string // for people
	features      string // of the host's processor, when guests see it
}

func (p platform) info() vmm.Info {
	return vmm.Info{
		Engine: "qemu", Version: p.version.String(), Accel: p.accel, AccelReason: p.reason, CPUModel: p.cpuName, CPUFeatures: p.features,
		StateFormat: fmt.Sprintf("qemu-%d.%d/%s/%s/%s", p.version.Major, p.version.Minor, machineType, p.accel, digestOf(p.cpuName)),
	}
}

func digestOf(text string) string {
	h := fnv.New64a()
	h.Write([]byte(text))
	return fmt.Sprintf("%016x", h.Sum64())
}

// platform answers at once after the first time; the trial boot is done once, whoever asks first.
func (e *Engine) platform(ctx context.Context, kernel, initrd string) (platform, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	hv, err := e.findBinary(ctx)
	if err != nil {
		return platform{}, err
	}
	v, err := e.judge(ctx, hv, kernel, initrd)
	if err != nil {
		return platform{}, err
	}
	if v.Accel == AccelKVM {
		cpu, err := hostCPU()
		if err != nil {
			return platform{}, err
		}
		return platform{hypervisor: hv, accel: AccelKVM, cpu: "host", cpuName: "host: " + cpu.name, features: cpu.features}, nil
	}
	return platform{hypervisor: hv, accel: AccelTCG, reason: v.Reason, cpu: tcgCPU, cpuName: tcgCPU}, nil
}

// hypervisor is an installed QEMU.
type hypervisor struct {
	path    string
	version Version
	size    int64
	mtime   int64
}

// findBinary asks the binary for its version, again whenever the file has changed. The caller holds e.mu.
func (e *Engine) findBinary(ctx context.Context) (*hypervisor, error) {
	missing := func(err error) error {
		return spore.Errorf(spore.CodeUnsupported, "the hypervisor %s is not installed", e.opts.Binary).WithCause(err).
			WithHint("install QEMU 7.2 or newer; on Debian: apt install qemu-system-x86")
	}
	path, err := exec.LookPath(e.opts.Binary)
	if err != nil {
		return nil, missing(err)
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, missing(err)
	}
	fi, err := os.Stat(path)
	if err != nil {
		return nil, missing(err)
	}
	if h := e.host; h != nil && h.path == path && h.size == fi.Size() && h.mtime == fi.ModTime().UnixNano() {
		return h, nil
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, spore.Errorf(spore.CodeUnsupported, "%s does not run", path).WithCause(err)
	}
	version, err := ParseVersion(out)
	if err != nil {
		return nil, spore.Errorf(spore.CodeUnsupported, "%s does not tell its version", path).WithCause(err)
	}
	if !version.AtLeast(7, 2) {
		return nil, spore.Errorf(spore.CodeUnsupported, "%s is version %s; 7.2 is the oldest that works", path, version)
	}
	e.host = &hypervisor{path: path, version: version, size: fi.Size(), mtime: fi.ModTime().UnixNano()}
	return e.host, nil
}

// uidFor chooses the user id of a VM, or -1 to keep the server's. Two VMs may meet on one id by chance, which costs
// them a wall between each other but none to the host: seccomp and the root directory still hold.
func (e *Engine) uidFor(id string) int {
	if os.Geteuid() != 0 || e.opts.UIDBase < 0 {
		return -1
	}
	h := fnv.New32a()
	h.Write([]byte(id))
	return e.opts.UIDBase + int(h.Sum32()%uidRange)
}
