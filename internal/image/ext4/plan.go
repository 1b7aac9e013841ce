package ext4

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
)

const (
	blocksPerGroup = 8 * BlockSize
	inodeSize      = 256
	inodesPerBlock = BlockSize / inodeSize
	maxInodes      = 8 * BlockSize // in a group: what one bitmap block can count
	descSize       = 32
	rootInode      = 2
	firstInode     = 11 // lost+found; the ones below are reserved
)

// Error says which file of a tree ext4 cannot hold, and why.
type Error struct {
	Path   string // of the file, without a leading slash; not necessarily UTF-8
	Reason string
}

func (e *Error) Error() string { return fmt.Sprintf("%q: %s", e.Path, e.Reason) }

// Options are the parts of an image that do not come from its tree.
type Options struct {
	UUID     [16]byte
	HashSeed [16]byte
	Label    string // at most 16 bytes
}

// Layout is a tree with a place for everything in it.
type Layout struct {
	opts  Options
	nodes []*Node // by inode number, from firstInode on; the root stands apart
	root  *Node
	files []*Node // regular files with data, in the order of their data

	groups         uint32
	inodesPerGroup uint32
	blocks         uint64 // of the whole image
	metaStart      uint64 // first block behind the inode tables
	dataStart      uint64 // first block of file data
	used           uint64 // blocks in use; they are the first ones
}

// Plan gives every file of the tree under root its inode and blocks. It adds the directory lost+found, which ext4
// expects, and stores what it decides in the nodes: a tree can be planned once. It fails with an *Error when ext4
// cannot hold a file.
func Plan(root *Node, opts Options) (*Layout, error) {
	if root.Children["lost+found"] == nil {
		root.Children["lost+found"] = NewDir(0o700)
	}
	l := &Layout{opts: opts, root: root}
	if err := l.number(); err != nil {
		return nil, err
	}
	var meta, data uint64
	for _, n := range l.all() {
		meta += n.metaBlocks()
		data += n.fileBlocks()
	}
	if err := l.size(meta, data); err != nil {
		return nil, err
	}
	l.allocate()
	return l, nil
}

// Size returns the size of the image in bytes.
func (l *Layout) Size() int64 { return int64(l.blocks) * BlockSize }

// DataOffset returns where file content begins: the length of what WriteMeta writes.
func (l *Layout) DataOffset() int64 { return int64(l.dataStart) * BlockSize }

// DataEnd returns the end of the last file's content. What follows, up to Size, is zero.
func (l *Layout) DataEnd() int64 { return int64(l.used) * BlockSize }

// Files returns the regular files that have data, in the order in which their data lies in the image.
func (l *Layout) Files() []*Node { return l.files }

// all yields the nodes in the order of their inode numbers.
func (l *Layout) all() []*Node {
	return append([]*Node{l.root}, l.nodes...)
}

// visit is a directory to walk through, and how it was reached. Paths are put together for errors only: those of a
// deep tree would fill the memory.
type visit struct {
	dir  *Node
	name string
	from *visit
}

func (v *visit) path(name string) string {
	parts := []string{name}
	for ; v.from != nil; v = v.from {
		parts = append(parts, v.name)
	}
	slices.Reverse(parts)
	return strings.Join(parts, "/")
}

// number walks the tree in the order of its names, gives out inode numbers, counts links and checks each file.
func (l *Layout) number() error {
	l.root.ino, l.root.parent, l.root.links = rootInode, rootInode, 2
	if err := l.root.prepare(); err != nil {
		return &Error{Path: "", Reason: err.Error()}
	}
	stack := []*visit{{dir: l.root}}
	next := uint64(firstInode)
	lostFound := l.root.Children["lost+found"]
	if lostFound.IsDir() {
		next++ // its number is a fixed one
	}
	for len(stack) > 0 {
		v := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		v.dir.names = make([]string, 0, len(v.dir.Children))
		for name := range v.dir.Children {
			v.dir.names = append(v.dir.names, name)
		}
		slices.Sort(v.dir.names)
		below := len(stack)
		for _, name := range v.dir.names {
			n := v.dir.Children[name]
			if err := checkName(name); err != nil {
				return &Error{Path: v.path(name), Reason: err.Error()}
			}
			if n.ino == 0 {
				if n == lostFound && n.IsDir() {
					n.ino = firstInode
				} else {
					n.ino = uint32(next)
					next++
				}
				if next > math.MaxUint32-1 {
					return &Error{Path: v.path(name), Reason: "there are too many files"}
				}
				if err := n.prepare(); err != nil {
					return &Error{Path: v.path(name), Reason: err.Error()}
				}
				l.nodes = append(l.nodes, n)
			}
			if n.IsDir() {
				n.parent = v.dir.ino
				n.links = 2
				v.dir.links++
				stack = append(stack, &visit{n, name, v})
				continue
			}
			if n.links++; n.links > MaxLinks {
				return &Error{Path: v.path(name), Reason: fmt.Sprintf("the file has more than %d names", MaxLinks)}
			}
		}
		slices.Reverse(stack[below:]) // so that the first name is visited first
	}
	slices.SortFunc(l.nodes, func(a, b *Node) int { return cmp.Compare(a.ino, b.ino) })
	return nil
}

func checkName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > MaxName {
		return fmt.Errorf("a name must have 1 to %d bytes", MaxName)
	}
	for i := range len(name) {
		if name[i] == '/' || name[i] == 0 {
			return fmt.Errorf("a name holds a slash or NUL byte")
		}
	}
	return nil
}

// prepare checks what a node holds and encodes its attributes.
func (n *Node) prepare() error {
	switch n.Type() {
	case TypeRegular:
		if n.Size < 0 || n.Size > MaxFileSize {
			return fmt.Errorf("a size of %d bytes is beyond the filesystem's limit", n.Size)
		}
		var end uint64
		for _, r := range n.Runs {
			if r.Count == 0 || uint64(r.Start) < end {
				return fmt.Errorf("its data runs are out of order")
			}
			end = uint64(r.Start) + uint64(r.Count)
			n.place.dataBlocks += uint64(r.Count)
		}
		if end > uint64(n.Size+BlockSize-1)/BlockSize {
			return fmt.Errorf("its data runs beyond its size")
		}
	case TypeSymlink:
		if n.Target == "" || len(n.Target) > MaxTarget {
			return fmt.Errorf("a symlink's target must have 1 to %d bytes", MaxTarget)
		}
	case TypeChar, TypeBlock:
		if n.Major >= 1<<12 || n.Minor >= 1<<20 {
			return fmt.Errorf("device number %d:%d is out of range", n.Major, n.Minor)
		}
	case TypeDir, TypeFifo, TypeSocket:
	default:
		return fmt.Errorf("mode %o is of no known type", n.Mode)
	}
	return n.encodeXattrs()
}

// metaBlocks counts the blocks of a node other than the content of a regular file.
func (n *Node) metaBlocks() uint64 {
	var blocks uint64
	if n.place.blockAttrs != nil {
		blocks++
	}
	switch n.Type() {
	case TypeDir:
		n.place.dataBlocks = n.dirBlocks()
		blocks += n.place.dataBlocks
	case TypeSymlink:
		if len(n.Target) >= inlineTarget {
			n.place.dataBlocks = 1
			blocks++
		}
	}
	n.place.treeBlocks = treeSize(n.extentCount())
	return blocks + uint64(n.place.treeBlocks)
}

func (n *Node) fileBlocks() uint64 {
	if n.Type() != TypeRegular {
		return 0
	}
	return n.place.dataBlocks
}

// size finds the number of groups: each adds metadata, which may call for one more group.
func (l *Layout) size(meta, data uint64) error {
	inodes := uint64(firstInode + len(l.nodes)) // lost+found is among the nodes, so this leaves one to spare
	groups := max(1, (inodes+maxInodes-1)/maxInodes)
	for {
		perGroup := (inodes + groups - 1) / groups
		perGroup = (perGroup + inodesPerBlock - 1) / inodesPerBlock * inodesPerBlock
		descBlocks := (groups*descSize + BlockSize - 1) / BlockSize
		l.metaStart = 1 + descBlocks + groups*(2+perGroup/inodesPerBlock)
		l.dataStart = l.metaStart + meta
		l.used = l.dataStart + data
		// Many inodes without data need groups that nothing else fills.
		l.blocks = max(l.used, (groups-1)*blocksPerGroup+64)
		l.groups, l.inodesPerGroup = uint32(groups), uint32(perGroup)
		if l.blocks >= math.MaxUint32 {
			return &Error{Reason: "the filesystem would be larger than 16 TiB"}
		}
		need := (l.blocks + blocksPerGroup - 1) / blocksPerGroup
		if need <= groups {
			return nil
		}
		groups = need
	}
}

// allocate hands out blocks one after the other: metadata in the order of inodes, then content in its own order.
func (l *Layout) allocate() {
	next := l.metaStart
	take := func(n uint64) uint64 {
		at := next
		next += n
		return at
	}
	for _, n := range l.all() {
		if n.place.blockAttrs != nil {
			n.place.attrBlock = take(1)
		}
		n.place.tree = take(uint64(n.place.treeBlocks))
		if n.Type() == TypeRegular {
			if n.place.dataBlocks > 0 {
				l.files = append(l.files, n)
			}
			continue
		}
		n.place.data = take(n.place.dataBlocks)
	}
	slices.SortStableFunc(l.files, func(a, b *Node) int { return cmp.Compare(a.Order, b.Order) })
	for _, n := range l.files {
		n.place.data = take(n.place.dataBlocks)
	}
}
