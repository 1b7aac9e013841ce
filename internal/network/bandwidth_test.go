package network

import (
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sporevm/spore"
)

const measured = 2 * time.Second

// megabits answers how fast a counter of bytes goes up.
func megabits(total *atomic.Int64) float64 {
	begin, before := time.Now(), total.Load()
	time.Sleep(measured)
	return float64(total.Load()-before) * 8 / time.Since(begin).Seconds() / 1e6
}

// holds looks whether so much of frames passes, within 15 %. Less, since the machine may have other things to do, is measured
// again; so is more, once: a backlog that comes late fills one measurement, but not the next one as well.
func holds(t *testing.T, what string, total *atomic.Int64, mbps float64) {
	t.Helper()
	const payload = datagram / (datagram + 42.0) // of frames, which are what is counted
	time.Sleep(measured / 2)                     // what a bucket and queues hold comes first
	over := false
	for range 6 {
		got := megabits(total)
		ratio := got / (mbps * payload)
		t.Logf("%s: %.2f Mbit/s of payload; %v of frames are %.2f", what, got, mbps, mbps*payload)
		if ratio >= 0.85 && ratio <= 1.15 {
			return
		}
		if over && ratio > 1.15 {
			t.Errorf("%s: %.2f Mbit/s, bounded to %v", what, got, mbps)
			return
		}
		over = ratio > 1.15
	}
	t.Errorf("%s: never %v Mbit/s", what, mbps)
}

// Datagrams are measured rather than a stream, whose sender has a mind of its own about how fast it goes.
const datagram = 1400

// blast sends datagrams that begin with what is given, about 40 megabits a second, until the connection is closed.
func blast(begin string, send func([]byte) error) {
	b := make([]byte, datagram)
	copy(b, begin)
	for {
		for range 16 {
			if send(b) != nil {
				return
			}
		}
		time.Sleep(4 * time.Millisecond)
	}
}

// download has datagrams sent to the guest and counts those that arrive.
func (g *guest) download(t *testing.T, from netip.AddrPort) *atomic.Int64 {
	t.Helper()
	c, err := g.dial("udp", from, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := c.Write([]byte("pour")); err != nil {
		t.Fatal(err)
	}
	total := new(atomic.Int64)
	go func() {
		for b := make([]byte, 2*datagram); ; {
			n, err := c.Read(b)
			total.Add(int64(n))
			if err != nil {
				return
			}
		}
	}()
	return total
}

// upload has the guest send datagrams and counts those that arrive.
func (g *guest) upload(t *testing.T, to netip.AddrPort) *atomic.Int64 {
	t.Helper()
	c, err := g.dial("udp", to, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go blast("sink", func(b []byte) error { _, err := c.Write(b); return err })
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
	g := w.plug(set(spore.Limits{NetworkInMbps: 8}))
	in := g.download(t, worldEcho)
	holds(t, "in", in, 8)
	out := g.upload(t, worldEcho)
	set(spore.Limits{NetworkInMbps: 12, NetworkOutMbps: 2})
	holds(t, "out", out, 2)
	holds(t, "in, changed", in, 12)
	set(spore.Limits{NetworkInMbps: 12})
	for deadline := time.Now().Add(time.Minute); ; {
		got := megabits(out)
		if got >= 4 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("out, without a limit: %.2f Mbit/s", got)
		}
	}
}
