package sim

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// Conn is the guest's end of a port.
type Conn = net.Conn

// consoleLimit is how much of a console is kept.
const consoleLimit = 256 << 10

// instance is a VM itself, whoever holds it.
type instance struct {
	opts  Options
	cfg   vmm.Config
	dir   string
	shape string
	mem   *ram
	turn  chan struct{}

	throttles map[string]*throttle // by drive

	mu      sync.Mutex
	running bool
	resumed chan struct{} // closed while the VM runs
	ports   map[string]net.Conn
	console []byte
	devices []byte
	exiting bool
	cable   net.Conn // of the network device; nil when it is unplugged

	gone chan struct{}
	err  error
}

func newInstance(opts Options, cfg vmm.Config, dir, shape string, mem *ram, devices []byte) *instance {
	return &instance{
		opts: opts, cfg: cfg, dir: dir, shape: shape, mem: mem, devices: devices, turn: make(chan struct{}, 1),
		throttles: newThrottles(cfg.Drives),
		resumed:   make(chan struct{}), ports: map[string]net.Conn{}, gone: make(chan struct{}),
	}
}

func (in *instance) fault(ctx context.Context, step Step) error {
	err := in.opts.Fault(ctx, in.cfg.ID, step)
	if errors.Is(err, ErrDie) {
		in.exit(spore.Errorf(spore.CodeConflict, "the simulated hypervisor ended at %s", step).WithCause(err))
	}
	return err
}

func (in *instance) run(running bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.running == running {
		return
	}
	in.running = running
	if running {
		close(in.resumed)
	} else {
		in.resumed = make(chan struct{})
	}
}

func (in *instance) currentState() vmm.State {
	select {
	case <-in.gone:
		return vmm.StateExited
	default:
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.running {
		return vmm.StateRunning
	}
	return vmm.StatePaused
}

// exit ends the VM; the first reason counts.
func (in *instance) exit(reason error) {
	in.mu.Lock()
	first := !in.exiting
	in.exiting = true
	in.mu.Unlock()
	if !first {
		<-in.gone
		return
	}
	in.hangUp()
	if in.cable != nil {
		in.cable.Close()
	}
	hosted.Lock()
	delete(hosted.vms, in.dir)
	hosted.Unlock()
	in.err = reason
	if err := in.mem.close(); err != nil && reason == nil {
		in.err = err
	}
	close(in.gone)
}

func (in *instance) hangUp() {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, conn := range in.ports {
		conn.Close()
	}
	clear(in.ports)
}

func (in *instance) dial(port string) (net.Conn, error) {
	host, guest := net.Pipe()
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.exiting {
		return nil, errors.Join(errExited(), host.Close(), guest.Close())
	}
	if old := in.ports[port]; old != nil {
		old.Close()
	}
	in.ports[port] = host
	go func() {
		defer guest.Close()
		g := &Guest{in: in}
		in.opts.Guest(g, port, pausable{guest, in})
	}()
	return host, nil
}

func (in *instance) registers() []byte {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.devices
}

func (in *instance) consoleTail(limit int) []byte {
	in.mu.Lock()
	defer in.mu.Unlock()
	text := in.console
	if n := len(text) - max(limit, 0); n > 0 {
		text = text[n:]
	}
	return append([]byte(nil), text...)
}

// pausable is a connection whose guest stands still while the VM is paused.
type pausable struct {
	net.Conn
	in *instance
}

func (p pausable) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	p.in.waitRunning()
	return n, err
}

func (p pausable) Write(b []byte) (int, error) {
	p.in.waitRunning()
	return p.Conn.Write(b)
}

func (in *instance) waitRunning() {
	in.mu.Lock()
	resumed := in.resumed
	in.mu.Unlock()
	select {
	case <-resumed:
	case <-in.gone:
	}
}

// Guest is what a simulated guest can do. Its memory outlives a freeze and a thaw; Go values do not.
type Guest struct{ in *instance }

// Config is the shape of the guest's VM.
func (g *Guest) Config() vmm.Config { return g.in.cfg }

// ReadAt reads the guest's memory.
func (g *Guest) ReadAt(p []byte, off int64) (int, error) { return g.in.mem.ReadAt(p, off) }

// WriteAt writes the guest's memory.
func (g *Guest) WriteAt(p []byte, off int64) (int, error) { return g.in.mem.WriteAt(p, off) }

// SetRegisters replaces what the guest keeps outside of its memory; it is part of the device state.
func (g *Guest) SetRegisters(b []byte) {
	g.in.mu.Lock()
	defer g.in.mu.Unlock()
	g.in.devices = append([]byte(nil), b...)
}

// Registers is what SetRegisters last kept, here or before the freeze.
func (g *Guest) Registers() []byte { return append([]byte(nil), g.in.registers()...) }

// Print writes to the console.
func (g *Guest) Print(text string) {
	g.in.mu.Lock()
	defer g.in.mu.Unlock()
	g.in.console = append(g.in.console, text...)
	if n := len(g.in.console) - consoleLimit; n > 0 {
		g.in.console = append([]byte(nil), g.in.console[n:]...)
	}
}

// SendFrame sends an Ethernet frame, if the network device leads somewhere.
func (g *Guest) SendFrame(frame []byte) error {
	if g.in.cable == nil {
		return nil
	}
	_, err := pausable{g.in.cable, g.in}.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...))
	return err
}

// PowerOff ends the VM in order.
func (g *Guest) PowerOff() { g.in.exit(nil) }

// Crash ends the VM as a kernel panic does.
func (g *Guest) Crash(why string) {
	g.in.exit(spore.Errorf(spore.CodeConflict, "the guest crashed or restarted itself: %s", why))
}

// echo is the default guest.
func echo(g *Guest, port string, conn Conn) {
	if port == vmm.PortData || port == PortFrames {
		io.Copy(conn, conn) // until the host leaves
		return
	}
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		if _, err := io.WriteString(conn, lines.Text()+"\n"); err != nil {
			return // the host has left
		}
	}
}
