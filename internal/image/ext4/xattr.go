package ext4

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

const (
	xattrMagic       = 0xea020000
	extraSize        = 32 // of the inode's fields beyond the first 128 bytes
	inlineAttrRoom   = inodeSize - 128 - extraSize
	attrBlockHeader  = 32
	maxAttrNameBytes = 255
)

// namespaces maps prefixes of attribute names to the index that stands for them on disk. The longest match wins.
var namespaces = []struct {
	prefix string
	index  byte
	exact  bool
}{
	{"system.posix_acl_access", 2, true},
	{"system.posix_acl_default", 3, true},
	{"user.", 1, false},
	{"trusted.", 4, false},
	{"security.", 6, false},
}

// attr is an attribute in the form it has on disk.
type attr struct {
	index byte
	name  string // without the prefix
	value []byte
}

// XattrSupported says whether ext4 can hold an attribute of this name on a file of this type. As in Linux, user
// attributes exist on regular files and directories only.
func XattrSupported(name string, typ uint16) bool {
	index, rest, ok := splitAttr(name)
	if !ok || len(rest) > maxAttrNameBytes || strings.IndexByte(rest, 0) >= 0 {
		return false
	}
	switch index {
	case 1:
		return typ == TypeRegular || typ == TypeDir
	case 2:
		return typ != TypeSymlink
	case 3:
		return typ == TypeDir
	}
	return true
}

func splitAttr(name string) (index byte, rest string, ok bool) {
	for _, ns := range namespaces {
		if ns.exact && name == ns.prefix {
			return ns.index, "", true
		}
		if !ns.exact && strings.HasPrefix(name, ns.prefix) && len(name) > len(ns.prefix) {
			return ns.index, name[len(ns.prefix):], true
		}
	}
	return 0, "", false
}

// encodeXattrs lays the attributes out behind the inode, and those that find no room there in a block of their own.
func (n *Node) encodeXattrs() error {
	if len(n.Xattrs) == 0 {
		return nil
	}
	attrs := make([]attr, 0, len(n.Xattrs))
	for _, x := range n.Xattrs {
		if !XattrSupported(x.Name, n.Type()) {
			return fmt.Errorf("the filesystem cannot hold its extended attribute %q", x.Name)
		}
		a := attr{value: x.Value}
		a.index, a.name, _ = splitAttr(x.Name)
		if a.index == 2 || a.index == 3 {
			var err error
			if a.value, err = encodeACL(x.Value); err != nil {
				return fmt.Errorf("%s: %w", x.Name, err)
			}
		}
		attrs = append(attrs, a)
	}
	// The kernel looks attributes up by binary order and takes the first that fits.
	slices.SortFunc(attrs, func(a, b attr) int {
		return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(len(a.name), len(b.name)), cmp.Compare(a.name, b.name))
	})
	for i := 1; i < len(attrs); i++ {
		if attrs[i-1].index == attrs[i].index && attrs[i-1].name == attrs[i].name {
			return fmt.Errorf("it has the extended attribute %q twice", attrs[i].name)
		}
	}

	var inline, external []attr
	room := inlineAttrRoom - 4 - 4 // magic and end mark
	for _, a := range attrs {
		if size := a.size(); size <= room {
			room -= size
			inline = append(inline, a)
		} else {
			external = append(external, a)
		}
	}
	if len(inline) > 0 {
		b := make([]byte, inlineAttrRoom)
		le.PutUint32(b, xattrMagic)
		putAttrs(b[4:], 0, inline, false)
		n.place.inlineAttrs = b
	}
	if len(external) > 0 {
		need := attrBlockHeader + 4
		for _, a := range external {
			need += a.size()
		}
		if need > BlockSize {
			return errors.New("its extended attributes are larger than the filesystem can hold")
		}
		b := make([]byte, BlockSize)
		le.PutUint32(b[0:], xattrMagic)
		le.PutUint32(b[4:], 1) // references
		le.PutUint32(b[8:], 1) // blocks
		le.PutUint32(b[12:], putAttrs(b, attrBlockHeader, external, true))
		n.place.blockAttrs = b
	}
	return nil
}

func (a attr) size() int { return a.entrySize() + (len(a.value)+3)&^3 }

func (a attr) entrySize() int { return 16 + (len(a.name)+3)&^3 }

// putAttrs writes entries from at on and values from the end of area backwards, and returns the hash over all of them.
func putAttrs(area []byte, at int, attrs []attr, hashed bool) uint32 {
	end := len(area)
	var sum uint32
	for _, a := range attrs {
		offset := 0
		if len(a.value) > 0 {
			end -= (len(a.value) + 3) &^ 3
			offset = end
			copy(area[end:], a.value)
		}
		e := area[at:]
		e[0] = byte(len(a.name))
		e[1] = a.index
		le.PutUint16(e[2:], uint16(offset))
		le.PutUint32(e[8:], uint32(len(a.value)))
		copy(e[16:], a.name)
		if hashed {
			h := a.hash()
			le.PutUint32(e[12:], h)
			sum = sum<<16 ^ sum>>16 ^ h
		}
		at += a.entrySize()
	}
	return sum
}

// hash is the kernel's hash of an entry in an attribute block: of the name, then of the value's 32-bit words.
func (a attr) hash() uint32 {
	var h uint32
	for _, c := range []byte(a.name) {
		h = h<<5 ^ h>>27 ^ uint32(c)
	}
	padded := append(bytes.Clone(a.value), make([]byte, -len(a.value)&3)...)
	for ; len(padded) > 0; padded = padded[4:] {
		h = h<<16 ^ h>>16 ^ le.Uint32(padded)
	}
	return h
}

// encodeACL turns a POSIX access list from the form in which it travels as an attribute into ext4's shorter one, which
// leaves out the ids of entries that have none.
func encodeACL(v []byte) ([]byte, error) {
	if len(v) < 4 || le.Uint32(v) != 2 || (len(v)-4)%8 != 0 {
		return nil, errors.New("not an access list")
	}
	out := []byte{1, 0, 0, 0}
	for v = v[4:]; len(v) > 0; v = v[8:] {
		tag := le.Uint16(v)
		switch tag {
		case 0x01, 0x04, 0x10, 0x20: // owner, owning group, mask, others
			out = append(out, v[:4]...)
		case 0x02, 0x08: // named user, named group
			out = append(out, v[:8]...)
		default:
			return nil, fmt.Errorf("an access list holds the unknown tag %#x", tag)
		}
	}
	return out, nil
}
