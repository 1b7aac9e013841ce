package network

import (
	"testing"
	"time"

	"github.com/sporevm/spore"
)

// A pool that is to come later comes with the first network that somebody asks for.
func TestPoolLater(t *testing.T) {
	w := newWorld(t)
	m := w.serving(func(o *Options) { o.PoolSize, o.PoolLater = 2, true })
	if m.wanting() {
		t.Error("the pool is to be filled although nobody has asked for a network")
	}
	if _, err := m.Attach(t.Context(), "s1", isolated(spore.Egress{}), spore.Limits{}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); m.Ready() < 2; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d networks are ready", m.Ready())
		}
	}
	if err := m.Detach(t.Context(), "s1"); err != nil {
		t.Fatal(err)
	}
}
