package frozen

import (
	"context"

	"github.com/sporevm/spore"
)

var errStub = spore.Errorf(spore.CodeUnsupported, "not there yet")

// NeedsFlatten says whether a chain of m has grown beyond Options.MaxLayers.
func (s *Store) NeedsFlatten(m *Manifest) bool { return false }

// FlattenOptions say how far to merge.
type FlattenOptions struct {
	// ToBase merges all into a new base memory file and a whole disk image, even where a layer would be smaller: for
	// commits, which many sandboxes will map.
	ToBase bool
}

// Flatten merges the diff layers of a frozen VM into one, or into a new base when that is the better choice, and puts
// the new manifest in place of the old one in one step. Old pieces stay for whoever holds them. It can be cancelled at
// any time and run beside anything else; if the manifest was removed or flattened meanwhile it answers CodeNotFound or
// CodeConflict and changes nothing. The manifest it returns may be the old one, when there was nothing to do.
func (s *Store) Flatten(ctx context.Context, id string, opts FlattenOptions) (*Manifest, error) {
	return nil, errStub
}

// Root is something that holds pieces.
type Root struct {
	ID     string   // manifest id, pin name, lease, or what the caller says
	Pieces []string // piece ids
	Why    string   // "manifest", "pin", "lease", or the caller's reason, such as "running sandbox"
}

// Mark returns for each node that can be reached from the roots the roots that reach it, in the order given; refs says
// what each node refers to in turn and may be nil. It is pure.
func Mark(roots []Root, refs map[string][]string) map[string][]Root { return nil }

// SweepPlan is what a sweep would remove, and why.
type SweepPlan struct {
	Remove  []SweepItem
	Bytes   int64    // allocated bytes of all of Remove
	Blocked []string // manifests that cannot be read: while there are any, nothing is removed, as they may hold anything
}

// SweepItem is one piece that nothing holds.
type SweepItem struct {
	Piece  string
	Kind   PieceKind // "" when its stamp cannot be read
	Bytes  int64     // allocated
	Reason string
}

// PlanSweep finds the pieces that no manifest, lease, pin or given root holds. It changes nothing.
func (s *Store) PlanSweep(ctx context.Context, roots []Root) (*SweepPlan, error) { return nil, errStub }

// Execute removes what was planned, except what has come to be held since. It returns the bytes freed.
func (p *SweepPlan) Execute(ctx context.Context) (int64, error) { return 0, errStub }

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
	Reflink int64 // of those, physically shared with other files
	Holders []Root
}

// Explain says who holds each piece of a frozen VM (or of one that was removed, whose pieces are still held), or a
// single piece when given a piece's id. roots are as for PlanSweep. CodeNotFound when nothing is known of the id.
func (s *Store) Explain(ctx context.Context, id string, roots []Root) (*Explanation, error) {
	return nil, errStub
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
func (s *Store) Usage(ctx context.Context, roots []Root) (*Usage, error) { return nil, errStub }

// Problem is one thing that Check found.
type Problem struct {
	Kind      string // "damaged", "missing", "mismatch", "unreadable", "unreferenced", "abandoned", "foreign"
	Piece     string
	Manifests []string // that name the piece, or the manifest itself
	Message   string
	Hint      string
}

// Report is the outcome of Check.
type Report struct {
	Manifests, Pieces int
	BytesRead         int64
	Problems          []Problem
}

// Check looks for anything that is not as it should be, and changes nothing. With full it re-reads every byte,
// otherwise only what is small.
func (s *Store) Check(ctx context.Context, full bool) (*Report, error) { return nil, errStub }

// Scrub is Check with full, telling progress as it goes: bytes read of bytes in all.
func (s *Store) Scrub(ctx context.Context, progress func(done, total int64)) (*Report, error) {
	return nil, errStub
}
