package frozen

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/s2"
)

// layer is an open layer file whose header, index and footer have been checked.
type layer struct {
	f       io.ReaderAt
	kind    uint32
	capture string
	size    int64 // of the RAM or disk it belongs to
	runs    []run
	digest  string

	held   int // run that buf holds, or -1
	buf    []byte
	packed []byte
}

// parseLayer reads and checks all of a layer file but its frames. Errors say what is wrong with it.
func parseLayer(f io.ReaderAt, fileSize int64) (*layer, error) {
	if fileSize < headerSize+footerSize {
		return nil, errors.New("too short for a layer")
	}
	head, foot := make([]byte, headerSize), make([]byte, footerSize)
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	if _, err := f.ReadAt(foot, fileSize-footerSize); err != nil {
		return nil, fmt.Errorf("footer: %w", err)
	}
	switch {
	case string(head[:8]) != layerMagic:
		return nil, errors.New("header: not a layer")
	case !crcOK(head):
		return nil, errors.New("header: checksum does not match")
	case binary.LittleEndian.Uint32(head[8:]) > layerVersion:
		return nil, errNewer
	case string(foot[:8]) != footerMagic:
		return nil, errors.New("footer: not there")
	case !crcOK(foot):
		return nil, errors.New("footer: checksum does not match")
	case binary.LittleEndian.Uint32(head[8:]) != layerVersion:
		return nil, errors.New("header: no such version")
	case binary.LittleEndian.Uint32(head[40:]) != pageSize:
		return nil, fmt.Errorf("header: page size %d", binary.LittleEndian.Uint32(head[40:]))
	case !isZero(head[44:60]) || !isZero(foot[32:60]):
		return nil, errors.New("reserved bytes are in use")
	}
	l := &layer{
		f: f, held: -1,
		kind:    binary.LittleEndian.Uint32(head[12:]),
		capture: hex.EncodeToString(head[16:32]),
		size:    int64(binary.LittleEndian.Uint64(head[32:])),
	}
	if l.kind != layerOfMemory && l.kind != layerOfDisk {
		return nil, fmt.Errorf("header: kind %d", l.kind)
	}
	if l.size < 0 || l.size%pageSize != 0 {
		return nil, fmt.Errorf("header: size %d", l.size)
	}
	count, place := binary.LittleEndian.Uint64(foot[8:]), int64(binary.LittleEndian.Uint64(foot[16:]))
	room := fileSize - headerSize - footerSize
	if count > uint64(room)/entrySize || place != fileSize-footerSize-int64(count)*entrySize {
		return nil, errors.New("footer: the index does not fit the file")
	}
	index := make([]byte, count*entrySize)
	if len(index) > 0 {
		if _, err := f.ReadAt(index, place); err != nil {
			return nil, fmt.Errorf("index: %w", err)
		}
	}
	if xxhash.Sum64(index) != binary.LittleEndian.Uint64(foot[24:]) {
		return nil, errors.New("index: checksum does not match")
	}
	if err := l.parseIndex(index, place); err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	l.digest = bytesDigest(head, index, foot)
	return l, nil
}

// parseIndex checks the entries against each other and against the file: frames fill it without gaps up to end.
func (l *layer) parseIndex(index []byte, end int64) error {
	l.runs = make([]run, 0, len(index)/entrySize)
	place, last := int64(headerSize), int64(0)
	for n := 0; len(index) > 0; n, index = n+1, index[entrySize:] {
		r := parseRun(index)
		bad := ""
		switch {
		case r.offset < last || r.offset%pageSize != 0 || r.offset > l.size:
			bad = "offset"
		case r.length <= 0 || r.length%pageSize != 0 || r.length > l.size-r.offset:
			bad = "length"
		case r.place != place || int64(r.stored) > end-place:
			bad = "place"
		case r.codec == codecZero && (r.stored != 0 || r.sum != 0):
			bad = "zero run with a frame"
		case r.codec != codecZero && r.length > frameSize:
			bad = "length of a frame"
		case r.codec == codecRaw && int64(r.stored) != r.length:
			bad = "length of a raw frame"
		case r.codec == codecS2 && (r.stored == 0 || int64(r.stored) >= r.length):
			bad = "length of a packed frame"
		case r.codec > codecS2:
			bad = "codec"
		}
		if bad != "" {
			return fmt.Errorf("run %d: %s", n, bad)
		}
		place += int64(r.stored)
		last = r.end()
		l.runs = append(l.runs, r)
	}
	if place != end {
		return errors.New("there are bytes that belong to no run")
	}
	return nil
}

// read returns the content of run i, checked, valid until the next read. It must not be called for zero runs, which
// may be longer than any buffer.
func (l *layer) read(i int) ([]byte, error) {
	if l.held == i {
		return l.buf, nil
	}
	l.held = -1
	r := l.runs[i]
	if cap(l.buf) == 0 {
		l.buf, l.packed = make([]byte, 0, frameSize), make([]byte, frameSize)
	}
	stored := l.packed[:r.stored]
	if _, err := l.f.ReadAt(stored, r.place); err != nil {
		return nil, fmt.Errorf("frame %d at %d: %w", i, r.place, err)
	}
	if xxhash.Sum64(stored) != r.sum {
		return nil, fmt.Errorf("frame %d at %d: checksum does not match", i, r.place)
	}
	if r.codec == codecRaw {
		l.buf, l.packed = stored, l.buf[:cap(l.buf)]
	} else {
		n, err := s2.DecodedLen(stored)
		if err != nil || int64(n) != r.length {
			return nil, fmt.Errorf("frame %d at %d: does not unpack to %d bytes", i, r.place, r.length)
		}
		if l.buf, err = s2.Decode(l.buf[:cap(l.buf)], stored); err != nil {
			return nil, fmt.Errorf("frame %d at %d: %w", i, r.place, err)
		}
	}
	l.held = i
	return l.buf, nil
}

// readAll checks every frame.
func (l *layer) readAll() error {
	for i, r := range l.runs {
		if r.codec == codecZero {
			continue
		}
		if _, err := l.read(i); err != nil {
			return err
		}
	}
	return nil
}
