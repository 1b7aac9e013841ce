package node

import "sync"

// holds counts who is about to stand on an artifact or a kernel bundle but has nothing on disk yet that says so: a build
// that has not frozen its template, a thaw that has not pinned its state. What is held is not removed.
type holds struct {
	mu    sync.Mutex
	count map[string]int
}

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

func (h *holds) held(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.count[id] > 0
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
