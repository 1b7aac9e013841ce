// Package sim is an engine without a hypervisor, for testing what stands above the engines at a scale and with faults
// that no hypervisor offers. Its VMs have real memory files, private pages over them and saved states that know their
// shape; only the guest is a function in this process.
package sim

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// Options say how an Engine behaves. The zero value is an engine without faults whose guests echo lines.
type Options struct {
	// Version is what Info reports; default "1". Device state of one version does not load under another.
	Version string
	// Guest plays a guest's side of one port, in a goroutine of its own, from when a host connects until conn ends.
	// The default echoes lines on the control port and bytes on the data port. A VM with a network device that is
	// plugged in has one port more, PortFrames, from its start on.
	Guest func(g *Guest, port string, conn Conn)
	// Fault is asked at every step of an operation and may delay it (it may block until ctx ends) or fail it.
	Fault Fault
}

// Engine is the simulated engine. It implements vmm.Engine. All engines of one process share their VMs, as engines of
// consecutive servers share the processes of one host.
type Engine struct{ opts Options }

var _ vmm.Engine = (*Engine)(nil)

// New returns an engine.
func New(opts Options) *Engine {
	if opts.Version == "" {
		opts.Version = "1"
	}
	if opts.Guest == nil {
		opts.Guest = echo
	}
	if opts.Fault == nil {
		opts.Fault = func(context.Context, string, Step) error { return nil }
	}
	return &Engine{opts: opts}
}

// hosted are the live VMs of this process, by directory: what a host's process table is to a real engine.
var hosted = struct {
	sync.Mutex
	vms map[string]*instance
}{vms: map[string]*instance{}}

// Name is "sim".
func (e *Engine) Name() string { return "sim" }

// Probe always succeeds.
func (e *Engine) Probe(ctx context.Context) (vmm.Info, error) {
	return vmm.Info{
		Engine: "sim", Version: e.opts.Version, Accel: "sim", AccelReason: "nothing is run",
		StateFormat: "sim-" + e.opts.Version, CPUModel: "sim",
	}, ctx.Err()
}

// Boot makes a VM; see vmm.Engine.
func (e *Engine) Boot(ctx context.Context, cfg vmm.Config) (vmm.VM, error) {
	if err := check(cfg, true); err != nil {
		return nil, err
	}
	if err := e.opts.Fault(ctx, cfg.ID, StepBoot); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(cfg.Memory, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, spore.Errorf(spore.CodeConflict, "the memory file %s exists already", cfg.Memory).WithCause(err)
	}
	if err != nil {
		return nil, err
	}
	err = f.Truncate(int64(cfg.MemoryMiB) << 20)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EFBIG) {
		err = spore.Errorf(spore.CodeNoSpace, "there is no room for a memory file of %d MiB", cfg.MemoryMiB).WithCause(err)
	}
	var vm *machine
	if err == nil {
		vm, err = e.host(ctx, cfg, &ram{base: f, size: int64(cfg.MemoryMiB) << 20}, nil)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(cfg.Memory))
	}
	vm.in.run(true)
	return vm, nil
}

// Thaw makes a VM from a frozen one; see vmm.Engine.
func (e *Engine) Thaw(ctx context.Context, cfg vmm.Config, from vmm.Image) (vmm.VM, error) {
	if err := check(cfg, false); err != nil {
		return nil, err
	}
	f, err := os.Open(cfg.Memory)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, spore.Errorf(spore.CodeNotFound, "there is no memory file %s", cfg.Memory).WithCause(err)
	}
	if err != nil {
		return nil, err
	}
	vm, err := e.thaw(ctx, cfg, from, f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return vm, nil
}

func (e *Engine) thaw(ctx context.Context, cfg vmm.Config, from vmm.Image, base *os.File) (*machine, error) {
	fi, err := base.Stat()
	if err != nil {
		return nil, err
	}
	size := int64(cfg.MemoryMiB) << 20
	if fi.Size() != size {
		return nil, spore.Errorf(spore.CodeConflict, "the memory file %s is of %d bytes and the VM has %d MiB", cfg.Memory, fi.Size(), cfg.MemoryMiB)
	}
	shape, err := shapeOf(cfg)
	if err != nil {
		return nil, err
	}
	devices, err := readState(from.State, "sim-"+e.opts.Version, shape)
	if err != nil {
		return nil, err
	}
	if err := e.opts.Fault(ctx, cfg.ID, StepThaw); err != nil {
		return nil, err
	}
	mem := &ram{base: base, size: size, private: map[int64]*[vmm.PageSize]byte{}}
	if from.Patches != nil {
		err := from.Patches.Each(ctx, func(off int64, data []byte) error {
			if err := e.opts.Fault(ctx, cfg.ID, StepPatch); err != nil {
				return err
			}
			_, err := mem.WriteAt(data, off)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	if err := e.opts.Fault(ctx, cfg.ID, StepLoad); err != nil {
		return nil, err
	}
	return e.host(ctx, cfg, mem, devices)
}

// host enters a VM into the host's table.
func (e *Engine) host(ctx context.Context, cfg vmm.Config, mem *ram, devices []byte) (*machine, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	shape, err := shapeOf(cfg)
	if err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, err
	}
	hosted.Lock()
	defer hosted.Unlock()
	if hosted.vms[dir] != nil {
		return nil, spore.Errorf(spore.CodeConflict, "a VM still runs in %s", cfg.Dir)
	}
	cable, err := plug(cfg.NIC)
	if err != nil {
		return nil, err
	}
	in := newInstance(e.opts, cfg, dir, shape, mem, devices)
	in.cable = cable
	hosted.vms[dir] = in
	if cable != nil {
		go in.opts.Guest(&Guest{in: in}, PortFrames, pausable{cable, in})
	}
	return &machine{in: in}, nil
}

// Adopt finds a VM that another engine of this process started; see vmm.Engine.
func (e *Engine) Adopt(ctx context.Context, cfg vmm.Config) (vmm.VM, error) {
	if err := check(cfg, false); err != nil {
		return nil, err
	}
	if err := e.opts.Fault(ctx, cfg.ID, StepAdopt); err != nil {
		return nil, err
	}
	in, err := lookup(cfg.Dir)
	if err != nil {
		return nil, err
	}
	if in == nil {
		return nil, spore.Errorf(spore.CodeNotFound, "no VM runs in %s", cfg.Dir)
	}
	shape, err := shapeOf(cfg)
	if err != nil {
		return nil, err
	}
	if in.shape != shape || in.cfg.ID != cfg.ID {
		return nil, spore.Errorf(spore.CodeConflict, "the VM in %s was started with another configuration", cfg.Dir)
	}
	return &machine{in: in}, nil
}

// Clean ends the VM in dir; see vmm.Engine.
func (e *Engine) Clean(ctx context.Context, dir string) error {
	in, err := lookup(dir)
	if err != nil || in == nil {
		return err
	}
	in.exit(nil)
	return ctx.Err()
}

func lookup(dir string) (*instance, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	hosted.Lock()
	defer hosted.Unlock()
	return hosted.vms[dir], nil
}

var (
	idForm    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	driveForm = regexp.MustCompile(`^[a-z][a-z0-9]{0,19}$`)
)

// check refuses what a real engine would.
func check(cfg vmm.Config, boot bool) error {
	switch {
	case !idForm.MatchString(cfg.ID):
		return spore.Invalidf("id", "%q cannot name a VM", cfg.ID)
	case cfg.VCPUs < 1 || cfg.VCPUs > 255:
		return spore.Invalidf("vcpus", "%d is not a number of CPUs from 1 to 255", cfg.VCPUs)
	case cfg.MemoryMiB < 1 || cfg.MemoryMiB > 1<<20:
		return spore.Invalidf("memoryMiB", "%d MiB is not an amount of memory from 1 to %d MiB", cfg.MemoryMiB, 1<<20)
	case cfg.Memory == "":
		return spore.Invalidf("memory", "the VM has no memory file")
	}
	if fi, err := os.Stat(cfg.Dir); err != nil || !fi.IsDir() {
		return spore.Invalidf("dir", "there is no directory %s", cfg.Dir).WithCause(err)
	}
	if cfg.NIC != nil {
		if err := checkNIC(*cfg.NIC); err != nil {
			return err
		}
	}
	seen := map[string]bool{}
	files := map[string]string{}
	for _, d := range cfg.Drives {
		if !driveForm.MatchString(d.ID) || seen[d.ID] {
			return spore.Invalidf("drives", "%q is not a drive name, or is there twice", d.ID)
		}
		seen[d.ID] = true
		if err := checkLimits(d.Limits); err != nil {
			return err
		}
		files[d.Path] = "drives"
	}
	if boot {
		for path, field := range map[string]string{cfg.Kernel: "kernel", cfg.Initrd: "initrd"} {
			if path != "" {
				files[path] = field
			}
		}
	}
	for path, field := range files {
		if _, err := os.Stat(path); err != nil {
			return spore.Errorf(spore.CodeNotFound, "%s: there is no file %s", field, path).WithCause(err)
		}
	}
	return nil
}
