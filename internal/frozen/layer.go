package frozen

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/s2"
)

// A layer file holds the pages of a memory, or the blocks of a disk, that differ from what lies below. All numbers are
// little-endian; nothing lies between the parts, so that a checksum covers each byte.
//
//	header   64 bytes
//	  0  magic "SPORELYR"      8  version, 4 bytes          12  1 memory, 2 disk, 4 bytes
//	 16  capture, 16 bytes    32  size of RAM or disk, 8    40  page size, 4 bytes
//	 44  zeros                60  CRC-32C of the 60 bytes before
//	frames   one after the other: the content of one run each
//	index    one entry of 40 bytes per run, ascending, not overlapping
//	  0  offset, 8   8  length, 8   16  place of the frame in the file, 8   24  bytes there, 4   28  codec, 4
//	 32  XXH64 of the bytes there (0 for zero runs)
//	footer   64 bytes
//	  0  magic "SPOREEND"      8  runs, 8                   16  place of the index, 8   24  XXH64 of the index, 8
//	 32  zeros                60  CRC-32C of the 60 bytes before
//
// A run is data, of at most 256 KiB, or a stretch of zeros of any length. Offsets and lengths are multiples of the page
// size. The digest of a layer is the SHA-256 of header, index and footer; the frames are covered by the index.
const (
	layerVersion = 1
	layerMagic   = "SPORELYR"
	footerMagic  = "SPOREEND"
	headerSize   = 64
	footerSize   = 64
	entrySize    = 40
	frameSize    = 256 << 10
)

const (
	layerOfMemory uint32 = 1
	layerOfDisk   uint32 = 2
)

// Codecs of frames.
const (
	codecZero uint32 = 0 // no frame: the run is zeros
	codecRaw  uint32 = 1
	codecS2   uint32 = 2 // an S2 block
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// run is one entry of the index.
type run struct {
	offset, length int64
	place          int64 // in the file
	stored         uint32
	codec          uint32
	sum            uint64
}

func (r run) end() int64 { return r.offset + r.length }

func (r run) appendTo(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(r.offset))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.length))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.place))
	b = binary.LittleEndian.AppendUint32(b, r.stored)
	b = binary.LittleEndian.AppendUint32(b, r.codec)
	return binary.LittleEndian.AppendUint64(b, r.sum)
}

func parseRun(b []byte) run {
	return run{
		offset: int64(binary.LittleEndian.Uint64(b)),
		length: int64(binary.LittleEndian.Uint64(b[8:])),
		place:  int64(binary.LittleEndian.Uint64(b[16:])),
		stored: binary.LittleEndian.Uint32(b[24:]),
		codec:  binary.LittleEndian.Uint32(b[28:]),
		sum:    binary.LittleEndian.Uint64(b[32:]),
	}
}

func layerCode(kind PieceKind) uint32 {
	if kind == DiskLayer {
		return layerOfDisk
	}
	return layerOfMemory
}

func appendCRC(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func crcOK(b []byte) bool {
	n := len(b) - 4
	return crc32.Checksum(b[:n], castagnoli) == binary.LittleEndian.Uint32(b[n:])
}

// layerWriter writes a layer file from front to back.
type layerWriter struct {
	f       *os.File
	w       *bufio.Writer
	header  []byte
	runs    []run
	place   int64
	size    int64
	start   int64  // offset of the frame that is being gathered
	frame   []byte // its content so far
	packed  []byte
	written int64 // bytes of data runs, before compression
}

// newLayerWriter starts a layer in f, which is empty.
func newLayerWriter(f *os.File, kind PieceKind, capture string, size int64) (*layerWriter, error) {
	id, err := captureBytes(capture)
	if err != nil {
		return nil, err
	}
	h := append(make([]byte, 0, headerSize), layerMagic...)
	h = binary.LittleEndian.AppendUint32(h, layerVersion)
	h = binary.LittleEndian.AppendUint32(h, layerCode(kind))
	h = append(h, id...)
	h = binary.LittleEndian.AppendUint64(h, uint64(size))
	h = binary.LittleEndian.AppendUint32(h, pageSize)
	h = appendCRC(append(h, make([]byte, headerSize-4-len(h))...))
	lw := &layerWriter{f: f, w: bufio.NewWriterSize(f, 1<<20), header: h, place: headerSize, size: size}
	lw.frame = make([]byte, 0, frameSize)
	_, err = lw.w.Write(h)
	return lw, err
}

// add appends pages; calls come in ascending order and do not overlap. data may be longer than a frame.
func (lw *layerWriter) add(offset int64, data []byte) error {
	for len(data) > 0 {
		if len(lw.frame) > 0 && (lw.start+int64(len(lw.frame)) != offset || len(lw.frame) == frameSize) {
			if err := lw.flush(); err != nil {
				return err
			}
		}
		if len(lw.frame) == 0 {
			lw.start = offset
		}
		n := min(len(data), frameSize-len(lw.frame))
		lw.frame = append(lw.frame, data[:n]...)
		offset += int64(n)
		data = data[n:]
	}
	return nil
}

// addZeros appends a stretch of zeros, in the same order as add.
func (lw *layerWriter) addZeros(offset, length int64) error {
	if err := lw.flush(); err != nil {
		return err
	}
	if n := len(lw.runs); n > 0 && lw.runs[n-1].codec == codecZero && lw.runs[n-1].end() == offset {
		lw.runs[n-1].length += length
		return nil
	}
	lw.runs = append(lw.runs, run{offset: offset, length: length, place: lw.place})
	return nil
}

// addDifference appends the pages in which mine differs from theirs.
func (lw *layerWriter) addDifference(offset int64, mine, theirs []byte) error {
	if bytes.Equal(mine, theirs) {
		return nil
	}
	for i := 0; i < len(mine); i += pageSize {
		page := mine[i:min(i+pageSize, len(mine))]
		if bytes.Equal(page, theirs[i:i+len(page)]) {
			continue
		}
		var err error
		if at := offset + int64(i); isZero(page) {
			err = lw.addZeros(at, int64(len(page)))
		} else {
			err = lw.add(at, page)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (lw *layerWriter) flush() error {
	if len(lw.frame) == 0 {
		return nil
	}
	stored, codec := lw.frame, codecRaw
	if need := s2.MaxEncodedLen(len(lw.frame)); len(lw.packed) < need {
		lw.packed = make([]byte, need)
	}
	// Unpacking costs each thaw a little, so it has to save something.
	if packed := s2.Encode(lw.packed, lw.frame); len(packed) < len(lw.frame)-len(lw.frame)/4 {
		stored, codec = packed, codecS2
	}
	lw.runs = append(lw.runs, run{
		offset: lw.start, length: int64(len(lw.frame)), place: lw.place,
		stored: uint32(len(stored)), codec: codec, sum: xxhash.Sum64(stored),
	})
	if _, err := lw.w.Write(stored); err != nil {
		return err
	}
	lw.place += int64(len(stored))
	lw.written += int64(len(lw.frame))
	lw.frame = lw.frame[:0]
	return nil
}

// finish writes index and footer and returns the digest and size of the file. It does not sync.
func (lw *layerWriter) finish() (digest string, size int64, err error) {
	if err := lw.flush(); err != nil {
		return "", 0, err
	}
	index := make([]byte, 0, len(lw.runs)*entrySize)
	for _, r := range lw.runs {
		index = r.appendTo(index)
	}
	foot := append(make([]byte, 0, footerSize), footerMagic...)
	foot = binary.LittleEndian.AppendUint64(foot, uint64(len(lw.runs)))
	foot = binary.LittleEndian.AppendUint64(foot, uint64(lw.place))
	foot = binary.LittleEndian.AppendUint64(foot, xxhash.Sum64(index))
	foot = appendCRC(append(foot, make([]byte, footerSize-4-len(foot))...))
	for _, part := range [][]byte{index, foot} {
		if _, err := lw.w.Write(part); err != nil {
			return "", 0, err
		}
	}
	if err := lw.w.Flush(); err != nil {
		return "", 0, err
	}
	return bytesDigest(lw.header, index, foot), lw.place + int64(len(index)) + footerSize, nil
}
