package pager

import (
	"sync"
	"time"
)

// fault is a page that a thread of the VMM waits for.
type fault struct {
	addr uint64
	at   time.Time // when the pager learnt of it
}

// queue holds faults that nobody serves yet. There are never more than the VMM has threads.
type queue struct {
	mu     sync.Mutex
	filled *sync.Cond
	faults []fault
	closed bool
}

func newQueue() *queue {
	q := &queue{}
	q.filled = sync.NewCond(&q.mu)
	return q
}

func (q *queue) put(f fault) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.faults = append(q.faults, f)
	q.filled.Signal()
}

// take waits for a fault; ok is false after close.
func (q *queue) take() (f fault, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.faults) == 0 && !q.closed {
		q.filled.Wait()
	}
	if q.closed {
		return fault{}, false
	}
	f = q.faults[0]
	q.faults = q.faults[1:]
	return f, true
}

func (q *queue) empty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.faults) == 0
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.filled.Broadcast()
}
