package vmlinux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// lz4Block is the most that one block of the legacy frame format unpacks to. The kernel's build uses that format: its
// magic number, then blocks that stand alone, each after its packed length in four bytes.
const lz4Block = 8 << 20

var errLZ4 = errors.New("damaged lz4 block")

type lz4Reader struct {
	r      io.Reader
	packed []byte
	plain  []byte
	rest   []byte // of plain, not read yet
}

func openLZ4(r io.Reader) (io.Reader, error) {
	var magic [4]byte
	if _, err := io.ReadFull(r, magic[:]); err != nil {
		return nil, err
	}
	return &lz4Reader{r: r, plain: make([]byte, lz4Block)}, nil
}

func (l *lz4Reader) Read(p []byte) (int, error) {
	for len(l.rest) == 0 {
		if err := l.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, l.rest)
	l.rest = l.rest[n:]
	return n, nil
}

// next unpacks a block.
func (l *lz4Reader) next() error {
	var head [4]byte
	if _, err := io.ReadFull(l.r, head[:]); err != nil {
		return err // io.EOF between blocks is the end
	}
	size := int(binary.LittleEndian.Uint32(head[:]))
	if size == 0x184c2102 { // another frame begins
		return nil
	}
	if size == 0 || size > lz4Block+lz4Block/255+16 {
		return fmt.Errorf("lz4 block of %d bytes", size)
	}
	if cap(l.packed) < size {
		l.packed = make([]byte, size)
	}
	packed := l.packed[:size]
	if _, err := io.ReadFull(l.r, packed); err != nil {
		return io.ErrUnexpectedEOF
	}
	n, err := unpackLZ4(l.plain, packed)
	if err != nil {
		return err
	}
	l.rest = l.plain[:n]
	return nil
}

// unpackLZ4 unpacks a block into dst and returns its length. A block is a row of literals and matches: a token with the
// lengths of both, the literals, and how far back the match begins.
func unpackLZ4(dst, src []byte) (int, error) {
	at, out := 0, 0
	// length adds to a length of 15 the bytes that go on with it.
	length := func(n int) (int, bool) {
		if n < 15 {
			return n, true
		}
		for at < len(src) {
			b := src[at]
			at++
			n += int(b)
			if n > len(dst) {
				return 0, false
			}
			if b != 255 {
				return n, true
			}
		}
		return 0, false
	}
	for at < len(src) {
		token := src[at]
		at++
		n, ok := length(int(token >> 4))
		if !ok || n > len(src)-at || n > len(dst)-out {
			return 0, errLZ4
		}
		out += copy(dst[out:], src[at:at+n])
		at += n
		if at == len(src) { // the last literals have no match
			return out, nil
		}
		if len(src)-at < 2 {
			return 0, errLZ4
		}
		back := int(binary.LittleEndian.Uint16(src[at:]))
		at += 2
		n, ok = length(int(token & 15))
		if n += 4; !ok || back == 0 || back > out || n > len(dst)-out {
			return 0, errLZ4
		}
		for from := out - back; n > 0; {
			// A match may reach into what it writes itself.
			k := copy(dst[out:out+n], dst[from:out])
			out, n = out+k, n-k
		}
	}
	return 0, errLZ4
}
