package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	spore "github.com/sporevm/spore"
)

// Govern bounds the process of a VM to so many processors' worth of time; 0 lifts the bound. It may be called again with other
// numbers. own are directories of control groups that the process was put into when it was started, and that go with it. With
// version 2 a process is in one group for all controllers, and to move it would take it from under the limits that hold in its
// own: the bound is set there then, beside them. Else it is set in the group of vm, which is made if it is not there.
func (c *Controller) Govern(ctx context.Context, vm string, pid int, own []string, cpus float64) error {
	if g, err := c.given(vm, own); err != nil {
		return err
	} else if g != nil {
		return c.governIn(g, pid, cpus)
	}
	g, err := c.Get(vm)
	made := false
	if spore.CodeOf(err) == spore.CodeNotFound {
		if cpus == 0 {
			return nil
		}
		g, err = c.Create(ctx, vm)
		made = true
	}
	if err != nil {
		return err
	}
	// The bound comes first: the process is never in the group without it.
	if err = g.SetCPUs(cpus); err == nil {
		err = g.Add(pid)
	}
	if err != nil && made {
		if rmErr := g.remove(); rmErr != nil {
			err = errors.Join(err, fmt.Errorf("cgroup: remove the group of %s: %w", vm, rmErr))
		}
	}
	return err
}

// given is the group of the hierarchy in use that the VM's process was given by whoever started it; nil when it has none.
func (c *Controller) given(vm string, own []string) (*Group, error) {
	g, err := c.group(vm)
	if err != nil || c.info.Version != V2 {
		return nil, err // with version 1 each controller has groups of its own
	}
	for _, dir := range own {
		for _, m := range c.sys.mounts {
			if m.v2 && strings.HasPrefix(dir, strings.TrimSuffix(m.point, "/")+"/") {
				g.dirs, g.top = []string{dir}, m.point
				return g, nil
			}
		}
	}
	return nil, nil
}

// governIn bounds a process in a group that it was given.
func (c *Controller) governIn(g *Group, pid int, cpus float64) error {
	_, err := os.Stat(filepath.Join(g.dirs[0], "cpu.max"))
	bounded := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cgroup: %w", err)
	}
	if cpus != 0 && !bounded {
		if err := enableDownTo(g.top, filepath.Dir(g.dirs[0]), "cpu"); err != nil {
			e := spore.Errorf(spore.CodeUnsupported, "the processors cannot be shared out below %s: %w", filepath.Dir(g.dirs[0]), err)
			e.Field = "limits.cpus"
			return e.WithHint("a control group that has processes of its own can share out nothing: move them into a group below it")
		}
	}
	if cpus != 0 || bounded {
		if err := g.SetCPUs(cpus); err != nil {
			return err
		}
	}
	// It is there already, unless another version of this server has moved it, whose group is of no use any more then.
	if err := g.Add(pid); err != nil {
		return err
	}
	left, err := c.group(g.id)
	if err != nil {
		return err
	}
	if err := left.remove(); err != nil {
		return fmt.Errorf("cgroup: remove the group of %s: %w", g.id, err)
	}
	return nil
}

// enableDownTo hands a controller down to the groups in dir, from the top of the hierarchy on.
func enableDownTo(top, dir, controller string) error {
	if len(dir) > len(top) {
		if err := enableDownTo(top, filepath.Dir(dir), controller); err != nil {
			return err
		}
	}
	return enable(dir, controller)
}

// Release removes what Govern made for a VM whose process has ended, or is about to: it waits for that. It is idempotent.
func (c *Controller) Release(ctx context.Context, vm string) error {
	g, err := c.group(vm)
	if err != nil {
		return err
	}
	return g.Remove(ctx)
}

// Recover removes what Govern made for VMs other than these; see Clean.
func (c *Controller) Recover(ctx context.Context, keep []string) error {
	_, err := c.Clean(ctx, func(vm string) bool { return slices.Contains(keep, vm) })
	return err
}
