package ext4

import "encoding/binary"

const (
	extentMagic  = 0xf30a
	maxExtent    = 32768 // blocks in one extent
	inlineSlots  = 4     // extents, or index entries, that fit into the inode
	blockSlots   = (BlockSize - 12) / 12
	extentsFlag  = 0x80000
	inlineTarget = 60 // symlink targets shorter than this live in the inode
)

var le = binary.LittleEndian

// extent maps a stretch of a file's blocks to a stretch of the image's.
type extent struct {
	logical  uint32
	count    uint16
	physical uint64
}

// runs returns the stretches of any node that has blocks.
func (n *Node) runs() []Run {
	if n.Type() == TypeRegular {
		return n.Runs
	}
	if n.place.dataBlocks == 0 {
		return nil
	}
	return []Run{{0, uint32(n.place.dataBlocks)}}
}

func (n *Node) extentCount() uint64 {
	var count uint64
	for _, r := range n.runs() {
		count += (uint64(r.Count) + maxExtent - 1) / maxExtent
	}
	return count
}

func (n *Node) extents() []extent {
	var (
		out []extent
		at  = n.place.data
	)
	for _, r := range n.runs() {
		for start, left := r.Start, r.Count; left > 0; {
			count := min(left, maxExtent)
			out = append(out, extent{start, uint16(count), at})
			start, left, at = start+count, left-count, at+uint64(count)
		}
	}
	return out
}

// treeSize counts the blocks of an extent tree: none while the extents fit into the inode.
func treeSize(extents uint64) uint32 {
	var total uint64
	for level := extents; level > inlineSlots; {
		level = (level + blockSlots - 1) / blockSlots
		total += level
	}
	return uint32(total)
}

// encodeExtents writes the root of the extent tree into the 60 bytes of root and returns the other blocks, which lie
// one after the other from n.place.tree on: leaves first, then each level above them.
func (n *Node) encodeExtents(root []byte) []byte {
	extents := n.extents()
	blocks := make([]byte, 0, int(n.place.treeBlocks)*BlockSize)
	entries := make([]byte, 0, 12*len(extents))
	for _, e := range extents {
		var b [12]byte
		le.PutUint32(b[0:], e.logical)
		le.PutUint16(b[4:], e.count)
		le.PutUint16(b[6:], uint16(e.physical>>32))
		le.PutUint32(b[8:], uint32(e.physical))
		entries = append(entries, b[:]...)
	}
	depth := uint16(0)
	for len(entries) > inlineSlots*12 {
		var above []byte
		for len(entries) > 0 {
			part := entries[:min(len(entries), blockSlots*12)]
			entries = entries[len(part):]
			var index [12]byte
			at := n.place.tree + uint64(len(blocks)/BlockSize)
			copy(index[0:4], part[0:4]) // the first logical block below
			le.PutUint32(index[4:], uint32(at))
			le.PutUint16(index[8:], uint16(at>>32))
			above = append(above, index[:]...)

			block := make([]byte, BlockSize)
			extentHeader(block, len(part)/12, blockSlots, depth)
			copy(block[12:], part)
			blocks = append(blocks, block...)
		}
		entries = above
		depth++
	}
	extentHeader(root, len(entries)/12, inlineSlots, depth)
	copy(root[12:], entries)
	return blocks
}

func extentHeader(b []byte, entries, slots int, depth uint16) {
	le.PutUint16(b[0:], extentMagic)
	le.PutUint16(b[2:], uint16(entries))
	le.PutUint16(b[4:], uint16(slots))
	le.PutUint16(b[6:], depth)
}
