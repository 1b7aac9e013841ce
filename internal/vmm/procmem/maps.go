package procmem

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/vmm"
)

// Mapping is one line of /proc/PID/maps.
type Mapping struct {
	Start, End   uint64
	Private      bool
	Writable     bool
	Offset       int64
	Major, Minor uint32
	Inode        uint64
	Path         string // as the kernel shows it, without " (deleted)"
}

// ParseMaps reads the text of /proc/PID/maps.
func ParseMaps(text []byte) ([]Mapping, error) {
	var all []Mapping
	for line := range bytes.Lines(text) {
		mp, err := parseMapping(strings.TrimSuffix(string(line), "\n"))
		if err != nil {
			return nil, fmt.Errorf("procmem: memory map line %d: %w", len(all)+1, err)
		}
		all = append(all, mp)
	}
	return all, nil
}

func parseMapping(line string) (Mapping, error) {
	var mp Mapping
	var fields [5]string // range, permissions, offset, device, inode; the path is what remains
	rest := line
	for i := range fields {
		fields[i], rest, _ = strings.Cut(rest, " ")
		if fields[i] == "" {
			return mp, fmt.Errorf("%q has too few fields", line)
		}
	}
	lo, hi, ok := strings.Cut(fields[0], "-")
	major, minor, ok2 := strings.Cut(fields[3], ":")
	if perms := fields[1]; !ok || !ok2 || len(perms) != 4 {
		return mp, fmt.Errorf("%q is not a mapping", line)
	}
	offset, err1 := strconv.ParseUint(fields[2], 16, 63)
	start, err2 := strconv.ParseUint(lo, 16, 64)
	end, err3 := strconv.ParseUint(hi, 16, 64)
	maj, err4 := strconv.ParseUint(major, 16, 32)
	mnr, err5 := strconv.ParseUint(minor, 16, 32)
	inode, err6 := strconv.ParseUint(fields[4], 10, 64)
	for _, err := range []error{err1, err2, err3, err4, err5, err6} {
		if err != nil {
			return mp, fmt.Errorf("%q: %w", line, err)
		}
	}
	const page = vmm.PageSize
	if start >= end || start%page != 0 || end%page != 0 || offset%page != 0 || end-start > math.MaxInt64-offset {
		return mp, fmt.Errorf("%q is not a range of pages", line)
	}
	path := strings.TrimLeft(rest, " ")
	return Mapping{
		Start: start, End: end, Offset: int64(offset),
		Private: fields[1][3] == 'p', Writable: fields[1][1] == 'w',
		Major: uint32(maj), Minor: uint32(mnr), Inode: inode,
		Path: strings.TrimSuffix(path, " (deleted)"),
	}, nil
}

// fileID recognises a file in a memory map.
type fileID struct {
	pid          int
	path         string
	inode        uint64
	device       uint64
	major, minor uint32
}

func newFileID(pid int, path string, fi os.FileInfo) fileID {
	id := fileID{pid: pid, path: path}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		if abs, err := filepath.Abs(real); err == nil {
			id.path = abs
		}
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		id.inode, id.device = st.Ino, st.Dev
		id.major, id.minor = unix.Major(st.Dev), unix.Minor(st.Dev)
	}
	return id
}

// matches compares inode and device. On file systems whose subvolumes have device numbers of their own (btrfs,
// overlayfs) the map shows another device than stat does; there the path, or the kernel's link to the mapped file,
// decides.
func (id fileID) matches(mp Mapping) bool {
	if mp.Inode != id.inode || mp.Inode == 0 {
		return false
	}
	if mp.Major == id.major && mp.Minor == id.minor || mp.Path == id.path {
		return true
	}
	var st unix.Stat_t
	link := fmt.Sprintf("/proc/%d/map_files/%x-%x", id.pid, mp.Start, mp.End)
	return unix.Stat(link, &st) == nil && st.Ino == id.inode && st.Dev == id.device
}
