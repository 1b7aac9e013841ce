package frozen

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"time"

	"github.com/sporevm/spore"
)

// PieceKind says what the data of a piece is.
type PieceKind string

const (
	BaseMemory  PieceKind = "memory"       // all guest RAM, raw, zero pages punched out
	MemoryLayer PieceKind = "memory-layer" // pages that differ from the layers below
	DiskImage   PieceKind = "disk"         // a whole disk, raw and sparse
	DiskLayer   PieceKind = "disk-layer"   // blocks that differ from the layers below
	DeviceState PieceKind = "state"        // vCPUs and devices, behind a header
)

var piecePrefix = map[PieceKind]string{
	BaseMemory: "mem-", MemoryLayer: "mly-", DiskImage: "dsk-", DiskLayer: "dly-", DeviceState: "sta-",
}

var pieceForm = regexp.MustCompile(`^(mem|mly|dsk|dly|sta)-[0-9a-f]{24}$`)

func newPieceID(kind PieceKind) string { return piecePrefix[kind] + randomHex(12) }

// Piece names one immutable file of the store and how to know that it is still the one that was written.
type Piece struct {
	ID      string    `json:"id"`
	Kind    PieceKind `json:"kind"`
	Capture string    `json:"capture"` // the paused window it was taken in
	Size    int64     `json:"size"`    // of the data file, in bytes
	Digest  string    `json:"digest"`
}

// raw says whether the data is the bare content, without header or checksums of its own.
func (p Piece) raw() bool { return p.Kind == BaseMemory || p.Kind == DiskImage }

// stamp lies beside the data of a piece, so that a piece says what it is even when no manifest names it.
type stamp struct {
	Piece
	For     string    `json:"for"` // id of the manifest it was written for
	Created time.Time `json:"created"`
}

func (s *Store) dataPath(id string) string { return s.path(dirPieces, id, fileData) }

// readStamp reads what the piece says of itself. It fails with fs.ErrNotExist when there is no such piece.
func (s *Store) readStamp(id string) (stamp, error) {
	data, err := readSmall(s.path(dirPieces, id, fileStamp))
	if errors.Is(err, fs.ErrNotExist) {
		if _, serr := os.Stat(s.path(dirPieces, id)); errors.Is(serr, fs.ErrNotExist) {
			return stamp{}, err
		}
		return stamp{}, damaged("piece "+id, errors.New("its stamp is missing"))
	}
	if err != nil {
		return stamp{}, damaged("piece "+id, err)
	}
	st, err := parseStamp(data)
	if err == nil && st.ID != id {
		err = fmt.Errorf("its stamp is that of %s", st.ID)
	}
	if err != nil {
		return stamp{}, damaged("piece "+id, err)
	}
	return st, nil
}

func parseStamp(data []byte) (stamp, error) {
	var st stamp
	if err := unseal(whatStamp, 1, data, &st); err != nil {
		return stamp{}, err
	}
	return st, st.Piece.validate()
}

// openPiece opens the data of a piece after checking that the piece is the one that m names.
func (s *Store) openPiece(m *Manifest, p Piece) (*os.File, error) {
	st, err := s.readStamp(p.ID)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, missing(m, p, err)
	}
	if err != nil {
		return nil, err
	}
	if st.Piece != p {
		what := fmt.Errorf("%s names %s of capture %s, digest %s, but what is stored is of capture %s, digest %s",
			m.ID, p.ID, p.Capture, p.Digest, st.Capture, st.Digest)
		return nil, damaged("piece "+p.ID, what)
	}
	f, err := os.Open(s.dataPath(p.ID))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, missing(m, p, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open piece %s: %w", p.ID, err)
	}
	info, err := f.Stat()
	if err == nil && info.Size() != p.Size {
		err = damaged("piece "+p.ID, fmt.Errorf("it has %d bytes, not %d", info.Size(), p.Size))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func missing(m *Manifest, p Piece, cause error) error {
	return spore.Errorf(spore.CodeDamaged, "piece %s of %s is missing", p.ID, m.ID).
		WithCause(cause).WithHint("run spore fsck to see what stands on it; take it from another node or make it anew")
}

// openLayer opens a layer piece and checks all of it but its frames, which are checked as they are read.
func (s *Store) openLayer(m *Manifest, p Piece, size int64) (*layer, *os.File, error) {
	f, err := s.openPiece(m, p)
	if err != nil {
		return nil, nil, err
	}
	l, err := parseLayer(f, p.Size)
	if err == nil {
		err = l.match(p, size)
	}
	if err != nil {
		f.Close()
		return nil, nil, damaged("piece "+p.ID, err)
	}
	return l, f, nil
}

func (l *layer) match(p Piece, size int64) error {
	switch {
	case l.kind != layerCode(p.Kind):
		return fmt.Errorf("it is not a %s", p.Kind)
	case l.capture != p.Capture:
		return fmt.Errorf("it says it is of capture %s, but its stamp says %s", l.capture, p.Capture)
	case l.size != size:
		return fmt.Errorf("it belongs over %d bytes, not %d", l.size, size)
	case l.digest != p.Digest:
		return fmt.Errorf("it has digest %s, not %s", l.digest, p.Digest)
	}
	return nil
}

// openView opens a chain. The base file is not verified here.
func (s *Store) openView(m *Manifest, c *Chain) (_ *view, err error) {
	base, err := s.openPiece(m, c.Base)
	if err != nil {
		return nil, err
	}
	opened := &view{}
	opened.files = append(opened.files, base)
	defer func() {
		if err != nil {
			opened.Close()
		}
	}()
	var layers []*layer
	var names []string
	for _, p := range c.Layers {
		l, f, err := s.openLayer(m, p, c.Size)
		if err != nil {
			return nil, err
		}
		opened.files = append(opened.files, f)
		layers, names = append(layers, l), append(names, p.ID)
	}
	v := newView(c.Size, base, layers, names)
	v.files = opened.files
	return v, nil
}
