package centersim

import (
	"cmp"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"
)

// schedule lets one goroutine of the world go on at a time. Whatever touches rows or machines waits at a gate; when all that
// runs has come to a gate or sleeps, chance says who goes next, or that time passes.
type schedule struct {
	seed    uint64
	rand    *rand.Rand // of the world's own goroutine
	met     map[string]uint64
	mu      sync.Mutex
	waiting []*gate
	count   int
	open    bool // nobody waits any more
	trace   uint64
	tell    func(format string, args ...any)
}

type gate struct {
	label string
	order int
	pass  chan struct{}
}

// at waits at a gate.
func (s *schedule) at(label string) {
	s.mu.Lock()
	if s.open {
		s.mu.Unlock()
		return
	}
	g := &gate{label: label, order: s.count, pass: make(chan struct{})}
	s.count++
	s.waiting = append(s.waiting, g)
	s.mu.Unlock()
	<-g.pass
}

// chance draws a number below n for what happens at a label. It depends on the seed, the label and how often that was met, and
// not on who else draws meanwhile.
func (s *schedule) chance(label string, n uint64) uint64 {
	s.mu.Lock()
	s.met[label]++
	count := s.met[label]
	s.mu.Unlock()
	h := fnv.New64a()
	h.Write([]byte(label))
	return rand.New(rand.NewPCG(s.seed^h.Sum64(), count)).Uint64N(n)
}

// step lets one of those who wait go on, or time pass, and returns when all is quiet again.
func (s *schedule) step() {
	synctest.Wait()
	s.mu.Lock()
	n := len(s.waiting)
	if n == 0 || s.rand.IntN(40) == 0 {
		s.mu.Unlock()
		// Timers that end at the same instant end in any order, so no instant is to be met twice.
		time.Sleep(1 + time.Duration(s.rand.Int64N(int64(400*time.Millisecond))))
		synctest.Wait()
		return
	}
	slices.SortFunc(s.waiting, func(a, b *gate) int {
		return cmp.Or(strings.Compare(a.label, b.label), cmp.Compare(a.order, b.order))
	})
	i := s.rand.IntN(n)
	g := s.waiting[i]
	s.waiting = slices.Delete(s.waiting, i, i+1)
	s.note(g.label)
	s.mu.Unlock()
	close(g.pass)
	synctest.Wait()
}

// note mixes what happened into the fingerprint of the run (FNV-1a).
func (s *schedule) note(label string) {
	for _, b := range []byte(label) {
		s.trace = (s.trace ^ uint64(b)) * 1099511628211
	}
	if s.tell != nil {
		s.tell("%s", label)
	}
}

// release opens all gates for good.
func (s *schedule) release() {
	s.mu.Lock()
	s.open = true
	waiting := s.waiting
	s.waiting = nil
	s.mu.Unlock()
	for _, g := range waiting {
		close(g.pass)
	}
}
