package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/kernel"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/firecracker"
	"github.com/sporevm/spore/internal/vmm/firecracker/pager"
	"github.com/sporevm/spore/internal/vmm/qemu"
	"github.com/sporevm/spore/internal/vmm/sim"
	"github.com/sporevm/spore/internal/vmm/sim/simguest"
)

// The engines, for Config.Engine.
const (
	EngineAuto        = "auto" // what the data directory was served with; EngineQEMU when it is new
	EngineQEMU        = "qemu"
	EngineFirecracker = "firecracker"
	EngineSim         = "sim"
)

// Ways for Firecracker to come by the memory of a VM that is thawed, for Config.MemoryBackend.
const (
	MemoryAuto = "auto" // what this host is better at, by a measurement when the server starts
	MemoryFile = "file" // memory files are mapped
	MemoryUffd = "uffd" // page servers bring it
)

// engineFile names, in the data directory, the engine that serves it. Nothing that one engine made is of use to another: not the
// VMs that run, which only their engine can end, nor the states that it froze.
const engineFile = "engine"

// chooseEngine decides on the engine for a data directory. It fails with spore.CodeConflict when VMs of another one live in it.
func chooseEngine(asked, dir string) (string, error) {
	raw, err := os.ReadFile(filepath.Join(dir, engineFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	before := strings.TrimSpace(string(raw))
	switch asked {
	case "", EngineAuto:
		switch before {
		case "":
			return EngineQEMU, nil
		case EngineQEMU, EngineFirecracker, EngineSim:
			return before, nil
		}
		return "", spore.Errorf(spore.CodeDamaged, "%s names no engine: %.40q", filepath.Join(dir, engineFile), before).
			WithHint("name the engine that served the directory: --engine qemu or --engine firecracker")
	case EngineQEMU, EngineFirecracker, EngineSim:
	default:
		return "", spore.Invalidf("engine", "%q is not known", asked).WithHint("auto, qemu, firecracker or sim")
	}
	if before == asked || before == "" && asked == EngineQEMU {
		return asked, nil
	}
	live, err := residents(dir)
	if err != nil {
		return "", err
	}
	if len(live) > 0 {
		if before == "" {
			before = EngineQEMU // which was the only one before the file was there
		}
		return "", spore.Errorf(spore.CodeConflict, "%d VMs of the engine %s run in %s, and %s could neither use nor end them", len(live), before, dir, asked).
			WithHint("start the server with --engine %s, pause or remove its sandboxes, and then change the engine; or: spore doctor --clean --sandboxes", before)
	}
	return asked, nil
}

// rememberEngine notes what serves a data directory.
func rememberEngine(dir, name string) error {
	path := filepath.Join(dir, engineFile)
	if raw, err := os.ReadFile(path); err == nil && string(raw) == name+"\n" {
		return nil
	}
	return writeFile(path, []byte(name+"\n"))
}

// openEngine makes the hypervisor engine that cfg names. Whether KVM really runs a guest is tried with the newest kernel
// bundle; until one is installed there is nothing to try it with.
func openEngine(ctx context.Context, cfg Config, name, dir string, kernels *kernel.Store) (vmm.Engine, error) {
	if name == EngineSim {
		return sim.New(sim.Options{Guest: simguest.New().Serve}), nil
	}
	var vmlinuz, initrd string
	if b, err := kernels.Default(); err == nil {
		vmlinuz, initrd = b.VmlinuzPath(), b.InitrdPath()
	} else if spore.CodeOf(err) != spore.CodeNotFound {
		return nil, err
	}
	if name == EngineQEMU {
		return qemu.New(qemu.Options{Accel: cfg.Accel, StateDir: dir, Kernel: vmlinuz, Initrd: initrd, Logger: cfg.Logger})
	}
	if cfg.Accel == qemu.AccelTCG {
		return nil, spore.Invalidf("accel", "Firecracker has no software emulation").WithHint("use the engine qemu, which has")
	}
	log := cfg.Logger
	if log == nil {
		log = slog.Default()
	}
	choose, err := chooseBackend(ctx, cfg.MemoryBackend, dir)
	if err != nil {
		return nil, err
	}
	return firecracker.New(firecracker.Options{
		Dir: firecrackerDir(cfg, dir), NoJailer: cfg.NoJailer,
		StateDir: dir, Kernel: vmlinuz, Initrd: initrd, Pool: cfg.FirecrackerPool, HugePages: cfg.HugePages,
		Pager: pagers{choose: choose, log: log}, Logger: log,
	})
}

// chooseBackend answers what picks the memory backend of a thaw, by the bytes of its layers and its base.
func chooseBackend(ctx context.Context, asked, dir string) (func(layers, base int64) pager.Backend, error) {
	switch asked {
	case MemoryFile:
		return func(int64, int64) pager.Backend { return pager.BackendFile }, nil
	case "", MemoryAuto, MemoryUffd:
	default:
		return nil, spore.Invalidf("memoryBackend", "%q is not known", asked).WithHint("auto, file or uffd")
	}
	verdict, err := pager.Measure(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("measure how memory is best brought: %w", err)
	}
	if asked != MemoryUffd {
		return func(layers, base int64) pager.Backend {
			backend, _ := verdict.Choose(layers, base)
			return backend
		}, nil
	}
	if !verdict.Supported {
		return nil, spore.Errorf(spore.CodeUnsupported, "page servers cannot serve on this host: %s", verdict.Unsupported).WithHint("leave --memory-backend out")
	}
	return func(int64, int64) pager.Backend { return pager.BackendUffd }, nil
}
