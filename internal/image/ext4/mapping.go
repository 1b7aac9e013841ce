package ext4

import (
	"errors"
	"fmt"
	"io"
	"sort"
)

// Flags of inodes that say where their content lies.
const (
	flagInline    = 0x10000000
	flagEncrypted = 0x800
)

// Extent maps a stretch of a file to a stretch of the image, in bytes.
type Extent struct {
	Offset, Length int64
	At             int64 // in the image
}

// End is the first byte of the file after the extent.
func (e Extent) End() int64 { return e.Offset + e.Length }

// Extents lists where the content of a file lies, in ascending order. What lies between extents reads as zeros, and so
// does what was allocated and never written.
func (r *Reader) Extents(i *Inode) ([]Extent, error) {
	t := &extentTree{reader: r}
	if err := t.readInode(i); err != nil {
		return nil, fmt.Errorf("inode %d: %w", i.Number, err)
	}
	return t.out, nil
}

// extentTree is a walk through one extent tree.
type extentTree struct {
	reader *Reader
	out    []Extent
	next   uint64 // logical block that the next extent may begin with at the least
	nodes  int
	count  int
}

func (t *extentTree) readInode(i *Inode) error {
	switch {
	case i.flags&flagInline != 0:
		return errors.New("its content lies in the inode, which is not supported")
	case i.flags&flagEncrypted != 0:
		return errors.New("it is encrypted")
	case i.flags&extentsFlag == 0:
		if i.Size == 0 {
			return nil
		}
		return errors.New("it has no extents")
	}
	return t.node(i.area, int(le.Uint16(i.area[6:])))
}

// node reads one node of the tree, which is to be that deep.
func (t *extentTree) node(b []byte, depth int) error {
	entries := int(le.Uint16(b[2:]))
	switch {
	case le.Uint16(b) != extentMagic || int(le.Uint16(b[6:])) != depth || depth > maxTreeDepth:
		return errors.New("its extent tree is malformed")
	case entries > (len(b)-12)/12:
		return errors.New("a node of its extent tree is too full")
	}
	if t.nodes++; t.nodes > maxExtents {
		return errors.New("its extent tree is too large")
	}
	for e := b[12:]; entries > 0; e, entries = e[12:], entries-1 {
		if depth == 0 {
			if err := t.leaf(e); err != nil {
				return err
			}
			continue
		}
		below := make([]byte, t.reader.block)
		if err := t.reader.metadata(uint64(le.Uint32(e[4:]))|uint64(le.Uint16(e[8:]))<<32, 0, below); err != nil {
			return fmt.Errorf("its extent tree: %w", err)
		}
		if err := t.node(below, depth-1); err != nil {
			return err
		}
	}
	return nil
}

func (t *extentTree) leaf(e []byte) error {
	logical, count := uint64(le.Uint32(e)), uint64(le.Uint16(e[4:]))
	physical := uint64(le.Uint32(e[8:])) | uint64(le.Uint16(e[6:]))<<32
	unwritten := count > maxExtent
	if unwritten {
		count -= maxExtent
	}
	switch {
	case count == 0 || logical < t.next:
		return errors.New("its extents are out of order")
	case physical >= t.reader.blocks || count > t.reader.blocks-physical:
		return errors.New("an extent is outside of the filesystem")
	}
	if t.count++; t.count > maxExtents {
		return errors.New("it has too many extents")
	}
	t.next = logical + count
	if unwritten {
		return nil
	}
	size := t.reader.block
	x := Extent{Offset: int64(logical) * size, Length: int64(count) * size, At: int64(physical) * size}
	if n := len(t.out); n > 0 && t.out[n-1].End() == x.Offset && t.out[n-1].At+t.out[n-1].Length == x.At {
		t.out[n-1].Length += x.Length
		return nil
	}
	t.out = append(t.out, x)
	return nil
}

// Content reads a file whose extents are known. It is for files whose content the journal does not hold: regular ones.
type Content struct {
	src     io.ReaderAt
	extents []Extent
}

// Content returns the content of a regular file that has these extents.
func (r *Reader) Content(extents []Extent) *Content { return &Content{r.src, extents} }

// Read fills p with what the file has at offset; what it does not have there is zeros.
func (c *Content) Read(p []byte, offset int64) error {
	i := sort.Search(len(c.extents), func(i int) bool { return c.extents[i].End() > offset })
	for len(p) > 0 {
		if i == len(c.extents) {
			clear(p)
			return nil
		}
		e := c.extents[i]
		if gap := e.Offset - offset; gap > 0 {
			n := min(gap, int64(len(p)))
			clear(p[:n])
			p, offset = p[n:], offset+n
			continue
		}
		n := min(e.End()-offset, int64(len(p)))
		if err := readAll(c.src, p[:n], e.At+offset-e.Offset); err != nil {
			return err
		}
		p, offset, i = p[n:], offset+n, i+1
	}
	return nil
}

// Target reads where a symlink leads.
func (r *Reader) Target(i *Inode) (string, error) {
	fail := func(err error) (string, error) { return "", fmt.Errorf("inode %d: %w", i.Number, err) }
	if i.Type() != TypeSymlink || i.Size == 0 || i.Size > r.block {
		return fail(errors.New("it is no symlink that could be"))
	}
	if i.flags&extentsFlag == 0 {
		if i.Size >= inlineTarget {
			return fail(errors.New("its target does not fit where it should lie"))
		}
		return string(i.area[:i.Size]), nil
	}
	extents, err := r.Extents(i)
	if err != nil {
		return "", err
	}
	if len(extents) != 1 || extents[0].Offset != 0 {
		return fail(errors.New("its target is not in its first block"))
	}
	b := make([]byte, i.Size)
	if err := r.metadata(uint64(extents[0].At/r.block), 0, b); err != nil {
		return fail(err)
	}
	return string(b), nil
}
