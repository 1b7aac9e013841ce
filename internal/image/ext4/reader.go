package ext4

import (
	"errors"
	"fmt"
	"io"
)

// What Reader bounds, so that a hostile image costs no more than its size.
const (
	maxDirBlocks = 1 << 16 // blocks of one directory
	maxExtents   = 1 << 20 // extents of one file
	maxTreeDepth = 5       // of an extent tree, as in Linux
)

// Features without which a filesystem cannot be understood. Reader knows these; what else an image asks for makes it
// one that Reader refuses.
const (
	incompatFiletype = 0x2
	incompatRecover  = 0x4 // the journal holds what is not yet in its place
	incompatExtents  = 0x40
	incompat64       = 0x80
	incompatFlexBG   = 0x200
	incompatSeed     = 0x2000
	incompatLargeDir = 0x4000
	incompatKnown    = incompatFiletype | incompatRecover | incompatExtents | incompat64 | incompatFlexBG | incompatSeed | incompatLargeDir
)

// Reader reads an ext4 filesystem that is not mounted and need not be trusted: all that it finds is checked before use,
// and no loop in it goes on for ever. What a mounted filesystem had committed to its journal, and not yet put in its
// place, is read from there. Its methods may be called from many goroutines.
type Reader struct {
	src     io.ReaderAt
	block   int64  // size in bytes
	blocks  uint64 // in all
	first   uint64 // block that group 0 begins with
	inodes  uint32
	perGrp  uint32 // inodes
	inodeSz int64
	descSz  int64
	journal map[uint64]journaled // newest copies, by block
}

// NewReader reads the superblock, and the journal if the filesystem was not unmounted, of an image of size bytes.
// Errors say what of it is not as it should be.
func NewReader(src io.ReaderAt, size int64) (*Reader, error) {
	sb := make([]byte, 1024)
	if err := readAll(src, sb, 1024); err != nil {
		return nil, fmt.Errorf("superblock: %w", err)
	}
	if le.Uint16(sb[56:]) != 0xef53 {
		return nil, errors.New("superblock: not an ext4 filesystem")
	}
	incompat := le.Uint32(sb[96:])
	r := &Reader{
		src:    src,
		blocks: uint64(le.Uint32(sb[4:])), first: uint64(le.Uint32(sb[20:])),
		inodes: le.Uint32(sb[0:]), perGrp: le.Uint32(sb[40:]), inodeSz: int64(le.Uint16(sb[88:])), descSz: descSize,
	}
	if incompat&incompat64 != 0 {
		r.blocks |= uint64(le.Uint32(sb[336:])) << 32
		r.descSz = int64(le.Uint16(sb[254:]))
	}
	if le.Uint32(sb[76:]) == 0 { // the first revision knew one size
		r.inodeSz = 128
	}
	logSize, perGroup := le.Uint32(sb[24:]), uint64(le.Uint32(sb[32:]))
	if logSize > 6 {
		return nil, errors.New("superblock: size of blocks")
	}
	r.block = 1024 << logSize
	switch unknown := incompat &^ incompatKnown; {
	case unknown != 0:
		return nil, fmt.Errorf("superblock: unknown features %#x", unknown)
	case incompat&incompatExtents == 0:
		return nil, errors.New("superblock: files without extents")
	case r.blocks == 0 || r.blocks > uint64(size)/uint64(r.block) || r.first >= r.blocks:
		return nil, errors.New("superblock: number of blocks")
	case r.inodeSz < 128 || r.inodeSz > r.block || r.inodeSz&(r.inodeSz-1) != 0:
		return nil, errors.New("superblock: size of inodes")
	case r.descSz < descSize || r.descSz > 1024 || r.descSz&(r.descSz-1) != 0:
		return nil, errors.New("superblock: size of descriptors")
	case perGroup == 0 || perGroup > 8*uint64(r.block) || r.perGrp == 0 || uint64(r.perGrp) > 8*uint64(r.block):
		return nil, errors.New("superblock: size of groups")
	}
	groups := (r.blocks - r.first + perGroup - 1) / perGroup
	if uint64(r.inodes) > groups*uint64(r.perGrp) {
		return nil, errors.New("superblock: number of inodes")
	}
	if incompat&incompatRecover != 0 {
		if err := r.readJournal(le.Uint32(sb[224:])); err != nil {
			return nil, fmt.Errorf("journal: %w", err)
		}
	}
	return r, nil
}

// readAll reads all of p. An image that is too short is an error like any other.
func readAll(src io.ReaderAt, p []byte, at int64) error {
	n, err := src.ReadAt(p, at)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// metadata reads part of a block that is not the content of a file.
func (r *Reader) metadata(block uint64, offset int64, p []byte) error {
	if block >= r.blocks {
		return fmt.Errorf("block %d is outside of the filesystem", block)
	}
	if j, ok := r.journal[block]; ok {
		return j.read(r, offset, p)
	}
	return readAll(r.src, p, int64(block)*r.block+offset)
}

// Inode is one file of any type.
type Inode struct {
	Number       uint32
	Mode         uint16 // type and permissions as in stat(2)
	UID, GID     uint32
	Size         int64
	Major, Minor uint32 // of a device

	flags     uint32
	area      []byte // root of the extent tree, or a short symlink's target
	attrs     []byte // behind the inode's fixed fields
	attrBlock uint64
}

// Type returns the type bits of the mode.
func (i *Inode) Type() uint16 { return i.Mode & TypeMask }

// IsDir says whether i is a directory.
func (i *Inode) IsDir() bool { return i.Type() == TypeDir }

// Root reads the root directory.
func (r *Reader) Root() (*Inode, error) {
	root, err := r.Inode(rootInode)
	if err == nil && !root.IsDir() {
		err = errors.New("the root is not a directory")
	}
	return root, err
}

// Inode reads an inode by its number.
func (r *Reader) Inode(number uint32) (*Inode, error) {
	i, err := r.inode(number)
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", number, err)
	}
	return i, nil
}

func (r *Reader) inode(number uint32) (*Inode, error) {
	if number == 0 || number > r.inodes {
		return nil, errors.New("there is none of that number")
	}
	group, index := int64((number-1)/r.perGrp), int64((number-1)%r.perGrp)
	desc := make([]byte, r.descSz)
	at := group * r.descSz
	if err := r.metadata(r.first+1+uint64(at/r.block), at%r.block, desc); err != nil {
		return nil, fmt.Errorf("descriptor of group %d: %w", group, err)
	}
	table := uint64(le.Uint32(desc[8:]))
	if r.descSz >= 64 {
		table |= uint64(le.Uint32(desc[40:])) << 32
	}
	b := make([]byte, r.inodeSz)
	at = index * r.inodeSz
	if table >= r.blocks {
		return nil, fmt.Errorf("the inode table of group %d is outside of the filesystem", group)
	}
	if err := r.metadata(table+uint64(at/r.block), at%r.block, b); err != nil {
		return nil, err
	}
	return parseInode(number, b)
}

func parseInode(number uint32, b []byte) (*Inode, error) {
	i := &Inode{
		Number: number, Mode: le.Uint16(b), flags: le.Uint32(b[32:]), area: b[40:100],
		UID:       uint32(le.Uint16(b[2:])) | uint32(le.Uint16(b[120:]))<<16,
		GID:       uint32(le.Uint16(b[24:])) | uint32(le.Uint16(b[122:]))<<16,
		Size:      int64(le.Uint32(b[4:])) | int64(le.Uint32(b[108:]))<<32,
		attrBlock: uint64(le.Uint32(b[104:])) | uint64(le.Uint16(b[118:]))<<32,
	}
	if i.Size < 0 || i.Size > maxSize {
		return nil, errors.New("its size is out of range")
	}
	if len(b) > 128 {
		extra := int(le.Uint16(b[128:]))
		if extra > len(b)-128 || extra%4 != 0 {
			return nil, errors.New("the size of its fields is out of range")
		}
		i.attrs = b[128+extra:]
	}
	switch i.Type() {
	case TypeRegular, TypeDir, TypeSymlink, TypeFifo, TypeSocket:
	case TypeChar, TypeBlock:
		if old := le.Uint32(i.area); old != 0 {
			i.Major, i.Minor = old>>8&0xff, old&0xff
		} else {
			dev := le.Uint32(i.area[4:])
			i.Major, i.Minor = dev>>8&0xfff, dev&0xff|dev>>12&^0xff
		}
	default:
		return nil, fmt.Errorf("mode %o is of no known type", i.Mode)
	}
	return i, nil
}

// maxSize is the greatest size that a file can have with the largest blocks.
const maxSize = 1 << 48
