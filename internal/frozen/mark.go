package frozen

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// Root is something that holds pieces.
type Root struct {
	ID     string   // manifest id, pin name, holder of a lease, or what the caller says
	Pieces []string // piece ids
	Why    string   // "manifest", "pin", "lease", or the caller's reason, such as "running sandbox"
}

const (
	whyManifest = "manifest"
	whyPin      = "pin"
	whyLease    = "lease"
)

// Mark returns for each node that can be reached from the roots the roots that reach it, in the order given; refs says
// what each node refers to in turn and may be nil. It is pure.
func Mark(roots []Root, refs map[string][]string) map[string][]Root {
	marked := map[string][]Root{}
	for _, root := range roots {
		seen := map[string]bool{}
		grey := append([]string(nil), root.Pieces...)
		for len(grey) > 0 {
			node := grey[len(grey)-1]
			grey = grey[:len(grey)-1]
			if seen[node] {
				continue
			}
			seen[node] = true
			marked[node] = append(marked[node], root)
			grey = append(grey, refs[node]...)
		}
	}
	return marked
}

// census is who holds what at one moment.
type census struct {
	roots     []Root
	manifests map[string]*Manifest
	blocked   []string // what cannot be read and so may hold anything: "manifest ID", "pin NAME"
	pieces    []string // in the store
}

// count takes the census. It is called while publishing or alone; only alone it sees every live lease for sure.
func (s *Store) count(ctx context.Context, given []Root, removeDeadLeases bool) (*census, error) {
	c := &census{manifests: map[string]*Manifest{}}
	entries, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Err != nil {
			c.blocked = append(c.blocked, "manifest "+e.ID)
			continue
		}
		c.manifests[e.ID] = e.Manifest
		c.roots = append(c.roots, Root{ID: e.ID, Pieces: e.Manifest.PieceIDs(), Why: whyManifest})
	}
	pins, err := s.Pins()
	if err != nil {
		return nil, err
	}
	for _, name := range pins {
		m, err := s.Pinned(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			c.blocked = append(c.blocked, "pin "+name)
			continue
		}
		c.roots = append(c.roots, Root{ID: name, Pieces: m.PieceIDs(), Why: whyPin})
	}
	leases, err := s.leases(removeDeadLeases)
	if err != nil {
		return nil, err
	}
	c.roots = append(append(c.roots, leases...), given...)
	dirs, err := os.ReadDir(s.path(dirPieces))
	if err != nil {
		return nil, fmt.Errorf("list pieces: %w", err)
	}
	for _, d := range dirs {
		c.pieces = append(c.pieces, d.Name())
	}
	return c, nil
}
