// Package ext4 writes a tree of files as a read-only ext4 filesystem image: in one pass from front to end, without
// root, mount or any tool, and with the same bytes for the same tree. It also reads the files of an image that somebody
// else wrote, hostile or not.
//
// A caller builds a tree of Nodes, lays it out with Plan, lets the Layout write everything but the content of files,
// and writes that content itself at the places that Node.Locate names. The image has no journal and no free space;
// all metadata lies in front of all file data, so that the file is written, and can be hashed, sequentially.
//
// A Reader is the other way about: it knows the filesystems that Plan makes and those that mkfs and a guest's kernel do.
package ext4

// File type bits of Node.Mode, as in stat(2).
const (
	TypeMask    = 0xf000
	TypeFifo    = 0x1000
	TypeChar    = 0x2000
	TypeDir     = 0x4000
	TypeBlock   = 0x6000
	TypeRegular = 0x8000
	TypeSymlink = 0xa000
	TypeSocket  = 0xc000
)

const (
	// BlockSize is the size of a filesystem block in bytes.
	BlockSize = 4096

	// MaxFileSize is the greatest size of a file, holes included.
	MaxFileSize = (1<<32 - 2) * BlockSize

	// MaxName is the greatest length of a name in a directory, in bytes.
	MaxName = 255

	// MaxTarget is the greatest length of a symlink's target, in bytes.
	MaxTarget = BlockSize - 1

	// MaxLinks is the greatest number of names that a file other than a directory can have.
	MaxLinks = 65000
)

// Time is a moment since 1970. Moments that ext4 cannot hold are moved to the nearest that it can.
type Time struct {
	Sec  int64
	Nsec uint32
}

// Xattr is an extended attribute under its full name, such as "security.capability".
type Xattr struct {
	Name  string
	Value []byte
}

// Run is a stretch of blocks of a file that hold data. What lies between runs is a hole.
type Run struct {
	Start uint32 // block in the file
	Count uint32 // blocks
}

// Node is a file of any type. The same Node under several names is a hard link.
type Node struct {
	Mode         uint16 // type and permissions as in stat(2)
	UID, GID     uint32
	Atime, Mtime Time
	Major, Minor uint32 // of a device
	Size         int64  // of a regular file
	Runs         []Run  // of a regular file: ascending, not overlapping
	Order        uint64 // content of regular files is placed in ascending Order
	Target       string // of a symlink
	Xattrs       []Xattr
	Children     map[string]*Node // of a directory

	// Assigned by Plan.
	ino    uint32
	links  uint32
	parent uint32   // inode of the directory that holds a directory
	names  []string // of a directory, sorted
	place  placement
}

// placement says where the blocks of a node lie. Each stretch is contiguous.
type placement struct {
	inlineAttrs []byte // area behind the inode's fixed fields
	blockAttrs  []byte // the external block
	attrBlock   uint64
	treeBlocks  uint32 // interior and leaf blocks of the extent tree, in the order they are built
	tree        uint64
	dataBlocks  uint64
	data        uint64
}

// NewDir returns an empty directory.
func NewDir(perm uint16) *Node {
	return &Node{Mode: TypeDir | perm&07777, Children: map[string]*Node{}}
}

// Type returns the type bits of the mode.
func (n *Node) Type() uint16 { return n.Mode & TypeMask }

// IsDir says whether n is a directory.
func (n *Node) IsDir() bool { return n.Type() == TypeDir }

// Locate says where in the image the byte at offset of a planned regular file lies, and how many bytes from there on
// are contiguous. For a byte in a hole it returns -1 and the distance to the next data, or to the end of the file.
func (n *Node) Locate(offset int64) (at, contiguous int64) {
	lo, hi := 0, len(n.Runs)
	for lo < hi { // the first run that ends behind offset
		mid := (lo + hi) / 2
		if end := int64(n.Runs[mid].Start) + int64(n.Runs[mid].Count); end*BlockSize <= offset {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == len(n.Runs) {
		return -1, max(n.Size-offset, 0)
	}
	run := n.Runs[lo]
	if start := int64(run.Start) * BlockSize; offset < start {
		return -1, start - offset
	}
	inRun := offset - int64(run.Start)*BlockSize
	return int64(n.place.data)*BlockSize + int64(n.before(lo))*BlockSize + inRun, int64(run.Count)*BlockSize - inRun
}

// before counts the data blocks of the runs in front of run i.
func (n *Node) before(i int) uint64 {
	if len(n.Runs) < 2 {
		return 0
	}
	var sum uint64
	for _, r := range n.Runs[:i] {
		sum += uint64(r.Count)
	}
	return sum
}
