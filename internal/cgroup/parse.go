package cgroup

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// mount is a mounted hierarchy.
type mount struct {
	root    string   // the group that is at the mount point
	point   string   // where it is mounted
	options []string // of version 1: its controllers, among others
	v2      bool
}

func (m mount) has(controller string) bool { return slices.Contains(m.options, controller) }

// dir is where a group of the hierarchy is found; ok is false when the mount shows only other ones.
func (m mount) dir(group string) (dir string, ok bool) {
	if m.root == "/" {
		return path.Join(m.point, group), true
	}
	rest, ok := strings.CutPrefix(group, m.root)
	if !ok || rest != "" && rest[0] != '/' {
		return "", false
	}
	return path.Join(m.point, rest), true
}

// parseMounts finds the hierarchies in /proc/self/mountinfo. Of several mounts at one place the last one counts, as it does for
// those who look there.
func parseMounts(text string) ([]mount, error) {
	var all []mount
	for line := range strings.Lines(text) {
		head, tail, found := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		before, after := strings.Split(head, " "), strings.Split(tail, " ")
		if !found || len(before) < 6 || len(after) < 3 {
			return nil, fmt.Errorf("cgroup: %.200q is no line of mountinfo", line)
		}
		root, err := unescape(before[3])
		if err != nil {
			return nil, err
		}
		point, err := unescape(before[4])
		if err != nil {
			return nil, err
		}
		all = slices.DeleteFunc(all, func(m mount) bool { return m.point == point })
		switch after[0] {
		case "cgroup":
			all = append(all, mount{root: root, point: point, options: strings.Split(after[2], ",")})
		case "cgroup2":
			all = append(all, mount{root: root, point: point, v2: true})
		}
	}
	return all, nil
}

// unescape undoes mountinfo's octal escapes.
func unescape(s string) (string, error) {
	var out strings.Builder
	for {
		i := strings.IndexByte(s, '\\')
		if i < 0 {
			out.WriteString(s)
			return out.String(), nil
		}
		if len(s) < i+4 {
			return "", fmt.Errorf("cgroup: %.200q ends in half an escape", s)
		}
		n, err := strconv.ParseUint(s[i+1:i+4], 8, 8)
		if err != nil {
			return "", fmt.Errorf("cgroup: escape in %.200q: %w", s, err)
		}
		out.WriteString(s[:i])
		out.WriteByte(byte(n))
		s = s[i+4:]
	}
}

// parseOwn reads /proc/self/cgroup: the process's group by controller. Version 2's is under "".
func parseOwn(text string) (map[string]string, error) {
	own := map[string]string{}
	for line := range strings.Lines(text) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 || !path.IsAbs(parts[2]) {
			return nil, fmt.Errorf("cgroup: %.200q is no line of a process's groups", line)
		}
		for _, controller := range strings.Split(parts[1], ",") {
			own[controller] = path.Clean(parts[2])
		}
	}
	return own, nil
}

// parseStat reads lines of a name and a number.
func parseStat(text []byte) (map[string]int64, error) {
	stat := map[string]int64{}
	for line := range strings.Lines(string(text)) {
		name, number, found := strings.Cut(strings.TrimSpace(line), " ")
		if !found {
			return nil, fmt.Errorf("cgroup: %.200q is no line of statistics", line)
		}
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("cgroup: statistics: %w", err)
		}
		stat[name] = n
	}
	return stat, nil
}
