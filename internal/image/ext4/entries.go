package ext4

import (
	"bytes"
	"errors"
	"fmt"
)

// Entry is one name in a directory.
type Entry struct {
	Name  string
	Inode uint32
}

// maxEntries bounds the names of one directory.
const maxEntries = 1 << 20

// ReadDir lists a directory, without "." and "..", in the order in which it lies on the disk. It reads hashed
// directories as what they also are: a list.
func (r *Reader) ReadDir(i *Inode) ([]Entry, error) {
	out, err := r.readDir(i)
	if err != nil {
		return nil, fmt.Errorf("directory %d: %w", i.Number, err)
	}
	return out, nil
}

func (r *Reader) readDir(i *Inode) ([]Entry, error) {
	if !i.IsDir() {
		return nil, errors.New("it is not a directory")
	}
	extents, err := r.Extents(i)
	if err != nil {
		return nil, err
	}
	var blocks int64
	for _, e := range extents {
		if blocks += e.Length / r.block; blocks > maxDirBlocks {
			return nil, errors.New("it is too large")
		}
	}
	var out []Entry
	block := make([]byte, r.block)
	for _, e := range extents {
		for at := int64(0); at < e.Length && e.Offset+at < i.Size; at += r.block {
			if err := r.metadata(uint64((e.At+at)/r.block), 0, block); err != nil {
				return nil, err
			}
			if out, err = appendEntries(out, block); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// appendEntries reads one block of a directory. Blocks of a hash tree, and the checksum at a block's end, look like
// entries that are not in use.
func appendEntries(out []Entry, block []byte) ([]Entry, error) {
	for len(block) > 0 {
		if len(block) < 8 {
			return nil, errors.New("an entry is cut off")
		}
		size, name := int(le.Uint16(block[4:])), int(block[6])
		if (size == 0xffff || size == 0) && len(block) == 1<<16 { // a whole block of the largest size
			size = 1 << 16
		}
		if size < 8 || size%4 != 0 || size > len(block) || 8+name > size {
			return nil, errors.New("the size of an entry is out of range")
		}
		if inode := le.Uint32(block); inode != 0 {
			e := Entry{Name: string(block[8 : 8+name]), Inode: inode}
			if e.Name != "." && e.Name != ".." {
				if err := checkName(e.Name); err != nil {
					return nil, err
				}
				out = append(out, e)
			}
		}
		if len(out) > maxEntries {
			return nil, errors.New("it has too many entries")
		}
		block = block[size:]
	}
	return out, nil
}

// attrPrefix is the prefix that each name index stands for.
var attrPrefix = map[byte]string{
	1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.", 6: "security.", 7: "system.",
}

// Xattrs reads the extended attributes of a file, access lists in the form that they have on the disk.
func (r *Reader) Xattrs(i *Inode) ([]Xattr, error) {
	out, err := r.xattrs(i)
	if err != nil {
		return nil, fmt.Errorf("attributes of inode %d: %w", i.Number, err)
	}
	return out, nil
}

func (r *Reader) xattrs(i *Inode) ([]Xattr, error) {
	var out []Xattr
	if len(i.attrs) >= 8 && le.Uint32(i.attrs) == xattrMagic {
		var err error
		if out, err = appendAttrs(out, i.attrs[4:], i.attrs[4:]); err != nil {
			return nil, err
		}
	}
	if i.attrBlock == 0 {
		return out, nil
	}
	b := make([]byte, r.block)
	if err := r.metadata(i.attrBlock, 0, b); err != nil {
		return nil, err
	}
	if le.Uint32(b) != xattrMagic {
		return nil, errors.New("their block is of something else")
	}
	return appendAttrs(out, b[attrBlockHeader:], b)
}

// appendAttrs reads entries, whose values lie in area.
func appendAttrs(out []Xattr, entries, area []byte) ([]Xattr, error) {
	for len(entries) >= 4 && le.Uint32(entries) != 0 {
		if len(entries) < 16 {
			return nil, errors.New("an entry is cut off")
		}
		length, offset, size := int(entries[0]), int(le.Uint16(entries[2:])), le.Uint32(entries[8:])
		step := 16 + (length+3)&^3
		switch {
		case step > len(entries):
			return nil, errors.New("a name is cut off")
		case le.Uint32(entries[4:]) != 0:
			return nil, errors.New("a value lies in a file of its own, which is not supported")
		case int64(offset)+int64(size) > int64(len(area)):
			return nil, errors.New("a value is out of range")
		}
		prefix, known := attrPrefix[entries[1]]
		if !known {
			prefix = fmt.Sprintf("(%d).", entries[1])
		}
		out = append(out, Xattr{Name: prefix + string(entries[16:16+length]), Value: bytes.Clone(area[offset:][:size])})
		entries = entries[step:]
	}
	return out, nil
}
