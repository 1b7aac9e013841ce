// Package overlay compares two root filesystems, each an artifact with the files of a sandbox's disk over it, without
// mounting either. Both may be hostile.
package overlay

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sporevm/spore/internal/image/ext4"
)

// Names that overlayfs gives its attributes, and the directory of a disk that holds the upper layer.
const (
	attrOpaque   = "trusted.overlay.opaque"
	attrRedirect = "trusted.overlay.redirect"
	attrWhiteout = "trusted.overlay.whiteout"
	upperDir     = "upper"
)

// Tree is one root filesystem.
type Tree struct {
	lower *ext4.Reader
	upper *ext4.Reader // nil when the disk was never used
	root  dir

	artifact string
	seen     map[uint32]bool // directories of the upper layer that were walked through: each has one name
}

// Open puts the files of a disk over those of an artifact. artifact names it: two trees over one artifact share the
// lower layer.
func Open(artifact string, lower, disk *ext4.Reader) (*Tree, error) {
	t := &Tree{lower: lower, artifact: artifact, seen: map[uint32]bool{}}
	var err error
	if t.root.lower, err = lower.Root(); err != nil {
		return nil, fmt.Errorf("artifact: %w", err)
	}
	root, err := disk.Root()
	if err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	entries, err := disk.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	for _, e := range entries {
		if e.Name != upperDir {
			continue
		}
		i, err := disk.Inode(e.Inode)
		if err != nil {
			return nil, fmt.Errorf("disk: %w", err)
		}
		if i.IsDir() {
			t.upper, t.root.upper = disk, i
		}
	}
	return t, nil
}

// dir is a directory of either layer, or of both.
type dir struct{ upper, lower *ext4.Inode }

// file is what one name stands for.
type file struct {
	*ext4.Inode
	from *ext4.Reader
	dir  dir // of a directory
}

// list reads a directory, both layers as one.
func (t *Tree) list(d dir) (map[string]file, error) {
	out := map[string]file{}
	if d.lower != nil {
		entries, err := t.lower.ReadDir(d.lower)
		if err != nil {
			return nil, fmt.Errorf("artifact: %w", err)
		}
		for _, e := range entries {
			i, err := t.lower.Inode(e.Inode)
			if err != nil {
				return nil, fmt.Errorf("artifact: %w", err)
			}
			f := file{Inode: i, from: t.lower}
			if i.IsDir() {
				f.dir.lower = i
			}
			out[e.Name] = f
		}
	}
	if d.upper == nil {
		return out, nil
	}
	if t.seen[d.upper.Number] {
		return nil, fmt.Errorf("disk: directory %d has two names", d.upper.Number)
	}
	t.seen[d.upper.Number] = true
	entries, err := t.upper.ReadDir(d.upper)
	if err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	merged := make(map[string]file, len(entries))
	for _, e := range entries {
		if err := t.cover(merged, out, d, e); err != nil {
			return nil, fmt.Errorf("disk: %w", err)
		}
	}
	for name, f := range merged { // only now: a moved directory may lie over one that another entry hides
		if f.Inode == nil {
			delete(out, name)
		} else {
			out[name] = f
		}
	}
	return out, nil
}

// cover adds an entry of the upper layer to merged; one without an inode hides what is below.
func (t *Tree) cover(merged, below map[string]file, parent dir, e ext4.Entry) error {
	i, err := t.upper.Inode(e.Inode)
	if err != nil {
		return err
	}
	if i.Type() == ext4.TypeChar && i.Major == 0 && i.Minor == 0 {
		merged[e.Name] = file{}
		return nil
	}
	f := file{Inode: i, from: t.upper}
	if !i.IsDir() {
		if i.Type() == ext4.TypeRegular && i.Size == 0 {
			_, hides, err := t.attr(i, attrWhiteout)
			if err != nil {
				return err
			}
			if hides {
				f = file{}
			}
		}
		merged[e.Name] = f
		return nil
	}
	f.dir.upper = i
	opaque, _, err := t.attr(i, attrOpaque)
	if err != nil {
		return err
	}
	if opaque != "y" {
		if f.dir.lower, err = t.below(i, below, parent, e.Name); err != nil {
			return err
		}
	}
	merged[e.Name] = f
	return nil
}

// below finds the directory of the artifact that one of the upper layer lies over: the one of the same name, or where
// it was before it was moved.
func (t *Tree) below(i *ext4.Inode, siblings map[string]file, parent dir, name string) (*ext4.Inode, error) {
	to, moved, err := t.attr(i, attrRedirect)
	if err != nil {
		return nil, err
	}
	switch {
	case moved && strings.HasPrefix(to, "/"):
		return t.lookup(to)
	case moved && strings.Contains(to, "/"), moved && to == "":
		return nil, fmt.Errorf("directory %d was moved from %q", i.Number, to)
	case moved:
		name = to
	}
	if parent.lower == nil {
		return nil, nil
	}
	if f := siblings[name]; f.Inode != nil && f.IsDir() {
		return f.Inode, nil
	}
	return nil, nil
}

// lookup finds a directory of the artifact; nil when there is none of that name.
func (t *Tree) lookup(path string) (*ext4.Inode, error) {
	at := t.root.lower
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		entries, err := t.lower.ReadDir(at)
		if err != nil {
			return nil, err
		}
		n := slices.IndexFunc(entries, func(e ext4.Entry) bool { return e.Name == name })
		if n < 0 {
			return nil, nil
		}
		if at, err = t.lower.Inode(entries[n].Inode); err != nil {
			return nil, err
		}
		if !at.IsDir() {
			return nil, nil
		}
	}
	return at, nil
}

func (t *Tree) attr(i *ext4.Inode, name string) (value string, ok bool, err error) {
	all, err := t.upper.Xattrs(i)
	if err != nil {
		return "", false, err
	}
	for _, x := range all {
		if x.Name == name {
			return string(x.Value), true, nil
		}
	}
	return "", false, nil
}
