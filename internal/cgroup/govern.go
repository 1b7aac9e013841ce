package cgroup

import (
	"context"
	"errors"
	"fmt"
	"slices"

	spore "github.com/sporevm/spore"
)

// Govern bounds the process of a VM to so many processors' worth of time, in the group of vm, which is made if it is not there; 0
// lifts the bound. It may be called again with other numbers.
func (c *Controller) Govern(ctx context.Context, vm string, pid int, cpus float64) error {
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
