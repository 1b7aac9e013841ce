package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"

	"github.com/sporevm/spore/internal/vmm/firecracker"
	"github.com/sporevm/spore/internal/vmm/qemu"
)

// residence is a directory that a process of a VM has as its own: a hypervisor its working directory, which often is its root as
// well.
type residence struct {
	dev, ino uint64
}

// residents are the ids of the VMs in a data directory whose hypervisor lives, with its process. A jail hides the path of its
// inmate's directory but not which directory it is.
func residents(dataDir string) (map[string]int, error) {
	homes := map[residence]string{}
	for _, pattern := range []string{"vms/*/qemu", "vms/*/firecracker", "vms/*/firecracker/root", "vms/*/firecracker/*/*/root"} {
		found, err := filepath.Glob(filepath.Join(globQuote(dataDir), pattern))
		if err != nil {
			return nil, fmt.Errorf("look for VMs: %w", err)
		}
		for _, path := range found {
			at, ok, err := residenceOf(path)
			if err != nil {
				return nil, err
			}
			if rel, relErr := filepath.Rel(filepath.Join(dataDir, "vms"), path); ok && relErr == nil {
				homes[at] = firstElement(rel)
			}
		}
	}
	live := map[string]int{}
	if len(homes) == 0 {
		return live, nil
	}
	err := eachProcess(func(pid int) error {
		at, ok, err := residenceOf(fmt.Sprintf("/proc/%d/cwd", pid))
		if id := homes[at]; ok && err == nil && id != "" {
			live[id] = pid
		}
		return nil // one that cannot be looked at has ended, or is somebody else's
	})
	return live, err
}

// userIDs are those that hypervisors become when the server is root.
var userIDs = []struct{ from, to uint32 }{
	{qemu.DefaultUIDBase, qemu.DefaultUIDBase + 1<<20},
	{firecracker.DefaultUIDBase, firecracker.DefaultUIDBase + 1<<20},
}

var machinePath = regexp.MustCompile(`/vms/v[0-9a-f]{20}/(qemu|firecracker)(/.*)? \(deleted\)$`)

// orphaned says whether a process is a hypervisor of ours whose directory was removed under it.
func orphaned(pid int) bool {
	cwd := fmt.Sprintf("/proc/%d/cwd", pid)
	fi, err := os.Stat(cwd)
	if err != nil {
		return false
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); !ok || !fi.IsDir() || st.Nlink != 0 {
		return false
	}
	if owner, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
		if st, ok := owner.Sys().(*syscall.Stat_t); ok && slices.ContainsFunc(userIDs, func(r struct{ from, to uint32 }) bool { return r.from <= st.Uid && st.Uid < r.to }) {
			return true
		}
	}
	path, err := os.Readlink(cwd)
	return err == nil && machinePath.MatchString(path)
}

func residenceOf(path string) (residence, bool, error) {
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return residence{}, false, nil
	}
	if err != nil {
		return residence{}, false, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || !fi.IsDir() {
		return residence{}, false, nil
	}
	return residence{uint64(st.Dev), st.Ino}, true, nil
}

// eachProcess calls fn for each process of the host but this one.
func eachProcess(fn func(pid int) error) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if err := fn(pid); err != nil {
			return err
		}
	}
	return nil
}

func firstElement(rel string) string {
	for dir := filepath.Dir(rel); dir != "."; dir = filepath.Dir(dir) {
		rel = dir
	}
	return rel
}

// globQuote makes a path mean itself in a pattern.
func globQuote(path string) string {
	var out []byte
	for _, c := range []byte(path) {
		switch c {
		case '*', '?', '[', '\\':
			out = append(out, '\\')
		}
		out = append(out, c)
	}
	return string(out)
}
