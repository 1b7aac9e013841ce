package main

import (
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sporevm/spore/internal/vmm"
)

// guest is what runs in the VM: a program in this process that keeps its state in guest memory and is reached by vsock.
type guest struct {
	m             *machine
	serial        io.Writer
	control, data uint32
	play          player
	started       time.Time
	steps         sync.RWMutex // held for reading while the guest does something

	mu    sync.Mutex
	regs  []byte
	ports map[uint32]net.Conn
}

// player is a kind of guest: it is given each connection to a port.
type player interface {
	serve(g *guest, port string, conn net.Conn)
}

func newGuest(m *machine, serial io.Writer, registers []byte) *guest {
	g := &guest{m: m, serial: serial, regs: registers, ports: map[uint32]net.Conn{}, started: time.Now()}
	g.control, g.data = portNumber(buildControl), portNumber(buildData)
	g.play = newAgent(g)
	if buildGuest == "suite" {
		g.play = newSuite(g)
	}
	return g
}

func portNumber(text string) uint32 {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		panic(err) // the build is wrong
	}
	return uint32(n)
}

// listener is what accepts connections to a vsock port; nil when nobody listens. As with a virtio port, a new connection takes
// the place of the one before.
func (g *guest) listener(port uint32) func(net.Conn) {
	names := map[uint32]string{g.control: vmm.PortControl, g.data: vmm.PortData}
	name, ok := names[port]
	if !ok {
		return nil
	}
	return func(c net.Conn) {
		g.mu.Lock()
		if old := g.ports[port]; old != nil {
			old.Close()
		}
		g.ports[port] = c
		g.mu.Unlock()
		g.play.serve(g, name, c)
		c.Close()
	}
}

// settle waits until what the guest was doing when it was paused is done: a processor stops between two instructions, ours between
// two steps.
func (g *guest) settle() {
	g.steps.Lock()
	defer g.steps.Unlock()
}

// step does what the guest can do only while the VM runs.
func (g *guest) step(do func() (int, error)) (int, error) {
	for {
		g.m.waitRunning()
		g.steps.RLock()
		if g.m.current() == running {
			n, err := do()
			g.steps.RUnlock()
			return n, err
		}
		g.steps.RUnlock()
	}
}

// boot prints what a kernel prints. A kernel for another processor faults until the VM ends.
func (g *guest) boot(native bool) {
	if !native {
		g.end(0)
		return
	}
	g.print(fmt.Sprintf("[    0.000000] Linux version 6.1.0 (stand-in)\n[    0.000000] Command line: %s\n", *orEmpty(g.m.boot.Args)))
	if buildGuest == "agent" { // which servers are tried with, and they believe no KVM that has not brought a kernel so far
		g.print("[    0.100000] Run /init as init process\n")
	}
	g.print("stand-in guest ready\n")
}

func orEmpty(s *string) *string {
	if s == nil {
		return new(string)
	}
	return s
}

// print writes to the serial console, if the kernel was told to use it.
func (g *guest) print(text string) {
	console, _ := g.m.boot.argument("console")
	uarts, limited := g.m.boot.argument("8250.nr_uarts")
	if g.m.boot.Args == nil || !strings.HasPrefix(console, "ttyS0") || limited && uarts == "0" {
		return
	}
	io.WriteString(g.serial, text) // a console that nobody reads loses what is written
}

func (g *guest) registers() []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]byte(nil), g.regs...)
}

// ReadAt reads the guest's memory.
func (g *guest) ReadAt(p []byte, off int64) (int, error) {
	return g.step(func() (int, error) { return g.m.mem.ReadAt(p, off) })
}

// WriteAt writes the guest's memory.
func (g *guest) WriteAt(p []byte, off int64) (int, error) {
	return g.step(func() (int, error) { return g.m.mem.WriteAt(p, off) })
}

// PowerOff ends the VM in order. Firecracker has no power switch: a guest ends it by a reset.
func (g *guest) PowerOff() {
	g.m.waitRunning()
	g.print("[    1.000000] reboot: Restarting system\n")
	g.end(0)
}

// crash ends the VM as a kernel panic does: when the kernel was told to restart after one, the VMM ends as if all was well, and
// else nothing happens any more.
func (g *guest) crash(why string) {
	g.m.waitRunning()
	g.print("[    1.000000] Kernel panic - not syncing: " + why + "\n")
	if seconds, ok := g.m.boot.argument("panic"); ok && seconds != "0" {
		g.end(0)
	}
}

func (g *guest) end(code int) {
	select {
	case g.m.end <- code:
	default: // it ends already
	}
}
