package usernet

import (
	"io"
	"net"
	"testing"
)

// BenchmarkStream moves data through a sidecar, in each direction, to a guest that is a network stack in this process.
func BenchmarkStream(b *testing.B) {
	w := newWorld(b)
	var block [256 << 10]byte
	w.listen(b, serverIP+":9", func(c net.Conn) { io.Copy(io.Discard, c); c.Write([]byte("x")) })
	w.listen(b, serverIP+":19", func(c net.Conn) {
		for {
			if _, err := c.Write(block[:]); err != nil {
				return
			}
		}
	})
	g := newGuest(b, w.start(b, Spec{}).Socket())
	b.Run("in", func(b *testing.B) {
		c, err := g.dial(serverIP + ":19")
		must(b, err)
		defer c.Close()
		b.SetBytes(int64(len(block)))
		buf := make([]byte, len(block))
		for b.Loop() {
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("out", func(b *testing.B) {
		c, err := g.dial(serverIP + ":9")
		must(b, err)
		defer c.Close()
		b.SetBytes(int64(len(block)))
		for b.Loop() {
			if _, err := c.Write(block[:]); err != nil {
				b.Fatal(err)
			}
		}
		must(b, c.CloseWrite())
		io.ReadFull(c, make([]byte, 1)) // all has arrived
	})
}

// BenchmarkStart starts sidecars until they serve, and ends them.
func BenchmarkStart(b *testing.B) {
	for name, tap := range map[string]bool{"socket": false, "tap": true} {
		b.Run(name, func(b *testing.B) {
			if tap {
				newNamespace(b) // or it is skipped
			}
			dir := b.TempDir()
			for b.Loop() {
				l, err := Start(dir, Spec{ID: "s1", Tap: tap}, Options{})
				must(b, err)
				must(b, l.Ready(b.Context()))
				must(b, l.Stop(b.Context()))
			}
		})
	}
}
