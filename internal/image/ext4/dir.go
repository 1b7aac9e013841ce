package ext4

// direntSize is the room that an entry with a name of n bytes takes.
func direntSize(n int) int { return (8 + n + 3) &^ 3 }

// dirBlocks counts the blocks of a directory.
func (n *Node) dirBlocks() uint64 {
	blocks, used := uint64(1), direntSize(1)+direntSize(2)
	for _, name := range n.names {
		size := direntSize(len(name))
		if used+size > BlockSize {
			blocks, used = blocks+1, 0
		}
		used += size
	}
	return blocks
}

// encodeDir writes a directory's blocks: entries in the order of their names, none crossing a block's edge.
func (n *Node) encodeDir() []byte {
	out := make([]byte, n.place.dataBlocks*BlockSize)
	var (
		block = out[:BlockSize] // the current block
		used  int
		last  int // where the last entry of the block begins
	)
	put := func(name string, child uint32, typ uint16) {
		size := direntSize(len(name))
		if used+size > BlockSize {
			le.PutUint16(block[last+4:], uint16(BlockSize-last))
			out = out[BlockSize:]
			block, used, last = out[:BlockSize], 0, 0
		}
		e := block[used:]
		le.PutUint32(e[0:], child)
		le.PutUint16(e[4:], uint16(size))
		e[6] = byte(len(name))
		e[7] = direntType(typ)
		copy(e[8:], name)
		last, used = used, used+size
	}
	all := out
	put(".", n.ino, TypeDir)
	put("..", n.parent, TypeDir)
	for _, name := range n.names {
		child := n.Children[name]
		put(name, child.ino, child.Type())
	}
	le.PutUint16(block[last+4:], uint16(BlockSize-last))
	return all
}

func direntType(typ uint16) byte {
	switch typ {
	case TypeRegular:
		return 1
	case TypeDir:
		return 2
	case TypeChar:
		return 3
	case TypeBlock:
		return 4
	case TypeFifo:
		return 5
	case TypeSocket:
		return 6
	case TypeSymlink:
		return 7
	}
	return 0
}
