package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The journal is a ring of blocks in a file. A transaction is one or more descriptor blocks, each followed by the blocks
// that it lists, then a commit block. Revoke blocks say that earlier copies of a block do not count. Its numbers are
// big-endian.
const (
	journalMagic = 0xc03b3998

	journalDescriptor = 1
	journalCommit     = 2
	journalSuper1     = 3
	journalSuper2     = 4
	journalRevoke     = 5

	journalCompatKnown = 0x3f // incompatible features: revoke, 64 bit, async commit, checksums 2 and 3, fast commit
	journal64          = 0x2
	journalChecksum2   = 0x8
	journalChecksum3   = 0x10
	journalFast        = 0x20

	tagEscaped  = 0x1 // the block began with the journal's magic number, which was left out
	tagSameUUID = 0x2
	tagLast     = 0x8

	maxJournal = 1 << 20 // blocks
)

var be = binary.BigEndian

// journaled is the newest committed copy of a block.
type journaled struct {
	at       int64 // in the image
	sequence uint32
	escaped  bool
}

func (j journaled) read(r *Reader, offset int64, p []byte) error {
	if err := readAll(r.src, p, j.at+offset); err != nil {
		return err
	}
	if j.escaped && offset < 4 {
		var magic [4]byte
		be.PutUint32(magic[:], journalMagic)
		copy(p, magic[offset:])
	}
	return nil
}

// journalReader is a walk through the journal.
type journalReader struct {
	reader      *Reader
	extents     []Extent
	first, end  uint64 // blocks of the ring
	features    uint32
	done        map[uint64]journaled
	revoked     map[uint64]uint32 // up to and including which transaction copies do not count
	open        map[uint64]journaled
	openRevokes []uint64
}

// readJournal finds the newest committed copy of each block in the journal, as a kernel does that recovers it.
func (r *Reader) readJournal(inode uint32) error {
	i, err := r.Inode(inode)
	if err != nil {
		return err
	}
	extents, err := r.Extents(i)
	if err != nil {
		return err
	}
	j := &journalReader{
		reader: r, extents: extents,
		done: map[uint64]journaled{}, revoked: map[uint64]uint32{}, open: map[uint64]journaled{},
	}
	start, sequence, err := j.superblock(uint64(i.Size / r.block))
	if err != nil || start == 0 {
		return err
	}
	if err := j.walk(start, sequence); err != nil {
		return err
	}
	for block, copy := range j.done {
		// Transactions are numbered on a ring too.
		if last, ok := j.revoked[block]; ok && int32(last-copy.sequence) >= 0 {
			delete(j.done, block)
		}
	}
	r.journal = j.done
	return nil
}

// superblock reads where the log begins and with which transaction; 0 when it is empty.
func (j *journalReader) superblock(blocks uint64) (start uint64, sequence uint32, err error) {
	b, _, err := j.read(0)
	if err != nil {
		return 0, 0, err
	}
	kind := be.Uint32(b[4:])
	if be.Uint32(b) != journalMagic || kind != journalSuper1 && kind != journalSuper2 {
		return 0, 0, errors.New("it has no superblock")
	}
	if kind == journalSuper2 {
		j.features = be.Uint32(b[40:])
	}
	j.first, j.end = uint64(be.Uint32(b[20:])), uint64(be.Uint32(b[16:]))
	sequence, start = be.Uint32(b[24:]), uint64(be.Uint32(b[28:]))
	if j.features&journalFast != 0 { // the last blocks are for changes in another form, which only hold until the next commit
		fast := uint64(be.Uint32(b[84:]))
		if fast == 0 {
			fast = 256
		}
		j.end -= min(fast, j.end)
	}
	switch {
	case j.features&^journalCompatKnown != 0:
		return 0, 0, fmt.Errorf("unknown features %#x", j.features)
	case int64(be.Uint32(b[12:])) != j.reader.block:
		return 0, 0, errors.New("its blocks are of another size")
	case j.end > blocks || j.end > maxJournal || j.first == 0 || j.first >= j.end:
		return 0, 0, errors.New("its size is out of range")
	case start != 0 && (start < j.first || start >= j.end):
		return 0, 0, errors.New("its start is out of range")
	}
	return start, sequence, nil
}

// read reads a block of the journal, and says where in the image it lies.
func (j *journalReader) read(n uint64) (b []byte, at int64, err error) {
	offset := int64(n) * j.reader.block
	for _, e := range j.extents {
		if offset >= e.Offset && offset < e.End() {
			at = e.At + offset - e.Offset
			b = make([]byte, j.reader.block)
			return b, at, readAll(j.reader.src, b, at)
		}
	}
	return nil, 0, fmt.Errorf("block %d is missing", n)
}

// walk goes from transaction to transaction until what comes next is not the next transaction. One without a commit
// block does not count. No block is looked at twice.
func (j *journalReader) walk(at uint64, sequence uint32) error {
	left := j.end - j.first
	advance := func() bool {
		if at++; at == j.end {
			at = j.first
		}
		left--
		return left > 0
	}
	for {
		b, _, err := j.read(at)
		if err != nil {
			return err
		}
		if be.Uint32(b) != journalMagic || be.Uint32(b[8:]) != sequence {
			return nil
		}
		switch be.Uint32(b[4:]) {
		case journalDescriptor:
			tags, err := j.tags(b)
			if err != nil {
				return err
			}
			for _, t := range tags {
				if !advance() {
					return nil
				}
				_, place, err := j.read(at)
				if err != nil {
					return err
				}
				j.open[t.block] = journaled{at: place, sequence: sequence, escaped: t.escaped}
			}
		case journalRevoke:
			if err := j.revokes(b); err != nil {
				return err
			}
		case journalCommit:
			for block, c := range j.open {
				j.done[block] = c
			}
			for _, block := range j.openRevokes {
				j.revoked[block] = sequence
			}
			clear(j.open)
			j.openRevokes = nil
			sequence++
		default:
			return nil
		}
		if !advance() {
			return nil
		}
	}
}

// tag names a block whose copy follows its descriptor.
type tag struct {
	block   uint64
	escaped bool
}

func (j *journalReader) tags(b []byte) ([]tag, error) {
	size := 8
	if j.features&journal64 != 0 {
		size += 4
	}
	if j.features&journalChecksum2 != 0 {
		size += 2
	}
	if j.features&journalChecksum3 != 0 {
		size = 16
	}
	if j.features&(journalChecksum2|journalChecksum3) != 0 {
		b = b[:len(b)-4]
	}
	var out []tag
	for b = b[12:]; len(b) >= size; {
		t := tag{block: uint64(be.Uint32(b))}
		flags := uint32(be.Uint16(b[6:]))
		if j.features&journalChecksum3 != 0 {
			flags = be.Uint32(b[4:])
		}
		if j.features&journal64 != 0 {
			t.block |= uint64(be.Uint32(b[8:])) << 32
		}
		t.escaped = flags&tagEscaped != 0
		if t.block >= j.reader.blocks {
			return nil, errors.New("it holds a block from outside of the filesystem")
		}
		out = append(out, t)
		b = b[size:]
		if flags&tagSameUUID == 0 {
			b = b[min(16, len(b)):]
		}
		if flags&tagLast != 0 {
			break
		}
	}
	return out, nil
}

func (j *journalReader) revokes(b []byte) error {
	used, size := int(be.Uint32(b[12:])), 4
	if j.features&journal64 != 0 {
		size = 8
	}
	if used < 16 || used > len(b) {
		return errors.New("a list of revoked blocks is out of range")
	}
	for b = b[16:used]; len(b) >= size; b = b[size:] {
		block := uint64(be.Uint32(b))
		if size == 8 {
			block = be.Uint64(b)
		}
		j.openRevokes = append(j.openRevokes, block)
	}
	return nil
}
