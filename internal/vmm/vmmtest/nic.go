package vmmtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

const (
	guestMAC = "02:53:50:00:00:01"
	hostMAC  = "02:53:50:00:00:02"
)

// etherType marks the suite's frames: the one that is set aside for local experiments.
const etherType = 0x88b5

// testNIC freezes a guest whose network device leads nowhere, and thaws it plugged in, in every way that the engine has.
func testNIC(t *testing.T, h Harness) {
	p := h.place(t)
	p.cfg.NIC = &vmm.NIC{MAC: guestMAC}
	if len(h.Cables) == 0 {
		_, err := p.eng.Boot(p.ctx(), p.cfg)
		wantCode(t, "Boot with a network device (Harness.Cables says that there are none)", err, spore.CodeUnsupported)
		p.wantNothingLeft()
		return
	}
	t.Run("Refusals", func(t *testing.T) { testNICRefusals(t, h) })
	vm := p.boot()
	if got, want := greet(t, vm).ask("nic"), "eth0="+guestMAC; got != want {
		t.Errorf("the guest has %s, want %s", got, want)
	}
	must(t, vm.Pause(p.ctx()))
	template := p.freeze(vm, false)
	must(t, vm.Kill(p.ctx()))

	t.Run("WrongShape", func(t *testing.T) {
		for name, nic := range map[string]*vmm.NIC{"no network device": nil, "another address": {MAC: hostMAC}} {
			q := p.fork(t)
			q.cfg.NIC = nic
			_, err := q.tryThaw(template)
			wantCode(t, name, err, spore.CodeConflict)
		}
	})
	for cable, open := range map[string]func(t *testing.T) wire{CableSocket: newSocketWire, CableTap: newTapWire} {
		carries, taken := h.Cables[cable]
		t.Run(cable, func(t *testing.T) {
			if !taken {
				q := p.fork(t)
				q.cfg.NIC = map[string]*vmm.NIC{CableSocket: {MAC: guestMAC, Socket: "/frames"}, CableTap: {MAC: guestMAC, Tap: "tap0"}}[cable]
				_, err := q.tryThaw(template)
				wantCode(t, "a cable that the engine does not take", err, spore.CodeUnsupported)
				return
			}
			testCable(t, p, template, open, carries)
		})
	}
}

func testNICRefusals(t *testing.T, h Harness) {
	p := h.place(t)
	for name, tc := range map[string]struct {
		nic   vmm.NIC
		cable string
		code  spore.Code
	}{
		"no address":               {vmm.NIC{}, "", spore.CodeInvalid},
		"an address with options":  {vmm.NIC{MAC: guestMAC + ",x=y"}, "", spore.CodeInvalid},
		"a multicast address":      {vmm.NIC{MAC: "01:00:5e:00:00:01"}, "", spore.CodeInvalid},
		"two cables":               {vmm.NIC{MAC: guestMAC, Tap: "tap0", Socket: "/x"}, CableTap, spore.CodeInvalid},
		"a missing socket":         {vmm.NIC{MAC: guestMAC, Socket: filepath.Join(t.TempDir(), "missing")}, CableSocket, spore.CodeNotFound},
		"a missing namespace":      {vmm.NIC{MAC: guestMAC, Tap: "tap0", NetNS: filepath.Join(t.TempDir(), "missing")}, CableTap, spore.CodeNotFound},
		"a file for a namespace":   {vmm.NIC{MAC: guestMAC, Tap: "tap0", NetNS: p.cfg.Drives[0].Path}, CableTap, spore.CodeNotFound},
		"a missing TAP device":     {vmm.NIC{MAC: guestMAC, Tap: "spore-no-tap"}, CableTap, spore.CodeNotFound},
		"a TAP device, ill named":  {vmm.NIC{MAC: guestMAC, Tap: "a,b=c"}, CableTap, spore.CodeInvalid},
		"a namespace for a socket": {vmm.NIC{MAC: guestMAC, Socket: "/x", NetNS: "/x"}, CableSocket, spore.CodeInvalid},
	} {
		if _, taken := h.Cables[tc.cable]; tc.cable != "" && !taken {
			continue
		}
		cfg := p.cfg
		cfg.NIC = &tc.nic
		vm, err := p.eng.Boot(p.ctx(), cfg)
		wantCode(t, name, err, tc.code)
		if err == nil {
			own(t, vm)
		}
	}
	p.wantNothingLeft()
}

// testCable plugs a thawed VM in, freezes it again, and unplugs and plugs in what is thawed from that.
func testCable(t *testing.T, p *place, template frozen, open func(*testing.T) wire, carries bool) {
	w := open(t)
	q := p.fork(t)
	q.cfg.NIC = w.nic()
	vm := q.thaw(template)
	must(t, vm.Resume(q.ctx()))
	g := greet(t, vm)
	if carries {
		exchange(t, g, w, 1)
	}
	must(t, vm.Pause(q.ctx()))
	diff := q.freeze(vm, true)
	must(t, vm.Resume(q.ctx()))
	if carries {
		exchange(t, greet(t, vm), w, 2)
	}
	must(t, vm.Kill(q.ctx()))

	unplugged := q.fork(t)
	unplugged.cfg.NIC = &vmm.NIC{MAC: guestMAC}
	vm = unplugged.thaw(diff)
	must(t, vm.Resume(unplugged.ctx()))
	g = greet(t, vm)
	if carries {
		g.ask("frame 0 3") // goes nowhere, and does not stall the guest
		g.ask("count")
	}
	must(t, vm.Pause(unplugged.ctx()))
	again := unplugged.freeze(vm, true)

	w = open(t)
	last := unplugged.fork(t)
	last.cfg.NIC = w.nic()
	vm = last.thaw(again)
	must(t, vm.Release())
	vm, err := last.h.New(t).Adopt(last.ctx(), last.cfg)
	must(t, err)
	own(t, vm)
	must(t, vm.Resume(last.ctx()))
	g = greet(t, vm)
	if carries {
		exchange(t, g, w, 4)
	}
	if r, can := vm.(vmm.Replugger); can {
		testReplug(t, last, vm, r, w, open(t))
	}
}

// testReplug ends the process at the other end of a VM's cable, and leads the cable to another one.
func testReplug(t *testing.T, p *place, vm vmm.VM, r vmm.Replugger, old, w wire) {
	if _, socket := old.(*socketWire); !socket {
		wantCode(t, "Replug of another cable", r.Replug(p.ctx(), *w.nic()), spore.CodeUnsupported)
		return
	}
	g := greet(t, vm)
	flood := func(seed, n int) {
		for i := range n {
			g.ask("frame 0 %d", seed+i)
		}
	}
	flood(1000, 300) // more than a socket takes, but no more than the device holds beside it
	must(t, old.(*socketWire).conn.Close())
	flood(2000, 100)
	wantCode(t, "Replug to nothing", r.Replug(p.ctx(), vmm.NIC{MAC: guestMAC, Socket: filepath.Join(t.TempDir(), "missing")}), spore.CodeNotFound)
	must(t, r.Replug(p.ctx(), *w.nic()))
	g.ask("frame 0 3000")
	for binary.BigEndian.Uint64(w.receive(t)[14:]) != 3000 { // before it comes what has waited
	}
	exchange(t, g, w, 5)
	must(t, vm.Pause(p.ctx()))
	must(t, r.Replug(p.ctx(), *w.nic())) // in good order, and standing still
	if vm.State() != vmm.StatePaused {
		t.Error("it does not stand still any more")
	}
	w.(*socketWire).conn = nil
	must(t, vm.Resume(p.ctx()))
	exchange(t, g, w, 6)
}

// exchange sends frames both ways, small ones and as large as they come.
func exchange(t *testing.T, g *talk, w wire, seed uint64) {
	t.Helper()
	g.ask("frame 0 %d", seed)
	if got := w.receive(t); binary.BigEndian.Uint64(got[14:]) != seed || net.HardwareAddr(got[6:12]).String() != guestMAC {
		t.Errorf("the guest sent %x", got)
	}
	for _, size := range []int{60, 61, 1514} {
		frame := make([]byte, 0, size)
		for _, mac := range []string{guestMAC, hostMAC} {
			addr, err := net.ParseMAC(mac)
			must(t, err)
			frame = append(frame, addr...)
		}
		frame = binary.BigEndian.AppendUint16(frame, etherType)
		frame = append(frame, bytes.Repeat([]byte{byte(size) ^ byte(seed)}, size-len(frame))...)
		w.send(t, frame)
		got := w.receive(t)
		if len(got) != size || !bytes.Equal(got[12:], frame[12:]) || net.HardwareAddr(got[:6]).String() != hostMAC {
			t.Errorf("a frame of %d bytes came back as %d: %x", size, len(got), got[:min(len(got), 20)])
		}
	}
}

// wire is the host's end of a cable.
type wire interface {
	nic() *vmm.NIC
	send(t *testing.T, frame []byte)
	receive(t *testing.T) []byte // the next frame of the suite, whatever else the guest says
}

func ours(frame []byte) bool {
	return len(frame) >= 22 && binary.BigEndian.Uint16(frame[12:]) == etherType
}

// socketWire listens for the engine.
type socketWire struct {
	path string
	l    *net.UnixListener
	conn *net.UnixConn
}

func newSocketWire(t *testing.T) wire {
	t.Helper()
	dir, err := os.MkdirTemp("", "w")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	// Longer than a socket's address: an engine must cope.
	path := filepath.Join(dir, fmt.Sprintf("%0120d", 0))
	must(t, os.Mkdir(path, 0o700))
	d, err := os.Open(path)
	must(t, err)
	defer d.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/frames", d.Fd())})
	must(t, err)
	l.SetUnlinkOnClose(false)
	t.Cleanup(func() { l.Close() })
	return &socketWire{path: filepath.Join(path, "frames"), l: l}
}

func (w *socketWire) nic() *vmm.NIC { return &vmm.NIC{MAC: guestMAC, Socket: w.path} }

func (w *socketWire) connected(t *testing.T) *net.UnixConn {
	t.Helper()
	if w.conn == nil {
		must(t, w.l.SetDeadline(time.Now().Add(patience)))
		conn, err := w.l.AcceptUnix()
		must(t, err)
		t.Cleanup(func() { conn.Close() })
		must(t, conn.SetDeadline(time.Now().Add(patience)))
		w.conn = conn
	}
	return w.conn
}

func (w *socketWire) send(t *testing.T, frame []byte) {
	t.Helper()
	_, err := w.connected(t).Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...))
	must(t, err)
}

func (w *socketWire) receive(t *testing.T) []byte {
	t.Helper()
	for {
		var head [4]byte
		_, err := io.ReadFull(w.connected(t), head[:])
		must(t, err)
		size := binary.BigEndian.Uint32(head[:])
		if size > 64<<10 {
			t.Fatalf("a frame of %d bytes", size)
		}
		frame := make([]byte, size)
		_, err = io.ReadFull(w.conn, frame)
		must(t, err)
		if ours(frame) {
			return frame
		}
	}
}

// tapWire is a TAP device in a network namespace of its own.
type tapWire struct {
	netns string
	fd    int // a packet socket on the device
	index int
}

func newTapWire(t *testing.T) wire {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making a TAP device needs root")
	}
	w := &tapWire{netns: filepath.Join(t.TempDir(), "netns"), fd: -1}
	must(t, os.WriteFile(w.netns, nil, 0o600))
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // and let it end: it is in the namespace
		made <- w.make()
	}()
	must(t, <-made)
	t.Cleanup(func() {
		if err := errors.Join(unix.Close(w.fd), unix.Unmount(w.netns, 0)); err != nil {
			t.Errorf("remove the namespace: %v", err)
		}
	})
	return w
}

func (w *tapWire) make() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	tun, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(tun)
	req, err := unix.NewIfreq("tap0")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(tun, unix.TUNSETIFF, req); err != nil {
		return err
	}
	if err := unix.IoctlSetInt(tun, unix.TUNSETPERSIST, 1); err != nil {
		return err
	}
	dev, err := net.InterfaceByName("tap0")
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: etherType>>8 | etherType&0xff<<8, Ifindex: dev.Index})
	}
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience / time.Second)})
	}
	if err == nil {
		err = unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), w.netns, "", unix.MS_BIND, "")
	}
	if err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	w.fd, w.index = fd, dev.Index
	return nil
}

func (w *tapWire) nic() *vmm.NIC { return &vmm.NIC{MAC: guestMAC, NetNS: w.netns, Tap: "tap0"} }

func (w *tapWire) send(t *testing.T, frame []byte) {
	t.Helper()
	must(t, unix.Sendto(w.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: w.index, Halen: 6}))
}

func (w *tapWire) receive(t *testing.T) []byte {
	t.Helper()
	buf := make([]byte, 4096)
	for {
		n, from, err := unix.Recvfrom(w.fd, buf, 0)
		must(t, err)
		if sender, ok := from.(*unix.SockaddrLinklayer); ok && sender.Pkttype != unix.PACKET_OUTGOING && ours(buf[:n]) {
			return buf[:n]
		}
	}
}
