package frozen

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
)

// Kinds of Problem.
const (
	ProblemDamaged      = "damaged"      // stored bytes are not those that were written
	ProblemMissing      = "missing"      // a manifest or pin names a piece that is not there
	ProblemMismatch     = "mismatch"     // a piece is whole, but not the one that the manifest names
	ProblemNewer        = "newer"        // written by a newer version of Spore
	ProblemUnreferenced = "unreferenced" // a piece that nothing holds
	ProblemAbandoned    = "abandoned"    // what a dead writer left in the staging area
	ProblemForeign      = "foreign"      // a file that is not of the store
)

// Problem is one thing that Check found.
type Problem struct {
	Kind      string
	Piece     string   // "" when it is about a manifest, pin or file
	Manifests []string // that name the piece, or the manifest or pin itself
	Message   string
	Hint      string
}

// Report is the outcome of Check.
type Report struct {
	Manifests, Pieces int
	BytesRead         int64
	Problems          []Problem
}

// Check looks for anything that is not as it should be, and changes nothing but what Verifier remembers. With full it
// re-reads every byte, otherwise only what is small.
func (s *Store) Check(ctx context.Context, full bool) (*Report, error) {
	return s.check(ctx, full, func(int64, int64) {})
}

// Scrub is Check with full, telling progress as it goes: bytes read of bytes in all. progress may be called from
// several goroutines.
func (s *Store) Scrub(ctx context.Context, progress func(done, total int64)) (*Report, error) {
	return s.check(ctx, true, progress)
}

func (s *Store) check(ctx context.Context, full bool, progress func(done, total int64)) (*Report, error) {
	k := &checker{store: s, report: &Report{}, named: map[string][]*Manifest{}}
	// Alone, because a commit in the making has pieces in place that no manifest names yet.
	err := s.alone(func() (err error) {
		if k.census, err = s.count(ctx, nil, false); err != nil {
			return err
		}
		return k.checkStaging()
	})
	if err != nil {
		return nil, err
	}
	k.held = Mark(k.census.roots, nil)
	if err := k.collect(ctx); err != nil {
		return nil, err
	}
	var total int64
	for _, id := range k.census.pieces {
		n, err := allocatedBytes(s.path(dirPieces, id))
		if err != nil {
			return nil, fmt.Errorf("measure piece %s: %w", id, err)
		}
		total += n
	}
	var counting sync.Mutex // files are read in parts, side by side; progress is told of one at a time
	var done int64
	count := func(n int64) {
		counting.Lock()
		defer counting.Unlock()
		done += n
		progress(min(done, total), total)
	}
	for _, id := range k.census.pieces {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := k.checkPiece(ctx, id, full, count); err != nil {
			return nil, err
		}
	}
	progress(total, total)
	k.report.BytesRead = done
	k.report.Manifests, k.report.Pieces = len(k.census.manifests), len(k.census.pieces)
	return k.report, nil
}

// Verify is nil when a frozen VM is whole: every piece is there and is the one that the manifest names. With full every
// byte is read, otherwise only what is small. It fails with CodeNotFound, with CodeDamaged naming the piece, or with
// CodeUnsupported for a newer format.
func (s *Store) Verify(ctx context.Context, id string, full bool) (err error) {
	var m *Manifest
	var held *lease
	err = s.publishing(func() error {
		var err error
		if m, err = s.Manifest(id); err != nil {
			return err
		}
		held, err = s.newLease("verification of "+id, m.PieceIDs())
		return err
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, held.release()) }()
	for _, p := range m.Pieces() {
		if err := ctx.Err(); err != nil {
			return err
		}
		f, err := s.openPiece(m, p)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		if err := s.checkData(ctx, p, full, func(int64) {}); err != nil {
			return err
		}
	}
	return nil
}

type checker struct {
	store  *Store
	census *census
	report *Report
	held   map[string][]Root
	named  map[string][]*Manifest // who names a piece, pins included
}

func (k *checker) add(p Problem) { k.report.Problems = append(k.report.Problems, p) }

// refused files an error about something stored. Anything else than a refusal of stored bytes is returned.
func (k *checker) refused(err error, p Problem) error {
	var e *spore.Error
	switch {
	case errors.As(err, &e) && e.Code == spore.CodeDamaged:
		p.Kind = ProblemDamaged
	case errors.As(err, &e) && e.Code == spore.CodeUnsupported:
		p.Kind = ProblemNewer
	default:
		return err
	}
	p.Message, p.Hint = e.Message, e.Hint
	k.add(p)
	return nil
}

// collect finds who names what, and files manifests and pins that cannot be read.
func (k *checker) collect(ctx context.Context) error {
	s := k.store
	entries, err := s.List(ctx)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Err == nil {
			k.name(e.Manifest)
		} else if err := k.refused(e.Err, Problem{Manifests: []string{e.ID}}); err != nil {
			return err
		}
	}
	pins, err := s.Pins()
	if err != nil {
		return err
	}
	for _, name := range pins {
		m, err := s.Pinned(name)
		if err == nil {
			k.name(m)
		} else if err := k.refused(err, Problem{Manifests: []string{"pin " + name}}); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return k.checkNamed()
}

func (k *checker) name(m *Manifest) {
	for _, p := range m.Pieces() {
		k.named[p.ID] = append(k.named[p.ID], m)
	}
}

func manifestIDs(list []*Manifest) []string {
	var ids []string
	for _, m := range list {
		ids = append(ids, m.ID)
	}
	sort.Strings(ids)
	return ids
}

// checkNamed compares what manifests say of pieces with what the pieces say of themselves.
func (k *checker) checkNamed() error {
	for id, by := range k.named {
		st, err := k.store.readStamp(id)
		if errors.Is(err, fs.ErrNotExist) {
			by = k.stillThere(by)
			if len(by) == 0 {
				continue
			}
			k.add(Problem{Kind: ProblemMissing, Piece: id, Manifests: manifestIDs(by),
				Message: "piece " + id + " is missing", Hint: "take it from another node, or remove what stands on it"})
			continue
		}
		if err != nil {
			continue // checkPiece says so
		}
		for _, m := range by {
			for _, p := range m.Pieces() {
				if p.ID == id && p != st.Piece {
					k.add(Problem{Kind: ProblemMismatch, Piece: id, Manifests: []string{m.ID},
						Message: fmt.Sprintf("%s names %s of capture %s, digest %s, but what is stored is of capture %s, digest %s", m.ID, id, p.Capture, p.Digest, st.Capture, st.Digest),
						Hint:    "remove " + m.ID + " or put the right piece back"})
				}
			}
		}
	}
	return nil
}

// stillThere drops manifests that were removed while we looked.
func (k *checker) stillThere(list []*Manifest) []*Manifest {
	var out []*Manifest
	for _, m := range list {
		if is, err := k.store.Manifest(m.ID); err == nil && is.Capture == m.Capture && is.Revision == m.Revision {
			out = append(out, m)
		}
	}
	return out
}

func (k *checker) checkPiece(ctx context.Context, id string, full bool, count func(int64)) error {
	s := k.store
	by := manifestIDs(k.named[id])
	if !pieceForm.MatchString(id) {
		k.add(Problem{Kind: ProblemForeign, Message: "pieces/" + id + " is not of the store", Hint: "look at it and remove it by hand"})
		return nil
	}
	if len(k.held[id]) == 0 && len(k.census.blocked) == 0 {
		k.add(Problem{Kind: ProblemUnreferenced, Piece: id, Message: "nothing holds piece " + id, Hint: "spore gc removes it"})
	}
	st, err := s.readStamp(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // swept while we looked; had it been named, collect would have said so
	}
	if err == nil {
		err = s.checkData(ctx, st.Piece, full, count)
	}
	if errors.Is(err, fs.ErrNotExist) || spore.CodeOf(err) == spore.CodeNotFound {
		if _, serr := os.Stat(s.path(dirPieces, id)); errors.Is(serr, fs.ErrNotExist) {
			return nil
		}
		k.add(Problem{Kind: ProblemMissing, Piece: id, Manifests: by, Message: "the data of piece " + id + " is missing",
			Hint: "take it from another node, or remove what stands on it"})
		return nil
	}
	if err == nil {
		return nil
	}
	return k.refused(err, Problem{Piece: id, Manifests: by})
}

// checkData reads the data of a piece: all of it with full or when it is small, else only its size, header and index.
func (s *Store) checkData(ctx context.Context, p Piece, full bool, count func(int64)) error {
	self := &Manifest{ID: "its own stamp"}
	switch {
	case p.raw():
		f, err := s.openPiece(self, p)
		if err != nil {
			return err
		}
		f.Close()
		if !full {
			return nil
		}
		return namePiece(p, s.verifier.Scrub(ctx, s.dataPath(p.ID), p.Digest, count))
	case p.Kind == DeviceState:
		f, err := s.openState(&Manifest{ID: self.ID, State: p})
		if err != nil {
			return err
		}
		count(p.Size)
		return f.Close()
	}
	f, err := s.openPiece(self, p)
	if err != nil {
		return err
	}
	defer f.Close()
	l, err := parseLayer(f, p.Size)
	if err == nil {
		err = l.match(p, l.size)
	}
	if err == nil && full {
		err = l.readAll()
		count(p.Size)
	}
	if err != nil {
		return damaged("piece "+p.ID, err)
	}
	return nil
}

// checkStaging files what dead writers left. It is called while alone.
func (k *checker) checkStaging() error {
	s := k.store
	staged, err := os.ReadDir(s.path(dirStaging))
	if err != nil {
		return fmt.Errorf("list the staging area: %w", err)
	}
	for _, e := range staged {
		if e.IsDir() {
			f, err := os.Open(filepath.Join(s.path(dirStaging), e.Name(), fileOwner))
			if err == nil {
				err = flock(f, unix.LOCK_SH|unix.LOCK_NB)
				f.Close()
			}
			if err == unix.EWOULDBLOCK {
				continue
			}
		}
		k.add(Problem{Kind: ProblemAbandoned, Message: "staging/" + e.Name() + " was left by a writer that is dead",
			Hint: "the next start of the server removes it"})
	}
	return nil
}
