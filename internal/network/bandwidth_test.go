package network

import (
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sporevm/spore"
)

// megabits answers how fast a counter of bytes goes up.
func megabits(total *atomic.Int64) float64 {
	const measured = 2 * time.Second
	time.Sleep(measured) // what a bucket and queues hold comes first, and senders find their pace
	begin, before := time.Now(), total.Load()
	time.Sleep(measured)
	return float64(total.Load()-before) * 8 / time.Since(begin).Seconds() / 1e6
}

// download counts what a few connections bring to the guest.
func (g *guest) download(t *testing.T, from netip.AddrPort) *atomic.Int64 {
	t.Helper()
	total := new(atomic.Int64)
	for range 4 {
		c, err := g.dial("tcp", from, patience)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if _, err := c.Write([]byte("pour")); err != nil {
			t.Fatal(err)
		}
		go func() {
			for b := make([]byte, 64<<10); ; {
				n, err := c.Read(b)
				total.Add(int64(n))
				if err != nil {
					return
				}
			}
		}()
	}
	return total
}

const datagram = 1400

// upload sends datagrams, about 20 megabits a second, and counts those that arrive.
func (g *guest) upload(t *testing.T, to netip.AddrPort) *atomic.Int64 {
	t.Helper()
	c, err := g.dial("udp", to, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, datagram)
		copy(b, "sink")
		for {
			for range 8 {
				if _, err := c.Write(b); err != nil {
					return
				}
			}
			time.Sleep(4 * time.Millisecond)
		}
	}()
	return &g.w.sunk
}

func TestBandwidth(t *testing.T) {
	w := newWorld(t)
	m := w.serving()
	set := func(l spore.Limits) Link {
		t.Helper()
		link, err := m.Attach(t.Context(), "a", isolated(spore.Egress{}), l)
		if err != nil {
			t.Fatal(err)
		}
		return link
	}
	// Frames are counted, and of each a part is payload.
	check := func(what string, got, mbps, payload float64) {
		t.Helper()
		t.Logf("%s: %.2f Mbit/s of payload; %v of frames are %.2f", what, got, mbps, mbps*payload)
		if got < mbps*payload*0.85 || got > mbps*payload*1.15 {
			t.Errorf("%s: %.2f Mbit/s", what, got)
		}
	}
	const inTCP, inUDP = 1448.0 / 1514, datagram / (datagram + 42.0)
	g := w.plug(set(spore.Limits{NetworkInMbps: 8}))
	in := g.download(t, worldEcho)
	check("in", megabits(in), 8, inTCP)
	set(spore.Limits{NetworkInMbps: 20})
	check("in, changed", megabits(in), 20, inTCP)
	// From here on what goes out keeps the guest's acknowledgements waiting.
	set(spore.Limits{NetworkInMbps: 20, NetworkOutMbps: 4})
	out := g.upload(t, worldEcho)
	check("out", megabits(out), 4, inUDP)
	set(spore.Limits{NetworkInMbps: 20})
	if got := megabits(out); got < 8 {
		t.Errorf("out, without a limit: %.2f Mbit/s", got)
	}
}
