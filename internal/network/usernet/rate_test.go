package usernet

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	spore "github.com/sporevm/spore"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// counter counts what is written to it.
type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

// holds looks whether so many bits pass in a second, within 15 %. Less, since the machine may have other things to do, is measured
// again; so is more, once: a backlog that comes late fills one measurement, but not the next one as well.
func holds(t *testing.T, what string, arrived *atomic.Int64, rate float64) {
	over := false
	for range 6 {
		began, from := arrived.Load(), time.Now()
		time.Sleep(2 * time.Second)
		got, took := arrived.Load()-began, time.Since(from).Seconds()
		v := float64(onWire(int(got))) * 8 / took
		ratio := v / rate
		t.Logf("%s: %.2f Mbit/s, %.3f of what was set", what, v/1e6, ratio)
		if ratio >= 0.85 && ratio <= 1.15 {
			return
		}
		if over && ratio > 1.15 {
			t.Errorf("the rate %s is %.3f of what was set", what, ratio)
			return
		}
		over = ratio > 1.15
	}
	t.Errorf("the rate %s is never what was set", what)
}

// TestRates measures what passes in some seconds against what was set, both ways, and changes it meanwhile.
func TestRates(t *testing.T) {
	w := newWorld(t)
	var arrivedIn, arrivedOut atomic.Int64
	w.listen(t, serverIP+":9", func(c net.Conn) { io.Copy(counter{&arrivedOut}, c) })
	var zeros [64 << 10]byte
	w.listen(t, serverIP+":19", func(c net.Conn) {
		for {
			if _, err := c.Write(zeros[:]); err != nil {
				return
			}
		}
	})
	const in, out = 8_000_000, 4_000_000
	l := w.start(t, Spec{Rates: Rates{In: in, Out: out}})
	g := newGuest(t, l.Socket())
	down, err := g.dial(serverIP + ":19")
	must(t, err)
	up, err := g.dial(serverIP + ":9")
	must(t, err)
	go io.Copy(counter{&arrivedIn}, down)
	go func() {
		for {
			if _, err := up.Write(zeros[:]); err != nil {
				return
			}
		}
	}()
	measure := func(what string, in, out float64) {
		time.Sleep(700 * time.Millisecond) // the burst, and what was under way at the rate before
		var both sync.WaitGroup
		both.Go(func() { holds(t, "in, "+what, &arrivedIn, in) })
		both.Go(func() { holds(t, "out, "+what, &arrivedOut, out) })
		both.Wait()
	}
	measure("as started", in, out)
	must(t, l.Update(t.Context(), spore.Egress{}, Rates{In: in / 4, Out: out * 2}))
	measure("changed", in/4, out*2)
}

func TestBucketChanges(t *testing.T) {
	b := newBucket(8) // a byte a second
	if err := b.wait(t.Context(), leastBurst); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- b.wait(t.Context(), leastBurst) }() // hours from now
	go b.set(0)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	b.set(8)
	b.allow(leastBurst) // what may pass at once has filled up meanwhile
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- b.wait(ctx, leastBurst) }()
	cancel()
	if err := <-done; err == nil {
		t.Fatal("it waited for nothing")
	}
	if b.within(t.Context(), leastBurst, time.Millisecond) {
		t.Fatal("it lets more pass than the rate")
	}
}
