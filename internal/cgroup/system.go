package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// system is the machine as this process sees it.
type system struct {
	mounts []mount
	own    map[string]string // this process's groups
	uid    int
	mkdir  func(path string) error
	rmdir  func(path string) error
}

func thisSystem() (system, error) {
	s := system{
		uid:   os.Geteuid(),
		mkdir: func(path string) error { return os.Mkdir(path, 0o755) },
		rmdir: unix.Rmdir,
	}
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return system{}, fmt.Errorf("cgroup: %w", err)
	}
	if s.mounts, err = parseMounts(string(text)); err != nil {
		return system{}, err
	}
	if text, err = os.ReadFile("/proc/self/cgroup"); err != nil {
		return system{}, fmt.Errorf("cgroup: %w", err)
	}
	s.own, err = parseOwn(string(text))
	return s, err
}

// makeFolder makes the directory for groups in parent.
func (s system) makeFolder(parent string) (string, error) {
	dir := filepath.Join(parent, folder)
	if err := s.mkdir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return dir, nil
}

// openV1 sets c up with version 1; the error says why it cannot be.
func (c *Controller) openV1() error {
	cpu, err := c.sys.folderV1("cpu")
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(cpu, "cpu.cfs_quota_us")); errors.Is(err, fs.ErrNotExist) {
		return errors.New("the kernel has no quotas for processors")
	} else if err != nil {
		return err
	}
	c.dirs = []string{cpu}
	// Time is counted by a controller of its own, which mostly but not always shares the hierarchy.
	switch _, err := os.Stat(filepath.Join(cpu, "cpuacct.usage")); {
	case errors.Is(err, fs.ErrNotExist):
		if acct, err := c.sys.folderV1("cpuacct"); err == nil {
			c.dirs = append(c.dirs, acct)
		} else if !errors.Is(err, errNotMounted) {
			return err
		}
	case err != nil:
		return err
	}
	c.info = Info{Version: V1, Path: cpu}
	return nil
}

var errNotMounted = errors.New("is not mounted")

func (s system) folderV1(controller string) (string, error) {
	i := slices.IndexFunc(s.mounts, func(m mount) bool { return !m.v2 && m.has(controller) })
	if i < 0 {
		return "", fmt.Errorf("the controller %s %w", controller, errNotMounted)
	}
	parent := s.mounts[i].point
	if s.uid != 0 {
		own, ok := s.mounts[i].dir(s.own[controller])
		if !ok {
			return "", fmt.Errorf("the server's group %s is not under %s", s.own[controller], parent)
		}
		parent = own
	}
	return s.makeFolder(parent)
}

// openV2 sets c up with version 2; the error says why it cannot be.
func (c *Controller) openV2() error {
	i := slices.IndexFunc(c.sys.mounts, func(m mount) bool { return m.v2 })
	if i < 0 {
		return errNotMounted
	}
	m := c.sys.mounts[i]
	own, ok := m.dir(c.sys.own[""])
	if !ok {
		return fmt.Errorf("the server's group %s is not under %s", c.sys.own[""], m.point)
	}
	parent, err := c.sys.parentV2(m.point, own)
	if err != nil {
		return err
	}
	offered, err := words(parent, "cgroup.controllers")
	if err != nil {
		return err
	}
	if !slices.Contains(offered, "cpu") {
		return fmt.Errorf("%s offers no cpu controller; it may be mounted as version 1, or not delegated", parent)
	}
	if parent == own && !isRoot(parent) {
		if err := c.sys.makeWay(own); err != nil {
			return err
		}
	}
	if err := enable(parent, "cpu"); err != nil {
		return err
	}
	dir, err := c.sys.makeFolder(parent)
	if err != nil {
		return err
	}
	if err := enable(dir, "cpu"); err != nil {
		return err
	}
	c.info = Info{Version: V2, Path: dir}
	c.dirs = []string{dir}
	return nil
}

// isRoot tells the root of the hierarchy, which no limit is on and processes may be in beside groups, from what a container
// sees as root.
func isRoot(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "cgroup.events"))
	return errors.Is(err, fs.ErrNotExist)
}

// parentV2 chooses the group to make the folder in. Other than the root of the hierarchy it must have been delegated, and no
// process may be in it: it is the one above the server's, if that was delegated as a whole, or the server's own.
func (s system) parentV2(top, own string) (string, error) {
	if s.uid == 0 && isRoot(top) {
		return top, nil
	}
	above := filepath.Dir(own)
	if own != top && delegated(above) && s.mayChange(above) == nil {
		return above, nil
	}
	if err := s.mayChange(own); err != nil {
		return "", fmt.Errorf("the server's group %s was not delegated to it: %w", own, err)
	}
	return own, nil
}

// delegated says whether the service manager has marked the group as its user's to divide.
func delegated(dir string) bool {
	for _, attr := range []string{"user.delegate", "trusted.delegate"} {
		var value [8]byte
		if n, err := unix.Getxattr(dir, attr, value[:]); err == nil && string(value[:n]) == "1" {
			return true
		}
	}
	return false
}

// mayChange says whether groups can be made and controllers enabled in dir, and processes moved.
func (s system) mayChange(dir string) error {
	for _, name := range []string{"", "cgroup.subtree_control", "cgroup.procs"} {
		if err := unix.Access(filepath.Join(dir, name), unix.W_OK); err != nil {
			return err
		}
	}
	return nil
}

// leaf is where the server goes to make way for groups beside it.
const leaf = "server"

// makeWay moves the processes of the server's own group into a leaf below it: a group with controllers has no processes of its
// own.
func (s system) makeWay(own string) error {
	dir := filepath.Join(own, leaf)
	if err := s.mkdir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	pids, err := words(own, "cgroup.procs")
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if n, err := strconv.Atoi(pid); err != nil || n <= 0 {
			continue // a process that this one cannot see is shown as 0
		}
		if err := write(dir, "cgroup.procs", pid); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("move the process %s out of the way: %w", pid, err)
		}
	}
	return nil
}

// enable hands a controller down from dir to the groups in it.
func enable(dir, controller string) error {
	on, err := words(dir, "cgroup.subtree_control")
	if err != nil || slices.Contains(on, controller) {
		return err
	}
	if err := write(dir, "cgroup.subtree_control", "+"+controller); err != nil {
		return fmt.Errorf("enable the %s controller: %w", controller, err)
	}
	return nil
}

func words(dir, name string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(dir, name))
	return strings.Fields(string(text)), err
}
