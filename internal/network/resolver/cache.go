package resolver

import (
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// answer is what is known of a name. Which of its addresses a sandbox is told is decided each time.
type answer struct {
	addrs []netip.Addr
	rcode int // dns.RcodeSuccess or dns.RcodeNameError
	until time.Time
}

// cache remembers answers, for as long as they hold and while there is room.
type cache struct {
	limit int
	mu    sync.Mutex
	names map[string]answer
}

func newCache(limit int) *cache { return &cache{limit: limit, names: map[string]answer{}} }

func (c *cache) get(name string, now time.Time) (answer, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, ok := c.names[name]
	if ok && !now.Before(a.until) {
		delete(c.names, name)
		return answer{}, false
	}
	return a, ok
}

func (c *cache) put(name string, a answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.names[name]; !known && len(c.names) >= c.limit {
		c.makeRoom()
	}
	c.names[name] = a
}

// makeRoom forgets what holds no longer, and then whatever comes first, which is by chance.
func (c *cache) makeRoom() {
	now := time.Now()
	for name, a := range c.names {
		if !now.Before(a.until) {
			delete(c.names, name)
		}
	}
	for name := range c.names {
		if len(c.names) < c.limit*7/8 {
			return
		}
		delete(c.names, name)
	}
}

// chain follows the aliases of name through the records of a response. It returns the addresses at its end, how long all of
// that holds, and where the chain leads when its end is not among the records.
func chain(name string, records []dns.RR) (addrs []netip.Addr, ttl time.Duration, next string) {
	ttl = MaxTTL
	hold := func(h *dns.RR_Header) { ttl = min(ttl, time.Duration(h.Ttl)*time.Second) }
	at := name
	for range maxAliases {
		moved := false
		for _, rr := range records {
			switch rr := rr.(type) {
			case *dns.A:
				if !sameName(rr.Hdr.Name, at) || len(addrs) == answerAddresses {
					continue
				}
				if a, ok := netip.AddrFromSlice(rr.A.To4()); ok {
					addrs = append(addrs, a)
					hold(&rr.Hdr)
				}
			case *dns.CNAME:
				if !moved && len(addrs) == 0 && sameName(rr.Hdr.Name, at) {
					next, moved = rr.Target, true
					hold(&rr.Hdr)
				}
			}
		}
		if len(addrs) > 0 {
			return addrs, ttl, ""
		}
		if !moved {
			break
		}
		at = next
	}
	return nil, ttl, next
}
