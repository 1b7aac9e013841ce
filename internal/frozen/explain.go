package frozen

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sort"
)

// Explanation says who holds the pieces of one frozen VM, and what its removal would free.
type Explanation struct {
	ID          string
	Pieces      []PieceHold
	Exclusive   int64 // allocated bytes of pieces that no other manifest names
	Shared      int64 // allocated bytes of pieces that other manifests name as well
	Reclaimable int64 // bytes that a sweep would free if the manifest were removed now
}

// PieceHold is one piece and its holders.
type PieceHold struct {
	Piece   Piece
	Bytes   int64 // allocated
	Reflink int64 // of those, physically shared with other files and so not freed with this one
	Holders []Root
}

// Explain says who holds each piece of a frozen VM (or of one that was removed, whose pieces are still held), or a
// single piece when given a piece's id. roots are as for PlanSweep. CodeNotFound when nothing is known of the id.
func (s *Store) Explain(ctx context.Context, id string, roots []Root) (*Explanation, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	var c *census
	err := s.publishing(func() (err error) {
		c, err = s.count(ctx, roots, false)
		return err
	})
	if err != nil {
		return nil, err
	}
	pieces, err := s.piecesOf(c, id)
	if err != nil {
		return nil, err
	}
	held := Mark(c.roots, nil)
	x := &Explanation{ID: id}
	for _, p := range pieces {
		h := PieceHold{Piece: p, Holders: held[p.ID]}
		if h.Bytes, err = allocatedBytes(s.path(dirPieces, p.ID)); err != nil {
			return nil, fmt.Errorf("measure piece %s: %w", p.ID, err)
		}
		if p.raw() {
			if h.Reflink, err = sharedBytes(s.dataPath(p.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("measure piece %s: %w", p.ID, err)
			}
		}
		others, manifests := 0, 0
		for _, r := range h.Holders {
			if r.Why == whyManifest && r.ID == id {
				continue
			}
			others++
			if r.Why == whyManifest {
				manifests++
			}
		}
		if manifests > 0 {
			x.Shared += h.Bytes
		} else {
			x.Exclusive += h.Bytes
		}
		if others == 0 && len(c.blocked) == 0 {
			x.Reclaimable += h.Bytes - h.Reflink
		}
		x.Pieces = append(x.Pieces, h)
	}
	return x, nil
}

// piecesOf finds what an id stands for: a manifest's pieces, one piece, or what is left of a removed manifest.
func (s *Store) piecesOf(c *census, id string) ([]Piece, error) {
	if m := c.manifests[id]; m != nil {
		return m.Pieces(), nil
	}
	if pieceForm.MatchString(id) {
		st, err := s.readStamp(id)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, notFound(id).WithCause(err)
		}
		return []Piece{st.Piece}, err
	}
	if _, err := s.readManifest(id); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err // there, but damaged
	}
	var left []Piece
	for _, name := range c.pieces {
		if st, err := s.readStamp(name); err == nil && st.For == id {
			left = append(left, st.Piece)
		}
	}
	if len(left) == 0 {
		return nil, notFound(id)
	}
	sort.Slice(left, func(i, j int) bool { return left[i].ID < left[j].ID })
	return left, nil
}

// Usage is what the store takes up, in allocated bytes.
type Usage struct {
	ByKind       map[PieceKind]int64
	Pieces       int
	Bytes        int64
	Unreferenced int64 // of Bytes: held by nothing
	Staging      int64 // of drafts in the making
}

// Usage adds up the store. roots are as for PlanSweep.
func (s *Store) Usage(ctx context.Context, roots []Root) (*Usage, error) {
	var c *census
	err := s.publishing(func() (err error) {
		c, err = s.count(ctx, roots, false)
		return err
	})
	if err != nil {
		return nil, err
	}
	held := Mark(c.roots, nil)
	u := &Usage{ByKind: map[PieceKind]int64{}}
	for _, id := range c.pieces {
		n, err := allocatedBytes(s.path(dirPieces, id))
		if err != nil {
			return nil, fmt.Errorf("measure piece %s: %w", id, err)
		}
		u.Pieces++
		u.Bytes += n
		u.ByKind[kindOf(id)] += n
		if len(held[id]) == 0 {
			u.Unreferenced += n
		}
	}
	if u.Staging, err = allocatedBytes(s.path(dirStaging)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("measure the staging area: %w", err)
	}
	return u, nil
}

// kindOf tells the kind of a piece by its id; "" when it is not one of ours.
func kindOf(id string) PieceKind {
	for kind, prefix := range piecePrefix {
		if pieceForm.MatchString(id) && id[:len(prefix)] == prefix {
			return kind
		}
	}
	return ""
}
