package firecracker

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/cespare/xxhash/v2"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// A saved state is a line of JSON, the envelope, followed by what Firecracker wrote. Firecracker ends when it is given a
// state that it does not like and says little, and knows nothing of what the state is for; so the envelope holds the
// format, the shape and a checksum, and Firecracker is only given what fits and is whole.

const (
	stateMagic   = "SPOREFC1 "
	maxEnvelope  = 64 << 10
	maxStateSize = 10_000_000 // Firecracker reads no more
)

type envelope struct {
	Format string            `json:"format"`           // see stateFormat
	Writer string            `json:"writer,omitempty"` // version of the Firecracker that wrote it
	Shape  shape             `json:"shape"`
	Tap    string            `json:"tap,omitempty"`    // that the state names
	Limits []vmm.DriveLimits `json:"limits,omitempty"` // that the state holds, by drive
	Size   int64             `json:"size"`             // of what follows
	Sum    string            `json:"xxh64"`
}

// savedState is a state that was read and fits.
type savedState struct {
	envelope
	payload []byte
}

// limits are those that drive i had when the state was saved.
func (s savedState) limits(i int) vmm.DriveLimits {
	if i < len(s.Limits) {
		return s.Limits[i]
	}
	return vmm.DriveLimits{}
}

// shape is what of a Config device state depends on.
type shape struct {
	VCPUs     int          `json:"vcpus"`
	MemoryMiB int          `json:"memoryMiB"`
	Drives    []shapeDrive `json:"drives"`
	MAC       string       `json:"mac,omitempty"` // of the network device; empty: none
}

type shapeDrive struct {
	ID       string `json:"id"`
	ReadOnly bool   `json:"readOnly"`
	Foreign  bool   `json:"foreign,omitempty"`
	Size     int64  `json:"size"`
}

func shapeOf(cfg vmm.Config) (shape, error) {
	s := shape{VCPUs: cfg.VCPUs, MemoryMiB: cfg.MemoryMiB}
	if cfg.NIC != nil {
		s.MAC = strings.ToLower(cfg.NIC.MAC)
	}
	for _, d := range cfg.Drives {
		size, err := fileSize(d.Path)
		if err != nil {
			return shape{}, err
		}
		s.Drives = append(s.Drives, shapeDrive{ID: d.ID, ReadOnly: d.ReadOnly, Foreign: d.Foreign, Size: size})
	}
	return s, nil
}

// diff says in what s, a saved shape, is not want; "" when they agree.
func (s shape) diff(want shape) string {
	switch {
	case s.VCPUs != want.VCPUs:
		return fmt.Sprintf("it was saved with %d CPUs and this VM has %d", s.VCPUs, want.VCPUs)
	case s.MemoryMiB != want.MemoryMiB:
		return fmt.Sprintf("it was saved with %d MiB of memory and this VM has %d", s.MemoryMiB, want.MemoryMiB)
	case s.MAC != want.MAC:
		return fmt.Sprintf("it was saved with %s and this VM has %s", nicWords(s.MAC), nicWords(want.MAC))
	case len(s.Drives) != len(want.Drives):
		return fmt.Sprintf("it was saved with %d drives and this VM has %d", len(s.Drives), len(want.Drives))
	}
	for i, d := range s.Drives {
		if d != want.Drives[i] {
			return fmt.Sprintf("drive %d was %+v and is %+v", i, d, want.Drives[i])
		}
	}
	return ""
}

func nicWords(mac string) string {
	if mac == "" {
		return "no network device"
	}
	return "the network device " + mac
}

// writeState writes envelope and payload at the position of out.
func writeState(out io.Writer, env envelope, payload []byte) error {
	env.Size, env.Sum = int64(len(payload)), sum(payload)
	head, err := json.Marshal(env)
	if err != nil {
		return fmt.Errorf("firecracker: %w", err)
	}
	var buf bytes.Buffer
	buf.WriteString(stateMagic)
	buf.Write(head)
	buf.WriteByte('\n')
	buf.Write(payload)
	if _, err := out.Write(buf.Bytes()); err != nil {
		return diskError("save the device state", err)
	}
	return nil
}

func sum(payload []byte) string { return fmt.Sprintf("%016x", xxhash.Sum64(payload)) }

// readState reads a saved state and refuses one that is damaged (spore.CodeDamaged) or of another shape
// (spore.CodeConflict).
func readState(in io.Reader, want shape) (savedState, error) {
	damaged := func(text string, args ...any) error {
		return spore.Errorf(spore.CodeDamaged, "the saved device state is damaged: "+text, args...)
	}
	text, err := io.ReadAll(io.LimitReader(in, maxEnvelope+maxStateSize+1))
	if err != nil {
		return savedState{}, fmt.Errorf("firecracker: read the device state: %w", err)
	}
	head, payload, found := bytes.Cut(text, []byte("\n"))
	head, magic := bytes.CutPrefix(head, []byte(stateMagic))
	if !found || !magic || len(head) > maxEnvelope {
		return savedState{}, damaged("it does not begin as one")
	}
	s := savedState{payload: payload}
	if err := json.Unmarshal(head, &s.envelope); err != nil {
		return savedState{}, damaged("its head is unreadable: %w", err)
	}
	if s.Size < 0 || s.Size > maxStateSize {
		return savedState{}, damaged("its head says %d bytes", s.Size)
	}
	if int64(len(payload)) < s.Size {
		return savedState{}, damaged("it ends after %d of %d bytes", len(payload), s.Size)
	}
	s.payload = payload[:s.Size]
	if got := sum(s.payload); got != s.Sum {
		return savedState{}, damaged("its checksum is %s, not %s", got, s.Sum)
	}
	if d := s.Shape.diff(want); d != "" {
		return savedState{}, spore.Errorf(spore.CodeConflict, "the device state does not fit this VM: %s", d)
	}
	return s, nil
}
