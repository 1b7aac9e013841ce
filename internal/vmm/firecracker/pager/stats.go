package pager

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// latencyBuckets is how many buckets a latency histogram has; the last takes all that is slower.
const latencyBuckets = 24

// Stats is what a pager has done so far. Pages are of vmm.PageSize.
type Stats struct {
	Faults     int64 `json:"faults"`     // waits of the VMM's threads that were served
	Copied     int64 `json:"copied"`     // pages filled with data
	Zeroed     int64 `json:"zeroed"`     // pages filled with zeros, which take up no memory
	Prefetched int64 `json:"prefetched"` // pages of the hot set that were brought ahead of any fault, of copied and zeroed
	Removals   int64 `json:"removals"`   // times that the VMM gave memory back
	Retries    int64 `json:"retries"`    // pages that had to be tried again, since the VMM was changing its memory
	Present    int64 `json:"present"`    // pages that were there already when they were to be filled

	// Latency counts served faults by the time from when the pager learnt of them: bucket i counts those of less than 2^i
	// microseconds that are in no bucket before; the last one counts the rest.
	Latency [latencyBuckets]int64 `json:"latency"`

	// HotSet is how many windows of a hot set were given; HotSetError says why it is not used, when it is not.
	HotSet      int    `json:"hotSet"`
	HotSetError string `json:"hotSetError,omitempty"`
}

// Percentile is an upper bound of the latency of the given share of faults, from 0 to 1; 0 without faults.
func (s Stats) Percentile(share float64) time.Duration {
	var all, seen int64
	for _, n := range s.Latency {
		all += n
	}
	for i, n := range s.Latency {
		if seen += n; n > 0 && float64(seen) >= share*float64(all) {
			return time.Microsecond << i
		}
	}
	return 0
}

// counters are Stats as they grow.
type counters struct {
	faults, copied, zeroed, prefetched, removals, again, exists atomic.Int64
	latency                                                     [latencyBuckets]atomic.Int64
}

func (c *counters) served(took time.Duration) {
	c.faults.Add(1)
	c.latency[min(bits.Len64(uint64(max(took.Microseconds(), 0))), latencyBuckets-1)].Add(1)
}

func (c *counters) stats() Stats {
	s := Stats{
		Faults: c.faults.Load(), Copied: c.copied.Load(), Zeroed: c.zeroed.Load(), Prefetched: c.prefetched.Load(),
		Removals: c.removals.Load(), Retries: c.again.Load(), Present: c.exists.Load(),
	}
	for i := range c.latency {
		s.Latency[i] = c.latency[i].Load()
	}
	return s
}
