package usernet

import (
	"context"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	spore "github.com/sporevm/spore"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// TestRates measures what passes in some seconds against what was set, both ways, and changes it meanwhile.
func TestRates(t *testing.T) {
	w := newWorld(t)
	w.listen(t, serverIP+":9", func(c net.Conn) { io.Copy(io.Discard, c) })
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
	go io.Copy(io.Discard, down)
	go func() {
		for {
			if _, err := up.Write(zeros[:]); err != nil {
				return
			}
		}
	}()
	measure := func(what string, in, out float64) {
		t.Helper()
		time.Sleep(500 * time.Millisecond) // the burst, and what was under way at the rate before
		begin, err := l.Stats(t.Context())
		must(t, err)
		from := time.Now()
		time.Sleep(2 * time.Second)
		end, err := l.Stats(t.Context())
		must(t, err)
		took := time.Since(from).Seconds()
		for dir, v := range map[string][2]float64{
			"in": {float64(end.InBytes-begin.InBytes) * 8 / took, in}, "out": {float64(end.OutBytes-begin.OutBytes) * 8 / took, out},
		} {
			ratio := v[0] / v[1]
			t.Logf("%s, %s: %.2f Mbit/s, %.3f of what was set", what, dir, v[0]/1e6, ratio)
			if ratio < 0.85 || ratio > 1.15 {
				t.Errorf("%s: the rate %s is %.3f of what was set", what, dir, ratio)
			}
		}
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
