package pager

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// Source is guest RAM as it was frozen. It is used from many goroutines at once.
type Source interface {
	// Size is the size of RAM in bytes.
	Size() int64

	// Run says what RAM holds from off on, which is below Size: n bytes of zeros, perhaps more than p has room for, and p is
	// then not touched; or the n bytes that it put at the start of p. Offsets and lengths are multiples of vmm.PageSize and n
	// is not 0. It fails with spore.CodeDamaged, naming the file, when the bytes are not those that were written.
	Run(off int64, p []byte) (n int64, zero bool, err error)

	Close() error
}

// file is a Source that is one memory file. Holes are zeros.
type file struct {
	f    *os.File
	name string
	size int64
}

// OpenFile serves a memory file of size bytes, as it lies. name is what errors call it. The Source closes f.
func OpenFile(f *os.File, name string, size int64) (Source, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("pager: %s: %w", name, err)
	}
	if size <= 0 || size%vmm.PageSize != 0 {
		return nil, spore.Invalidf("memory", "a memory of %d bytes cannot be served", size)
	}
	if !st.Mode().IsRegular() || st.Size() != size {
		return nil, Damaged(name, fmt.Errorf("it has %d bytes, not %d", st.Size(), size))
	}
	return &file{f: f, name: name, size: size}, nil
}

// Damaged is the refusal of a file whose bytes are not those that were written.
func Damaged(name string, cause error) error {
	return spore.Errorf(spore.CodeDamaged, "%s is damaged: %v", name, cause).WithCause(cause).
		WithHint("run spore fsck to see what stands on it; take it from another node or make it anew")
}

func (s *file) Size() int64  { return s.size }
func (s *file) Close() error { return s.f.Close() }

func (s *file) Run(off int64, p []byte) (int64, bool, error) {
	if off < 0 || off >= s.size {
		return 0, false, fmt.Errorf("pager: offset %d is outside of memory", off)
	}
	limit := min(s.size-off, int64(len(p)))
	// The file position is moved by this and used by nobody. Where the file system knows no holes the whole file is data.
	data, err := unix.Seek(int(s.f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		// A hole to the end; or the end came before, where nothing may be made up.
		if st, err := s.f.Stat(); err != nil || st.Size() != s.size {
			return 0, false, Damaged(s.name, errors.Join(errors.New("it has become shorter"), err))
		}
		return s.size - off, true, nil
	case err == nil && data-data%vmm.PageSize > off:
		return data - data%vmm.PageSize - off, true, nil
	}
	if n, err := s.f.ReadAt(p[:limit], off); int64(n) < limit {
		if err == io.EOF {
			err = errors.New("it has become shorter")
		}
		return 0, false, Damaged(s.name, fmt.Errorf("at %d: %w", off+int64(n), err))
	}
	n, zero := uniform(p[:limit])
	return n, zero, nil
}

var zeroPage [vmm.PageSize]byte

// uniform finds how far p goes on as it begins: in pages of zeros or in others.
func uniform(p []byte) (n int64, zero bool) {
	for i := 0; i < len(p); i += vmm.PageSize {
		z := bytes.Equal(p[i:i+vmm.PageSize], zeroPage[:])
		if i == 0 {
			zero = z
		} else if z != zero {
			return int64(i), zero
		}
	}
	return int64(len(p)), zero
}

// overlay is a Source of pages over another.
type overlay struct {
	base Source
	top  interface {
		// run is Source.Run for what lies over the base. Where nothing does, ok is false and n is how far.
		run(off int64, p []byte) (n int64, zero, ok bool, err error)
		Close() error
	}
}

func (o *overlay) Size() int64  { return o.base.Size() }
func (o *overlay) Close() error { return errors.Join(o.top.Close(), o.base.Close()) }

func (o *overlay) Run(off int64, p []byte) (int64, bool, error) {
	n, zero, ok, err := o.top.run(off, p)
	if ok || err != nil {
		return n, zero, err
	}
	m, zero, err := o.base.Run(off, p[:min(n, int64(len(p)))])
	return min(n, m), zero, err
}
