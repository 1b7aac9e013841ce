package usernet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/thread"
)

// openTap opens a TAP device as Firecracker does, with everything left to the reader of its frames that can be.
func openTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	f := func() error {
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return err
		}
		return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4)
	}
	if err := f(); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}

// tapGuest is a guest with a kernel of its own, as far as networks go, whose device is on the sidecar's TAP.
type tapGuest struct {
	*namespace
	host, inner *os.File     // the hypervisor's TAP, and what it makes of it for the guest
	large, lazy atomic.Int64 // frames of the guest that are to be cut, and whose checksum is to be set
	strange     atomic.Int64 // frames for the guest that are not the sidecar's
	pumps       sync.WaitGroup
}

func newTapGuest(t testing.TB, l *Link) *tapGuest {
	t.Helper()
	path, err := l.NetNS()
	must(t, err)
	ns, err := os.Open(path)
	must(t, err)
	defer ns.Close()
	g := &tapGuest{namespace: newNamespace(t)}
	must(t, thread.InNetwork(ns, func() (err error) { g.host, err = openTap(TapName); return err }))
	g.do(t, func() (err error) {
		if g.inner, err = openTap("eth0"); err != nil {
			return err
		}
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(GuestAddress.String() + "/30")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetHardwareAddr(link, guestMAC[:]), netlink.AddrAdd(link, addr), netlink.LinkSetUp(link),
			netlink.RouteAdd(&netlink.Route{Gw: GatewayAddress.AsSlice()}))
	})
	pump := func(to, from *os.File, look func(frame []byte)) {
		buf := make([]byte, vnetHeader+maxFrame)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			look(buf[:n])
			to.Write(buf[:n]) // what is lost is sent again
		}
	}
	g.pumps.Go(func() {
		pump(g.host, g.inner, func(f []byte) {
			if f[1]&^vnetECN == vnetTCP4 {
				g.large.Add(1)
			}
			if f[0]&vnetNeedsChecksum != 0 {
				g.lazy.Add(1)
			}
		})
	})
	g.pumps.Go(func() {
		pump(g.inner, g.host, func(f []byte) {
			if !bytes.Equal(f[vnetHeader+6:vnetHeader+12], gatewayMAC[:]) {
				g.strange.Add(1)
			}
		})
	})
	t.Cleanup(g.end)
	return g
}

// end ends the guest.
func (g *tapGuest) end() {
	g.host.Close()
	g.inner.Close()
	g.pumps.Wait()
}

func (g *tapGuest) dial(t testing.TB, network, addr string) (c net.Conn, err error) {
	t.Helper()
	g.do(t, func() error { c, err = net.DialTimeout(network, addr, patience); return nil })
	if err == nil {
		t.Cleanup(func() { c.Close() })
		must(t, c.SetDeadline(time.Now().Add(patience)))
	}
	return c, err
}

// TestTap has a guest whose device leaves checksums and segments to the host move data in both directions.
func TestTap(t *testing.T) {
	w := newWorld(t)
	const size = 16 << 20
	w.listen(t, serverIP+":9", func(c net.Conn) {
		h := sha256.New()
		if n, err := io.CopyN(h, c, size); err == nil && n == size {
			c.Write(h.Sum(nil))
		}
	})
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(data)
	sum := sha256.Sum256(data)
	w.listen(t, serverIP+":19", func(c net.Conn) { c.Write(data) })
	w.echoPackets(t, serverIP+":7")
	l := w.start(t, Spec{Tap: true})
	must(t, l.Ready(t.Context()))
	s, err := l.Stats(t.Context())
	must(t, err)
	if s.Connected {
		t.Error("a VM has connected before there was one")
	}
	g := newTapGuest(t, l)

	begun := time.Now()
	c, err := g.dial(t, "tcp4", serverIP+":9")
	must(t, err)
	_, err = c.Write(data)
	must(t, err)
	got := make([]byte, sha256.Size)
	_, err = io.ReadFull(c, got)
	must(t, err)
	if !bytes.Equal(got, sum[:]) {
		t.Error("what the guest sent did not arrive as it was")
	}
	out := time.Since(begun)
	begun = time.Now()
	c, err = g.dial(t, "tcp4", serverIP+":19")
	must(t, err)
	h := sha256.New()
	if n, err := io.Copy(h, c); err != nil || n != size || !bytes.Equal(h.Sum(nil), sum[:]) {
		t.Errorf("what the guest got is not what was sent: %d bytes, %v", n, err)
	}
	t.Logf("%d MiB out in %v, in in %v; frames to be cut: %d, without a checksum: %d", size>>20, out, time.Since(begun), g.large.Load(), g.lazy.Load())
	if g.large.Load() == 0 || g.lazy.Load() == 0 {
		t.Error("the guest did it all by itself, so nothing was tried")
	}

	for _, size := range []int{1, 1000, 4000} { // the last in fragments
		c, err = g.dial(t, "udp4", serverIP+":7")
		must(t, err)
		_, err = c.Write(data[:size])
		must(t, err)
		answer := make([]byte, 8000)
		n, err := c.Read(answer)
		if err != nil || !bytes.Equal(answer[:n], data[:size]) {
			t.Errorf("a datagram of %d bytes: %d, %v", size, n, err)
		}
	}
	if _, err := g.dial(t, "tcp4", privateIP+":80"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a private address: %v", err)
	}
	if n := g.strange.Load(); n > 0 {
		t.Errorf("the host's kernel has sent the guest %d frames", n)
	}
	if s, err = l.Stats(t.Context()); err != nil || !s.Connected || s.InBytes < size || s.OutBytes < size {
		t.Errorf("%+v, %v", s, err)
	}
	pid := pidOf(t, l.dir)
	g.end()
	eventually(t, "it ends with the VM", func() bool { return !alive(pid) })
	_, err = l.NetNS()
	wantCode(t, "NetNS", err, spore.CodeNotFound)
}

// TestTapSurvivesItsServer kills the process that started a sidecar with a TAP device; the VM finds the device all the same.
func TestTapSurvivesItsServer(t *testing.T) {
	newNamespace(t) // or the test is skipped
	dir := t.TempDir()
	l := orphan(t, dir, "tap")
	newTapGuest(t, l)
	eventually(t, "it is connected", func() bool { s, err := l.Stats(t.Context()); must(t, err); return s.Connected })
	must(t, l.Update(t.Context(), spore.Egress{Internet: internetOff}, Rates{In: 1_000_000}))
}

// TestTapWaits ends the wait for a VM by its time and by the end of the sidecar.
func TestTapWaits(t *testing.T) {
	newNamespace(t)
	for _, patience := range []time.Duration{20 * time.Millisecond, time.Hour} {
		d, err := newTap()
		must(t, err)
		defer d.Close()
		dup := func(f *os.File) int {
			fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
			must(t, err)
			return fd
		}
		p, err := inheritPackets(dup(d.packets), dup(d.events))
		must(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if came, err := p.await(ctx, patience); came || err != nil {
			t.Errorf("%v, %v", came, err)
		}
		must(t, p.Close())
	}
	if _, err := inheritPackets(0, 0); err == nil {
		t.Error("what is no packet socket was taken")
	}
}

// TestTapTakesRoot asks for a device as somebody who may not have one.
func TestTapTakesRoot(t *testing.T) {
	if os.Geteuid() == 0 {
		must(t, thread.Apart(func() error {
			const nobody = 65534
			if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 { // of this thread alone
				return errno
			}
			wantCode(t, "ProbeTap", ProbeTap(), spore.CodeUnsupported)
			return nil
		}))
		must(t, ProbeTap())
		return
	}
	wantCode(t, "ProbeTap", ProbeTap(), spore.CodeUnsupported)
	dir := t.TempDir()
	_, err := Start(dir, Spec{ID: "s1", Tap: true}, Options{})
	wantCode(t, "Start", err, spore.CodeUnsupported)
	cleaned(t, dir)
}

func FuzzFinish(f *testing.F) {
	segment := header.TCP(make([]byte, header.TCPMinimumSize+3000))
	segment.Encode(&header.TCPFields{SrcPort: 1, DstPort: 80, DataOffset: header.TCPMinimumSize})
	packet := append(make([]byte, header.IPv4MinimumSize), segment...)
	encodeIPv4(packet, GuestAddress, GatewayAddress, header.TCPProtocolNumber)
	frame := func(flags, kind byte, payload []byte) []byte {
		b := append(make([]byte, vnetHeader), gatewayMAC[:]...)
		b[0], b[1] = flags, kind
		return append(append(append(b, guestMAC[:]...), 8, 0), payload...)
	}
	f.Add(frame(vnetNeedsChecksum, vnetTCP4, packet))
	f.Add(frame(vnetNeedsChecksum, vnetTCP4|vnetECN, packet[:40]))
	f.Add(frame(vnetNeedsChecksum, vnetWhole, packet[:50]))
	f.Add(frame(0, vnetUDP, packet))
	f.Add(frame(0, 5, packet))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		lazy := len(raw) > 0 && raw[0]&vnetNeedsChecksum != 0
		got := finish(bytes.Clone(raw))
		if len(got) > 0 && len(got) != len(raw)-vnetHeader {
			t.Fatalf("%d bytes became %d", len(raw), len(got))
		}
		if len(got) < etherHeader || !lazy || binary.BigEndian.Uint16(got[12:]) != uint16(header.IPv4ProtocolNumber) {
			return
		}
		h := header.IPv4(got[etherHeader:])
		if len(h) < header.IPv4MinimumSize || !h.IsValid(len(h)) || h.More() || h.FragmentOffset() != 0 || h.TransportProtocol() != header.TCPProtocolNumber {
			return
		}
		p := h[h.HeaderLength():h.TotalLength()]
		if len(p) >= header.TCPMinimumSize && checksum.Checksum(p, header.PseudoHeaderChecksum(header.TCPProtocolNumber, h.SourceAddress(), h.DestinationAddress(), uint16(len(p)))) != 0xffff {
			t.Fatalf("the checksum of %x is wrong", p)
		}
	})
}

// FuzzCarrier reads what would be the kernel's news.
func FuzzCarrier(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x20\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00"))
	f.Add([]byte("\x11\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if open, ok := carrier(text, 2); open && !ok {
			t.Fatal("it is open, and nobody said so")
		}
	})
}
