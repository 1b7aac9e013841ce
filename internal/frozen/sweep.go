package frozen

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/sporevm/spore"
)

// SweepPlan is what a sweep would remove, and why.
type SweepPlan struct {
	Remove  []SweepItem
	Bytes   int64    // allocated bytes of all of Remove
	Blocked []string // manifests and pins that cannot be read: while there are any, nothing is removed, as they may hold anything

	store *Store
	roots []Root
}

// SweepItem is one piece that nothing holds.
type SweepItem struct {
	Piece  string
	Kind   PieceKind // "" when its stamp cannot be read
	Bytes  int64     // allocated
	Reason string    // one sentence
}

// PlanSweep finds the pieces that no manifest, lease, pin or given root holds. It changes nothing.
func (s *Store) PlanSweep(ctx context.Context, roots []Root) (*SweepPlan, error) {
	p := &SweepPlan{store: s, roots: roots}
	var c *census
	// Alone, because a commit in the making has pieces in place that no manifest names yet.
	err := s.alone(func() (err error) {
		c, err = s.count(ctx, roots, false)
		return err
	})
	if err != nil {
		return nil, err
	}
	if p.Blocked = c.blocked; len(p.Blocked) > 0 {
		return p, nil
	}
	held := Mark(c.roots, nil)
	for _, id := range c.pieces {
		if len(held[id]) > 0 || !pieceForm.MatchString(id) {
			continue
		}
		item := SweepItem{Piece: id}
		if item.Bytes, err = allocatedBytes(s.path(dirPieces, id)); err != nil {
			return nil, fmt.Errorf("measure piece %s: %w", id, err)
		}
		switch st, err := s.readStamp(id); {
		case err != nil:
			item.Reason = "nothing holds it, and its stamp cannot be read"
		case c.manifests[st.For] != nil:
			item.Kind, item.Reason = st.Kind, "it was made for "+st.For+", which no longer needs it"
		default:
			item.Kind, item.Reason = st.Kind, "it was made for "+st.For+", which is not there any more"
		}
		p.Remove = append(p.Remove, item)
		p.Bytes += item.Bytes
	}
	return p, nil
}

// Execute removes what was planned, except what has come to be held since. It returns the bytes freed. With anything
// in Blocked it removes nothing and fails with CodeDamaged.
func (p *SweepPlan) Execute(ctx context.Context) (int64, error) {
	if len(p.Blocked) > 0 {
		return 0, blockedError(p.Blocked)
	}
	if len(p.Remove) == 0 {
		return 0, nil
	}
	s := p.store
	// Pieces are only renamed while everyone waits; the unlinking of gigabytes comes after. On a disk too full for a
	// directory they are unlinked in place: what is left if that is cut short is swept another time.
	trash, owner, err := s.newDir()
	if err != nil && spore.CodeOf(err) != spore.CodeNoSpace {
		return 0, err
	}
	if owner != nil {
		defer owner.Close()
	}
	var freed int64
	err = s.alone(func() error {
		c, err := s.count(ctx, p.roots, true)
		if err != nil {
			return err
		}
		if len(c.blocked) > 0 {
			return blockedError(c.blocked)
		}
		held := Mark(c.roots, nil)
		for _, item := range p.Remove {
			if len(held[item.Piece]) > 0 {
				continue
			}
			s.step("sweep.move")
			err := s.discardPiece(item.Piece, trash)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return fmt.Errorf("sweep piece %s: %w", item.Piece, err)
			}
			freed += item.Bytes
		}
		s.step("sweep.sync")
		return syncDir(s.path(dirPieces))
	})
	if trash != "" {
		s.step("sweep.delete")
		err = errors.Join(err, os.RemoveAll(trash))
	}
	return freed, err
}

// discardPiece moves a piece to the trash, or removes it when there is none. fs.ErrNotExist when it is gone already.
func (s *Store) discardPiece(id, trash string) error {
	path := s.path(dirPieces, id)
	if trash != "" {
		return os.Rename(path, filepath.Join(trash, id))
	}
	if _, err := os.Lstat(path); err != nil {
		return err
	}
	return os.RemoveAll(path)
}

func blockedError(blocked []string) error {
	return spore.Errorf(spore.CodeDamaged, "cannot tell what may be removed: %s cannot be read", strings.Join(blocked, ", ")).
		WithHint("run spore fsck; remove what is beyond repair by its id")
}
