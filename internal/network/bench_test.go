package network

import (
	"fmt"
	"testing"
	"time"

	"github.com/sporevm/spore"
)

// What a create waits for, with a pool and without.
func BenchmarkAttach(b *testing.B) {
	for _, size := range []int{0, 8} {
		b.Run(fmt.Sprintf("pool=%d", size), func(b *testing.B) {
			w := newWorld(b)
			m := w.serving(func(o *Options) { o.PoolSize = size })
			for b.Loop() {
				b.StopTimer()
				for m.Ready() < size {
					time.Sleep(time.Millisecond)
				}
				b.StartTimer()
				if _, err := m.Attach(b.Context(), "a", isolated(spore.Egress{}), spore.Limits{}); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := m.Detach(b.Context(), "a"); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
