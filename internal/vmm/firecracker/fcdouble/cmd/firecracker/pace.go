package main

import (
	"sync"
	"time"
)

// pace holds the tokens of a drive's limiter: one bucket for bytes and one for requests.
type pace struct {
	mu         sync.Mutex
	bytes, ops tokens
	changed    chan struct{} // closed when the limiter is changed: who waits for the old one goes on
}

// tokens is one bucket.
type tokens struct {
	size, rate float64 // rate is what comes in a second; 0 is no limit
	burst      float64 // spent first, never refilled
	have       float64
	at         time.Time
}

// change sets the limiter; its buckets are full.
func (p *pace) change(l *rateLimiter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.changed != nil {
		close(p.changed)
	}
	p.changed, p.bytes, p.ops = make(chan struct{}), tokens{}, tokens{}
	if l != nil {
		p.bytes, p.ops = full(l.Bandwidth), full(l.Ops)
	}
}

func full(b *bucket) tokens {
	if b == nil {
		return tokens{}
	}
	t := tokens{size: float64(b.Size), have: float64(b.Size), rate: float64(b.Size) / float64(b.Refill) * 1000, at: time.Now()}
	if b.Burst != nil {
		t.burst = float64(*b.Burst)
	}
	return t
}

// take waits until a request of n bytes may go on.
func (p *pace) take(n int) {
	p.mu.Lock()
	wait, changed := max(p.ops.take(1), p.bytes.take(float64(n))), p.changed
	p.mu.Unlock()
	if wait <= 0 {
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-changed:
	}
}

// take says how long to wait for n tokens, which are taken.
func (t *tokens) take(n float64) time.Duration {
	if t.rate == 0 {
		return 0
	}
	spent := min(n, t.burst)
	t.burst -= spent
	now := time.Now()
	t.have = min(t.size, t.have+now.Sub(t.at).Seconds()*t.rate) - (n - spent)
	t.at = now
	return time.Duration(max(0, -t.have) / t.rate * float64(time.Second))
}
