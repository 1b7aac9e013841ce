package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/image/ext4"
)

// Limits of one comparison.
const (
	maxVisits = 4 << 20 // names looked at, on both sides
	maxHeld   = 1 << 19 // of those, at one time: the directories on the way to the one that is compared
	maxPath   = 4096    // bytes
	chunkSize = 256 << 10
)

var errTooMany = errors.New("there are too many files to compare")

// Range is a stretch of a disk, or of a file, in bytes.
type Range struct{ Offset, Length int64 }

// End is the first byte after the range.
func (r Range) End() int64 { return r.Offset + r.Length }

// Options say what is known before two trees are compared, and what is wanted of the answer.
type Options struct {
	// Disk is where the two disks may differ, in ascending order. Files whose blocks lie elsewhere, at the same places
	// of both, are equal without being read.
	Disk []Range
	// Limit is how many changes are listed; the others are counted.
	Limit int
	// MaxBytes bounds what is read of contents: about what the images hold. A file system in which files share blocks
	// could otherwise make it endless.
	MaxBytes int64
}

// Changes are the files in which two trees differ, in the order of their paths.
type Changes struct {
	Files   []spore.FileChange
	Omitted int
}

// Compare finds the files that one tree has and the other has not, and those that differ in contents, kind, size, mode
// or owner. Times do not count. Each Tree can be compared once.
func Compare(ctx context.Context, from, to *Tree, o Options) (*Changes, error) {
	c := &comparison{ctx: ctx, from: from, to: to, opts: o, changes: &Changes{Files: []spore.FileChange{}}}
	if err := c.dirs("", from.root, to.root); err != nil {
		return nil, err
	}
	return c.changes, nil
}

type comparison struct {
	ctx      context.Context
	from, to *Tree
	opts     Options
	changes  *Changes
	visits   int
	held     int
	read     int64
}

func (c *comparison) report(path string, kind spore.ChangeKind, from, to *ext4.Inode) {
	if len(c.changes.Files) >= c.opts.Limit {
		c.changes.Omitted++
		return
	}
	change := spore.FileChange{Path: strings.ToValidUTF8(path, "\uFFFD"), Kind: kind}
	if from != nil {
		change.SizeFrom, change.Directory = sizeOf(from), from.IsDir()
	}
	if to != nil {
		change.SizeTo, change.Directory = sizeOf(to), to.IsDir()
	}
	c.changes.Files = append(c.changes.Files, change)
}

// sizeOf is the size of what has contents.
func sizeOf(i *ext4.Inode) int64 {
	if i.Type() != ext4.TypeRegular {
		return 0
	}
	return i.Size
}

// dirs compares two directories, name by name.
func (c *comparison) dirs(path string, from, to dir) error {
	if c.sameLower(from, to) {
		return nil
	}
	mine, err := c.list(c.from, path, from)
	if err != nil {
		return err
	}
	theirs, err := c.list(c.to, path, to)
	if err != nil {
		return err
	}
	defer func() { c.held -= len(mine) + len(theirs) }()
	names := slices.Collect(maps.Keys(mine))
	for name := range theirs {
		if _, both := mine[name]; !both {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if err := c.names(path+"/"+name, mine[name], theirs[name]); err != nil {
			return err
		}
	}
	return nil
}

// sameLower says whether two directories are one and the same of one artifact, with nothing over them.
func (c *comparison) sameLower(a, b dir) bool {
	return a.upper == nil && b.upper == nil && c.from.artifact == c.to.artifact && a.lower != nil && b.lower != nil && a.lower.Number == b.lower.Number
}

func (c *comparison) list(t *Tree, path string, d dir) (map[string]file, error) {
	if err := c.ctx.Err(); err != nil {
		return nil, err
	}
	if len(path) > maxPath {
		return nil, errors.New("a path is longer than paths can be")
	}
	if d == (dir{}) {
		return nil, nil
	}
	list, err := t.list(d)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", path, err)
	}
	c.visits += len(list)
	c.held += len(list)
	if c.visits > maxVisits || c.held > maxHeld {
		return nil, errTooMany
	}
	return list, nil
}

// names compares what one path stands for on both sides; it is there on one at least.
func (c *comparison) names(path string, a, b file) error {
	switch {
	case a.Inode == nil:
		c.report(path, spore.ChangeAdded, nil, b.Inode)
		return c.dirs(path, dir{}, b.dir)
	case b.Inode == nil:
		c.report(path, spore.ChangeRemoved, a.Inode, nil)
		return c.dirs(path, a.dir, dir{})
	case a.IsDir() != b.IsDir():
		if err := c.names(path, a, file{}); err != nil {
			return err
		}
		return c.names(path, file{}, b)
	}
	differ, err := c.differ(a, b)
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	if differ {
		c.report(path, spore.ChangeModified, a.Inode, b.Inode)
	}
	if !a.IsDir() {
		return nil
	}
	return c.dirs(path, a.dir, b.dir)
}

// differ compares two files, or two directories as such.
func (c *comparison) differ(a, b file) (bool, error) {
	if a.from == c.from.lower && b.from == c.to.lower && c.from.artifact == c.to.artifact && a.Number == b.Number {
		return false, nil
	}
	if a.Mode != b.Mode || a.UID != b.UID || a.GID != b.GID || a.Major != b.Major || a.Minor != b.Minor {
		return true, nil
	}
	switch a.Type() {
	case ext4.TypeRegular:
		if a.Size != b.Size {
			return true, nil
		}
		return c.contents(a, b)
	case ext4.TypeSymlink:
		x, err := a.from.Target(a.Inode)
		if err != nil {
			return false, err
		}
		y, err := b.from.Target(b.Inode)
		return x != y, err
	}
	return false, nil
}

// contents compares two regular files of one size. Holes are not read.
func (c *comparison) contents(a, b file) (bool, error) {
	x, err := a.from.Extents(a.Inode)
	if err != nil {
		return false, err
	}
	y, err := b.from.Extents(b.Inode)
	if err != nil {
		return false, err
	}
	if a.from == c.from.upper && b.from == c.to.upper && slices.Equal(x, y) && c.untouched(x) {
		return false, nil
	}
	mine, theirs := make([]byte, chunkSize), make([]byte, chunkSize)
	mineFrom, theirsFrom := a.from.Content(x), b.from.Content(y)
	for _, r := range stretches(x, y, a.Size) {
		for at := r.Offset; at < r.End(); at += chunkSize {
			if err := c.ctx.Err(); err != nil {
				return false, err
			}
			n := min(chunkSize, r.End()-at)
			if c.read += 2 * n; c.read > c.opts.MaxBytes {
				return false, errors.New("the files hold more than the disk does")
			}
			if err := mineFrom.Read(mine[:n], at); err != nil {
				return false, err
			}
			if err := theirsFrom.Read(theirs[:n], at); err != nil {
				return false, err
			}
			if !bytes.Equal(mine[:n], theirs[:n]) {
				return true, nil
			}
		}
	}
	return false, nil
}

// untouched says whether extents lie where the two disks are equal.
func (c *comparison) untouched(extents []ext4.Extent) bool {
	for _, e := range extents {
		n, _ := slices.BinarySearchFunc(c.opts.Disk, e.At, func(r Range, at int64) int {
			if r.End() <= at {
				return -1
			}
			return 1
		})
		if n < len(c.opts.Disk) && c.opts.Disk[n].Offset < e.At+e.Length {
			return false
		}
	}
	return true
}

// stretches lists where either of two files of a size has data.
func stretches(a, b []ext4.Extent, size int64) []Range {
	var out []Range
	for len(a) > 0 || len(b) > 0 {
		var e ext4.Extent
		if len(b) == 0 || len(a) > 0 && a[0].Offset <= b[0].Offset {
			e, a = a[0], a[1:]
		} else {
			e, b = b[0], b[1:]
		}
		end := min(e.End(), size)
		if e.Offset >= end {
			continue
		}
		if n := len(out); n > 0 && out[n-1].End() >= e.Offset {
			out[n-1].Length = max(out[n-1].End(), end) - out[n-1].Offset
			continue
		}
		out = append(out, Range{Offset: e.Offset, Length: end - e.Offset})
	}
	return out
}
