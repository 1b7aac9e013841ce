package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// machine is a server's hold on a VM. It implements vmm.VM.
type machine struct {
	in       *instance
	released atomic.Bool
}

var _ vmm.VM = (*machine)(nil)

func errExited() error {
	return spore.Errorf(spore.CodeConflict, "the VM has exited").WithHint("its record says why it ended")
}

// begin takes the turn to change the VM and lets faults strike.
func (m *machine) begin(ctx context.Context, step Step) (end func(), err error) {
	if err := m.usable(); err != nil {
		return nil, err
	}
	select {
	case m.in.turn <- struct{}{}:
	case <-m.in.gone:
		return nil, errExited()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := m.in.fault(ctx, step); err != nil {
		<-m.in.turn
		return nil, err
	}
	return func() { <-m.in.turn }, nil
}

func (m *machine) usable() error {
	select {
	case <-m.in.gone:
		return errExited()
	default:
	}
	if m.released.Load() {
		return spore.Errorf(spore.CodeConflict, "the VM %s was released", m.in.cfg.ID)
	}
	return nil
}

func (m *machine) PID() int { return 0 }

func (m *machine) State() vmm.State { return m.in.currentState() }

func (m *machine) Pause(ctx context.Context) error {
	end, err := m.begin(ctx, StepPause)
	if err != nil {
		return err
	}
	defer end()
	m.in.run(false)
	return nil
}

func (m *machine) Resume(ctx context.Context) error {
	end, err := m.begin(ctx, StepResume)
	if err != nil {
		return err
	}
	defer end()
	m.in.run(true)
	return nil
}

func (m *machine) SaveState(ctx context.Context, out *os.File) error {
	end, err := m.begin(ctx, StepSave)
	if err != nil {
		return err
	}
	defer end()
	if m.State() == vmm.StateRunning {
		return spore.Errorf(spore.CodeConflict, "the VM %s runs; it must be paused to save its state", m.in.cfg.ID)
	}
	return writeState(out, "sim-"+m.in.opts.Version, m.in.shape, m.in.registers())
}

func (m *machine) Memory() (vmm.Memory, error) {
	if err := m.usable(); err != nil {
		return nil, err
	}
	return m.in.mem, nil
}

func (m *machine) DialPort(ctx context.Context, port string) (net.Conn, error) {
	if port != vmm.PortControl && port != vmm.PortData {
		return nil, spore.Invalidf("port", "there is no port %q", port)
	}
	if err := m.usable(); err != nil {
		return nil, err
	}
	if err := m.in.fault(ctx, StepDial); err != nil {
		return nil, err
	}
	return m.in.dial(port)
}

func (m *machine) Console(limit int) ([]byte, error) { return m.in.consoleTail(limit), nil }

func (m *machine) Shutdown(ctx context.Context) error {
	if err := m.Resume(ctx); err != nil {
		return err
	}
	// A simulated guest that listens to nothing but its ports is told to power off there, as with other engines.
	select {
	case <-m.in.gone:
		return m.in.err
	case <-ctx.Done():
		return spore.Errorf(spore.CodeUnreachable, "the guest of %s did not power off in time", m.in.cfg.ID).WithCause(ctx.Err())
	}
}

func (m *machine) Kill(ctx context.Context) error {
	if m.released.Load() {
		return m.usable()
	}
	m.in.exit(nil)
	return nil
}

func (m *machine) Done() <-chan struct{} { return m.in.gone }

func (m *machine) Err() error {
	select {
	case <-m.in.gone:
		return m.in.err
	default:
		return nil
	}
}

func (m *machine) Release() error {
	if !m.released.Swap(true) {
		m.in.hangUp()
	}
	return nil
}

// A saved state is a line of JSON followed by what the guest keeps outside of its memory.
type envelope struct {
	Format string `json:"format"`
	Shape  string `json:"shape"`
	Size   int    `json:"size"`
	Sum    string `json:"xxh64"` // of format, shape and what follows
}

const stateMagic = "SPORESIM1 "

func (e envelope) sum(devices []byte) string {
	return fmt.Sprintf("%016x", xxhash.Sum64(append([]byte(e.Format+"\n"+e.Shape+"\n"), devices...)))
}

// shapeOf describes what of a Config device state depends on.
func shapeOf(cfg vmm.Config) (string, error) {
	text := fmt.Sprintf("%d CPUs, %d MiB", cfg.VCPUs, cfg.MemoryMiB)
	if cfg.NIC != nil {
		text += ", network device " + cfg.NIC.MAC
	}
	for _, d := range cfg.Drives {
		fi, err := os.Stat(d.Path)
		if err != nil {
			return "", fmt.Errorf("sim: %w", err)
		}
		text += fmt.Sprintf(", drive %s of %d bytes", d.ID, fi.Size())
		if d.ReadOnly {
			text += " (read-only)"
		}
	}
	return text, nil
}

func writeState(out io.Writer, format, shape string, devices []byte) error {
	env := envelope{Format: format, Shape: shape, Size: len(devices)}
	env.Sum = env.sum(devices)
	head, err := json.Marshal(env)
	if err != nil {
		return fmt.Errorf("sim: %w", err)
	}
	text := append([]byte(stateMagic), head...)
	if _, err := out.Write(append(append(text, '\n'), devices...)); err != nil {
		return fmt.Errorf("sim: save the device state: %w", err)
	}
	return nil
}

// maxState bounds a saved state.
const maxState = 1 << 20

func readState(in io.Reader, format, shape string) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(in, maxState+1))
	if err != nil {
		return nil, fmt.Errorf("sim: read the device state: %w", err)
	}
	head, devices, found := bytes.Cut(text, []byte("\n"))
	head, magic := bytes.CutPrefix(head, []byte(stateMagic))
	var env envelope
	err = json.Unmarshal(head, &env)
	if !found || !magic || err != nil || len(text) > maxState || env.Size != len(devices) || env.Sum != env.sum(devices) {
		return nil, spore.Errorf(spore.CodeDamaged, "the saved device state is damaged").WithCause(errors.Join(err))
	}
	if env.Format != format {
		return nil, spore.Errorf(spore.CodeStale, "the device state was saved as %s; this engine loads %s", env.Format, format)
	}
	if env.Shape != shape {
		return nil, spore.Errorf(spore.CodeConflict, "the device state does not fit this VM: it was saved with %s, and this one has %s", env.Shape, shape)
	}
	return devices, nil
}
