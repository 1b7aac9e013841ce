package frozen

import (
	"context"
	"fmt"
	"io"
	"os"
	"sort"
	"sync"

	"github.com/sporevm/spore/internal/vmm"
)

// view is a chain as one: the base file and, over it, what the layers add up to. A run of an older layer that newer
// ones cover is never read, so that the cost of reading a chain is bounded by its size and not by its depth.
type view struct {
	size   int64
	base   io.ReaderAt
	layers []*layer
	names  []string  // of the pieces of the layers, for errors
	segs   []segment // ascending, not overlapping

	mu    sync.Mutex // guards the buffers of the layers
	files []io.Closer
}

// segment is the part of one run of one layer that shows.
type segment struct {
	offset, length int64
	layer, run     int
}

func (s segment) end() int64 { return s.offset + s.length }

// newView puts layers, oldest first, over base.
func newView(size int64, base io.ReaderAt, layers []*layer, names []string) *view {
	v := &view{size: size, base: base, layers: layers, names: names}
	for i := len(layers) - 1; i >= 0; i-- {
		below := make([]segment, len(layers[i].runs))
		for n, r := range layers[i].runs {
			below[n] = segment{offset: r.offset, length: r.length, layer: i, run: n}
		}
		v.segs = overlay(v.segs, below)
	}
	return v
}

// overlay merges two ascending lists; what top covers of below is dropped.
func overlay(top, below []segment) []segment {
	if len(top) == 0 {
		return below
	}
	out := make([]segment, 0, len(top)+len(below))
	t := 0
	for _, b := range below {
		for b.length > 0 {
			for t < len(top) && top[t].end() <= b.offset {
				out = append(out, top[t])
				t++
			}
			if t == len(top) || top[t].offset >= b.end() {
				out = append(out, b)
				break
			}
			if before := top[t].offset - b.offset; before > 0 {
				out = append(out, segment{offset: b.offset, length: before, layer: b.layer, run: b.run})
			}
			cut := min(top[t].end(), b.end()) - b.offset
			b.offset += cut
			b.length -= cut
		}
	}
	return append(out, top[t:]...)
}

// data is what a segment shows, valid until the next call; nil when it is zeros. Callers hold mu.
func (v *view) data(s segment) ([]byte, error) {
	l := v.layers[s.layer]
	r := l.runs[s.run]
	if r.codec == codecZero {
		return nil, nil
	}
	b, err := l.read(s.run)
	if err != nil {
		return nil, damaged("piece "+v.names[s.layer], err)
	}
	return b[s.offset-r.offset:][:s.length], nil
}

// Each yields what the layers add to the base, in ascending order; it makes a view a vmm.Patches.
func (v *view) Each(ctx context.Context, fn func(offset int64, data []byte) error) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, s := range v.segs {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := v.data(s)
		if err != nil {
			return err
		}
		if b != nil {
			if err := fn(s.offset, b); err != nil {
				return err
			}
			continue
		}
		for off := s.offset; off < s.end(); off += frameSize {
			if err := fn(off, zeroFrame[:min(frameSize, s.end()-off)]); err != nil {
				return err
			}
		}
	}
	return nil
}

// ReadAt reads the chain as one. It may be called from many goroutines.
func (v *view) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= v.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > v.size-off {
		p, eof = p[:v.size-off], io.EOF
	}
	i := sort.Search(len(v.segs), func(i int) bool { return v.segs[i].end() > off })
	for n := 0; n < len(p); {
		at := off + int64(n)
		var err error
		switch {
		case i < len(v.segs) && v.segs[i].offset <= at:
			s := v.segs[i]
			part := p[n:min(len(p), n+int(s.end()-at))]
			if err = v.copySegment(part, s, at-s.offset); err == nil {
				n += len(part)
				i++
			}
		default:
			part := p[n:]
			if i < len(v.segs) {
				part = p[n:min(len(p), n+int(v.segs[i].offset-at))]
			}
			if err = readFull(v.base, part, at); err == nil {
				n += len(part)
			}
		}
		if err != nil {
			return n, err
		}
	}
	return len(p), eof
}

func (v *view) copySegment(dst []byte, s segment, skip int64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	b, err := v.data(s)
	if err != nil {
		return err
	}
	if b == nil {
		clear(dst)
		return nil
	}
	copy(dst, b[skip:])
	return nil
}

// readFull reads all of p; what lies beyond the end of the file reads as zeros.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == io.EOF {
		clear(p[n:])
		return nil
	}
	return err
}

// covered lists the ranges where layers lie over the base.
func (v *view) covered() []vmm.Range {
	var out []vmm.Range
	for _, s := range v.segs {
		out = appendRange(out, vmm.Range{Offset: s.offset, Length: s.length})
	}
	return out
}

// applyTo writes what the layers add into a copy of the base. Zeros become holes.
func (v *view) applyTo(ctx context.Context, f *os.File) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, s := range v.segs {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := v.data(s)
		if err != nil {
			return err
		}
		if b == nil {
			err = punch(f, vmm.Range{Offset: s.offset, Length: s.length})
		} else {
			_, err = f.WriteAt(b, s.offset)
		}
		if err != nil {
			return fmt.Errorf("apply layer: %w", err)
		}
	}
	return nil
}

func (v *view) Close() error {
	var first error
	for _, f := range v.files {
		if err := f.Close(); err != nil && first == nil {
			first = err
		}
	}
	v.files = nil
	return first
}
