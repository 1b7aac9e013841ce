package node

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/sporevm/spore"
)

func TestCapacityOfManyAtOnce(t *testing.T) {
	c, err := newCapacity(t.TempDir(), 1)
	if err != nil {
		t.Fatal(err)
	}
	c.totalMiB, c.limitMiB = 2000, 100_000
	c.available = func() (int, error) { return 1000, nil } // none has begun to use what it was promised
	const each, want = 512, (1000 - 2000/20) / thawEstimateMiB
	var all sync.WaitGroup
	results := make([]error, 50)
	for i := range results {
		all.Go(func() { results[i] = c.take(t.Context(), fmt.Sprint("v", i), each) })
	}
	all.Wait()
	taken := 0
	for i, err := range results {
		switch {
		case err == nil:
			taken++
			c.landed(fmt.Sprint("v", i))
		case spore.CodeOf(err) != spore.CodeBusy:
			t.Errorf("a refusal is %v", err)
		}
	}
	if taken != want || c.inUse() != want*each {
		t.Errorf("%d of 50 VMs were let in, with %d MiB; there is room for %d", taken, c.inUse(), want)
	}
	if c.unborn != 0 {
		t.Errorf("with all of them started, %d MiB are kept for what starts", c.unborn)
	}
	for i := range results {
		c.give(fmt.Sprint("v", i))
		c.give(fmt.Sprint("v", i))
	}
	if c.sum != 0 || c.unborn != 0 || len(c.promised) != 0 {
		t.Errorf("with everything given back %+v are promised", c.promised)
	}
}

func TestHolds(t *testing.T) {
	h := newHolds()
	removed := false
	remove := func() error { removed = true; return nil }
	h.hold("a")
	h.hold("a")
	h.drop("a")
	if held, err := h.unlessHeld("a", remove); !held || err != nil || removed {
		t.Errorf("what is held was removed (%v, %v)", held, err)
	}
	h.drop("a")
	h.drop("a") // of a hold that was never taken
	if held, err := h.unlessHeld("a", remove); held || err != nil || !removed {
		t.Errorf("what nothing holds was not removed (%v, %v)", held, err)
	}
	h.built("b")
	h.built("b")
	h.used("b")
	if err := h.unlessWanted("b", func() error { t.Error("what is fresh was removed"); return nil }); err != nil || !h.wanted("b") {
		t.Error(err)
	}
	if held, err := h.unlessHeld("b", func() error { return nil }); held || err != nil {
		t.Errorf("what is only fresh is held (%v)", err)
	}
	h.fresh["b"][0] = time.Now().Add(-freshFor - time.Second)
	if h.wanted("b") {
		t.Error("what was built long ago is wanted still")
	}
	h.used("b") // of what nobody built
	if len(h.count) != 0 || len(h.fresh) != 0 {
		t.Errorf("%v and %v are left", h.count, h.fresh)
	}
}
