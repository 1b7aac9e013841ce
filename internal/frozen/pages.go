package frozen

import (
	"errors"
	"fmt"
	"os"
	"sort"
	"sync"

	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/firecracker/pager"
)

// Pages are memory layers over a base as a page server reads them: in any order, from many goroutines, and again and again
// around the same places. It implements pager.Source.
type Pages struct {
	base  pager.Source
	files []*os.File
	view  *view

	scratch sync.Pool // of frames as they are stored

	mu     sync.Mutex
	frames []frame // the latest used last
}

// frame is an unpacked frame of a layer.
type frame struct {
	layer, run int
	data       []byte
}

// keptFrames bounds the unpacked frames that Pages keep, which are of 256 KiB.
const keptFrames = 16

// OpenPages puts memory layers, oldest first, over base. names are what errors call them. The Pages close base and files;
// on error they stay open. It fails with CodeDamaged, naming the layer.
func OpenPages(base pager.Source, names []string, files []*os.File) (*Pages, error) {
	if len(names) != len(files) {
		return nil, fmt.Errorf("frozen: %d names of %d layers", len(names), len(files))
	}
	var layers []*layer
	for i, f := range files {
		st, err := f.Stat()
		if err != nil {
			return nil, fmt.Errorf("open layer %s: %w", names[i], err)
		}
		l, err := parseLayer(f, st.Size())
		switch {
		case err != nil:
		case l.kind != layerOfMemory:
			err = errors.New("it is not a memory layer")
		case l.size != base.Size():
			err = fmt.Errorf("it belongs over %d bytes, not %d", l.size, base.Size())
		}
		if err != nil {
			return nil, damaged("piece "+names[i], err)
		}
		layers = append(layers, l)
	}
	p := &Pages{base: base, files: files, view: newView(base.Size(), nil, layers, names)}
	p.scratch.New = func() any { b := make([]byte, frameSize); return &b }
	return p, nil
}

// Size is the size of the memory in bytes.
func (p *Pages) Size() int64 { return p.base.Size() }

// Run says what the memory holds from off on; see pager.Source.
func (p *Pages) Run(off int64, buf []byte) (n int64, zero bool, err error) {
	segs := p.view.segs
	i := sort.Search(len(segs), func(i int) bool { return segs[i].end() > off })
	if i == len(segs) {
		return p.base.Run(off, buf)
	}
	s := segs[i]
	if s.offset > off {
		n, zero, err := p.base.Run(off, buf[:min(int64(len(buf)), s.offset-off)])
		return min(n, s.offset-off), zero, err
	}
	if p.view.layers[s.layer].runs[s.run].codec == codecZero {
		return s.end() - off, true, nil
	}
	data, err := p.frame(s.layer, s.run)
	if err != nil {
		return 0, false, err
	}
	start := p.view.layers[s.layer].runs[s.run].offset
	return int64(copy(buf, data[off-start:s.end()-start])), false, nil
}

// frame is the content of a run, checked.
func (p *Pages) frame(of, run int) ([]byte, error) {
	p.mu.Lock()
	for i, f := range p.frames {
		if f.layer == of && f.run == run {
			p.frames = append(append(p.frames[:i], p.frames[i+1:]...), f)
			p.mu.Unlock()
			return f.data, nil
		}
	}
	p.mu.Unlock()
	// Outside of the lock, since it may wait for the disk. Two who want the same frame at once both read it.
	from := p.view.layers[of]
	scratch := p.scratch.Get().(*[]byte)
	reader := &layer{f: from.f, runs: from.runs, held: -1, buf: make([]byte, 0, from.runs[run].length), packed: *scratch}
	data, err := reader.read(run)
	if from.runs[run].codec == codecS2 {
		p.scratch.Put(scratch) // a raw frame is what was read, and keeps it
	}
	if err != nil {
		return nil, damaged("piece "+p.view.names[of], err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.frames) >= keptFrames {
		p.frames = append(p.frames[:0], p.frames[1:]...)
	}
	p.frames = append(p.frames, frame{layer: of, run: run, data: data})
	return data, nil
}

// Close closes the layers and the base.
func (p *Pages) Close() error {
	errs := []error{p.base.Close()}
	for _, f := range p.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// HotSetPath is where the hot set of a frozen memory is kept: beside the data of its top piece, a layer or else the base, so
// that it goes when that goes. The file need not be there. Nothing depends on what is in it.
func HotSetPath(top string) string { return top + ".hot" }

// Covered are the ranges of memory that layers lie over, as their indexes say; nothing else is read.
func (v *view) Covered() []vmm.Range { return v.covered() }

// LayerFiles are the open files of what lies over the base, oldest first; it makes a view a pager.Layered.
func (v *view) LayerFiles() (names []string, files []*os.File) {
	for _, l := range v.layers {
		f, ok := l.f.(*os.File)
		if !ok {
			return nil, nil
		}
		files = append(files, f)
	}
	return v.names, files
}
