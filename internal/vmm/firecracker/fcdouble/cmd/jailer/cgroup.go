package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/sporevm/spore/internal/vmm/firecracker/fcdouble/rust"
)

// cgroups are the groups that the process is put in, with what is written to their files.
type cgroups struct {
	version int
	places  []place
}

// place is one group's directory.
type place struct {
	mount, dir string
	controller string // v1: its hierarchy
	set        [][2]string
}

type mountPoint struct {
	dir, options string
	unified      bool
}

func cgroupMounts() ([]mountPoint, error) {
	text, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return nil, failed("FileOpen", err, "Failed to open file /proc/mounts")
	}
	var all []mountPoint
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 6 && (f[2] == "cgroup" || f[2] == "cgroup2") {
			all = append(all, mountPoint{f[1], f[3], f[2] == "cgroup2"})
		}
	}
	return all, nil
}

// inside refuses paths that lead out of where they belong.
func inside(path string) bool {
	if filepath.IsAbs(path) || path == "." || strings.HasPrefix(path, "./") {
		return false
	}
	return !slices.Contains(strings.Split(path, "/"), "..")
}

func newCgroups(version string, args []string, parent, id string) (*cgroups, error) {
	if !inside(parent) {
		return nil, refuse("CgroupInvalidParentPath", "Parent cgroup path is invalid. Path should not be absolute or contain '..' or '.'")
	}
	n, err := strconv.ParseUint(version, 10, 8)
	if err != nil {
		return nil, refuse(fmt.Sprintf("CgroupInvalidVersion(%q)", version), "%s is an invalid cgroup version specifier", version)
	}
	g := &cgroups{version: int(n)}
	if len(args) == 0 && n != 2 {
		return g, nil
	}
	mounts, err := cgroupMounts()
	if err != nil {
		return nil, err
	}
	mounts = slices.DeleteFunc(mounts, func(m mountPoint) bool { return m.unified != (n == 2) || n != 1 && n != 2 })
	if len(mounts) == 0 {
		return nil, refuse(`CgroupHierarchyMissing("No hierarchy found for this cgroup version.")`, "Hierarchy not found: No hierarchy found for this cgroup version.")
	}
	if len(args) == 0 { // the parent itself, if it is there
		dir := filepath.Join(mounts[0].dir, parent)
		if _, err := os.Stat(dir); err == nil {
			if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
				return nil, refuse(fmt.Sprintf("CgroupMove(%q)", dir), "Failed to move process to cgroup (%s): %s.\nHint: If you intended to create a child cgroup under %s, pass any --cgroup parameters.", dir, rust.Message(err), dir)
			}
		}
		return g, nil
	}
	for _, arg := range args {
		if err := g.add(arg, mounts, parent, id); err != nil {
			return nil, err
		}
	}
	return g, nil
}

func (g *cgroups) add(arg string, mounts []mountPoint, parent, id string) error {
	parts := strings.Split(arg, "=")
	if len(parts) != 2 || parts[1] == "" {
		return refuse(fmt.Sprintf("CgroupFormat(%q)", arg), "Invalid format for cgroups: %s", arg)
	}
	file, value := parts[0], parts[1]
	controller, _, found := strings.Cut(file, ".")
	if !inside(file) {
		return refuse(fmt.Sprintf("CgroupInvalidFile(%q)", arg), "Cgroup invalid file: %s", arg)
	}
	if !found {
		return refuse(fmt.Sprintf("CgroupInvalidFile(%q)", file), "Cgroup invalid file: %s", file)
	}
	mount := mounts[0].dir
	if g.version == 1 {
		i := slices.IndexFunc(mounts, func(m mountPoint) bool { return slices.Contains(strings.Split(m.options, ","), controller) })
		if i < 0 {
			return unavailable(controller)
		}
		mount = mounts[i].dir
	} else {
		text, err := os.ReadFile(filepath.Join(mount, "cgroup.controllers"))
		if err != nil || !slices.Contains(strings.Fields(string(text)), controller) {
			return unavailable(controller)
		}
	}
	dir := filepath.Join(mount, parent, id)
	i := slices.IndexFunc(g.places, func(p place) bool { return p.dir == dir && (g.version == 2 || p.controller == controller) })
	if i < 0 {
		i = len(g.places)
		g.places = append(g.places, place{mount: mount, dir: dir, controller: controller})
	}
	g.places[i].set = append(g.places[i].set, [2]string{file, value})
	return nil
}

func unavailable(controller string) error {
	return refuse(fmt.Sprintf("CgroupControllerUnavailable(%q)", controller), "Controller %s is unavailable", controller)
}

// setup makes the groups, writes to their files and moves this process in.
func (g *cgroups) setup() error {
	for _, p := range g.places {
		if err := os.MkdirAll(p.dir, 0o755); err != nil {
			return failed("CreateDir", err, "Failed to create directory %s", p.dir)
		}
		for _, s := range p.set {
			if g.version == 2 {
				controller, _, _ := strings.Cut(s[0], ".")
				if err := enable(p.mount, filepath.Dir(p.dir), controller); err != nil {
					return err
				}
			} else if err := inherit(p.mount, p.dir, s[0]); err != nil {
				return err
			}
			if err := put(filepath.Join(p.dir, s[0]), s[1]); err != nil {
				return err
			}
		}
		file := "tasks"
		if g.version == 2 {
			file = "cgroup.procs"
		}
		if err := put(filepath.Join(p.dir, file), strconv.Itoa(os.Getpid())); err != nil {
			return err
		}
	}
	return nil
}

func put(path, value string) error {
	if err := os.WriteFile(path, []byte(value+"\n"), 0o644); err != nil {
		return failed("Write", err, "Failed to write to %s", path)
	}
	return nil
}

// enable lets the groups under dir use a controller, from the root of the hierarchy on.
func enable(mount, dir, controller string) error {
	if dir != mount && len(dir) > len(mount) {
		if err := enable(mount, filepath.Dir(dir), controller); err != nil {
			return err
		}
	}
	return put(filepath.Join(dir, "cgroup.subtree_control"), "+"+controller)
}

// inherit fills a file of a v1 group, and of those above it, with what its parent has, as some files must be before others.
func inherit(mount, dir, file string) error {
	read := func(dir string) (string, error) {
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return "", failed("ReadToString", err, "Failed to read file %s into a string", filepath.Join(dir, file))
		}
		return strings.TrimSuffix(string(text), "\n"), nil
	}
	parent := filepath.Dir(dir)
	text, err := read(parent)
	if err != nil {
		return err
	}
	if text == "" && parent != mount {
		if err := inherit(mount, parent, file); err != nil {
			return err
		}
		if text, err = read(parent); err != nil {
			return err
		}
	}
	if text == "" {
		return refuse(fmt.Sprintf("CgroupInheritFromParent(%q, %q)", dir, file), "Failed to inherit cgroups configurations from file %s in path %s", file, dir)
	}
	return put(filepath.Join(dir, file), text)
}
