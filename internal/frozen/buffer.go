package frozen

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/vmm"
)

// blockSize is the unit in which buffers are mapped and reused.
const blockSize = 8 << 20

// keepBlocks is how many free blocks stay mapped between captures, so that a small capture pays for no page faults.
const keepBlocks = 8

// bufferPool hands out memory that has been touched before, because a page fault per copied page would cost the
// standing guest more than the copy itself.
type bufferPool struct {
	mu    sync.Mutex
	limit int64 // bytes out and free, all in all
	inUse int64
	free  [][]byte
}

func newBufferPool(limit int64) *bufferPool { return &bufferPool{limit: limit} }

// get returns a populated block, or nil when the limit is reached.
func (p *bufferPool) get() ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		b := p.free[n-1]
		p.free = p.free[:n-1]
		p.inUse += blockSize
		return b, nil
	}
	if p.inUse+blockSize > p.limit {
		return nil, nil
	}
	b, err := unix.Mmap(-1, 0, blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map a buffer: %w", err)
	}
	if err := unix.Madvise(b, unix.MADV_POPULATE_WRITE); err != nil { // Linux before 5.14
		for i := 0; i < len(b); i += pageSize {
			b[i] = 0
		}
	}
	p.inUse += blockSize
	return b, nil
}

func (p *bufferPool) put(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inUse -= blockSize
	if len(p.free) < keepBlocks {
		p.free = append(p.free, b)
		return
	}
	unix.Munmap(b) //nolint:errcheck // fails only for what is no mapping
}

func (p *bufferPool) drain() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.free {
		unix.Munmap(b) //nolint:errcheck // as above
	}
	p.free = nil
}

// span is a copied range of guest RAM: in memory, or in the spill file when mem is nil.
type span struct {
	vmm.Range
	mem []byte
	pos int64
}

// arena holds the copied pages of one capture until they are written out.
type arena struct {
	pool   *bufferPool
	blocks [][]byte
	cur    int // blocks in use
	used   int // bytes used of the block cur-1
	dir    string
	spill  *os.File // what does not fit the pool; opened at first need
	end    int64
}

func newArena(pool *bufferPool, dir string) *arena {
	return &arena{pool: pool, dir: dir, used: blockSize}
}

// reserve readies room for n more bytes, as far as the pool allows.
func (a *arena) reserve(n int64) error {
	have := int64(blockSize-a.used) + int64(len(a.blocks)-a.cur)*blockSize
	for ; have < n; have += blockSize {
		b, err := a.pool.get()
		if err != nil || b == nil {
			return err
		}
		a.blocks = append(a.blocks, b)
	}
	return nil
}

// place finds room for a range that is no longer than a block can hold.
func (a *arena) place(r vmm.Range) (span, error) {
	n := int(r.Length)
	if n > blockSize-a.used {
		if a.cur == len(a.blocks) {
			b, err := a.pool.get()
			if err != nil {
				return span{}, err
			}
			if b == nil {
				return a.placeInFile(r)
			}
			a.blocks = append(a.blocks, b)
		}
		a.cur++
		a.used = 0
	}
	mem := a.blocks[a.cur-1][a.used:][:n:n]
	a.used += n
	return span{Range: r, mem: mem}, nil
}

func (a *arena) placeInFile(r vmm.Range) (span, error) {
	if a.spill == nil {
		f, err := os.OpenFile(filepath.Join(a.dir, "spill"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return span{}, err
		}
		a.spill = f
	}
	s := span{Range: r, pos: a.end}
	a.end += r.Length
	return s, nil
}

// copy takes ranges of guest RAM into the arena, several at a time, and returns them in the same order.
func (a *arena) copy(ctx context.Context, mem vmm.Memory, ranges []vmm.Range) ([]span, error) {
	parts := split(ranges, frameSize)
	spans := make([]span, len(parts))
	for i, r := range parts {
		var err error
		if spans[i], err = a.place(r); err != nil {
			return nil, err
		}
	}
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range min(runtime.GOMAXPROCS(0), 4, len(spans)) {
		g.Go(func() error {
			var scratch []byte
			for {
				// Small shares, so that the workers end together; not single spans, which may be one page.
				i := int(next.Add(16)) - 16
				if i >= len(spans) {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				for _, s := range spans[i:min(i+16, len(spans))] {
					dst := s.mem
					if dst == nil {
						if scratch == nil {
							scratch = make([]byte, frameSize)
						}
						dst = scratch[:s.Length]
					}
					if n, err := mem.ReadAt(dst, s.Offset); n < len(dst) {
						return fmt.Errorf("read guest memory at %d: %w", s.Offset, err)
					}
					if s.mem == nil {
						if _, err := a.spill.WriteAt(dst, s.pos); err != nil {
							return err
						}
					}
				}
			}
		})
	}
	return spans, g.Wait()
}

// bytes returns what a span holds; buf is used when it is in the file.
func (a *arena) bytes(s span, buf []byte) ([]byte, error) {
	if s.mem != nil {
		return s.mem, nil
	}
	buf = buf[:s.Length]
	_, err := a.spill.ReadAt(buf, s.pos)
	return buf, err
}

func (a *arena) release() {
	if a == nil {
		return
	}
	for _, b := range a.blocks {
		a.pool.put(b)
	}
	a.blocks, a.cur, a.used = nil, 0, blockSize
	if a.spill != nil {
		a.spill.Close()
		os.Remove(a.spill.Name())
		a.spill = nil
	}
}

// cut returns the parts of spans that lie in keep. Both are ascending.
func cut(spans []span, keep []vmm.Range) []span {
	var out []span
	for _, s := range spans {
		for len(keep) > 0 && keep[0].End() <= s.Offset {
			keep = keep[1:]
		}
		for _, k := range keep {
			if k.Offset >= s.End() {
				break
			}
			start, end := max(s.Offset, k.Offset), min(s.End(), k.End())
			part := span{Range: vmm.Range{Offset: start, Length: end - start}, pos: s.pos + start - s.Offset}
			if s.mem != nil {
				part.mem = s.mem[start-s.Offset : end-s.Offset]
			}
			out = append(out, part)
		}
	}
	return out
}
