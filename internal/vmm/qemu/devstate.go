package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/foreign"
	"github.com/sporevm/spore/internal/vmm/qemu/qmp"
)

// A saved state is a line of JSON, the envelope, followed by what QEMU wrote. QEMU checks little: it takes a state with
// fewer devices than it has without a word, and ends on a damaged one. So the envelope holds the shape and a checksum,
// and QEMU is only given what fits and is whole.

const (
	stateMagic   = "SPOREQEMU1 "
	maxEnvelope  = 64 << 10
	maxStateSize = 256 << 20
)

type envelope struct {
	Format string `json:"format"` // vmm.Info.StateFormat
	Shape  shape  `json:"shape"`
	Size   int64  `json:"size"` // of what follows
	Sum    string `json:"xxh64"`
}

// shape is what of a Config device state depends on.
type shape struct {
	VCPUs     int          `json:"vcpus"`
	MemoryMiB int          `json:"memoryMiB"`
	Drives    []shapeDrive `json:"drives"`
	NIC       string       `json:"nic,omitempty"` // its hardware address; "" when there is none
}

type shapeDrive struct {
	ID       string `json:"id"`
	ReadOnly bool   `json:"readOnly"`
	Size     int64  `json:"size"`
}

func shapeOf(cfg vmm.Config) (shape, error) {
	s := shape{VCPUs: cfg.VCPUs, MemoryMiB: cfg.MemoryMiB}
	for _, d := range cfg.Drives {
		measure := fileSize
		if d.Foreign {
			measure = foreign.Size
		}
		size, err := measure(d.Path)
		if err != nil {
			return shape{}, err
		}
		s.Drives = append(s.Drives, shapeDrive{ID: d.ID, ReadOnly: d.ReadOnly, Size: size})
	}
	if cfg.NIC != nil {
		s.NIC = strings.ToLower(cfg.NIC.MAC)
	}
	return s, nil
}

// fileSize works for block devices too.
func fileSize(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("qemu: %w", err)
	}
	defer f.Close()
	return f.Seek(0, io.SeekEnd)
}

// diff says in what s, a saved shape, is not want; "" when they agree.
func (s shape) diff(want shape) string {
	switch {
	case s.VCPUs != want.VCPUs:
		return fmt.Sprintf("it was saved with %d CPUs and this VM has %d", s.VCPUs, want.VCPUs)
	case s.MemoryMiB != want.MemoryMiB:
		return fmt.Sprintf("it was saved with %d MiB of memory and this VM has %d", s.MemoryMiB, want.MemoryMiB)
	case s.NIC != want.NIC:
		return fmt.Sprintf("it was saved with %s and this VM has %s", nicWords(s.NIC), nicWords(want.NIC))
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

// writeState writes envelope and payload at the position of out.
func writeState(out io.Writer, format string, s shape, payload []byte) error {
	head, err := json.Marshal(envelope{Format: format, Shape: s, Size: int64(len(payload)), Sum: sum(payload)})
	if err != nil {
		return fmt.Errorf("qemu: %w", err)
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

func sum(payload []byte) string {
	return fmt.Sprintf("%016x", xxhash.Sum64(payload))
}

// readState reads a saved state and refuses one that is damaged (spore.CodeDamaged), of another format
// (spore.CodeStale) or of another shape (spore.CodeConflict).
func readState(in io.Reader, format string, want shape) ([]byte, error) {
	damaged := func(text string, args ...any) error {
		return spore.Errorf(spore.CodeDamaged, "the saved device state is damaged: "+text, args...)
	}
	head, rest, err := cutLine(in)
	if err != nil {
		return nil, err
	}
	text, ok := bytes.CutPrefix(head, []byte(stateMagic))
	if !ok {
		return nil, damaged("it does not begin as one")
	}
	var env envelope
	if err := json.Unmarshal(text, &env); err != nil {
		return nil, damaged("its head is unreadable").(*spore.Error).WithCause(err)
	}
	if env.Size < 0 || env.Size > maxStateSize {
		return nil, damaged("its head says %d bytes", env.Size)
	}
	payload, err := io.ReadAll(io.LimitReader(io.MultiReader(bytes.NewReader(rest), in), env.Size+1))
	if err != nil {
		return nil, fmt.Errorf("qemu: read the device state: %w", err)
	}
	if int64(len(payload)) < env.Size {
		return nil, damaged("it ends after %d of %d bytes", len(payload), env.Size)
	}
	payload = payload[:env.Size]
	if got := sum(payload); got != env.Sum {
		return nil, damaged("its checksum is %s, not %s", got, env.Sum)
	}
	if env.Format != format {
		return nil, spore.Errorf(spore.CodeStale, "the device state was saved as %s; this host loads %s", env.Format, format).
			WithHint("thaw it on a node with the same hypervisor version and accelerator, or make the template anew")
	}
	if d := env.Shape.diff(want); d != "" {
		return nil, spore.Errorf(spore.CodeConflict, "the device state does not fit this VM: %s", d)
	}
	return payload, nil
}

// cutLine reads up to the first line end, and returns what it read beyond it.
func cutLine(in io.Reader) (line, rest []byte, err error) {
	buf := make([]byte, 0, 4096)
	for len(buf) < maxEnvelope {
		part := buf[len(buf):min(cap(buf), maxEnvelope)]
		n, err := in.Read(part)
		from := len(buf)
		buf = buf[:from+n]
		if i := bytes.IndexByte(buf[from:], '\n'); i >= 0 {
			return buf[:from+i], buf[from+i+1:], nil
		}
		if err == io.EOF {
			return buf, nil, nil
		}
		if err != nil {
			return nil, nil, fmt.Errorf("qemu: read the device state: %w", err)
		}
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
	}
	return buf, nil, nil
}

// saveState has QEMU write its device state to memory that only the two processes know, and returns it. QEMU must be
// given a regular file, opened for writing only; the snapshot's own file it does not get to see.
func (m *machine) saveState(ctx context.Context) ([]byte, error) {
	fd, err := unix.MemfdCreate("device-state", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	file := os.NewFile(uintptr(fd), "device-state")
	defer file.Close()
	writeOnly, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	defer writeOnly.Close()

	m.fdset++
	add, err := m.qmp.Send("add-fd", setArgs(m.fdset), writeOnly)
	if err != nil {
		return nil, err
	}
	m.spent = append(m.spent, m.fdset)
	save, err := m.qmp.Send("xen-save-devices-state", map[string]any{"filename": fmt.Sprintf("/dev/fdset/%d", m.fdset), "live": false}, nil)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(add.Wait(ctx, nil), save.Wait(ctx, nil)); err != nil {
		return nil, err
	}
	payload, err := io.ReadAll(io.NewSectionReader(file, 0, maxStateSize+1))
	if err != nil {
		return nil, fmt.Errorf("qemu: read the device state: %w", err)
	}
	if len(payload) == 0 || len(payload) > maxStateSize {
		return nil, fmt.Errorf("qemu: the device state is of %d bytes", len(payload))
	}
	return payload, nil
}

func setArgs(id int) map[string]any { return map[string]any{"fdset-id": id} }

// forgetSets has QEMU close the descriptors that it was given to save its state to. It closes none while its guest stands still,
// and would have run out of them after some hundred saves. The holder of turn calls it, after the guest was told to run.
func (m *machine) forgetSets(ctx context.Context) error {
	for len(m.spent) > 0 {
		var gone *qmp.Error
		if err := m.qmp.Do(ctx, "remove-fd", setArgs(m.spent[0]), nil); err != nil && !errors.As(err, &gone) {
			return err
		}
		m.spent = m.spent[1:]
	}
	return nil
}

// loadState feeds a device state to a QEMU that waits for one and returns when it has taken it.
func (m *machine) loadState(ctx context.Context, payload []byte) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("qemu: %w", err)
	}
	defer w.Close()
	get, err := m.qmp.Send("getfd", map[string]any{"fdname": "state"}, r)
	r.Close()
	if err != nil {
		return err
	}
	load, err := m.qmp.Send("migrate-incoming", map[string]any{"uri": "fd:state"}, nil)
	if err != nil {
		return err
	}
	// The write ends early only when QEMU closes its end, and then the answers below say why.
	go func() {
		stop := context.AfterFunc(ctx, func() { w.Close() })
		defer stop()
		w.Write(payload)
		w.Close()
	}()
	if err := errors.Join(get.Wait(ctx, nil), load.Wait(ctx, nil)); err != nil {
		return err
	}
	select {
	case status := <-m.migration:
		if status != "completed" {
			// QEMU ends, and only then has it said all.
			select {
			case <-m.gone:
			case <-ctx.Done():
			case <-time.After(10 * time.Second): // it should have
			}
			return spore.Errorf(spore.CodeDamaged, "QEMU does not take the device state: %s", m.lastWords())
		}
		return nil
	case <-m.gone:
		return spore.Errorf(spore.CodeDamaged, "QEMU does not take the device state: %s", m.lastWords())
	case <-ctx.Done():
		return ctx.Err()
	}
}
