package main

import (
	"sync"
	"time"
)

// pace holds the tokens of a drive's limiter: one bucket for bytes and one for requests.
type pace struct {
	mu         sync.Mutex
	of         *rateLimiter // what the buckets were filled for
	bytes, ops tokens
}

// tokens is one bucket.
type tokens struct {
	bucket *bucket
	burst  float64 // spent first, never refilled
	have   float64
	at     time.Time
}

// take waits until a request of n bytes may go on. A limiter that was changed starts with full buckets.
func (p *pace) take(l *rateLimiter, n int) {
	if l == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.of != l {
		p.of, p.bytes, p.ops = l, full(l.Bandwidth), full(l.Ops)
	}
	p.ops.take(1)
	p.bytes.take(float64(n))
}

func full(b *bucket) tokens {
	if b == nil {
		return tokens{}
	}
	t := tokens{bucket: b, have: float64(b.Size), at: time.Now()}
	if b.Burst != nil {
		t.burst = float64(*b.Burst)
	}
	return t
}

func (t *tokens) take(n float64) {
	if t.bucket == nil {
		return
	}
	if spent := min(n, t.burst); spent > 0 {
		t.burst -= spent
		n -= spent
	}
	rate := float64(t.bucket.Size) / (float64(t.bucket.Refill) / 1000) // in a second
	now := time.Now()
	t.have = min(float64(t.bucket.Size), t.have+now.Sub(t.at).Seconds()*rate)
	t.at = now
	t.have -= n // a request that is larger than the bucket goes through and is waited for
	if t.have < 0 {
		time.Sleep(time.Duration(-t.have / rate * float64(time.Second)))
	}
}
