package agent

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// User is who a process runs as.
type User struct {
	Name   string // empty for a bare number that the image does not know
	UID    uint32
	GID    uint32
	Groups []uint32 // supplementary
	Home   string
	Shell  string
}

// passwdEntry is a line of /etc/passwd.
type passwdEntry struct {
	name        string
	uid, gid    uint32
	home, shell string
}

// groupEntry is a line of /etc/group.
type groupEntry struct {
	name    string
	gid     uint32
	members []string
}

// parsePasswd reads what is well formed and skips the rest, as the C library does: the file is the image's.
func parsePasswd(data []byte) []passwdEntry {
	var entries []passwdEntry
	for fields := range colonLines(data, 7) {
		uid, err1 := parseID(fields[2])
		gid, err2 := parseID(fields[3])
		if err1 == nil && err2 == nil {
			entries = append(entries, passwdEntry{fields[0], uid, gid, fields[5], fields[6]})
		}
	}
	return entries
}

func parseGroup(data []byte) []groupEntry {
	var entries []groupEntry
	for fields := range colonLines(data, 4) {
		gid, err := parseID(fields[2])
		if err != nil {
			continue
		}
		e := groupEntry{name: fields[0], gid: gid}
		for _, m := range strings.Split(fields[3], ",") {
			if m = strings.TrimSpace(m); m != "" {
				e.members = append(e.members, m)
			}
		}
		entries = append(entries, e)
	}
	return entries
}

// colonLines yields the fields of each line that has a name and at least n-1 of n fields (old tools leave the last out).
func colonLines(data []byte, n int) func(func([]string) bool) {
	return func(yield func([]string) bool) {
		in := bufio.NewScanner(bytes.NewReader(data))
		in.Buffer(nil, 1<<20)
		for in.Scan() {
			line := strings.TrimSpace(in.Text())
			if line == "" || line[0] == '#' {
				continue
			}
			fields := strings.Split(line, ":")
			if len(fields) == n-1 {
				fields = append(fields, "")
			}
			if len(fields) == n && fields[0] != "" && !yield(fields) {
				return
			}
		}
	}
}

func parseID(s string) (uint32, error) {
	v, err := strconv.ParseUint(s, 10, 32)
	if err == nil && v == 1<<32-1 {
		err = errors.New("the kernel uses this id for \"none\"")
	}
	return uint32(v), err
}

// accounts is what an image knows about users.
type accounts struct {
	passwd []passwdEntry
	group  []groupEntry
}

func readAccounts(passwd, group string) (accounts, error) {
	p, err := os.ReadFile(passwd)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return accounts{}, err
	}
	g, err := os.ReadFile(group)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return accounts{}, err
	}
	return accounts{parsePasswd(p), parseGroup(g)}, nil
}

// unknownUserError names a user or group that the image does not have.
type unknownUserError struct{ kind, name string }

func (e *unknownUserError) Error() string {
	return fmt.Sprintf("the image has no %s %q", e.kind, e.name)
}

// resolve turns USER, UID, USER:GROUP or UID:GID into a User. Numbers need not be known to the image. An empty spec is
// root.
func (a accounts) resolve(spec string) (User, error) {
	name, group, hasGroup := strings.Cut(spec, ":")
	if name == "" {
		name = "0"
	}
	var u User
	entry, known := a.user(name)
	if !known {
		uid, err := parseID(name)
		if err != nil {
			return User{}, &unknownUserError{"user", name}
		}
		if entry, known = a.userByID(uid); !known {
			entry = passwdEntry{uid: uid}
		}
	}
	u = User{Name: entry.name, UID: entry.uid, GID: entry.gid, Home: entry.home, Shell: entry.shell}
	if u.UID == 0 && u.Name == "" { // an image without /etc/passwd
		u.Name = "root"
		if u.Home == "" {
			u.Home = "/root"
		}
	}
	if u.Home == "" {
		u.Home = "/"
	}
	if hasGroup && group != "" {
		gid, err := a.gid(group)
		if err != nil {
			return User{}, err
		}
		u.GID = gid // an explicit group replaces the supplementary ones too, as container runtimes have it
		return u, nil
	}
	for _, g := range a.group {
		for _, m := range g.members {
			if known && m == u.Name && g.gid != u.GID {
				u.Groups = append(u.Groups, g.gid)
				break
			}
		}
	}
	return u, nil
}

func (a accounts) user(name string) (passwdEntry, bool) {
	for _, e := range a.passwd {
		if e.name == name {
			return e, true
		}
	}
	return passwdEntry{}, false
}

func (a accounts) userByID(uid uint32) (passwdEntry, bool) {
	for _, e := range a.passwd {
		if e.uid == uid {
			return e, true
		}
	}
	return passwdEntry{}, false
}

func (a accounts) gid(name string) (uint32, error) {
	for _, g := range a.group {
		if g.name == name {
			return g.gid, nil
		}
	}
	gid, err := parseID(name)
	if err != nil {
		return 0, &unknownUserError{"group", name}
	}
	return gid, nil
}

func (a accounts) userName(uid uint32) string {
	if e, ok := a.userByID(uid); ok {
		return e.name
	}
	return strconv.FormatUint(uint64(uid), 10)
}

func (a accounts) groupName(gid uint32) string {
	for _, g := range a.group {
		if g.gid == gid {
			return g.name
		}
	}
	return strconv.FormatUint(uint64(gid), 10)
}
