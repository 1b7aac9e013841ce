package usernet

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/network"
)

var internetOff = new(bool)

func TestPolicy(t *testing.T) {
	w := newWorld(t)
	for _, ip := range []string{serverIP, otherIP, privateIP, routerIP} {
		w.listen(t, ip+":80", echo)
	}
	serveOn(t, w.host, hostIP+":80", echo)
	serveOn(t, w.host, "127.0.0.1:80", echo)
	all := []string{serverIP, otherIP, privateIP, routerIP, hostIP, "127.0.0.1", "169.254.169.254", GatewayAddress.String()}
	for name, tc := range map[string]struct {
		egress spore.Egress
		want   []string
	}{
		"nothing said":      {spore.Egress{}, []string{serverIP, otherIP, routerIP}},
		"internet off":      {spore.Egress{Internet: internetOff}, nil},
		"one denied":        {spore.Egress{DenyCIDRs: []string{otherIP}}, []string{serverIP, routerIP}},
		"only one":          {spore.Egress{Internet: internetOff, AllowCIDRs: []string{otherIP}}, []string{otherIP}},
		"private":           {spore.Egress{AllowCIDRs: []string{"10.0.0.0/8"}}, []string{serverIP, otherIP, routerIP, privateIP}},
		"host":              {spore.Egress{AllowCIDRs: []string{hostIP}}, []string{serverIP, otherIP, routerIP, hostIP}},
		"loopback":          {spore.Egress{Internet: internetOff, AllowCIDRs: []string{"127.0.0.1/32"}}, []string{"127.0.0.1"}},
		"a proxy":           {spore.Egress{Internet: internetOff, Proxy: "http://" + privateIP}, []string{privateIP}},
		"a proxy elsewhere": {spore.Egress{Internet: internetOff, Proxy: "http://" + privateIP + ":81"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			l := w.start(t, Spec{Egress: tc.egress})
			g := newGuest(t, l.Socket())
			var got []string
			for _, ip := range all {
				if g.reaches(ip + ":80") {
					got = append(got, ip)
				}
			}
			if fmt.Sprint(sorted(got)) != fmt.Sprint(sorted(tc.want)) {
				t.Errorf("it reaches %v, want %v", got, tc.want)
			}
			eventually(t, "all is counted", func() bool { // a guest knows of its connection a moment earlier
				s, err := l.Stats(t.Context())
				must(t, err)
				return s.Denied > 0 && int(s.Opened) == len(tc.want) && s.Connected
			})
		})
	}
}

func sorted(in []string) []string {
	out := append([]string{}, in...)
	for i := range out {
		for j := range i {
			if out[i] < out[j] {
				out[i], out[j] = out[j], out[i]
			}
		}
	}
	return out
}

func TestDataHalvesAndResets(t *testing.T) {
	w := newWorld(t)
	w.listen(t, serverIP+":1", func(c net.Conn) { // answers only once the other side has said all
		data, err := io.ReadAll(c)
		if err == nil {
			c.Write(data)
		}
	})
	arrived := make(chan int64, 1)
	w.listen(t, serverIP+":2", func(c net.Conn) { // speaks first, and goes on listening
		io.WriteString(c, "hello")
		c.(*net.TCPConn).CloseWrite()
		n, _ := io.Copy(io.Discard, c)
		arrived <- n
	})
	w.listen(t, serverIP+":3", func(c net.Conn) { // breaks off
		c.Read(make([]byte, 1))
		c.(*net.TCPConn).SetLinger(0)
	})
	broken := make(chan error, 1)
	w.listen(t, serverIP+":4", func(c net.Conn) { // hears the guest break off
		c.Write([]byte("x"))
		_, err := io.Copy(io.Discard, c)
		broken <- err
	})
	g := newGuest(t, w.start(t, Spec{}).Socket())

	c, err := g.dial(serverIP + ":1")
	must(t, err)
	sent := make([]byte, 3<<20)
	rand.Read(sent)
	go func() { c.Write(sent); c.CloseWrite() }()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d of %d bytes came back: %v", len(got), len(sent), err)
	}

	c, err = g.dial(serverIP + ":2")
	must(t, err)
	if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := c.Write(make([]byte, 1<<20)); err != nil {
		t.Errorf("writing to who has said all: %v", err)
	}
	must(t, c.CloseWrite())
	if n := <-arrived; n != 1<<20 {
		t.Errorf("%d bytes arrived", n)
	}

	c, err = g.dial(serverIP + ":3")
	must(t, err)
	c.Write([]byte("x"))
	if _, err := io.ReadAll(c); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("a connection that was broken off ends with %v", err)
	}

	c, err = g.dial(serverIP + ":4")
	must(t, err)
	_, err = io.ReadFull(c, make([]byte, 1))
	must(t, err)
	g.stack.Close() // ends all connections as a crash does
	select {
	case err := <-broken:
		if err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the server hears %v", err)
		}
	case <-time.After(patience):
		t.Error("the server does not hear of the guest's end")
	}
}

func TestManyConnections(t *testing.T) {
	w := newWorld(t)
	w.listen(t, serverIP+":80", echo)
	l := w.start(t, Spec{})
	g := newGuest(t, l.Socket())
	var wg sync.WaitGroup
	hold := make(chan struct{})
	var ready sync.WaitGroup
	for i := range 200 {
		ready.Add(1)
		wg.Go(func() {
			done := sync.OnceFunc(ready.Done)
			defer done()
			c, err := g.dial(serverIP + ":80")
			if err != nil {
				t.Errorf("connection %d: %v", i, err)
				return
			}
			defer c.Close()
			want := bytes.Repeat([]byte{byte(i)}, 20<<10)
			go func() { c.Write(want) }()
			got := make([]byte, len(want))
			if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
				t.Errorf("connection %d: %v", i, err)
			}
			done()
			<-hold
		})
	}
	ready.Wait()
	if s, err := l.Stats(t.Context()); err != nil || s.TCP != 200 {
		t.Errorf("%+v, %v", s, err)
	}
	close(hold)
	wg.Wait()
	eventually(t, "no connection is left", func() bool {
		s, err := l.Stats(t.Context())
		must(t, err)
		return s.TCP == 0
	})
}

func TestTooManyConnections(t *testing.T) {
	w := newWorld(t)
	w.listen(t, serverIP+":80", echo)
	l := w.start(t, Spec{})
	g := newGuest(t, l.Socket())
	refused := 0
	for range maxConnections + 10 {
		if _, err := g.dial(serverIP + ":80"); err != nil {
			refused++
		}
	}
	if s, err := l.Stats(t.Context()); err != nil || refused != 10 || s.TCP != maxConnections {
		t.Errorf("%d were refused; %+v, %v", refused, s, err)
	}
}

func TestDatagrams(t *testing.T) {
	w := newWorld(t)
	w.echoPackets(t, serverIP+":7")
	w.echoPackets(t, privateIP+":7")
	l := w.start(t, Spec{})
	g := newGuest(t, l.Socket())
	for _, size := range []int{0, 1, 1400, 9000} {
		c := g.udp(serverIP + ":7")
		want := bytes.Repeat([]byte{7}, size)
		_, err := c.Write(want)
		must(t, err)
		got := make([]byte, 10000)
		if n, err := c.Read(got); err != nil || !bytes.Equal(got[:n], want) {
			t.Errorf("%d bytes came back as %d: %v", size, n, err)
		}
	}
	for what, addr := range map[string]string{"a denied address": privateIP + ":7", "a closed port": serverIP + ":8", "the gateway": GatewayAddress.String() + ":7"} {
		c := g.udp(addr)
		_, err := c.Write([]byte("x"))
		must(t, err)
		eventually(t, what+" is said to be unreachable", func() bool {
			// This stack does not wake its readers for that.
			must(t, c.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
			_, err := c.Read(make([]byte, 10))
			return err != nil && strings.Contains(err.Error(), "refused")
		})
	}
	conns := make([]net.Conn, maxFlows+20)
	for i := range conns { // whoever was silent longest makes room
		conns[i] = g.udp(serverIP + ":7")
		_, err := conns[i].Write([]byte("x"))
		must(t, err)
		_, err = conns[i].Read(make([]byte, 10))
		must(t, err)
	}
	eventually(t, "flows are bounded", func() bool {
		s, err := l.Stats(t.Context())
		must(t, err)
		return s.UDP <= maxFlows
	})
}

func TestNames(t *testing.T) {
	w := newWorld(t)
	w.listen(t, serverIP+":80", echo)
	w.listen(t, otherIP+":80", echo)
	for name, addr := range map[string]string{"good.example": serverIP, "evil.example": otherIP, "inside.example": privateIP, "a.good.example": otherIP} {
		w.names.set(name, addr)
	}
	l := w.start(t, Spec{Egress: spore.Egress{AllowDomains: []string{"good.example", "inside.example"}}})
	g := newGuest(t, l.Socket())
	if g.reaches(serverIP + ":80") {
		t.Error("an address is open before a name led there")
	}
	for name, want := range map[string]string{"good.example": serverIP, "evil.example": "", "inside.example": "", "a.good.example": "", "missing.example": ""} {
		for _, network := range []string{"udp", "tcp"} {
			if got := g.resolve(network, name); got != want {
				t.Errorf("%s over %s: %q, want %q", name, network, got, want)
			}
		}
	}
	c, err := g.dial(serverIP + ":80")
	if err != nil || g.reaches(otherIP+":80") {
		t.Fatalf("after its name was resolved: %v; or the other one is open too", err)
	}
	if s, err := l.Stats(t.Context()); err != nil || s.Pins != 1 || s.Queries != 10 || s.RefusedQueries == 0 {
		t.Errorf("%+v, %v", s, err)
	}

	// A name that is still allowed keeps what it opened, another loses it.
	must(t, l.Update(t.Context(), spore.Egress{AllowDomains: []string{"good.example", "evil.example"}}, Rates{}))
	_, err = c.Write([]byte("x"))
	must(t, err)
	_, err = io.ReadFull(c, make([]byte, 1))
	must(t, err)
	must(t, l.Update(t.Context(), spore.Egress{AllowDomains: []string{"evil.example"}}, Rates{}))
	if _, err := c.Read(make([]byte, 1)); err == nil || g.reaches(serverIP+":80") {
		t.Error("a connection outlives the name that it was allowed for, or the address stays open")
	}
	if g.resolve("udp", "evil.example") != otherIP || !g.reaches(otherIP+":80") {
		t.Error("a name that is allowed now leads nowhere")
	}
}

func TestUpdateCuts(t *testing.T) {
	w := newWorld(t)
	w.listen(t, serverIP+":80", echo)
	w.listen(t, otherIP+":80", echo)
	w.echoPackets(t, serverIP+":7")
	l := w.start(t, Spec{})
	g := newGuest(t, l.Socket())
	cut, err := g.dial(serverIP + ":80")
	must(t, err)
	kept, err := g.dial(otherIP + ":80")
	must(t, err)
	flow := g.udp(serverIP + ":7")
	_, err = flow.Write([]byte("x"))
	must(t, err)
	_, err = flow.Read(make([]byte, 1))
	must(t, err)

	wantCode(t, "a policy that cannot be", l.Update(t.Context(), spore.Egress{DenyCIDRs: []string{"300.0.0.0/8"}}, Rates{}), spore.CodeInvalid)
	wantCode(t, "a rate that cannot be", l.Update(t.Context(), spore.Egress{}, Rates{In: -1}), spore.CodeInvalid)
	must(t, l.Update(t.Context(), spore.Egress{DenyCIDRs: []string{serverIP}}, Rates{}))
	if _, err := cut.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("a connection that is denied now: %v", err)
	}
	_, err = kept.Write([]byte("y"))
	must(t, err)
	if _, err := io.ReadFull(kept, make([]byte, 1)); err != nil {
		t.Errorf("a connection that is allowed as before: %v", err)
	}
	eventually(t, "both are cut", func() bool {
		s, err := l.Stats(t.Context())
		must(t, err)
		if s.Cut != 2 {
			t.Fatalf("%+v", s)
		}
		return s.TCP == 1 && s.UDP == 0
	})
	eventually(t, "a flow that is denied now is refused", func() bool {
		_, err := flow.Write([]byte("x"))
		if err == nil { // the one before was not refused yet
			must(t, flow.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
			if _, err = flow.Read(make([]byte, 1)); err == nil {
				t.Fatal("a flow goes on that is denied now")
			}
		}
		return strings.Contains(err.Error(), "refused")
	})
}

func TestARP(t *testing.T) {
	w := newWorld(t)
	g := newGuest(t, w.start(t, Spec{}).Socket())
	ask := func(target netip.Addr) {
		a := header.ARP(make([]byte, header.ARPSize))
		a.SetIPv4OverEthernet()
		a.SetOp(header.ARPRequest)
		copy(a.HardwareAddressSender(), guestMAC[:])
		copy(a.ProtocolAddressSender(), GuestAddress.AsSlice())
		copy(a.ProtocolAddressTarget(), target.AsSlice())
		must(t, g.send(0x0806, a))
	}
	ask(GuestAddress) // is this address taken? It must not be.
	ask(netip.MustParseAddr(serverIP))
	must(t, g.send(0x86dd, make([]byte, 60))) // IPv6
	ask(GatewayAddress)
	eventually(t, "the gateway answers", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return len(g.seen) > 0 })
	g.mu.Lock()
	defer g.mu.Unlock()
	a := header.ARP(g.seen[0][14:])
	if len(g.seen) != 1 || a.Op() != header.ARPReply || !bytes.Equal(a.HardwareAddressSender(), gatewayMAC[:]) ||
		!bytes.Equal(a.ProtocolAddressSender(), GatewayAddress.AsSlice()) || !bytes.Equal(a.ProtocolAddressTarget(), GuestAddress.AsSlice()) {
		t.Errorf("%x", g.seen)
	}
}

// TestLoopback needs no right: a policy opens a server on the host's loopback.
func TestLoopback(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	acceptFrom(t, l, echo)
	dir := t.TempDir()
	link, err := Start(dir, Spec{ID: "s1", Egress: spore.Egress{Internet: internetOff, AllowCIDRs: []string{"127.0.0.1"}}}, Options{})
	must(t, err)
	t.Cleanup(func() { cleaned(t, dir) })
	g := newGuest(t, link.Socket())
	c, err := g.dial(l.Addr().String())
	must(t, err)
	_, err = io.WriteString(c, "hello")
	must(t, err)
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	must(t, link.Ready(ctx))
}

// A guest that was thawed has connections that nobody knows any more. It learns so at once.
func TestUnknownConnectionsAreReset(t *testing.T) {
	w := newWorld(t)
	w.listen(t, serverIP+":80", echo)
	g := newGuest(t, w.start(t, Spec{}).Socket())
	segment := header.TCP(make([]byte, header.TCPMinimumSize))
	segment.Encode(&header.TCPFields{SrcPort: 1234, DstPort: 80, SeqNum: 7, AckNum: 9, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagAck, WindowSize: 1000})
	to := tcpip.AddrFrom4(netip.MustParseAddr(serverIP).As4())
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, tcpip.AddrFrom4(GuestAddress.As4()), to, uint16(len(segment)))
	segment.SetChecksum(^segment.CalculateChecksum(sum))
	packet := append(make([]byte, header.IPv4MinimumSize), segment...)
	encodeIPv4(packet, GuestAddress, netip.MustParseAddr(serverIP), header.TCPProtocolNumber)
	must(t, g.send(0x0800, packet))
	eventually(t, "it is reset", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return len(g.rst) > 0 })
}

// A guest that does not take what it was sent holds its slots no longer than it may, and no others.
func TestGuestThatTakesNothing(t *testing.T) {
	old := drainTime
	drainTime = 300 * time.Millisecond
	defer func() { drainTime = old }()
	e, err := newEngine(Spec{ID: "s1", Egress: spore.Egress{AllowCIDRs: []string{"127.0.0.1"}}}, quiet())
	must(t, err)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	acceptFrom(t, l, func(c net.Conn) { c.Write(make([]byte, 64<<10)); io.Copy(io.Discard, c) })
	dir := t.TempDir()
	socket, err := net.Listen("unix", dir+"/s")
	must(t, err)
	ended := make(chan error)
	go func() {
		conn, err := socket.Accept()
		if err == nil {
			err = e.run(context.Background(), newStream(conn))
		}
		ended <- err
	}()
	g := newGuest(t, dir+"/s")
	small := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: 4096, Max: 4096}
	if err := g.stack.SetTransportProtocolOption(header.TCPProtocolNumber, &small); err != nil {
		t.Fatal(err)
	}
	c, err := g.dial(l.Addr().String())
	must(t, err)
	must(t, c.CloseWrite())
	eventually(t, "its slot is free", func() bool { return e.opened.Load() == 1 && len(e.tcp) == 0 })
	if _, err := io.Copy(io.Discard, c); err == nil {
		t.Error("a connection that was given up ends in order")
	}
	must(t, g.conn.Close())
	must(t, <-ended)
}

// The link looks as it does in the other mode, since a guest may be frozen in one and thawed in the other.
func TestSameLinkInEveryMode(t *testing.T) {
	if network.GuestAddress != netip.PrefixFrom(GuestAddress, linkPrefix.Bits()) || network.Gateway != GatewayAddress ||
		network.GatewayMAC != net.HardwareAddr(gatewayMAC[:]).String() || network.GuestMAC != net.HardwareAddr(guestMAC[:]).String() {
		t.Error("the modes disagree about what a guest finds")
	}
}
