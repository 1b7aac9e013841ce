package usernet

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	chunk = 16 << 10 // read from a connection at a time

	// leastBurst is what passes at once however low the rate: more than a chunk takes on the wire.
	leastBurst = chunk * 5 / 4
	burstTime  = 20 // parts of a second of traffic that pass at once
)

// bucket bounds a rate, in bytes, that may change at any time.
type bucket struct {
	limiter *rate.Limiter
	mu      sync.Mutex
	changed chan struct{} // closed when the rate changes
}

func newBucket(bitsPerSecond int64) *bucket {
	b := &bucket{limiter: rate.NewLimiter(rate.Inf, leastBurst), changed: make(chan struct{})}
	b.set(bitsPerSecond)
	return b
}

// set changes the rate; 0 is no bound. Who waits at the old rate goes on at the new.
func (b *bucket) set(bitsPerSecond int64) {
	limit, burst := rate.Inf, leastBurst
	if bitsPerSecond > 0 {
		limit = rate.Limit(float64(bitsPerSecond) / 8)
		burst = max(leastBurst, int(limit)/burstTime)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.limiter.Limit() == limit {
		return
	}
	b.limiter.SetLimit(limit)
	b.limiter.SetBurst(burst)
	close(b.changed)
	b.changed = make(chan struct{})
}

// wait returns when n bytes, at most leastBurst, may pass.
func (b *bucket) wait(ctx context.Context, n int) error {
	if b.limiter.Limit() == rate.Inf {
		return ctx.Err()
	}
	for {
		b.mu.Lock()
		changed := b.changed
		b.mu.Unlock()
		r := b.limiter.ReserveN(time.Now(), n)
		delay := r.Delay()
		if delay == 0 {
			return ctx.Err()
		}
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
			return nil
		case <-changed:
			timer.Stop()
			r.Cancel()
		case <-ctx.Done():
			timer.Stop()
			r.Cancel()
			return ctx.Err()
		}
	}
}

// within says whether n bytes may pass soon, and waits for it; datagrams that would wait longer are better lost.
func (b *bucket) within(ctx context.Context, n int, d time.Duration) bool {
	if b.limiter.Limit() == rate.Inf {
		return true
	}
	r := b.limiter.ReserveN(time.Now(), min(n, leastBurst))
	delay := r.Delay()
	if delay > d {
		r.Cancel()
		return false
	}
	select {
	case <-time.After(delay):
		return true
	case <-ctx.Done():
		return false
	}
}

// allow says whether n bytes may pass now.
func (b *bucket) allow(n int) bool { return b.limiter.AllowN(time.Now(), min(n, leastBurst)) }

// onWire is about how many bytes frames take that carry n bytes of a connection.
func onWire(n int) int {
	const payload, overhead = mtu - 40, 14 + 40
	return n + (n+payload-1)/payload*overhead
}
