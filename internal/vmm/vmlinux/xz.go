package vmlinux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

// A kernel is packed with xz as one block of LZMA2, after a filter that makes x86 code pack better: calls and jumps name
// their targets by absolute addresses. The library knows no filters, so the container is read here.

const (
	xzHeader    = 12 // of the stream
	filterX86   = 0x04
	filterLZMA2 = 0x21
	maxXZDict   = 256 << 20
)

var errXZ = errors.New("damaged xz block")

func openXZ(r io.Reader) (io.Reader, error) {
	head := make([]byte, xzHeader+1)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	block := make([]byte, int(head[xzHeader])*4+3) // the length byte is read already
	if head[xzHeader] == 0 {
		return nil, errors.New("an empty xz stream")
	}
	if _, err := io.ReadFull(r, block); err != nil {
		return nil, err
	}
	x86, dict, err := parseXZBlock(block)
	if err != nil {
		return nil, err
	}
	l, err := lzma.Reader2Config{DictCap: dict}.NewReader2(r)
	if err != nil {
		return nil, err
	}
	if !x86 {
		return l, nil
	}
	return &x86Reader{r: l}, nil
}

// parseXZBlock reads a block's header, behind its first byte: whether the filter is there, and the size of the dictionary.
func parseXZBlock(b []byte) (x86 bool, dict int, err error) {
	in := bytes.NewReader(b[:len(b)-4]) // a checksum follows
	flags, err := in.ReadByte()
	if err != nil {
		return false, 0, errXZ
	}
	for _, present := range []byte{0x40, 0x80} { // lengths, packed and not
		if flags&present != 0 {
			if _, err := binary.ReadUvarint(in); err != nil {
				return false, 0, errXZ
			}
		}
	}
	filters := int(flags&3) + 1
	for i := range filters {
		id, err := binary.ReadUvarint(in)
		if err != nil {
			return false, 0, errXZ
		}
		n, err := binary.ReadUvarint(in)
		if err != nil || n > uint64(in.Len()) {
			return false, 0, errXZ
		}
		properties := make([]byte, n)
		if _, err := io.ReadFull(in, properties); err != nil {
			return false, 0, errXZ
		}
		switch {
		case id == filterX86 && i == 0 && filters == 2 && n == 0:
			x86 = true
		case id == filterLZMA2 && i == filters-1 && n == 1:
			if dict, err = xzDictionary(properties[0]); err != nil {
				return false, 0, err
			}
		default:
			return false, 0, fmt.Errorf("xz filter %#x is not supported there", id)
		}
	}
	if dict == 0 {
		return false, 0, errXZ
	}
	return x86, dict, nil
}

// xzDictionary decodes a size: two or three, shifted.
func xzDictionary(b byte) (int, error) {
	if b > 40 {
		return 0, errXZ
	}
	size := (2 | int(b&1)) << (b/2 + 11)
	if size > maxXZDict {
		return 0, fmt.Errorf("an xz dictionary of %d bytes", size)
	}
	return size, nil
}

// x86Reader turns absolute targets of calls and jumps back into relative ones.
type x86Reader struct {
	r      io.Reader
	buf    []byte // what came in; the first ready bytes are done
	ready  int
	err    error
	filter x86Filter
}

func (x *x86Reader) Read(p []byte) (int, error) {
	for x.ready == 0 {
		if x.err != nil {
			if len(x.buf) == 0 {
				return 0, x.err
			}
			x.ready = len(x.buf) // too short for an instruction, so as it is
			break
		}
		have := len(x.buf)
		x.buf = append(x.buf, make([]byte, 32<<10)...)
		n, err := x.r.Read(x.buf[have:])
		x.buf, x.err = x.buf[:have+n], err
		x.ready = x.filter.undo(x.buf)
	}
	n := copy(p, x.buf[:x.ready])
	x.buf, x.ready = append(x.buf[:0], x.buf[n:]...), x.ready-n
	return n, nil
}

// x86Filter remembers, from one buffer to the next, where opcodes of calls and jumps were seen shortly before: what looks
// like one may be the middle of another.
type x86Filter struct {
	pos  uint32 // in the whole, of the buffer's start
	last uint32 // of the opcode seen last, plus 5
	mask uint32 // of opcodes and of target bytes that look like an address's first, shifted along with the distance
}

// likelyTop says whether a byte may be the highest of an address near by.
func likelyTop(b byte) bool { return b == 0 || b == 0xff }

// undo works in place on buf and returns how much of it is done. The rest is to be given again with more behind it.
func (f *x86Filter) undo(buf []byte) int {
	// Which recent opcodes, by distance, still let another be taken for real, and which byte of the target they spoil.
	allowed := [8]bool{true, true, true, false, true, false, false, false}
	spoilt := [8]uint32{0, 1, 2, 2, 3, 3, 3, 3}
	at := 0
	for at+5 <= len(buf) {
		if buf[at]&0xfe != 0xe8 {
			at++
			continue
		}
		here := f.pos + uint32(at)
		if distance := here + 5 - f.last; distance > 5 {
			f.mask = 0
		} else {
			for range distance {
				f.mask = f.mask & 0x77 << 1
			}
		}
		f.last = here + 5
		top := buf[at+4]
		if !likelyTop(top) || !allowed[f.mask>>1&7] || f.mask>>1 >= 0x10 {
			at++
			f.mask |= 1
			if likelyTop(top) {
				f.mask |= 0x10
			}
			continue
		}
		target := binary.LittleEndian.Uint32(buf[at+1:])
		var relative uint32
		for {
			relative = target - (here + 5)
			if f.mask == 0 {
				break
			}
			i := spoilt[f.mask>>1&7]
			if !likelyTop(byte(relative >> (24 - i*8))) {
				break
			}
			target = relative ^ (1<<(32-i*8) - 1)
		}
		binary.LittleEndian.PutUint32(buf[at+1:], relative)
		buf[at+4] = -byte(relative >> 24 & 1) // 0 or 0xff, by the sign
		at += 5
		f.mask = 0
	}
	f.pos += uint32(at)
	return at
}
