package node

import (
	"sync"
	"time"
)

// freshFor is how long an artifact that was just built, and that nothing stands on yet, is kept from being collected.
// By then the template that it was built for is baked, or its job has failed.
const freshFor = time.Hour

// holds counts who is about to stand on an artifact or a kernel bundle but has nothing on disk yet that says so: a bake
// that has not frozen its template, a thaw that has not pinned its state. What is held is not removed. What is fresh was
// built to be stood on soon: it is not garbage, but may be removed by whoever knows that it is not wanted.
type holds struct {
	mu    sync.Mutex
	count map[string]int
	fresh map[string][]time.Time // when it was built, or found built; once for each that asked
}

func newHolds() holds { return holds{count: map[string]int{}, fresh: map[string][]time.Time{}} }

// hold holds something until drop. It may have been removed just before: look for it afterwards.
func (h *holds) hold(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count[id]++
}

func (h *holds) drop(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.count[id]--; h.count[id] <= 0 {
		delete(h.count, id)
	}
}

// built notes that something was built for somebody. It may have been removed just before: look for it afterwards.
func (h *holds) built(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fresh[id] = append(h.fresh[id], time.Now())
}

// used notes that one of those for whom something was built needs it no longer to be fresh.
func (h *holds) used(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fresh[id] = h.fresh[id][min(1, len(h.fresh[id])):]; len(h.fresh[id]) == 0 {
		delete(h.fresh, id)
	}
}

// wanted says whether something is held or fresh.
func (h *holds) wanted(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.wantedLocked(id)
}

func (h *holds) wantedLocked(id string) bool {
	list := h.fresh[id]
	if len(list) > 0 && time.Since(list[len(list)-1]) > freshFor {
		delete(h.fresh, id)
		list = nil
	}
	return h.count[id] > 0 || len(list) > 0
}

// unlessHeld runs remove, during which nothing can come to be held, unless something holds id.
func (h *holds) unlessHeld(id string, remove func() error) (held bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.count[id] > 0 {
		return true, nil
	}
	return false, remove()
}

// unlessWanted is unlessHeld that spares what is fresh too.
func (h *holds) unlessWanted(id string, remove func() error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.wantedLocked(id) {
		return nil
	}
	return remove()
}
