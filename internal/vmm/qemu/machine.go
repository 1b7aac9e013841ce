package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/procmem"
	"github.com/sporevm/spore/internal/vmm/qemu/qmp"
	"github.com/sporevm/spore/internal/vmm/vmlog"
)

// machine is one VM. It implements vmm.VM.
type machine struct {
	log    *slog.Logger
	cfg    vmm.Config
	format string // of its device state
	shape  shape
	shared bool // booted: RAM is the memory file itself
	work   *workdir
	proc   *process

	qmp       *qmp.Client
	console   *vmlog.Follower
	output    *vmlog.Follower // nil for a process whose output a server before this one made a file of
	migration chan string     // the final status of a state being loaded

	turn  chan struct{} // held by the operation that may change the VM
	fdset int           // the last set of descriptors given to QEMU; holder of turn
	spent []int         // sets that QEMU may forget when it runs; holder of turn

	mu       sync.Mutex
	running  bool
	shutdown string // why QEMU says the guest ended
	killed   bool
	released bool
	ports    map[string]net.Conn
	memory   *procmem.Memory

	gone chan struct{} // closed when the VM has exited and err is set
	err  error
}

var _ vmm.VM = (*machine)(nil)

func newMachine(log *slog.Logger, cfg vmm.Config, format string, s shape, w *workdir) *machine {
	return &machine{
		log: log, cfg: cfg, format: format, shape: s, work: w,
		migration: make(chan string, 1), turn: make(chan struct{}, 1),
		ports: map[string]net.Conn{}, gone: make(chan struct{}),
	}
}

// connect opens the monitor, the console and the process's output.
func (m *machine) connect() error {
	log := m.log.With("vm", m.cfg.ID)
	output, err := vmlog.OpenPipe(m.work.join(nameOutput))
	if err == nil {
		m.output, err = vmlog.Follow(m.work.join(nameLog), output, log)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return err
	}
	console, err := m.work.dial(socketConsole)
	if err == nil {
		m.console, err = vmlog.Follow(m.work.join(nameConsole), console, log)
	}
	if err != nil {
		return errors.Join(err, m.disconnect())
	}
	monitor, err := m.work.dial(socketMonitor)
	if err != nil {
		return errors.Join(err, m.disconnect())
	}
	m.qmp = qmp.New(monitor, m.onEvent)
	return nil
}

// disconnect lets go of what connect opened.
func (m *machine) disconnect() (err error) {
	if m.qmp != nil {
		err = m.qmp.Close()
	}
	for _, f := range []*vmlog.Follower{m.console, m.output} {
		if f != nil {
			f.Stop()
		}
	}
	return err
}

// follow watches the process to its end.
func (m *machine) follow(p *process) {
	m.proc = p
	go func() {
		<-m.proc.done
		// The process has closed its ends: all readers come to theirs, with nothing lost of what it said last.
		<-m.qmp.Done()
		<-m.console.Done()
		if m.output != nil {
			<-m.output.Done()
		}
		m.mu.Lock()
		m.running = false
		for _, conn := range m.ports {
			conn.Close()
		}
		clear(m.ports)
		m.err = m.reason()
		m.mu.Unlock()
		if err := errors.Join(m.closeMemory(), m.work.close()); err != nil {
			m.log.Error("let go of an ended VM", "vm", m.cfg.ID, "error", err)
		}
		close(m.gone)
	}()
}

// reason says why the VM exited; nil when that was asked for. The caller holds m.mu.
func (m *machine) reason() error {
	if m.killed || m.shutdown == "guest-shutdown" || m.shutdown == "host-qmp-quit" {
		return nil
	}
	if m.shutdown == "guest-reset" || m.shutdown == "guest-panic" {
		return spore.Errorf(spore.CodeConflict, "the guest crashed or restarted itself: %s", m.lastWords())
	}
	how := m.proc.status
	if how == "" {
		how = "how is not known, since an earlier server had started it"
	}
	return spore.Errorf(spore.CodeConflict, "the hypervisor ended (%s): %s", how, m.lastWords())
}

// lastWords are the ends of QEMU's log and of the guest's console, for messages.
func (m *machine) lastWords() string {
	text := "it left no message"
	if tail, err := vmlog.Tail(m.work.join(nameLog), 4096); err == nil && len(tail) > 0 {
		text = vmlog.LastLines(tail, 5)
	}
	if tail, err := vmlog.Tail(m.work.join(nameConsole), 4096); err == nil && len(tail) > 0 {
		text += "; console: " + vmlog.LastLines(tail, 8)
	}
	return text
}

func (m *machine) onEvent(e qmp.Event) {
	switch e.Name {
	case "STOP": // ours, or QEMU's own, when a disk's file finds no room
		m.setRunning(false)
	case "RESUME":
		m.setRunning(true)
	case "SHUTDOWN":
		var data struct{ Reason string }
		if json.Unmarshal(e.Data, &data) == nil {
			m.mu.Lock()
			m.shutdown = data.Reason
			m.mu.Unlock()
		}
	case "MIGRATION":
		var data struct{ Status string }
		if json.Unmarshal(e.Data, &data) == nil && (data.Status == "completed" || data.Status == "failed") {
			select {
			case m.migration <- data.Status:
			default:
			}
		}
	}
}

func (m *machine) setRunning(running bool) {
	m.mu.Lock()
	m.running = running
	m.mu.Unlock()
}

func (m *machine) PID() int { return m.proc.pid }

func (m *machine) State() vmm.State {
	select {
	case <-m.proc.done:
		return vmm.StateExited
	default:
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running {
		return vmm.StateRunning
	}
	return vmm.StatePaused
}

// begin takes the turn to change the VM.
func (m *machine) begin(ctx context.Context) (end func(), err error) {
	if err := m.usable(); err != nil {
		return nil, err
	}
	select {
	case m.turn <- struct{}{}:
		return func() { <-m.turn }, nil
	case <-m.gone:
		return nil, m.exited()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (m *machine) usable() error {
	select {
	case <-m.proc.done:
		return m.exited()
	default:
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.released {
		return spore.Errorf(spore.CodeConflict, "the VM %s was released", m.cfg.ID)
	}
	return nil
}

func (m *machine) exited() error {
	return spore.Errorf(spore.CodeConflict, "the VM %s has exited", m.cfg.ID).WithHint("its record says why it ended")
}

// settle turns an error of an operation that the VM's end cut short into one that says so.
func (m *machine) settle(err error) error {
	var refusal *qmp.Error
	if errors.As(err, &refusal) {
		if e := lockRefusal(refusal.Desc, m.cfg.Drives); e != nil {
			return e.WithCause(err)
		}
	}
	if err == nil || !errors.Is(err, qmp.ErrClosed) {
		return err
	}
	// The monitor closes as the process ends; a process that lives on without it has lost its mind.
	select {
	case <-m.proc.done:
	case <-time.After(10 * time.Second):
		return spore.Errorf(spore.CodeUnreachable, "the hypervisor of %s has closed its monitor", m.cfg.ID).WithCause(err)
	}
	return m.exited().(*spore.Error).WithCause(err)
}

func (m *machine) Pause(ctx context.Context) error  { return m.turnTo(ctx, "stop", false) }
func (m *machine) Resume(ctx context.Context) error { return m.turnTo(ctx, "cont", true) }

func (m *machine) turnTo(ctx context.Context, command string, running bool) error {
	end, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if err := m.qmp.Do(ctx, command, nil, nil); err != nil {
		return m.settle(err)
	}
	// An event has come before the answer; by now the VM may have stopped again, when its disk finds no room.
	if running {
		// The guest runs, whatever becomes of this: what is not forgotten now is after the next pause.
		if err := m.forgetSets(ctx); err != nil {
			m.log.Warn("having QEMU close what it saved its state to", "vm", m.cfg.ID, "err", err)
		}
	}
	return nil
}

func (m *machine) SaveState(ctx context.Context, out *os.File) error {
	end, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if m.State() == vmm.StateRunning {
		return spore.Errorf(spore.CodeConflict, "the VM %s runs; it must be paused to save its state", m.cfg.ID)
	}
	payload, err := m.saveState(ctx)
	if err != nil {
		return m.settle(err)
	}
	return writeState(out, m.format, m.shape, payload)
}

func (m *machine) Memory() (vmm.Memory, error) {
	if err := m.usable(); err != nil {
		return nil, err
	}
	return m.openMemory()
}

func (m *machine) openMemory() (*procmem.Memory, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.memory == nil {
		mem, err := procmem.Open(m.proc.pid, m.cfg.Memory, ramBytes(m.cfg))
		if err != nil {
			return nil, err
		}
		m.memory = mem
	}
	return m.memory, nil
}

func (m *machine) DialPort(ctx context.Context, port string) (net.Conn, error) {
	socket := map[string]string{vmm.PortControl: socketControl, vmm.PortData: socketData}[port]
	if socket == "" {
		return nil, spore.Invalidf("port", "there is no port %q", port)
	}
	if err := m.usable(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	// QEMU talks to one client at a time: the next one waits in the backlog until it has noticed that this one left.
	if old := m.ports[port]; old != nil {
		old.Close()
	}
	conn, err := m.work.dial(socket)
	if errors.Is(err, syscall.EAGAIN) { // the backlog is full of those who have left again
		return nil, spore.Errorf(spore.CodeUnreachable, "QEMU of the VM %s is busy and takes no connection", m.cfg.ID).WithCause(err)
	}
	if err != nil {
		return nil, m.exited().(*spore.Error).WithCause(err)
	}
	m.ports[port] = conn
	return conn, nil
}

func (m *machine) Console(limit int) ([]byte, error) {
	return vmlog.Tail(m.work.join(nameConsole), limit)
}

func (m *machine) Shutdown(ctx context.Context) error {
	if err := m.usable(); err != nil {
		return err
	}
	// A guest that stands still cannot shut down. One that does so by itself as soon as it runs on, may be gone before the answer.
	if err := m.Resume(ctx); err != nil {
		select {
		case <-m.proc.done:
		default:
			return err
		}
	}
	if err := m.qmp.Do(ctx, "system_powerdown", nil, nil); err != nil {
		if err := m.settle(err); spore.CodeOf(err) != spore.CodeConflict {
			return err
		}
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
	if err := m.proc.kill(); err != nil {
		return err
	}
	select {
	case <-m.gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("qemu: waiting for the end of process %d: %w", m.proc.pid, ctx.Err())
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
	for _, conn := range m.ports {
		conn.Close()
	}
	clear(m.ports)
	m.mu.Unlock()
	return errors.Join(m.disconnect(), m.closeMemory(), m.work.close())
}
