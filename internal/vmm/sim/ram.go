package sim

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// ram is guest memory: the file itself for a booted VM, private pages over it for a thawed one.
type ram struct {
	base *os.File
	size int64

	mu      sync.RWMutex
	private map[int64]*[vmm.PageSize]byte // by page number; nil map: shared with the file
	written map[int64]struct{}            // since Track; nil: not tracked
	closed  bool
}

func (r *ram) Size() int64 { return r.size }

func (r *ram) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("sim: read at negative offset %d", off)
	}
	if off >= r.size {
		return 0, io.EOF
	}
	var short error
	if int64(len(p)) > r.size-off {
		p, short = p[:r.size-off], io.EOF
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.closed {
		return 0, errExited()
	}
	if n, err := r.base.ReadAt(p, off); err != nil && err != io.EOF || n < len(p) {
		return n, fmt.Errorf("sim: memory file: %w", err)
	}
	if len(r.private) > 0 {
		for at := int64(0); at < int64(len(p)); {
			page, in := (off+at)/vmm.PageSize, (off+at)%vmm.PageSize
			n := min(vmm.PageSize-in, int64(len(p))-at)
			if own := r.private[page]; own != nil {
				copy(p[at:at+n], own[in:])
			}
			at += n
		}
	}
	return len(p), short
}

// WriteAt writes as the guest does.
func (r *ram) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > r.size || int64(len(p)) > r.size-off {
		return 0, fmt.Errorf("sim: write of %d bytes at %d is outside of memory of %d bytes", len(p), off, r.size)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return 0, errExited()
	}
	if r.private == nil {
		return r.base.WriteAt(p, off)
	}
	done := 0
	for done < len(p) {
		page, in := (off+int64(done))/vmm.PageSize, (off+int64(done))%vmm.PageSize
		own := r.private[page]
		if own == nil {
			own = new([vmm.PageSize]byte)
			if _, err := r.base.ReadAt(own[:], page*vmm.PageSize); err != nil && err != io.EOF {
				return done, fmt.Errorf("sim: memory file: %w", err)
			}
			r.private[page] = own
		}
		if r.written != nil {
			r.written[page] = struct{}{}
		}
		done += copy(own[in:], p[done:])
	}
	return done, nil
}

func (r *ram) Private(ctx context.Context) ([]vmm.Range, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if err := r.usable(); err != nil {
		return nil, err
	}
	return runs(r.private), ctx.Err()
}

func (r *ram) Track(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.usable(); err != nil {
		return err
	}
	r.written = map[int64]struct{}{}
	return ctx.Err()
}

func (r *ram) Written(ctx context.Context) ([]vmm.Range, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if err := r.usable(); err != nil {
		return nil, err
	}
	if r.written == nil {
		return nil, spore.Errorf(spore.CodeUnsupported, "writes of this VM are not being watched")
	}
	return runs(r.written), ctx.Err()
}

func (r *ram) usable() error {
	if r.closed {
		return errExited()
	}
	if r.private == nil {
		return spore.Errorf(spore.CodeUnsupported, "this VM shares its RAM with its memory file: the file is the memory")
	}
	return nil
}

func (r *ram) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed, r.private, r.written = true, nil, nil
	return r.base.Close()
}

func runs[V any](pages map[int64]V) []vmm.Range {
	numbers := make([]int64, 0, len(pages))
	for n := range pages {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	var out []vmm.Range
	for _, n := range numbers {
		if k := len(out); k > 0 && out[k-1].End() == n*vmm.PageSize {
			out[k-1].Length += vmm.PageSize
			continue
		}
		out = append(out, vmm.Range{Offset: n * vmm.PageSize, Length: vmm.PageSize})
	}
	return out
}
