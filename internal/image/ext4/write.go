package ext4

import (
	"io"
)

// Features. No journal, no checksums, no free space: the image is only ever read, and its content digest covers it.
// sparse_super2 with no backup groups keeps copies of the superblock out of the data; readonly makes every kernel
// refuse to write.
const (
	featureCompat   = 0x8 | 0x200                          // ext_attr, sparse_super2
	featureIncompat = 0x2 | 0x40 | 0x200                   // filetype, extents, flex_bg
	featureROCompat = 0x2 | 0x8 | 0x20 | 0x40 | 0x1000 | 1 // large_file, huge_file, dir_nlink, extra_isize, readonly, sparse_super
)

// WriteMeta writes everything that precedes the content of files, DataOffset bytes in all.
func (l *Layout) WriteMeta(w io.Writer) error {
	head := make([]byte, BlockSize)
	l.superblock(head[1024:2048])
	if _, err := w.Write(head); err != nil {
		return err
	}
	if _, err := w.Write(l.descriptors()); err != nil {
		return err
	}
	if err := l.writeBitmaps(w); err != nil {
		return err
	}
	trees, err := l.writeInodes(w)
	if err != nil {
		return err
	}
	for _, n := range l.all() {
		for _, part := range [][]byte{n.place.blockAttrs, trees[n.ino], n.content()} {
			if len(part) == 0 {
				continue
			}
			if _, err := w.Write(part); err != nil {
				return err
			}
		}
	}
	return nil
}

// content returns the blocks of a directory or long symlink.
func (n *Node) content() []byte {
	switch {
	case n.IsDir():
		return n.encodeDir()
	case n.Type() == TypeSymlink && n.place.dataBlocks > 0:
		b := make([]byte, BlockSize)
		copy(b, n.Target)
		return b
	}
	return nil
}

func (l *Layout) descBlocks() uint64 {
	return (uint64(l.groups)*descSize + BlockSize - 1) / BlockSize
}

func (l *Layout) inodeTableBlocks() uint64 { return uint64(l.inodesPerGroup) / inodesPerBlock }

// usedInodes is the number of the last inode in use.
func (l *Layout) usedInodes() uint64 { return uint64(firstInode - 1 + len(l.nodes)) }

// share says how many of used things fall into the group that begins with first and has room for count of them.
func share(used, first, count uint64) uint64 {
	if used <= first {
		return 0
	}
	return min(used-first, count)
}

// groupBlocks counts the blocks of a group; the last one may be short.
func (l *Layout) groupBlocks(g uint64) uint64 {
	return min(l.blocks-g*blocksPerGroup, blocksPerGroup)
}

func (l *Layout) descriptors() []byte {
	out := make([]byte, l.descBlocks()*BlockSize)
	dirs := make([]uint16, l.groups)
	for _, n := range l.all() {
		if n.IsDir() {
			dirs[(n.ino-1)/l.inodesPerGroup]++
		}
	}
	groups := uint64(l.groups)
	bitmaps := 1 + l.descBlocks()
	for g := range groups {
		d := out[g*descSize:]
		perGroup := uint64(l.inodesPerGroup)
		le.PutUint32(d[0:], uint32(bitmaps+g))
		le.PutUint32(d[4:], uint32(bitmaps+groups+g))
		le.PutUint32(d[8:], uint32(bitmaps+2*groups+g*l.inodeTableBlocks()))
		le.PutUint16(d[12:], uint16(l.groupBlocks(g)-share(l.used, g*blocksPerGroup, blocksPerGroup)))
		le.PutUint16(d[14:], uint16(perGroup-share(l.usedInodes(), g*perGroup, perGroup)))
		le.PutUint16(d[16:], dirs[g])
	}
	return out
}

// writeBitmaps writes the block bitmaps of all groups, then the inode bitmaps. What is in use comes first, so that each
// is a run of ones, a run of zeros, and ones again for what lies beyond the group's end.
func (l *Layout) writeBitmaps(w io.Writer) error {
	b := make([]byte, BlockSize)
	for g := range uint64(l.groups) {
		fillBitmap(b, share(l.used, g*blocksPerGroup, blocksPerGroup), l.groupBlocks(g))
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	perGroup := uint64(l.inodesPerGroup)
	for g := range uint64(l.groups) {
		fillBitmap(b, share(l.usedInodes(), g*perGroup, perGroup), perGroup)
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

func fillBitmap(b []byte, used, end uint64) {
	for i := range b {
		var v byte
		for bit := range uint64(8) {
			if at := uint64(i)*8 + bit; at < used || at >= end {
				v |= 1 << bit
			}
		}
		b[i] = v
	}
}

// writeInodes writes the inode tables and returns the blocks of those extent trees that do not fit into an inode.
func (l *Layout) writeInodes(w io.Writer) (map[uint32][]byte, error) {
	trees := map[uint32][]byte{}
	table := make([]byte, l.inodeTableBlocks()*BlockSize)
	nodes := l.all()
	for g := range l.groups {
		clear(table)
		end := (g + 1) * l.inodesPerGroup
		for len(nodes) > 0 && nodes[0].ino <= end {
			n := nodes[0]
			nodes = nodes[1:]
			at := int(n.ino-1-g*l.inodesPerGroup) * inodeSize
			if tree := n.encodeInode(table[at : at+inodeSize]); len(tree) > 0 {
				trees[n.ino] = tree
			}
		}
		if _, err := w.Write(table); err != nil {
			return nil, err
		}
	}
	return trees, nil
}

func (l *Layout) superblock(b []byte) {
	inodes := l.groups * l.inodesPerGroup
	le.PutUint32(b[0:], inodes)
	le.PutUint32(b[4:], uint32(l.blocks))
	le.PutUint32(b[12:], uint32(l.blocks-l.used))
	le.PutUint32(b[16:], inodes-uint32(l.usedInodes()))
	le.PutUint32(b[24:], 2) // block size: 1024 << 2
	le.PutUint32(b[28:], 2) // cluster size, the same
	le.PutUint32(b[32:], blocksPerGroup)
	le.PutUint32(b[36:], blocksPerGroup)
	le.PutUint32(b[40:], l.inodesPerGroup)
	le.PutUint16(b[54:], 0xffff) // never due for a check by count of mounts
	le.PutUint16(b[56:], 0xef53)
	le.PutUint16(b[58:], 1) // clean
	le.PutUint16(b[60:], 1) // on errors: continue
	le.PutUint32(b[76:], 1) // revision with dynamic inode sizes
	le.PutUint32(b[84:], firstInode)
	le.PutUint16(b[88:], inodeSize)
	le.PutUint32(b[92:], featureCompat)
	le.PutUint32(b[96:], featureIncompat)
	le.PutUint32(b[100:], featureROCompat)
	copy(b[104:120], l.opts.UUID[:])
	copy(b[120:136], l.opts.Label)
	copy(b[236:252], l.opts.HashSeed[:])
	b[252] = 1                       // default directory hash: half MD4
	le.PutUint16(b[348:], extraSize) // smallest and wanted extra size of inodes
	le.PutUint16(b[350:], extraSize)
	le.PutUint32(b[352:], 1) // directory hashes take bytes as signed
	b[372] = l.flexLog()
}

// flexLog is the binary logarithm of the number of groups in a flexible group: one holds them all.
func (l *Layout) flexLog() byte {
	log := byte(4)
	for 1<<log < l.groups {
		log++
	}
	return log
}
