package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/kernel"
	"github.com/sporevm/spore/internal/kernel/initbin"
	"github.com/sporevm/spore/internal/vmm/procmem"
)

// Verdicts of a Finding.
const (
	FindingOK   = "ok"
	FindingWarn = "warn" // Spore works, though slower or with less protection
	FindingFail = "fail" // Spore does not work
)

// Finding is one thing that Doctor looked at.
type Finding struct {
	Name    string `json:"name"`
	Verdict string `json:"verdict"`
	Detail  string `json:"detail"`
	Hint    string `json:"hint,omitempty"`
}

// Doctor looks at this machine and says what Spore finds fit and unfit for a server that is configured so. It needs no server and
// changes nothing but the remembered verdicts on KVM, each of which takes a bounded boot to reach the first time.
func Doctor(ctx context.Context, cfg Config) ([]Finding, error) {
	dir, err := filepath.Abs(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	cfg.DataDir = dir
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler) // what an engine would log is found here
	}
	findings := []Finding{host(), swap(), privileges(), tool("mkfs.ext4", "e2fsprogs", "makes the writable drives")}
	findings = append(findings, engines(ctx, cfg)...)
	findings = append(findings, tracking(), filesystem(dir), bundles(dir), embeddedInit(), portals())
	findings = append(findings, userNetwork(), isolatedNetwork(dir), processors(ctx, dir))
	return append(findings, remains(ctx, cfg)), nil
}

func host() Finding {
	f := Finding{Name: "machine", Verdict: FindingOK}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Finding{Name: "machine", Verdict: FindingFail, Detail: err.Error()}
	}
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return Finding{Name: "machine", Verdict: FindingFail, Detail: err.Error()}
	}
	f.Detail = fmt.Sprintf("Linux %s, %d processors, %d MiB of memory", unix.ByteSliceToString(u.Release[:]), runtime.NumCPU(), si.Totalram*uint64(si.Unit)>>20)
	if runtime.GOARCH != "amd64" {
		f.Verdict, f.Hint = FindingFail, "guests are x86-64; run Spore on such a machine"
	}
	return f
}

func swap() Finding {
	f := Finding{Name: "swap", Verdict: FindingOK, Detail: "none: sandboxes that are idle keep their memory"}
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return broken(f.Name, FindingWarn, err)
	}
	if si.Totalswap > 0 {
		f.Detail = fmt.Sprintf("%d MiB: memory of sandboxes that are idle can go there", si.Totalswap*uint64(si.Unit)>>20)
	}
	return f
}

func privileges() Finding {
	if os.Geteuid() == 0 {
		return Finding{Name: "privileges", Verdict: FindingOK, Detail: "root: each VM gets a user id and a root directory of its own"}
	}
	return Finding{Name: "privileges", Verdict: FindingWarn, Detail: "not root: all VMs run as this user",
		Hint: "run the server as root to keep VMs apart by user id as well"}
}

func tool(name, pkg, purpose string) Finding {
	path, err := exec.LookPath(name)
	if err != nil {
		return Finding{Name: name, Verdict: FindingFail, Detail: "not found; it " + purpose, Hint: "apt-get install " + pkg}
	}
	return Finding{Name: name, Verdict: FindingOK, Detail: path}
}

func tracking() Finding {
	if err := procmem.CanTrack(); err != nil {
		return Finding{Name: "write tracking", Verdict: FindingWarn, Detail: err.Error(),
			Hint: "snapshots hold the guest still while all its changed memory is copied"}
	}
	return Finding{Name: "write tracking", Verdict: FindingOK, Detail: "soft-dirty bits: memory is copied while the guest runs"}
}

// filesystem tries whether the data directory's filesystem shares blocks between files.
func filesystem(dataDir string) Finding {
	dir := nearest(dataDir)
	f := Finding{Name: "filesystem", Verdict: FindingOK}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return Finding{Name: "filesystem", Verdict: FindingFail, Detail: err.Error()}
	}
	f.Detail = fmt.Sprintf("%d MiB free at %s", int64(fs.Bavail)*fs.Bsize>>20, dir)
	switch err := reflinks(dir); {
	case err == nil:
		f.Detail += "; disks are cloned by sharing blocks"
	case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL):
		f.Detail += "; disks are cloned by copying what is written"
		f.Hint = "XFS and btrfs share blocks instead"
	default:
		f.Verdict, f.Detail = FindingWarn, f.Detail+"; "+err.Error()
	}
	return f
}

func reflinks(dir string) error {
	from, err := os.CreateTemp(dir, ".reflink-*")
	if err != nil {
		return err
	}
	defer from.Close()
	os.Remove(from.Name())
	to, err := os.CreateTemp(dir, ".reflink-*")
	if err != nil {
		return err
	}
	defer to.Close()
	os.Remove(to.Name())
	if _, err := from.Write(make([]byte, 4096)); err != nil {
		return err
	}
	return unix.IoctlFileClone(int(to.Fd()), int(from.Fd()))
}

func bundles(dataDir string) Finding {
	list, err := kernel.Open(filepath.Join(dataDir, "kernels")).List()
	if err != nil {
		return Finding{Name: "kernel", Verdict: FindingFail, Detail: spore.AsError(err).Error(), Hint: spore.AsError(err).Hint}
	}
	if len(list) == 0 {
		return Finding{Name: "kernel", Verdict: FindingWarn, Detail: "no kernel bundle is installed", Hint: "spore kernel install"}
	}
	var names []string
	for _, b := range list {
		names = append(names, b.ID+" ("+b.KernelVersion+")")
	}
	return Finding{Name: "kernel", Verdict: FindingOK, Detail: strings.Join(names, ", ")}
}

func embeddedInit() Finding {
	init, err := initbin.Load("")
	if err != nil {
		return Finding{Name: "spore-init", Verdict: FindingFail, Detail: spore.AsError(err).Error(), Hint: spore.AsError(err).Hint}
	}
	return Finding{Name: "spore-init", Verdict: FindingOK, Detail: fmt.Sprintf("%d KiB, built in", len(init)>>10)}
}

// portals says how kernels can be installed.
func portals() Finding {
	f := tool("apt-get", "apt", "downloads the distribution's kernel")
	if f.Verdict != FindingOK {
		f.Verdict, f.Hint = FindingWarn, "install a kernel from files: spore kernel install --kernel FILE --modules DIR"
	}
	return f
}
