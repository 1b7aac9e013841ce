package frozen

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"

	"github.com/sporevm/spore"
)

var (
	idForm      = regexp.MustCompile(`^[a-z0-9][a-z0-9+-]{0,79}$`)
	pinForm     = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,119}$`)
	captureForm = regexp.MustCompile(`^[0-9a-f]{32}$`)
)

func checkID(id string) error {
	if !idForm.MatchString(id) {
		return spore.Invalidf("id", "%q is not an id", id)
	}
	return nil
}

// checkFileName refuses what does not name an entry of a directory.
func checkFileName(field, name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return spore.Invalidf(field, "%q is not a name", name)
	}
	return nil
}

// Entry is one line of a listing.
type Entry struct {
	ID       string
	Manifest *Manifest // nil when Err is set
	Err      error     // CodeDamaged, or CodeUnsupported for a newer format
}

// List names every frozen VM of the store, by id. A manifest that cannot be read is listed with its error.
func (s *Store) List(ctx context.Context) ([]Entry, error) {
	files, err := os.ReadDir(s.path(dirManifests))
	if err != nil {
		return nil, fmt.Errorf("list manifests: %w", err)
	}
	var out []Entry
	for _, f := range files {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		e := Entry{ID: f.Name()}
		e.Manifest, e.Err = s.readManifest(f.Name())
		if errors.Is(e.Err, fs.ErrNotExist) { // removed since
			continue
		}
		out = append(out, e)
	}
	return out, nil
}

// Manifest reads one manifest. It fails with CodeNotFound, CodeDamaged, or CodeUnsupported for a newer format.
func (s *Store) Manifest(id string) (*Manifest, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	m, err := s.readManifest(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notFound(id).WithCause(err)
	}
	return m, err
}

func (s *Store) readManifest(id string) (*Manifest, error) {
	data, err := readSmall(s.path(dirManifests, id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err != nil {
		return nil, damaged("manifest "+id, err)
	}
	m, err := parseManifest(data)
	if err == nil && m.ID != id {
		err = fmt.Errorf("it is the manifest of %s", m.ID)
	}
	if err != nil {
		return nil, damaged("manifest "+id, err)
	}
	return m, nil
}

func parseManifest(data []byte) (*Manifest, error) {
	m := new(Manifest)
	if err := unseal(whatManifest, Format, data, m); err != nil {
		return nil, err
	}
	return m, m.validate()
}

// validate says whether the manifest holds together; what it names is looked at when it is opened.
func (m *Manifest) validate() error {
	switch {
	case m.Format != Format:
		return fmt.Errorf("format %d", m.Format)
	case !idForm.MatchString(m.ID):
		return fmt.Errorf("id %q", m.ID)
	case m.Kind != KindTemplate && m.Kind != KindSnapshot && m.Kind != KindPause:
		return fmt.Errorf("kind %q", m.Kind)
	case !captureForm.MatchString(m.Capture):
		return fmt.Errorf("capture %q", m.Capture)
	case m.State.Kind != DeviceState:
		return fmt.Errorf("state is a %s", m.State.Kind)
	}
	if err := m.State.validate(); err != nil {
		return err
	}
	if err := m.Memory.validate(BaseMemory, MemoryLayer); err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	if m.Disk != nil {
		if err := m.Disk.validate(DiskImage, DiskLayer); err != nil {
			return fmt.Errorf("disk: %w", err)
		}
	}
	return m.checkCapture()
}

// checkCapture refuses memory, disk and state that were not taken in one paused window.
func (m *Manifest) checkCapture() error {
	tops := []Piece{m.State, m.Memory.Top()}
	if m.Disk != nil {
		tops = append(tops, m.Disk.Top())
	}
	for _, p := range tops {
		if p.Capture != m.Capture {
			return fmt.Errorf("%s is of capture %s, but the frozen VM is of capture %s", p.ID, p.Capture, m.Capture)
		}
	}
	return nil
}

func (c *Chain) validate(base, layer PieceKind) error {
	if c.Size <= 0 || c.Size%pageSize != 0 {
		return fmt.Errorf("size %d", c.Size)
	}
	for i, p := range c.pieces() {
		want := layer
		if i == 0 {
			want = base
		}
		if p.Kind != want {
			return fmt.Errorf("%s is a %s, not a %s", p.ID, p.Kind, want)
		}
		if err := p.validate(); err != nil {
			return err
		}
	}
	if c.Base.Size != c.Size {
		return fmt.Errorf("base %s has %d bytes, not %d", c.Base.ID, c.Base.Size, c.Size)
	}
	return nil
}

func (p Piece) validate() error {
	prefix, known := piecePrefix[p.Kind]
	switch {
	case !known:
		return fmt.Errorf("piece %q: kind %q", p.ID, p.Kind)
	case !pieceForm.MatchString(p.ID) || p.ID[:len(prefix)] != prefix:
		return fmt.Errorf("%q does not name a %s", p.ID, p.Kind)
	case !captureForm.MatchString(p.Capture):
		return fmt.Errorf("piece %s: capture %q", p.ID, p.Capture)
	case p.Size < 0:
		return fmt.Errorf("piece %s: size %d", p.ID, p.Size)
	case p.Digest == "":
		return fmt.Errorf("piece %s: no digest", p.ID)
	}
	return nil
}

// Remove drops the manifest, and with it the id: the pieces go with the next sweep unless something else holds them.
// Whatever is open or pinned goes on to work. It fails with CodeNotFound. It removes a damaged manifest as well.
func (s *Store) Remove(id string) error {
	if err := checkFileName("id", id); err != nil { // not checkID: what does not belong there must be removable too
		return err
	}
	return s.alone(func() error {
		s.step("remove.unlink")
		err := os.Remove(s.path(dirManifests, id))
		if errors.Is(err, fs.ErrNotExist) {
			return notFound(id).WithCause(err)
		}
		if err != nil {
			return fmt.Errorf("remove manifest %s: %w", id, err)
		}
		s.step("remove.sync")
		return syncDir(s.path(dirManifests))
	})
}

// captureBytes is the binary form of a capture id that has been validated.
func captureBytes(id string) ([]byte, error) {
	b, err := hex.DecodeString(id)
	if err != nil || len(b) != 16 {
		return nil, fmt.Errorf("capture id %q is not 32 hex digits", id)
	}
	return b, nil
}
