package main

import (
	"io"
	"math/bits"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

const pageSize = 4096

// memory is guest RAM: mapped, in one or two regions, as the real VMM maps it. The guest reaches it by system calls and never by
// loads and stores, so that a page fault that nobody serves blocks the guest and not the process.
type memory struct {
	regions []region
	size    int64
	track   bool // a Diff snapshot holds what was written, not what is resident

	mu    sync.Mutex
	dirty []uint64 // a bit for each page written since the latest snapshot
}

type region struct {
	offset int64 // in the memory file
	bytes  []byte
}

// gap is where the hole for devices below 4 GiB begins.
func (r release) gap() int64 {
	if r.since(13) {
		return 3 << 30
	}
	return 3328 << 20
}

// layout cuts RAM in regions, (offset, length).
func (r release) layout(size int64) [][2]int64 {
	if size <= r.gap() {
		return [][2]int64{{0, size}}
	}
	return [][2]int64{{0, r.gap()}, {r.gap(), size - r.gap()}}
}

func newMemory(size int64, track bool) *memory {
	return &memory{size: size, track: track, dirty: make([]uint64, (size/pageSize+63)/64)}
}

// anonymous maps RAM that belongs to no file.
func anonymous(rel release, size int64, track bool) (*memory, error) {
	m := newMemory(size, track)
	for _, part := range rel.layout(size) {
		b, err := unix.Mmap(-1, 0, int(part[1]), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
		if err != nil {
			return nil, err
		}
		m.regions = append(m.regions, region{part[0], b})
	}
	return m, nil
}

var errShortFile = say("Total sum of memory regions exceeds largest possible file offset")

// fromFile maps a memory file copy-on-write.
func fromFile(rel release, path string, size int64, track bool) (*memory, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, say("Failed to load guest memory: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, say("Failed to load guest memory: %w", err)
	}
	if fi.Size() < size && !rel.since(14) {
		return nil, say("Failed to restore guest memory: Cannot create mmap region: The specified file offset and length is greater then file length")
	}
	if fi.Size() < size {
		return nil, say("Failed to restore guest memory: %w", errShortFile)
	}
	m := newMemory(size, track)
	for _, part := range rel.layout(size) {
		b, err := unix.Mmap(int(f.Fd()), part[0], int(part[1]), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_NORESERVE)
		if err != nil {
			return nil, say("Failed to restore guest memory: Cannot create mmap region: %w", err)
		}
		m.regions = append(m.regions, region{part[0], b})
	}
	return m, nil
}

// ReadAt reads as the guest does.
func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	return m.each(p, off, func(local, remote []unix.Iovec) (int, error) { return processRead(local, remote) })
}

// WriteAt writes as the guest does.
func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	n, err := m.each(p, off, func(local, remote []unix.Iovec) (int, error) { return processWrite(local, remote) })
	m.mu.Lock()
	defer m.mu.Unlock()
	for page := off / pageSize; n > 0 && page <= (off+int64(n)-1)/pageSize; page++ {
		m.dirty[page/64] |= 1 << (page % 64)
	}
	return n, err
}

func (m *memory) each(p []byte, off int64, move func(local, remote []unix.Iovec) (int, error)) (int, error) {
	if off < 0 || off > m.size || int64(len(p)) > m.size-off {
		return 0, say("%d bytes at %d are outside of memory", len(p), off)
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		for _, r := range m.regions {
			end := r.offset + int64(len(r.bytes))
			if at < r.offset || at >= end {
				continue
			}
			n := int(min(end-at, int64(len(p)-done)))
			local := []unix.Iovec{{Base: &p[done], Len: uint64(n)}}
			remote := []unix.Iovec{{Base: &r.bytes[at-r.offset], Len: uint64(n)}}
			n, err := move(local, remote)
			if err != nil {
				return done, err
			}
			if n == 0 {
				return done, io.ErrUnexpectedEOF
			}
			done += n
			break
		}
	}
	return done, nil
}

func remotes(v []unix.Iovec) []unix.RemoteIovec {
	out := make([]unix.RemoteIovec, len(v))
	for i := range v {
		out[i] = unix.RemoteIovec{Base: uintptr(unsafe.Pointer(v[i].Base)), Len: int(v[i].Len)}
	}
	return out
}

func processRead(local, remote []unix.Iovec) (int, error) {
	return unix.ProcessVMReadv(os.Getpid(), local, remotes(remote), 0)
}

func processWrite(local, remote []unix.Iovec) (int, error) {
	return unix.ProcessVMWritev(os.Getpid(), local, remotes(remote), 0)
}

// save writes RAM to a memory file: all of it, or only the pages that a Diff holds, into what may be there.
func (m *memory) save(path string, diff bool) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o666)
	if err != nil {
		return backing("open", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return backing("get_metadata", err)
	}
	if fi.Size() != 0 && fi.Size() != m.size {
		if err := f.Truncate(0); err != nil {
			return backing("truncate", err)
		}
	}
	if err := f.Truncate(m.size); err != nil {
		return backing("set_length", err)
	}
	pages := m.all()
	if diff {
		if pages, err = m.changed(); err != nil {
			return err
		}
	}
	if err := m.dump(f, pages); err != nil {
		return &saveError{"Cannot write memory file: Cannot dump memory: ", err}
	}
	m.mu.Lock()
	clear(m.dirty)
	m.mu.Unlock()
	if err := f.Sync(); err != nil {
		return backing("sync_all", err)
	}
	return nil
}

// saveError is why a snapshot was not taken.
type saveError struct {
	what  string
	cause error
}

func (e *saveError) Error() string { return e.what }
func (e *saveError) Unwrap() error { return e.cause }

func backing(what string, err error) error {
	return &saveError{"Cannot perform " + what + " on the memory backing file: ", err}
}

func (m *memory) all() []uint64 {
	set := make([]uint64, len(m.dirty))
	for page := range m.size / pageSize {
		set[page/64] |= 1 << (page % 64)
	}
	return set
}

func (m *memory) changed() ([]uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	set := append([]uint64(nil), m.dirty...)
	if m.track {
		return set, nil
	}
	for _, r := range m.regions {
		resident := make([]byte, len(r.bytes)/pageSize)
		_, _, no := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&r.bytes[0])), uintptr(len(r.bytes)), uintptr(unsafe.Pointer(&resident[0])))
		if no != 0 {
			return nil, &saveError{"Cannot get dirty bitmap: Error calling mincore: ", no}
		}
		for i, b := range resident {
			if b&1 != 0 {
				page := r.offset/pageSize + int64(i)
				set[page/64] |= 1 << (page % 64)
			}
		}
	}
	return set, nil
}

// dump writes the pages of a set, in runs.
func (m *memory) dump(f *os.File, set []uint64) error {
	const most = 1024 // pages in one write
	buf := make([]byte, most*pageSize)
	pages := m.size / pageSize
	has := func(p int64) bool { return set[p/64]>>(p%64)&1 != 0 }
	for p := int64(0); p < pages; {
		if set[p/64]>>(p%64) == 0 {
			p = (p/64 + 1) * 64
			continue
		}
		p += int64(bits.TrailingZeros64(set[p/64] >> (p % 64)))
		n := int64(1)
		for n < most && p+n < pages && has(p+n) {
			n++
		}
		b := buf[:n*pageSize]
		if _, err := m.ReadAt(b, p*pageSize); err != nil {
			return err
		}
		if _, err := f.WriteAt(b, p*pageSize); err != nil {
			return err
		}
		p += n
	}
	return nil
}
