package daemon

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/kernel"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/firecracker"
	"github.com/sporevm/spore/internal/vmm/firecracker/pager"
)

// broken is the finding of an error.
func broken(name, verdict string, err error) Finding {
	e := spore.AsError(err)
	return Finding{Name: name, Verdict: verdict, Detail: e.Message, Hint: e.Hint}
}

// engines asks the engines themselves, so that the answers are what a server would find. Only the one that would serve here has to
// work.
func engines(ctx context.Context, cfg Config) []Finding {
	serving, err := chooseEngine(cfg.Engine, cfg.DataDir)
	if err != nil {
		return []Finding{broken("engine", FindingFail, err)}
	}
	found := []Finding{{Name: "engine", Verdict: FindingOK, Detail: serving + " would serve " + cfg.DataDir}}
	kernels := kernel.Open(filepath.Join(cfg.DataDir, "kernels"))
	found = append(found, hypervisor(ctx, cfg, kernels, serving == EngineQEMU)...)
	return append(found, firecrackers(ctx, cfg, kernels, serving == EngineFirecracker)...)
}

// unfit is how bad it is that an engine does not work.
func unfit(serving bool) string {
	if serving {
		return FindingFail
	}
	return FindingOK
}

func hypervisor(ctx context.Context, cfg Config, kernels *kernel.Store, serving bool) []Finding {
	engine, info, err := probe(ctx, cfg, EngineQEMU, kernels)
	if err != nil {
		return []Finding{broken(EngineQEMU, unfit(serving), err)}
	}
	found := []Finding{{Name: engine.Name(), Verdict: FindingOK, Detail: info.Version + ", state format " + info.StateFormat}}
	f := Finding{Name: "qemu acceleration", Verdict: FindingOK, Detail: "KVM runs the guest"}
	if info.Accel != "kvm" {
		f.Detail = "software emulation: " + info.AccelReason
		if serving {
			f.Verdict, f.Hint = FindingWarn, "everything works, many times slower than with KVM"
		}
	}
	return append(found, f)
}

func probe(ctx context.Context, cfg Config, name string, kernels *kernel.Store) (vmm.Engine, vmm.Info, error) {
	engine, err := openEngine(ctx, cfg, name, cfg.DataDir, kernels)
	if err != nil {
		return nil, vmm.Info{}, err
	}
	info, err := engine.Probe(ctx)
	return engine, info, err
}

// firecrackers looks at every version that is installed, whether guests run under the newest, and how memory is best brought.
func firecrackers(ctx context.Context, cfg Config, kernels *kernel.Store, serving bool) []Finding {
	options := firecracker.Options{Dir: firecrackerDir(cfg, cfg.DataDir), NoJailer: cfg.NoJailer, Logger: cfg.Logger}
	engine, err := firecracker.New(options)
	if err != nil {
		return []Finding{broken(EngineFirecracker, unfit(serving), err)}
	}
	all, err := engine.Examine(ctx)
	if err != nil {
		return []Finding{broken(EngineFirecracker, unfit(serving), err)}
	}
	var found []Finding
	usable := 0
	for _, c := range all {
		f := version(c)
		if c.Err == nil {
			usable++
		}
		found = append(found, f)
	}
	if usable == 0 {
		if serving {
			found = append(found, Finding{Name: EngineFirecracker, Verdict: FindingFail, Detail: "none that is installed can be used"})
		}
		return found
	}
	// The server's own state directory, so that the verdict of a trial that takes half a minute is kept for it.
	cfg.MemoryBackend, cfg.FirecrackerPool = MemoryFile, 0
	f := Finding{Name: "firecracker kvm", Verdict: FindingOK, Detail: "KVM runs the guest"}
	if _, err := kernels.Default(); spore.CodeOf(err) == spore.CodeNotFound {
		f.Detail = "KVM has not been tried yet, for want of a kernel"
	} else if _, _, err := probe(ctx, cfg, EngineFirecracker, kernels); err != nil {
		f = broken(f.Name, unfit(serving), err)
	}
	return append(found, f, memory(ctx, cfg.DataDir))
}

// version is what there is to say of one installed Firecracker.
func version(c firecracker.Candidate) Finding {
	if c.Binary == nil {
		f := broken(EngineFirecracker, FindingWarn, c.Err)
		f.Detail = c.Path + ": " + f.Detail
		return f
	}
	b := c.Binary
	f := Finding{Name: EngineFirecracker + " " + b.Version.String(), Verdict: FindingOK, Detail: fmt.Sprintf("snapshot format %s, %s", b.Snapshot, b.Firecracker)}
	switch {
	case c.Err != nil:
		e := spore.AsError(c.Err)
		f.Verdict, f.Hint = FindingWarn, e.Hint
		f.Detail += "; cannot be used: " + e.Message
	case b.Jailer == "":
		f.Detail += "; without a jailer"
	default:
		f.Detail += ", with its jailer"
	}
	if lacks := firecracker.Missing(b.Version); len(lacks) > 0 {
		f.Detail += "; has no " + strings.Join(lacks, ", ")
	}
	return f
}

// memory measures how thawed VMs of Firecracker are best given their memory, where the server's files would lie.
func memory(ctx context.Context, dataDir string) Finding {
	f := Finding{Name: "memory backend", Verdict: FindingOK}
	v, err := pager.Measure(ctx, nearest(dataDir))
	if err != nil {
		return broken(f.Name, FindingWarn, err)
	}
	f.Detail = fmt.Sprintf("%s for a typical thaw: %s", v.Backend, v.Reason)
	if v.Supported {
		f.Detail += fmt.Sprintf("; files are copied with %d MB/s", v.CopyRate/1_000_000)
		if v.Shares {
			f.Detail += ", and share blocks"
		}
	}
	return f
}

// firecrackerDir is where a server that is configured so looks for Firecracker.
func firecrackerDir(cfg Config, dataDir string) string {
	return cmp.Or(cfg.FirecrackerDir, filepath.Join(dataDir, "engines", "firecracker"))
}

// nearest is dir, or the directory closest to it that is there.
func nearest(dir string) string {
	for {
		if st, err := os.Stat(dir); err == nil && st.IsDir() || dir == "/" {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}
