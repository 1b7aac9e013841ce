package ext4

// encodeInode writes a node's inode into the 256 bytes of b and returns the blocks of its extent tree.
func (n *Node) encodeInode(b []byte) []byte {
	var (
		tree  []byte
		size  = uint64(n.Size)
		flags uint32
		area  = b[40:100]
	)
	switch n.Type() {
	case TypeRegular:
		flags = extentsFlag
		tree = n.encodeExtents(area)
	case TypeDir:
		flags = extentsFlag
		size = n.place.dataBlocks * BlockSize
		tree = n.encodeExtents(area)
	case TypeSymlink:
		size = uint64(len(n.Target))
		if len(n.Target) < inlineTarget {
			copy(area, n.Target)
		} else {
			flags = extentsFlag
			tree = n.encodeExtents(area)
		}
	case TypeChar, TypeBlock:
		size = 0
		if n.Major < 256 && n.Minor < 256 {
			le.PutUint32(area[0:], n.Major<<8|n.Minor)
		} else {
			le.PutUint32(area[4:], n.Minor&0xff|n.Major<<8|n.Minor&^0xff<<12)
		}
	default:
		size = 0
	}
	links := n.links
	if n.IsDir() && links >= MaxLinks {
		links = 1 // the count of subdirectories is not kept
	}
	blocks := n.place.dataBlocks + uint64(n.place.treeBlocks)
	if n.place.blockAttrs != nil {
		blocks++
	}
	sectors := blocks * (BlockSize / 512)

	le.PutUint16(b[0:], n.Mode)
	le.PutUint16(b[2:], uint16(n.UID))
	le.PutUint32(b[4:], uint32(size))
	le.PutUint16(b[24:], uint16(n.GID))
	le.PutUint16(b[26:], uint16(links))
	le.PutUint32(b[28:], uint32(sectors))
	le.PutUint32(b[32:], flags)
	le.PutUint32(b[104:], uint32(n.place.attrBlock))
	le.PutUint32(b[108:], uint32(size>>32))
	le.PutUint16(b[116:], uint16(sectors>>32))
	le.PutUint16(b[118:], uint16(n.place.attrBlock>>32))
	le.PutUint16(b[120:], uint16(n.UID>>16))
	le.PutUint16(b[122:], uint16(n.GID>>16))
	le.PutUint16(b[128:], extraSize)
	putTime(b[8:], b[140:], n.Atime)
	putTime(b[12:], b[132:], n.Mtime) // change time
	putTime(b[16:], b[136:], n.Mtime)
	putTime(b[144:], b[148:], n.Mtime) // creation time
	copy(b[128+extraSize:], n.place.inlineAttrs)
	return tree
}

// putTime splits a time into 32 bits of seconds and a second word with nanoseconds and two more bits of seconds.
func putTime(low, extra []byte, t Time) {
	const first, last = -1 << 31, 1<<34 - 1<<31 - 1
	sec, nsec := t.Sec, t.Nsec
	if nsec >= 1e9 {
		nsec = 0
	}
	if sec < first {
		sec, nsec = first, 0
	}
	if sec > last {
		sec, nsec = last, 0
	}
	epoch := uint32((sec - int64(int32(sec))) >> 32)
	le.PutUint32(low, uint32(sec))
	le.PutUint32(extra, nsec<<2|epoch&3)
}
