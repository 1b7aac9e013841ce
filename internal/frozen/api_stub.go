package frozen

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

var errStub = spore.Errorf(spore.CodeUnsupported, "not there yet")

// Options tune a Store. The zero value is fit for use.
type Options struct {
	// Log gets what happens in the background and what could not be tidied up; slog.Default() when nil.
	Log *slog.Logger
	// MaxLayers is how many diff layers a chain may have before NeedsFlatten says so; 8 when 0.
	MaxLayers int
	// BufferLimit bounds the memory, in bytes, in which captures hold copied pages until they are written out; what
	// goes beyond it is held in a file in the staging area. 1 GiB when 0.
	BufferLimit int64
	// Hook, for tests, is called before each durable step with the step's name.
	Hook func(step string)
}

// Store is one directory of frozen VMs. Its methods may be called from many goroutines, and several processes may have
// the same directory open.
type Store struct{}

// Open opens the store in dir, which it creates if need be, and removes what writers that are no longer alive left in
// the staging area.
func Open(dir string, opts Options) (*Store, error) { return nil, errStub }

// Close releases what the store holds. Drafts and images that are still open stay usable.
func (s *Store) Close() error { return nil }

// Entry is one line of a listing.
type Entry struct {
	ID       string
	Manifest *Manifest // nil when Err is set
	Err      error     // CodeDamaged, or CodeUnsupported for a newer format
}

// List names every frozen VM of the store, by id. A manifest that cannot be read is listed with its error.
func (s *Store) List(ctx context.Context) ([]Entry, error) { return nil, errStub }

// Manifest reads one manifest. It fails with CodeNotFound, CodeDamaged, or CodeUnsupported for a newer format.
func (s *Store) Manifest(id string) (*Manifest, error) { return nil, errStub }

// Remove drops the manifest, and with it the id: the pieces go with the next sweep unless something else holds them.
// Whatever is open or pinned goes on to work. It fails with CodeNotFound. It removes a damaged manifest as well.
func (s *Store) Remove(id string) error { return errStub }

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

// Spec is what a draft is about.
type Spec struct {
	ID    string // of the manifest: tpl-..., snap-..., or a sandbox's id for KindPause
	Kind  Kind
	Shape Shape
	// Parent is what the VM was thawed from (from Image.Manifest or Pinned); nil for a template boot.
	Parent *Manifest
}

// Draft is a frozen VM in the making. Use it from one goroutine. It ends with Commit or Discard; Discard after Commit
// does nothing, so it can be deferred.
type Draft struct{}

// Begin opens a draft. It fails with CodeConflict when the id is taken. The pieces of Spec.Parent are held until the
// draft ends.
func (s *Store) Begin(ctx context.Context, spec Spec) (*Draft, error) { return nil, errStub }

// BaseMemoryPath is where a template boot is to create its RAM file (vmm.Config.Memory).
func (d *Draft) BaseMemoryPath() string { return "" }

// CaptureBoot freezes a VM that was booted on BaseMemoryPath: it pauses the VM, saves its device state and clones its
// disk (disk is the path of the image; "" when there is none). The VM stays paused; the caller must Kill it before
// Commit, since its RAM file becomes the base.
func (d *Draft) CaptureBoot(ctx context.Context, vm vmm.VM, disk string) (Timings, error) {
	return Timings{}, errStub
}

// After says what becomes of a VM once it is captured.
type After int

const (
	Resume     After = iota // it runs on, unless it was paused before
	StayPaused              // it stays paused
)

// CaptureLive freezes a VM that was thawed from Spec.Parent. The guest stands still only while device state, the pages
// written since the copy began, and the disk are taken. On error the VM is as it was before, and the draft is of no
// more use; CodeNoSpace when the host's disk is full.
func (d *Draft) CaptureLive(ctx context.Context, vm vmm.VM, disk string, after After) (Timings, error) {
	return Timings{}, errStub
}

// Timings says where the time of a capture went.
type Timings struct {
	Precopy time.Duration // copying while the guest ran
	Paused  time.Duration // how long the guest stood still, all in all
	Pause   time.Duration // of that: until it stood still
	State   time.Duration // of that: saving device state
	Scan    time.Duration // of that: finding the pages
	Copy    time.Duration // of that: copying the pages
	Disk    time.Duration // of that: cloning the disk (beside the others)
	Resume  time.Duration // of that: until it ran again
	Settle  time.Duration // Commit: comparing, checksums, syncing, publishing

	DirtyBytes  int64 // RAM that the VM held for itself
	PausedBytes int64 // of that: copied while the guest stood still
	StoredBytes int64 // bytes of the new pieces, as allocated on disk (after Commit)
}

// Timings are those of the capture and, after Commit, of settling.
func (d *Draft) Timings() Timings { return Timings{} }

// Commit writes out what was captured and publishes the manifest. Until it returns nothing is listed; after an error
// nothing ever is. It fails with CodeNoSpace, or CodeConflict when the id was taken meanwhile.
func (d *Draft) Commit(ctx context.Context) (*Manifest, error) { return nil, errStub }

// Discard drops the draft and everything it wrote.
func (d *Draft) Discard() {}

// Image is a frozen VM opened for a thaw. Its pieces cannot be swept until Close.
type Image struct {
	Manifest   *Manifest
	BaseMemory string    // for vmm.Config.Memory
	VM         vmm.Image // for vmm.Engine.Thaw; valid until Close
}

// OpenImage opens a frozen VM for a thaw: every piece is checked against the manifest, small ones in full, base files
// as Verifier does, layers as they are read. It fails with CodeNotFound or, naming the piece, with CodeDamaged.
func (s *Store) OpenImage(ctx context.Context, id string) (*Image, error) { return nil, errStub }

// OpenManifest is OpenImage for a manifest that may have been removed or flattened since, but is pinned or leased.
func (s *Store) OpenManifest(ctx context.Context, m *Manifest) (*Image, error) { return nil, errStub }

// CloneDisk writes the disk of the frozen VM to dst, which must not exist: a reflink where the filesystem can, else a
// sparse copy. On error dst is not left behind. CodeConflict when the VM has no disk.
func (i *Image) CloneDisk(ctx context.Context, dst string) error { return errStub }

// CloneMemory writes the whole memory of the frozen VM to dst, for engines that cannot take patches.
func (i *Image) CloneMemory(ctx context.Context, dst string) error { return errStub }

// Memory reads guest RAM as it was frozen, at any offset.
func (i *Image) Memory() io.ReaderAt { return nil }

// Close lets go of the pieces.
func (i *Image) Close() error { return nil }

// Pin holds every piece of m for a running VM, across restarts, until Unpin; and keeps m itself, so that the VM can be
// captured even after m was removed. name is a sandbox's id, or made from one; a second Pin under one name replaces
// the first. Pin while the Image is still open.
func (s *Store) Pin(name string, m *Manifest) error { return errStub }

// Unpin drops a pin; it is no error when there is none.
func (s *Store) Unpin(name string) error { return errStub }

// Pinned is the manifest that Pin kept under name; CodeNotFound when there is none.
func (s *Store) Pinned(name string) (*Manifest, error) { return nil, errStub }

// Pins lists the names that are pinned.
func (s *Store) Pins() ([]string, error) { return nil, errStub }

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

// Verifier answers whether a big immutable file is still what it was, without reading it each time: it reads it in
// full when first asked and again whenever inode, size, mtime or ctime are not those of the last verification, which it
// remembers in a file beside it, named like it with ".seen" at the end.
type Verifier struct{}

// NewVerifier makes a Verifier. One is enough for a process: concurrent questions about one file share one reading.
func NewVerifier() *Verifier { return nil }

// Admit reads the file in full and returns its digest, and remembers it.
func (v *Verifier) Admit(ctx context.Context, path string) (string, error) { return "", errStub }

// Verify fails with CodeDamaged when the file does not have the digest, and CodeNotFound when there is no file.
func (v *Verifier) Verify(ctx context.Context, path, digest string) error { return errStub }

// Scrub is Verify that reads the file in full, whatever is remembered. progress may be nil and gets bytes passed.
func (v *Verifier) Scrub(ctx context.Context, path, digest string, progress func(n int64)) error {
	return errStub
}
