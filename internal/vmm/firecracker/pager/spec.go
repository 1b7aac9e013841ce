package pager

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// Layered is what patches may be besides, when another process can read them too.
type Layered interface {
	// LayerFiles are the open files that make up the patches, oldest first, and what errors call them. They stay the owner's.
	LayerFiles() (names []string, files []*os.File)
}

// OpenLayers puts layers, oldest first, over base, in the pager. The Source that it answers closes base and the files; on
// error they stay open.
type OpenLayers func(base Source, names []string, files []*os.File) (Source, error)

// Spec says what a pager serves, in files that can be passed to it.
type Spec struct {
	size   int64
	name   string
	base   *os.File
	kind   string
	names  []string
	layers []*os.File
	own    []*os.File
}

// NewSpec makes a Spec of a thaw: a base memory file of size bytes and the patches over it, which may be nil. Patches that
// are Layered are served from their own files, and then must stay open until Start has returned; others are written to a
// file in dir that has no name. It fails with spore.CodeDamaged, naming the file.
func NewSpec(ctx context.Context, base string, size int64, patches vmm.Patches, dir string) (_ *Spec, err error) {
	s := &Spec{size: size, name: "the memory file " + base}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.base, err = os.Open(base); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, spore.Errorf(spore.CodeNotFound, "there is no memory file %s", base).WithCause(err)
		}
		return nil, fmt.Errorf("pager: %w", err)
	}
	s.own = append(s.own, s.base)
	if patches == nil {
		return s, nil
	}
	if l, ok := patches.(Layered); ok {
		s.names, s.layers = l.LayerFiles()
		switch {
		case len(s.layers) == 0:
			return s, nil
		case len(s.layers) <= maxLayers:
			s.kind = kindLayers
			return s, nil
		}
	}
	f, err := newSpool(ctx, dir, size, patches)
	if err != nil {
		return nil, err
	}
	s.own = append(s.own, f)
	s.kind, s.names, s.layers = kindSpool, []string{"the spool of the memory patches"}, []*os.File{f}
	return s, nil
}

// Close lets go of the files. A pager that was started keeps its own.
func (s *Spec) Close() error {
	var errs []error
	for _, f := range s.own {
		errs = append(errs, f.Close())
	}
	s.own = nil
	return errors.Join(errs...)
}
