// Package cgroup holds the processes of VMs to a share of the machine's processors, each in a control group of its own.
//
// Groups lie in a directory "spore" at the top of the hierarchy when the server is root, where it finds them again however it is
// started next, or else below the server's own cgroup, when that was delegated to it. They are named for their server, by
// Options.Owner, so that two servers on one machine leave each other's alone. Version 2 is taken where it offers the cpu
// controller, else version 1; a machine may mount both, and each controller is in one of them only. A VM that has a group of its
// own in that hierarchy, such as that of a jail, stays in it.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	spore "github.com/sporevm/spore"
)

// Version of the control groups' interface.
type Version string

// The versions that there are.
const (
	V1 Version = "v1"
	V2 Version = "v2"
)

// folder is the directory that all servers of a machine keep their groups in.
const folder = "spore"

// Options say whose groups a Controller makes.
type Options struct {
	// Owner tells this server's groups from another's: 8 to 32 of [0-9a-f]; see Fingerprint. It must be the same after a
	// restart of the server.
	Owner string
}

// Info says what a Controller works with.
type Info struct {
	Version Version
	Path    string // of the directory that the groups are made in
}

// Controller makes groups and finds them again. Its methods may be called from many goroutines at once.
type Controller struct {
	info  Info
	owner string
	sys   system
	// dirs are where a group has a directory each: one with version 2; with version 1 the cpu hierarchy's comes first, and the
	// one that counts time follows if it is another.
	dirs []string
}

var (
	ownerForm = regexp.MustCompile(`^[0-9a-f]{8,32}$`)
	idForm    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
)

// Open finds out how this machine's processors can be shared out and makes the directory for groups. It fails with
// spore.CodeUnsupported where they cannot: the message says why, for each version, and the hint what would help.
func Open(ctx context.Context, opts Options) (*Controller, error) {
	sys, err := thisSystem()
	if err != nil {
		return nil, err
	}
	return open(ctx, opts, sys)
}

func open(ctx context.Context, opts Options, sys system) (*Controller, error) {
	if !ownerForm.MatchString(opts.Owner) {
		return nil, fmt.Errorf("cgroup: %q is no fingerprint", opts.Owner)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c := &Controller{owner: opts.Owner, sys: sys}
	why2 := c.openV2()
	if why2 == nil {
		return c, nil
	}
	why1 := c.openV1()
	if why1 == nil {
		return c, nil
	}
	hint := "mount control groups with the cpu controller"
	for _, why := range []error{why1, why2} {
		if errors.Is(why, fs.ErrPermission) {
			hint = "run the server as root, or as a systemd service with Delegate=cpu"
		} else if errors.Is(why, syscall.EROFS) {
			hint = "mount /sys/fs/cgroup for writing; for a container this means --privileged or a delegated cgroup"
		}
	}
	return nil, spore.Errorf(spore.CodeUnsupported, "processors cannot be limited on this machine: version 2: %v; version 1: %v", why2, why1).
		WithHint("%s", hint).WithCause(errors.Join(why2, why1))
}

// Close removes the folder if no server has a group in it. A controller that is used again makes it anew.
func (c *Controller) Close() error {
	for _, dir := range c.dirs {
		err := c.sys.rmdir(dir)
		if err != nil && !errors.Is(err, syscall.EBUSY) && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cgroup: remove the folder for groups: %w", err)
		}
	}
	return nil
}

// remake makes the folder again, which another server has removed as it ended.
func (c *Controller) remake() error {
	for _, dir := range c.dirs {
		if _, err := c.sys.makeFolder(filepath.Dir(dir)); err != nil {
			return err
		}
		if c.info.Version == V1 {
			continue
		}
		if err := enable(dir, "cpu"); err != nil {
			return err
		}
	}
	return nil
}

// Info says what the controller works with.
func (c *Controller) Info() Info { return c.info }

// Fingerprint is an Owner for the server whose data is in dir: the same for every path that leads there, and another for every
// other directory of the machine.
func Fingerprint(dir string) (string, error) {
	fi, err := os.Stat(dir)
	if err != nil {
		return "", fmt.Errorf("cgroup: %w", err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return "", fmt.Errorf("cgroup: %s has no inode", dir)
	}
	// Inode numbers are unique with their device, and groups live no longer than the numbers of devices stay the same.
	return fmt.Sprintf("%08x%016x", st.Dev, st.Ino), nil
}

func (c *Controller) name(id string) string { return c.owner + "." + id }

// Create makes the group of a VM, without limits. What a VM of this id left behind is used again if no process is in it, else
// Create fails with spore.CodeConflict.
func (c *Controller) Create(ctx context.Context, id string) (*Group, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	g, err := c.group(id)
	if err != nil {
		return nil, err
	}
	for i, dir := range g.dirs {
		err := c.sys.mkdir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			if err = c.remake(); err == nil {
				err = c.sys.mkdir(dir)
			}
		}
		if errors.Is(err, fs.ErrExist) {
			if err = c.sys.rmdir(dir); errors.Is(err, syscall.EBUSY) {
				return nil, spore.Errorf(spore.CodeConflict, "processes still run in the group of %s", id).WithCause(err)
			} else if err == nil {
				err = c.sys.mkdir(dir)
			}
		}
		if err != nil {
			for _, made := range g.dirs[:i] {
				err = errors.Join(err, c.sys.rmdir(made))
			}
			return nil, fmt.Errorf("cgroup: make the group of %s: %w", id, err)
		}
	}
	return g, nil
}

// Get finds the group that an earlier process of this server made. It fails with spore.CodeNotFound when there is none.
func (c *Controller) Get(id string) (*Group, error) {
	g, err := c.group(id)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(g.dirs[0]); errors.Is(err, fs.ErrNotExist) {
		return nil, spore.Errorf(spore.CodeNotFound, "there is no group of %s", id).WithCause(err)
	} else if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	return g, nil
}

func (c *Controller) group(id string) (*Group, error) {
	if !idForm.MatchString(id) {
		return nil, spore.Invalidf("id", "%q cannot name a group", id)
	}
	g := &Group{c: c, id: id}
	for _, dir := range c.dirs {
		g.dirs = append(g.dirs, filepath.Join(dir, c.name(id)))
	}
	return g, nil
}

// List names, sorted, the VMs that this server's groups were made for, whether they live or not.
func (c *Controller) List() ([]string, error) {
	var ids []string
	for _, dir := range c.dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // no folder, no groups
			return nil, fmt.Errorf("cgroup: %w", err)
		}
		for _, e := range entries {
			id, ours := strings.CutPrefix(e.Name(), c.owner+".")
			if ours && e.IsDir() && idForm.MatchString(id) {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// Clean removes this server's groups but those of VMs that live says are alive, and names, sorted, the removed ones. It ends no
// process: a group with processes in it stays, and the error, of spore.CodeInUse, names it. The others are removed all the same.
func (c *Controller) Clean(ctx context.Context, live func(id string) bool) (removed []string, err error) {
	ids, err := c.List()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		if ctx.Err() != nil {
			return removed, errors.Join(err, ctx.Err())
		}
		if live(id) {
			continue
		}
		g, groupErr := c.group(id)
		if groupErr != nil {
			return removed, errors.Join(err, groupErr)
		}
		switch rmErr := g.remove(); {
		case rmErr == nil:
			removed = append(removed, id)
		case errors.Is(rmErr, syscall.EBUSY):
			err = errors.Join(err, g.busy(rmErr))
		default:
			err = errors.Join(err, fmt.Errorf("cgroup: remove the group of %s: %w", id, rmErr))
		}
	}
	return removed, err
}
