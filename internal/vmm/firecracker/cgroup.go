package firecracker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/vmm"
)

var _ vmm.Grouped = (*machine)(nil)

// Cgroups are the control groups that the jailer has put the VM into; see vmm.Grouped.
func (m *machine) Cgroups() []string { return slices.Clone(m.jail.cgroup) }

// maxThreads bounds what one VM may fork: Firecracker has one thread for each vCPU and two more, and the jailer forks
// at most twice.
const maxThreads = maxVCPUs + 32

// hierarchy is where cgroups are made; without path there is nowhere.
type hierarchy struct {
	version int
	path    string
}

// cgroups finds the hierarchy that counts processes. The unified one is taken where it has the controller.
func (e *Engine) cgroups() hierarchy {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		e.log.Warn("VMs have no cgroup of their own", "error", err)
		return hierarchy{}
	}
	h := parseCgroupMounts(string(text), hasPids)
	if h.path == "" {
		e.log.Warn("VMs have no cgroup of their own: no hierarchy on this host has the pids controller")
	}
	return h
}

// hasPids says whether a unified hierarchy has the pids controller.
func hasPids(path string) bool {
	controllers, err := os.ReadFile(filepath.Join(path, "cgroup.controllers"))
	return err == nil && slices.Contains(strings.Fields(string(controllers)), "pids")
}

// parseCgroupMounts picks from /proc/self/mounts; has says whether a unified hierarchy has the pids controller.
func parseCgroupMounts(mounts string, has func(path string) bool) hierarchy {
	var v1 hierarchy
	for line := range strings.Lines(mounts) {
		fields := strings.Fields(line)
		if len(fields) < 4 || !filepath.IsAbs(fields[1]) || strings.Contains(fields[1], "\\") {
			continue
		}
		switch fields[2] {
		case "cgroup2":
			if has(fields[1]) {
				return hierarchy{2, fields[1]}
			}
		case "cgroup":
			if v1.path == "" && slices.Contains(strings.Split(fields[3], ","), "pids") {
				v1 = hierarchy{1, fields[1]}
			}
		}
	}
	return v1
}

// removeCgroups removes the cgroups of a process that has ended. The kernel may take a moment to see that they are
// empty.
func removeCgroups(dirs []string) error {
	var errs []error
	for _, dir := range dirs {
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
			err := os.Remove(dir)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				break
			}
			if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
				errs = append(errs, fmt.Errorf("firecracker: remove the VM's cgroup: %w", err))
				break
			}
		}
	}
	return errors.Join(errs...)
}
