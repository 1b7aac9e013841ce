package firecracker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/procmem"
	"github.com/sporevm/spore/internal/vmm/vmlog"
)

// machine is one VM. It implements vmm.VM.
type machine struct {
	eng    *Engine
	log    *slog.Logger
	cfg    vmm.Config
	format string // of its device state
	shape  shape
	jail   *jail
	booted bool   // its RAM is its own from the start, and no file's
	loaded bool   // thawed, all the way
	tap    string // that its network device is on
	limits []vmm.DriveLimits

	turn   chan struct{} // held by the operation that may change the VM
	unsure bool          // an operation was given up in the middle; holder of turn
	saved  bool          // a snapshot was taken since it was last paused or resumed; holder of turn
	ran    bool          // it may have run since it was loaded; holder of turn

	mu       sync.Mutex
	running  bool
	killed   bool
	released bool
	broken   error // why the pager does not serve any more
	ports    map[string]net.Conn
	memory   *procmem.Memory
	pager    PagerProcess // nil: its memory is a mapped file, or its own
	claims   []*os.File   // foreign drives, claimed as long as the VM lives
	owned    []vmm.Range  // see memory.go

	gone chan struct{} // closed when the VM has exited and err is set
	err  error
}

var _ vmm.VM = (*machine)(nil)

func newMachine(e *Engine, cfg vmm.Config, format string, s shape, j *jail) *machine {
	return &machine{
		eng: e, log: e.log.With("vm", cfg.ID), cfg: cfg, format: format, shape: s, jail: j,
		limits: make([]vmm.DriveLimits, len(cfg.Drives)),
		turn:   make(chan struct{}, 1), ports: map[string]net.Conn{}, gone: make(chan struct{}),
	}
}

// follow watches the process to its end.
func (m *machine) follow() {
	go func() {
		<-m.jail.proc.done
		m.jail.drain()
		m.hangUp()
		m.mu.Lock()
		m.running = false
		m.err = m.reason()
		released, claims := m.released, m.claims
		m.claims = nil
		m.mu.Unlock()
		errs := []error{m.closeMemory()}
		for _, f := range claims {
			errs = append(errs, f.Close())
		}
		if !released { // else it is the next owner's to clear away
			errs = append(errs, m.endPager(), removeCgroups(m.jail.cgroup), m.jail.letGo(), removeRoot(m.jail.work))
		}
		if err := errors.Join(errs...); err != nil {
			m.log.Error("let go of an ended VM", "error", err)
		}
		close(m.gone)
	}()
}

// panicked is what the kernel says last when it crashes. It ends the VM as an orderly guest does, by a reset.
var panicked = []byte("Kernel panic - not syncing")

// reason says why the VM exited; nil when that was asked for. The caller holds m.mu.
func (m *machine) reason() error {
	if m.killed {
		return nil
	}
	if m.broken != nil {
		return m.broken
	}
	console, err := vmlog.Tail(filepath.Join(m.jail.work, workConsole), 8192)
	if err == nil && bytes.Contains(console, panicked) {
		return spore.Errorf(spore.CodeConflict, "the guest crashed: %s", m.jail.lastWords())
	}
	how := "how is not known, since an earlier server had started it"
	if status := m.jail.proc.status; status != nil {
		if status.Success() {
			return nil
		}
		how = status.String()
	} else if log, err := vmlog.Tail(filepath.Join(m.jail.work, workLog), 4096); err == nil && bytes.Contains(log, []byte("exit_code=0")) {
		return nil
	}
	return spore.Errorf(spore.CodeConflict, "Firecracker ended (%s): %s", how, m.jail.lastWords())
}

func (m *machine) setRunning(running bool) {
	m.mu.Lock()
	m.running = running
	m.mu.Unlock()
}

// PID is that of Firecracker.
func (m *machine) PID() int { return m.jail.proc.pid }

func (m *machine) State() vmm.State {
	if m.jail.proc.ended() {
		return vmm.StateExited
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running {
		return vmm.StateRunning
	}
	return vmm.StatePaused
}

// begin takes the turn to change the VM. After an operation that was given up in the middle the VM is asked how it is.
func (m *machine) begin(ctx context.Context) (end func(), err error) {
	if err := m.usable(); err != nil {
		return nil, err
	}
	select {
	case m.turn <- struct{}{}:
	case <-m.gone:
		return nil, m.exited()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	end = func() { <-m.turn }
	if m.unsure {
		info, err := m.jail.api.instance(ctx)
		if err != nil {
			end()
			return nil, m.settle(err)
		}
		m.setRunning(info.State == instanceRunning)
		m.unsure = false
	}
	return end, nil
}

func (m *machine) usable() error {
	if m.jail.proc.ended() {
		return m.exited()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.released {
		return spore.Errorf(spore.CodeConflict, "the VM %s was released", m.cfg.ID)
	}
	return nil
}

func (m *machine) exited() *spore.Error {
	return spore.Errorf(spore.CodeConflict, "the VM %s has exited", m.cfg.ID).WithHint("its record says why it ended")
}

// settle turns an error of an operation that the VM's end cut short into one that says so.
func (m *machine) settle(err error) error {
	if err == nil || !errors.Is(err, errHungUp) && !errors.Is(err, errGone) {
		return err
	}
	// The socket closes as the process ends; a process that lives on without it has lost its mind.
	select {
	case <-m.jail.proc.done:
	case <-time.After(10 * time.Second):
		return spore.Errorf(spore.CodeUnreachable, "Firecracker has closed the socket of %s", m.cfg.ID).WithCause(err)
	}
	return m.exited().WithCause(err)
}

func (m *machine) Pause(ctx context.Context) error  { return m.turnTo(ctx, statePaused, false) }
func (m *machine) Resume(ctx context.Context) error { return m.turnTo(ctx, stateResumed, true) }

func (m *machine) turnTo(ctx context.Context, state string, running bool) error {
	end, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if running {
		// One that runs is left alone: Firecracker would kick its devices.
		if m.State() == vmm.StateRunning {
			return nil
		}
		if err := m.beforeResume(ctx); err != nil {
			return err
		}
	}
	if err := m.jail.api.setState(ctx, state); err != nil {
		m.unsure = true
		var refused *APIError
		if errors.As(err, &refused) {
			return spore.Errorf(spore.CodeInternal, "the VM %s is not %s: %s", m.cfg.ID, map[bool]string{true: "running again", false: "paused"}[running], refused.Message).WithCause(err)
		}
		return m.settle(err)
	}
	m.setRunning(running)
	m.saved, m.ran = false, m.ran || running
	return nil
}

// beforeResume works around a fault of 1.16: a guest that was paused and resumed without a snapshot in between is cut off
// from vsock for good, since the device waits for the guest to acknowledge a reset that it was never told of. A snapshot
// does tell it. Of a booted VM it would be one of all memory, so that one keeps the fault.
func (m *machine) beforeResume(ctx context.Context) error {
	if v := m.jail.binary.Version; v.Major != 1 || v.Minor != 16 || m.booted || m.saved || !m.ran {
		return nil
	}
	_, err := m.snapshot(ctx)
	return err
}

func (m *machine) Console(limit int) ([]byte, error) {
	return vmlog.Tail(filepath.Join(m.jail.work, workConsole), limit)
}

func (m *machine) Shutdown(ctx context.Context) error {
	if err := m.usable(); err != nil {
		return err
	}
	// A guest that stands still cannot shut down. One that does so by itself as soon as it runs on, may be gone before the answer.
	if err := m.Resume(ctx); err != nil && !m.jail.proc.ended() {
		return err
	}
	// Of a guest without the keyboard's driver nothing comes of it, and the wait below ends as it may.
	end, err := m.begin(ctx)
	if err == nil {
		err = m.settle(m.jail.api.act(ctx, actionCtrlAltDel))
		end()
	}
	if err != nil && spore.CodeOf(err) != spore.CodeConflict {
		return err
	}
	select {
	case <-m.gone:
		return m.err
	case <-ctx.Done():
		return spore.Errorf(spore.CodeUnreachable, "the guest of %s did not power off in time", m.cfg.ID).WithCause(ctx.Err())
	}
}

func (m *machine) Kill(ctx context.Context) error {
	m.mu.Lock()
	released := m.released
	select {
	case <-m.gone:
	default:
		if !released {
			m.killed = true
		}
	}
	m.mu.Unlock()
	if released {
		return m.usable()
	}
	if err := m.jail.proc.kill(); err != nil {
		return err
	}
	select {
	case <-m.gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("firecracker: waiting for the end of process %d: %w", m.jail.proc.pid, ctx.Err())
	}
}

func (m *machine) Done() <-chan struct{} { return m.gone }

func (m *machine) Err() error {
	select {
	case <-m.gone:
		return m.err
	default:
		return nil
	}
}

func (m *machine) Release() error {
	m.mu.Lock()
	if m.released {
		m.mu.Unlock()
		return nil
	}
	m.released = true
	m.mu.Unlock()
	m.hangUp()
	errs := []error{m.closeMemory(), m.jail.letGo()}
	if p := m.pageServer(); p != nil {
		errs = append(errs, p.Release())
	}
	return errors.Join(errs...)
}
