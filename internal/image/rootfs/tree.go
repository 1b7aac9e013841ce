package rootfs

import (
	"errors"
	"fmt"
	"strings"

	"github.com/sporevm/spore/internal/image/ext4"
)

// maxSymlinks is how many symlinks one path may lead through, as in Linux.
const maxSymlinks = 40

// maxImplied is how many directories may exist only because something lies below them. A long path implies thousands.
const maxImplied = 1 << 18

var errImplied = fmt.Errorf("the layers imply more than %d directories that they do not name", maxImplied)

var errSymlinks = errors.New("the path leads through too many symlinks")

// Tree is the union of the layers applied so far.
type Tree struct {
	Root   *ext4.Node
	layers int

	implied int // directories that were made because something lies below them

	// added holds the content of files that come from no layer.
	added map[*ext4.Node][]byte

	// The directory that the previous path led to: neighbours in a layer mostly share it.
	lastDir  string
	lastNode *ext4.Node
}

// NewTree returns an empty tree: one directory of mode 0755 that belongs to root.
func NewTree() *Tree {
	return &Tree{Root: ext4.NewDir(0o755), added: map[*ext4.Node][]byte{}}
}

// forget must be called whenever a name stops leading where it led.
func (t *Tree) forget() { t.lastNode = nil }

// dir returns the directory that parts lead to, following symlinks inside the tree. With make it creates what is missing
// and replaces what is in the way; without, it returns nil if there is no such directory.
func (t *Tree) dir(parts []string, make bool) (*ext4.Node, error) {
	if len(parts) == 0 {
		return t.Root, nil
	}
	key := strings.Join(parts, "/")
	if t.lastNode != nil && t.lastDir == key {
		return t.lastNode, nil
	}
	n, err := t.walk(parts, make)
	if n != nil {
		t.lastDir, t.lastNode = key, n
	}
	return n, err
}

// step is a directory on the way that walk has gone. Its node is nil as long as there is no such directory.
type step struct {
	name string
	node *ext4.Node
}

func (t *Tree) walk(parts []string, make bool) (*ext4.Node, error) {
	way := []step{{"", t.Root}}
	pending := pathStack{}
	pending.push(parts)
	links := 0
	for part, ok := pending.pop(); ok; part, ok = pending.pop() {
		switch part {
		case "", ".":
			continue
		case "..": // only a symlink's target has these
			if len(way) > 1 {
				way = way[:len(way)-1]
			}
			continue
		}
		var next *ext4.Node
		if here := way[len(way)-1].node; here != nil {
			next = here.Children[part]
		}
		switch {
		case next != nil && next.Type() == ext4.TypeSymlink:
			if links++; links > maxSymlinks {
				return nil, errSymlinks
			}
			if strings.HasPrefix(next.Target, "/") {
				way = way[:1]
			}
			pending.push(strings.Split(next.Target, "/"))
			continue
		case next != nil && !next.IsDir():
			next = nil
		case len(part) > ext4.MaxName:
			return nil, errors.New("a symlink on the path holds a name that is too long")
		}
		way = append(way, step{part, next})
	}
	if make {
		if err := t.complete(way); err != nil {
			return nil, err
		}
	}
	return way[len(way)-1].node, nil
}

// complete makes the directories that a way lacks. They are made at its end only: one that a symlink's target has left
// again through ".." is not needed.
func (t *Tree) complete(way []step) error {
	for i := 1; i < len(way); i++ {
		if way[i].node != nil {
			continue
		}
		if t.implied++; t.implied > maxImplied {
			return errImplied
		}
		parent := way[i-1].node
		if parent.Children[way[i].name] != nil {
			t.forget() // something else than a directory gives way
		}
		way[i].node = ext4.NewDir(0o755)
		parent.Children[way[i].name] = way[i].node
	}
	return nil
}

// pathStack holds the components that are still to be walked: the rest of the path below the targets of the symlinks
// that were met on it.
type pathStack struct {
	lists [][]string
}

func (p *pathStack) push(parts []string) { p.lists = append(p.lists, parts) }

func (p *pathStack) pop() (string, bool) {
	for len(p.lists) > 0 {
		top := &p.lists[len(p.lists)-1]
		if len(*top) > 0 {
			part := (*top)[0]
			*top = (*top)[1:]
			return part, true
		}
		p.lists = p.lists[:len(p.lists)-1]
	}
	return "", false
}

// find returns what path leads to, following every symlink, the last component's too. It returns nil if there is nothing.
func (t *Tree) find(path string) *ext4.Node {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	for range maxSymlinks {
		parent, err := t.walk(parts[:len(parts)-1], false)
		if err != nil || parent == nil {
			return nil
		}
		name := parts[len(parts)-1]
		if name == "" || name == "." || name == ".." {
			n, err := t.walk(parts, false)
			if err != nil {
				return nil
			}
			return n
		}
		n := parent.Children[name]
		if n == nil || n.Type() != ext4.TypeSymlink {
			return n
		}
		target := strings.Split(n.Target, "/")
		if strings.HasPrefix(n.Target, "/") {
			parts = target
		} else {
			parts = append(append([]string{}, parts[:len(parts)-1]...), target...)
		}
	}
	return nil
}
