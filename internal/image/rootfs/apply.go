package rootfs

import (
	"context"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/sporevm/spore/internal/image/ext4"
	"github.com/sporevm/spore/internal/image/tape"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh." // what AUFS keeps for itself; only the opaque mark means anything
	whiteoutOpaque = ".wh..wh..opq"
)

// Apply puts a layer on top of those applied before. The tree is of no use after an error.
func (t *Tree) Apply(ctx context.Context, layer *Layer) error {
	index := t.layers
	t.layers++
	t.forget()
	paths := make([][]string, len(layer.entries))
	var whiteouts []int
	for i, e := range layer.entries {
		if e.Type == tape.TypeGlobal {
			continue
		}
		parts, err := clean(layer.Name, e.Name, e.Name)
		if err != nil {
			return err
		}
		paths[i] = parts
		mark, err := whiteoutAt(layer.Name, e.Name, parts)
		if err != nil {
			return err
		}
		if mark {
			whiteouts = append(whiteouts, i)
		}
	}
	if err := t.hide(layer, paths, whiteouts); err != nil {
		return err
	}
	for i := range layer.entries {
		if i%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		e := &layer.entries[i]
		if e.Type == tape.TypeGlobal {
			continue
		}
		if len(whiteouts) > 0 && whiteouts[0] == i {
			whiteouts = whiteouts[1:]
			continue
		}
		if err := t.put(layer, e, paths[i], uint64(index)<<32|uint64(i)); err != nil {
			return err
		}
	}
	return nil
}

// whiteoutAt says whether the path stands for a removal, or for metadata of AUFS, rather than for a file.
func whiteoutAt(layer, entry string, parts []string) (bool, error) {
	for i, part := range parts {
		if !strings.HasPrefix(part, whiteoutPrefix) {
			continue
		}
		if strings.HasPrefix(part, whiteoutMeta) {
			return true, nil
		}
		switch strings.TrimPrefix(part, whiteoutPrefix) {
		case "", ".", "..":
			return false, badEntry(layer, entry, "the whiteout names no file")
		}
		if i < len(parts)-1 {
			return false, badEntry(layer, entry, "a whiteout is used as a directory")
		}
		return true, nil
	}
	return false, nil
}

// hide removes from the tree, which still holds the lower layers alone, what the layer's whiteouts name.
func (t *Tree) hide(layer *Layer, paths [][]string, whiteouts []int) error {
	if len(whiteouts) == 0 {
		return nil
	}
	// A directory of this layer that stands where a lower one has a symlink will replace it: a whiteout in that
	// directory has nothing to do with what the symlink points to.
	dirs := map[string]bool{}
	for i, e := range layer.entries {
		if e.Type == tape.TypeDir {
			dirs[strings.Join(paths[i], "/")] = true
		}
	}
	for _, i := range whiteouts {
		parts := paths[i]
		mark := parts[len(parts)-1]
		if strings.HasPrefix(mark, whiteoutMeta) && mark != whiteoutOpaque || metaBelow(parts) {
			continue
		}
		parent, err := t.lowerDir(parts[:len(parts)-1], dirs)
		if err != nil {
			return badEntry(layer.Name, layer.entries[i].Name, "%w", err)
		}
		if parent == nil {
			continue
		}
		t.forget()
		if mark == whiteoutOpaque {
			clear(parent.Children)
		} else {
			delete(parent.Children, strings.TrimPrefix(mark, whiteoutPrefix))
		}
	}
	return nil
}

// metaBelow says whether the path leads through a directory of AUFS metadata.
func metaBelow(parts []string) bool {
	return slices.ContainsFunc(parts[:len(parts)-1], func(p string) bool { return strings.HasPrefix(p, whiteoutMeta) })
}

// lowerDir finds the directory of the lower layers that a directory of this layer will be merged with, if any.
func (t *Tree) lowerDir(parts []string, replaced map[string]bool) (*ext4.Node, error) {
	for i := range parts {
		if !replaced[strings.Join(parts[:i+1], "/")] {
			continue
		}
		parent, err := t.dir(parts[:i], false)
		if err != nil || parent == nil {
			return nil, err
		}
		if n := parent.Children[parts[i]]; n != nil && !n.IsDir() {
			return nil, nil
		}
	}
	return t.dir(parts, false)
}

// put adds one entry to the tree.
func (t *Tree) put(layer *Layer, e *entry, parts []string, order uint64) error {
	if len(parts) == 0 {
		if e.Type != tape.TypeDir {
			return badEntry(layer.Name, e.Name, "the root must be a directory")
		}
		return setMeta(layer, t.Root, e)
	}
	parent, err := t.dir(parts[:len(parts)-1], true)
	if err != nil {
		return badEntry(layer.Name, e.Name, "%w", err)
	}
	name := parts[len(parts)-1]
	old := parent.Children[name]
	if e.Type == tape.TypeDir && old != nil && old.IsDir() {
		return setMeta(layer, old, e)
	}
	var n *ext4.Node
	if e.Type == tape.TypeLink {
		n, err = t.linkTarget(layer, e)
	} else {
		n, err = newNode(layer, e, order)
	}
	if err != nil {
		return err
	}
	if old != nil {
		t.forget()
	}
	parent.Children[name] = n
	return nil
}

// linkTarget finds the file that a hard link is another name of.
func (t *Tree) linkTarget(layer *Layer, e *entry) (*ext4.Node, error) {
	parts, err := clean(layer.Name, e.Name, e.Linkname)
	if err != nil {
		return nil, err
	}
	if len(parts) == 0 {
		return nil, badEntry(layer.Name, e.Name, "the hard link has no target")
	}
	parent, err := t.dir(parts[:len(parts)-1], false)
	if err != nil {
		return nil, badEntry(layer.Name, e.Name, "hard link to %q: %w", e.Linkname, err)
	}
	var n *ext4.Node
	if parent != nil {
		n = parent.Children[parts[len(parts)-1]]
	}
	if n == nil {
		return nil, badEntry(layer.Name, e.Name, "hard link to %q, which does not exist", e.Linkname)
	}
	if n.IsDir() {
		return nil, badEntry(layer.Name, e.Name, "hard link to the directory %q", e.Linkname)
	}
	return n, nil
}

// newNode makes the file that an entry describes.
func newNode(layer *Layer, e *entry, order uint64) (*ext4.Node, error) {
	n := &ext4.Node{}
	switch e.Type {
	case tape.TypeReg:
		n.Mode, n.Size, n.Runs, n.Order = ext4.TypeRegular, e.Size, e.runs, order
	case tape.TypeDir:
		n.Mode, n.Children = ext4.TypeDir, map[string]*ext4.Node{}
	case tape.TypeSymlink:
		n.Mode, n.Target = ext4.TypeSymlink, e.Linkname
		if n.Target == "" || len(n.Target) > ext4.MaxTarget {
			return nil, badEntry(layer.Name, e.Name, "a symlink's target must have 1 to %d bytes", ext4.MaxTarget)
		}
	case tape.TypeFifo:
		n.Mode = ext4.TypeFifo
	case tape.TypeChar, tape.TypeBlock:
		n.Mode = ext4.TypeChar
		if e.Type == tape.TypeBlock {
			n.Mode = ext4.TypeBlock
		}
		if e.Major < 0 || e.Minor < 0 || e.Major >= 1<<12 || e.Minor >= 1<<20 {
			return nil, badEntry(layer.Name, e.Name, "device number %d:%d is out of range", e.Major, e.Minor)
		}
		n.Major, n.Minor = uint32(e.Major), uint32(e.Minor)
	default:
		return nil, badEntry(layer.Name, e.Name, "entries of type %q are not supported", e.Type)
	}
	return n, setMeta(layer, n, e)
}

// setMeta gives a node the owner, permissions, times and attributes of an entry.
func setMeta(layer *Layer, n *ext4.Node, e *entry) error {
	if e.UID < 0 || e.GID < 0 || e.UID > math.MaxUint32 || e.GID > math.MaxUint32 {
		return badEntry(layer.Name, e.Name, "owner %d:%d is out of range", e.UID, e.GID)
	}
	n.UID, n.GID = uint32(e.UID), uint32(e.GID)
	n.Mode = n.Type() | uint16(e.Mode&0o7777)
	n.Mtime, n.Atime = ext4.Time(e.ModTime), ext4.Time(e.AccTime)
	n.Xattrs = nil
	for _, name := range slices.Sorted(maps.Keys(e.Xattrs)) {
		if !keepXattr(name, n.Type()) {
			continue
		}
		n.Xattrs = append(n.Xattrs, ext4.Xattr{Name: name, Value: []byte(e.Xattrs[name])})
	}
	return nil
}

// keepXattr says whether an attribute goes into the tree. Those that Linux would not store are left out, as container
// engines do, and so are the private marks of an overlay: the tree becomes the lower side of one, which would take
// them for its own.
func keepXattr(name string, typ uint16) bool {
	return ext4.XattrSupported(name, typ) && !strings.HasPrefix(name, "trusted.overlay.")
}
