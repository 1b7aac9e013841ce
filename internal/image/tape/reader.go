// Package tape reads tar streams the way image layers need them read: names are plain bytes, sparse files come as
// their data alone, and nothing in the stream can make the reader hold more than a bounded amount of memory.
//
// The standard library's reader presents the holes of a sparse file as zero bytes, so a layer of one kilobyte can
// keep it busy for terabytes. This one hands out only what is stored, with the offset where it belongs.
package tape

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Types of entries, as the header's type flag spells them. Variants of a regular file all read as TypeReg.
const (
	TypeReg     = '0'
	TypeLink    = '1'
	TypeSymlink = '2'
	TypeChar    = '3'
	TypeBlock   = '4'
	TypeDir     = '5'
	TypeFifo    = '6'
	TypeGlobal  = 'g' // a PAX header for the whole archive; it carries nothing that layers use
)

const (
	blockSize = 512

	// maxSpecial bounds what is held in memory for one entry: its PAX records, a long name, a sparse map.
	maxSpecial = 1 << 20
)

// ErrFormat is the error of a stream that is not a tar archive, or a damaged one.
var ErrFormat = errors.New("not a valid tar archive")

// Time is a moment since 1970 with nanoseconds counted forwards.
type Time struct {
	Sec  int64
	Nsec uint32
}

// Header describes one entry.
type Header struct {
	Name     string // as stored, with whatever slashes and dots it has
	Linkname string
	Type     byte
	Mode     int64
	UID, GID int64
	Size     int64 // of the file as it is unpacked, holes included
	ModTime  Time
	AccTime  Time // equal to ModTime when the archive has none
	Major    int64
	Minor    int64
	Xattrs   map[string]string
}

// fragment is a stretch of a file that the archive stores.
type fragment struct {
	offset, length int64
}

// Reader reads a tar archive from front to end.
type Reader struct {
	src io.Reader
	buf []byte // window on src
	r   int    // start of the unread part of buf
	w   int    // its end

	fragments []fragment // what is left of the current entry
	padding   int64      // after the current entry's data
	done      bool
}

// NewReader returns a Reader on src. It reads ahead.
func NewReader(src io.Reader) *Reader {
	return &Reader{src: src, buf: make([]byte, 256<<10)}
}

// Next moves to the next entry, passing over what was not read of the current one. It returns io.EOF at the end of the
// archive and an error that wraps ErrFormat or io.ErrUnexpectedEOF when the archive is damaged.
func (t *Reader) Next() (*Header, error) {
	if t.done {
		return nil, io.EOF
	}
	if err := t.skipEntry(); err != nil {
		return nil, err
	}
	var (
		records  paxRecords
		longName string
		longLink string
	)
	for {
		block, err := t.header()
		if err != nil {
			if err == io.EOF && (records != nil || longName != "" || longLink != "") {
				err = io.ErrUnexpectedEOF
			}
			t.done = true
			return nil, err
		}
		switch typ := block.typeflag(); typ {
		case 'x', 'L', 'K':
			data, err := t.special(block)
			if err != nil {
				return nil, err
			}
			switch typ {
			case 'x':
				if records, err = parsePAX(data); err != nil {
					return nil, err
				}
			case 'L':
				longName = cString(data)
			case 'K':
				longLink = cString(data)
			}
		default:
			return t.entry(block, records, longName, longLink)
		}
	}
}

// Data hands the stored bytes of the current entry to fn, in ascending order of their offset in the file. Ranges that
// are never handed out are holes. The slice is valid during the call only. An error of fn ends the walk.
func (t *Reader) Data(fn func(offset int64, p []byte) error) error {
	for len(t.fragments) > 0 {
		f := &t.fragments[0]
		if f.length == 0 {
			t.fragments = t.fragments[1:]
			continue
		}
		if err := t.fill(); err != nil {
			return noEOF(err)
		}
		p := t.buf[t.r:t.w]
		if int64(len(p)) > f.length {
			p = p[:f.length]
		}
		t.r += len(p)
		offset := f.offset
		f.offset += int64(len(p))
		f.length -= int64(len(p))
		if err := fn(offset, p); err != nil {
			return err
		}
	}
	return nil
}

// skipEntry passes over the rest of the current entry and its padding.
func (t *Reader) skipEntry() error {
	var n int64
	for _, f := range t.fragments {
		n += f.length
	}
	padding := t.padding
	t.fragments, t.padding = nil, 0
	if err := t.discard(n); err != nil {
		return err
	}
	// Some tools end an archive with the last byte of its last file: no padding, no end mark. Nothing is missing of such
	// a one, and that nothing was cut off is for the layer's digest to say.
	if padding > 0 && t.fill() == io.EOF {
		return nil // as the next header will find
	}
	return t.discard(padding)
}

// header reads the next header block. Two blocks of zeros, or the end of the stream on a block's edge, end the archive.
func (t *Reader) header() (*block, error) {
	var b block
	if err := t.readFull(b[:]); err != nil {
		return nil, err
	}
	if b == (block{}) {
		if err := t.readFull(b[:]); err != nil && err != io.EOF {
			return nil, err
		}
		if b != (block{}) {
			return nil, fmt.Errorf("%w: data after the end mark", ErrFormat)
		}
		return nil, io.EOF
	}
	if !b.checksumHolds() {
		return nil, fmt.Errorf("%w: a header has a wrong checksum", ErrFormat)
	}
	return &b, nil
}

// special reads the content of an entry that describes the next one.
func (t *Reader) special(b *block) ([]byte, error) {
	size, err := b.number(124, 12)
	if err != nil {
		return nil, err
	}
	if size < 0 || size > maxSpecial {
		return nil, fmt.Errorf("%w: an extended header of %d bytes", ErrFormat, size)
	}
	data := make([]byte, size)
	if err := t.readFull(data); err != nil {
		return nil, noEOF(err)
	}
	return data, t.discard(padding(size))
}

// entry makes the header of an ordinary entry out of its block and of the special entries before it.
func (t *Reader) entry(b *block, records paxRecords, longName, longLink string) (*Header, error) {
	h, err := b.decode()
	if err != nil {
		return nil, err
	}
	if longName != "" {
		h.Name = longName
	}
	if longLink != "" {
		h.Linkname = longLink
	}
	stored := h.Size
	if size, ok, err := records.number("size"); err != nil {
		return nil, err
	} else if ok {
		stored = size
	}
	if stored < 0 || stored > 1<<62 {
		return nil, fmt.Errorf("%w: %q has an impossible size", ErrFormat, h.Name)
	}
	h.Size = stored
	if err := records.apply(h); err != nil {
		return nil, err
	}

	if h.Type == 'S' {
		h.Type = TypeReg
		err = t.gnuSparse(b, h, stored)
	} else if h.Type == TypeReg || h.Type == 0 {
		if h.Type == 0 {
			h.Type = TypeReg
			if strings.HasSuffix(h.Name, "/") {
				h.Type = TypeDir
			}
		}
		err = t.paxSparse(records, h, stored)
	} else if headerOnly(h.Type) {
		stored, h.Size = 0, 0
	} else {
		t.fragments = []fragment{{0, stored}}
	}
	if err != nil {
		return nil, err
	}
	if h.Type == TypeDir {
		// A directory made of a trailing slash may claim a size; its bytes are passed over, never handed out.
		h.Size = 0
	}
	t.padding = padding(stored)
	return h, nil
}

// headerOnly says whether entries of this type have no data, whatever their size field says.
func headerOnly(typ byte) bool {
	switch typ {
	case TypeLink, TypeSymlink, TypeChar, TypeBlock, TypeDir, TypeFifo:
		return true
	}
	return false
}

func padding(size int64) int64 { return -size & (blockSize - 1) }

// fill makes sure that at least one byte is buffered.
func (t *Reader) fill() error {
	if t.r < t.w {
		return nil
	}
	t.r, t.w = 0, 0
	for range 100 {
		n, err := t.src.Read(t.buf)
		if n > 0 {
			t.w = n
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// readFull fills p. It returns io.EOF only when nothing at all could be read.
func (t *Reader) readFull(p []byte) error {
	for done := 0; done < len(p); {
		if err := t.fill(); err != nil {
			if done > 0 {
				err = noEOF(err)
			}
			return err
		}
		n := copy(p[done:], t.buf[t.r:t.w])
		t.r += n
		done += n
	}
	return nil
}

func (t *Reader) discard(n int64) error {
	for n > 0 {
		if err := t.fill(); err != nil {
			return noEOF(err)
		}
		step := min(n, int64(t.w-t.r))
		t.r += int(step)
		n -= step
	}
	return nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
