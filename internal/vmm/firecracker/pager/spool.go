package pager

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"

	"github.com/cespare/xxhash/v2"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// A spool holds the pages that patches put over a base file, for patches that only this process can read. All numbers are
// little-endian.
//
//	pages    4096 bytes each, in the order in which they came
//	index    16 bytes for each page of RAM that has one, ascending
//	  0  page of RAM, 4 bytes    4  place in the file in pages, 4 bytes; all ones for zeros    8  XXH64 of the page
//	footer   40 bytes
//	  0  magic "SPORESPL"    8  size of RAM, 8    16  entries, 8    24  XXH64 of the index, 8    32  XXH64 of the 32 bytes before
const (
	spoolMagic  = "SPORESPL"
	spoolEntry  = 16
	spoolFooter = 40
	spoolZero   = ^uint32(0)
)

// spoolPage is an entry of the index.
type spoolPage struct {
	page, place uint32
	sum         uint64
}

// writeSpool writes what patches put over a memory of size bytes to f, which is empty.
func writeSpool(ctx context.Context, f *os.File, size int64, patches vmm.Patches) error {
	w := bufio.NewWriterSize(f, 1<<20)
	pages := map[uint32]spoolPage{}
	place := uint32(0)
	err := patches.Each(ctx, func(off int64, data []byte) error {
		n := int64(len(data))
		if off < 0 || off%vmm.PageSize != 0 || n%vmm.PageSize != 0 || off > size || n > size-off {
			return fmt.Errorf("pager: a patch of %d bytes at %d of %d", n, off, size)
		}
		for ; len(data) > 0; off, data = off+vmm.PageSize, data[vmm.PageSize:] {
			page := data[:vmm.PageSize]
			p := spoolPage{page: uint32(off / vmm.PageSize), place: spoolZero}
			if _, zero := uniform(page); !zero {
				if place == spoolZero {
					return errors.New("pager: more patches than a spool holds")
				}
				p.place, p.sum = place, xxhash.Sum64(page)
				place++
				if _, err := w.Write(page); err != nil {
					return err
				}
			}
			pages[p.page] = p
		}
		return nil
	})
	if err != nil {
		return err
	}
	index := make([]spoolPage, 0, len(pages))
	for _, p := range pages {
		index = append(index, p)
	}
	sort.Slice(index, func(i, j int) bool { return index[i].page < index[j].page })
	b := make([]byte, 0, len(index)*spoolEntry+spoolFooter)
	for _, p := range index {
		b = binary.LittleEndian.AppendUint32(b, p.page)
		b = binary.LittleEndian.AppendUint32(b, p.place)
		b = binary.LittleEndian.AppendUint64(b, p.sum)
	}
	sum := xxhash.Sum64(b)
	foot := append(make([]byte, 0, spoolFooter), spoolMagic...)
	foot = binary.LittleEndian.AppendUint64(foot, uint64(size))
	foot = binary.LittleEndian.AppendUint64(foot, uint64(len(index)))
	foot = binary.LittleEndian.AppendUint64(foot, sum)
	foot = binary.LittleEndian.AppendUint64(foot, xxhash.Sum64(foot))
	if _, err := w.Write(append(b, foot...)); err != nil {
		return err
	}
	return w.Flush()
}

// spool is an open spool.
type spool struct {
	f     io.ReaderAt
	name  string
	index []spoolPage
	close func() error
}

// parseSpool reads and checks the index of a spool over a memory of size bytes.
func parseSpool(f io.ReaderAt, fileSize, size int64) ([]spoolPage, error) {
	if fileSize < spoolFooter {
		return nil, errors.New("too short for a spool")
	}
	foot := make([]byte, spoolFooter)
	if _, err := f.ReadAt(foot, fileSize-spoolFooter); err != nil {
		return nil, fmt.Errorf("footer: %w", err)
	}
	if string(foot[:8]) != spoolMagic || xxhash.Sum64(foot[:32]) != binary.LittleEndian.Uint64(foot[32:]) {
		return nil, errors.New("footer: checksum does not match")
	}
	count := binary.LittleEndian.Uint64(foot[16:])
	if got := binary.LittleEndian.Uint64(foot[8:]); got != uint64(size) {
		return nil, fmt.Errorf("it belongs over %d bytes, not %d", got, size)
	}
	if count > uint64(size/vmm.PageSize) || count > uint64(fileSize-spoolFooter)/spoolEntry {
		return nil, fmt.Errorf("footer: %d entries do not fit", count)
	}
	end := fileSize - spoolFooter - int64(count)*spoolEntry
	if end%vmm.PageSize != 0 {
		return nil, errors.New("there are bytes that belong to no page")
	}
	b := make([]byte, count*spoolEntry)
	if _, err := f.ReadAt(b, end); err != nil && count > 0 {
		return nil, fmt.Errorf("index: %w", err)
	}
	if xxhash.Sum64(b) != binary.LittleEndian.Uint64(foot[24:]) {
		return nil, errors.New("index: checksum does not match")
	}
	index := make([]spoolPage, count)
	for i := range index {
		e := b[i*spoolEntry:]
		p := spoolPage{page: binary.LittleEndian.Uint32(e), place: binary.LittleEndian.Uint32(e[4:]), sum: binary.LittleEndian.Uint64(e[8:])}
		if int64(p.page) >= size/vmm.PageSize || i > 0 && p.page <= index[i-1].page {
			return nil, fmt.Errorf("index: entry %d is of page %d", i, p.page)
		}
		if p.place != spoolZero && int64(p.place) >= end/vmm.PageSize {
			return nil, fmt.Errorf("index: entry %d lies outside of the file", i)
		}
		index[i] = p
	}
	return index, nil
}

// openSpool puts a spool over base. The Source closes f.
func openSpool(base Source, f *os.File, name string) (Source, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("pager: %w", err)
	}
	index, err := parseSpool(f, st.Size(), base.Size())
	if err != nil {
		return nil, Damaged(name, err)
	}
	return &overlay{base: base, top: &spool{f: f, name: name, index: index, close: f.Close}}, nil
}

func (s *spool) Close() error { return s.close() }

func (s *spool) run(off int64, p []byte) (n int64, zero, ok bool, err error) {
	page := uint32(off / vmm.PageSize)
	i := sort.Search(len(s.index), func(i int) bool { return s.index[i].page >= page })
	if i == len(s.index) {
		return 1 << 62, false, false, nil
	}
	first := s.index[i]
	if first.page > page {
		return int64(first.page-page) * vmm.PageSize, false, false, nil
	}
	zero = first.place == spoolZero
	for ; i < len(s.index) && (zero || n < int64(len(p))); i++ {
		e := s.index[i]
		if int64(e.page) != int64(page)+n/vmm.PageSize || zero != (e.place == spoolZero) {
			break
		}
		if !zero {
			if err := s.read(e, p[n:n+vmm.PageSize]); err != nil {
				return 0, false, false, err
			}
		}
		n += vmm.PageSize
	}
	return n, zero, true, nil
}

func (s *spool) read(e spoolPage, p []byte) error {
	if _, err := s.f.ReadAt(p, int64(e.place)*vmm.PageSize); err != nil {
		return Damaged(s.name, fmt.Errorf("page %d: %w", e.page, err))
	}
	if xxhash.Sum64(p) != e.sum {
		return Damaged(s.name, fmt.Errorf("page %d: checksum does not match", e.page))
	}
	return nil
}

// newSpool writes a spool into a file of dir that has no name.
func newSpool(ctx context.Context, dir string, size int64, patches vmm.Patches) (_ *os.File, err error) {
	f, err := os.CreateTemp(dir, ".spool-*")
	if err != nil {
		return nil, fmt.Errorf("pager: spool: %w", err)
	}
	if err = os.Remove(f.Name()); err == nil {
		err = writeSpool(ctx, f, size, patches)
	}
	if err != nil {
		var e *spore.Error
		if !errors.As(err, &e) {
			err = fmt.Errorf("pager: spool: %w", err)
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
