package firecracker

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// Candidate is a Firecracker that was found on this host.
type Candidate struct {
	Path   string
	Binary *Binary // what it says of itself; nil when it does not
	Err    error   // why it cannot be used; nil when it can
}

// Examine looks at all that is installed, usable or not, in the order in which it was found. Of a binary whose jailer is missing
// Err says so when VMs are to be jailed. It fails when nothing is found at all.
func (e *Engine) Examine(ctx context.Context) ([]Candidate, error) {
	paths, err := e.opts.candidates()
	if err != nil {
		return nil, err
	}
	var all []Candidate
	seen := map[string]bool{}
	for _, p := range paths {
		if seen[p[0]] {
			continue
		}
		seen[p[0]] = true
		b, err := probeBinary(ctx, p[0], p[1])
		if err != nil && spore.CodeOf(err) != spore.CodeUnsupported {
			return nil, err
		}
		if err == nil && !e.opts.NoJailer {
			err = e.canJail(b)
		}
		all = append(all, Candidate{Path: p[0], Binary: b, Err: err})
	}
	return all, nil
}

// Versions are the installed versions of which each is the newest that loads its format of device state, newest first.
func (e *Engine) Versions(ctx context.Context) ([]vmm.Info, error) {
	all, err := e.Installed(ctx)
	if err != nil {
		return nil, err
	}
	cpu, err := hostCPU()
	if err != nil {
		return nil, err
	}
	var versions []vmm.Info
	for _, b := range all {
		v := platform{all: []*Binary{b}, cpu: cpu}.info()
		if !slices.ContainsFunc(versions, func(newer vmm.Info) bool { return newer.StateFormat == v.StateFormat }) {
			versions = append(versions, v)
		}
	}
	return versions, nil
}

// CleanPool ends the processes that an earlier engine on the same StateDir had started ahead, and that no server knows of any more.
func (e *Engine) CleanPool(ctx context.Context) error {
	if _, err := os.Stat(e.pool.dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return e.pool.clear(ctx)
}

// EmptyCgroups are the directories of jails' control groups below parent that have no process in them. That of a jail that is being
// made has none for a moment.
func EmptyCgroups(parent string) []string {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil // without control groups to be seen there are none to be found
	}
	h := parseCgroupMounts(string(text), hasPids)
	found, err := filepath.Glob(filepath.Join(globEscape(h.path), parent, "fc-*"))
	if err != nil || h.path == "" {
		return nil
	}
	return slices.DeleteFunc(found, func(dir string) bool {
		procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		return err != nil || len(procs) > 0
	})
}
