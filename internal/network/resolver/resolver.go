// Package resolver answers the name queries of one sandbox: what its policy lets it know, and nothing that the policy
// would not let it reach.
//
// It answers IPv4 addresses only, since nothing else is carried. Before an answer leaves, its addresses are pinned: whoever
// guards the sandbox's traffic opens them for as long as the answer holds. The asker is hostile: it cannot make the
// resolver hold more than it holds, ask upstream faster than it asks, or send more than it was sent by much.
package resolver

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/time/rate"

	"github.com/sporevm/spore/internal/network/policy"
)

// Bounds of what one sandbox can make of its resolver.
const (
	queriesPerSecond = 200
	queriesAtOnce    = 64  // of either transport, beyond which UDP queries are dropped
	connections      = 16  // over TCP
	cachedNames      = 512 // after which others are forgotten
	answerAddresses  = 32  // of one name
	maxQuery         = 2048
	maxReply         = 1232
)

// An answer holds for MinTTL at least and MaxTTL at most, and its addresses stay open for Grace longer: a program connects
// some time after it has asked.
const (
	MinTTL = 5 * time.Second
	MaxTTL = 5 * time.Minute
	Grace  = time.Minute
)

// Options say what a Resolver answers, and from where.
type Options struct {
	// Policy is asked for at each query.
	Policy func() *policy.Policy
	// Pin opens addresses that a name resolved to, for a time, and returns when they are open. It is called for those that the
	// policy does not allow by themselves, before each answer that holds them. Nil refuses such answers.
	Pin func(ctx context.Context, name string, addrs []netip.Addr, hold time.Duration) error
	// ResolvConf names the file that says which servers to ask; default /etc/resolv.conf. It is read again when it changes.
	ResolvConf string
	// Servers are asked instead of those that ResolvConf names.
	Servers []netip.AddrPort
	Logger  *slog.Logger // default: slog.Default
}

// Stats count what a Resolver did since it was made.
type Stats struct {
	Queries int64 `json:"queries"`
	Refused int64 `json:"refused"` // by the policy
	Failed  int64 `json:"failed"`  // no server had an answer
	Dropped int64 `json:"dropped"` // too many at once, or too fast
}

// Resolver answers one sandbox. Its methods may be called from many goroutines.
type Resolver struct {
	opts     Options
	log      *slog.Logger
	upstream *upstream
	cache    *cache
	pace     *rate.Limiter
	slots    chan struct{}
	complain rate.Sometimes

	queries, refused, failed, dropped atomic.Int64

	mu      sync.Mutex
	flights map[string]*flight
}

// flight is a query upstream that several askers wait for.
type flight struct {
	done chan struct{}
	got  answer
	err  error
}

// New returns a resolver. It does nothing until Serve.
func New(opts Options) *Resolver {
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	if opts.ResolvConf == "" {
		opts.ResolvConf = "/etc/resolv.conf"
	}
	return &Resolver{
		opts: opts, log: opts.Logger, upstream: &upstream{path: opts.ResolvConf, fixed: opts.Servers}, cache: newCache(cachedNames),
		pace: rate.NewLimiter(queriesPerSecond, 2*queriesPerSecond), slots: make(chan struct{}, queriesAtOnce),
		flights: map[string]*flight{}, complain: rate.Sometimes{Interval: time.Minute},
	}
}

// Stats tells what was done so far.
func (r *Resolver) Stats() Stats {
	return Stats{r.queries.Load(), r.refused.Load(), r.failed.Load(), r.dropped.Load()}
}

// reply makes the answer to a query, nil for what deserves none. limit is the size that the transport takes.
func (r *Resolver) reply(ctx context.Context, raw []byte, limit int) []byte {
	// A response is never answered, or two servers could be made to talk to each other for ever.
	if len(raw) < 12 || raw[2]&0x80 != 0 {
		return nil
	}
	r.queries.Add(1)
	var q dns.Msg
	if err := q.Unpack(raw); err != nil {
		q = dns.Msg{MsgHdr: dns.MsgHdr{Id: uint16(raw[0])<<8 | uint16(raw[1])}}
		return pack(new(dns.Msg).SetRcode(&q, dns.RcodeFormatError), limit)
	}
	m := new(dns.Msg)
	m.SetReply(&q)
	m.RecursionAvailable = true
	if opt := q.IsEdns0(); opt != nil {
		limit = min(limit, max(int(opt.UDPSize()), dns.MinMsgSize))
		m.SetEdns0(maxReply, false)
	} else {
		limit = min(limit, dns.MinMsgSize)
	}
	r.fill(ctx, &q, m)
	return pack(m, limit)
}

func (r *Resolver) fill(ctx context.Context, q, m *dns.Msg) {
	switch {
	case q.Opcode != dns.OpcodeQuery:
		m.Rcode = dns.RcodeNotImplemented
		return
	case len(q.Question) != 1:
		m.Rcode = dns.RcodeFormatError
		return
	case q.Question[0].Qclass != dns.ClassINET:
		m.Rcode = dns.RcodeRefused
		return
	}
	name := strings.ToLower(q.Question[0].Name)
	pol := r.opts.Policy()
	if !pol.Name(name) {
		// Some C libraries take a refusal for a lost packet and wait. That there is no such name ends the matter at once.
		r.refuse(m, dns.RcodeNameError, "the network policy does not allow this name")
		return
	}
	if q.Question[0].Qtype != dns.TypeA {
		return // there is such a name, as far as anybody here knows, and it has nothing of that kind
	}
	got, err := r.lookup(ctx, name)
	if err != nil {
		r.failed.Add(1)
		m.Rcode = dns.RcodeServerFailure
		explain(m, dns.ExtendedErrorCodeNetworkError, "no name server of the host has an answer")
		r.log.Debug("resolve a name", "name", name, "error", err)
		return
	}
	m.Rcode = got.rcode
	left := min(max(time.Until(got.until), time.Second), MaxTTL)
	var open, pin []netip.Addr
	for _, a := range got.addrs {
		switch {
		case pol.Allows(a):
			open = append(open, a)
		case r.opts.Pin != nil && pol.Pinnable(a):
			open, pin = append(open, a), append(pin, a)
		}
	}
	if len(open) == 0 && len(got.addrs) > 0 {
		r.refuse(m, dns.RcodeNameError, "the network policy does not allow the addresses of this name")
		return
	}
	if len(pin) > 0 {
		if err := r.opts.Pin(ctx, strings.TrimSuffix(name, "."), pin, left+Grace); err != nil {
			r.failed.Add(1)
			m.Rcode = dns.RcodeServerFailure
			// An asker can bring this about, and must not fill a disk with it.
			r.complain.Do(func() { r.log.Error("open the addresses of a name", "name", name, "error", err) })
			return
		}
	}
	for _, a := range open {
		m.Answer = append(m.Answer, &dns.A{
			// As it was asked: some askers vary the case and want to see it again.
			Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: uint32(left / time.Second)},
			A:   a.AsSlice(),
		})
	}
}

func (r *Resolver) refuse(m *dns.Msg, rcode int, why string) {
	r.refused.Add(1)
	m.Rcode = rcode
	explain(m, dns.ExtendedErrorCodeFiltered, why)
}

// explain adds a reason for people, if the asker understands such.
func explain(m *dns.Msg, code uint16, why string) {
	if opt := m.IsEdns0(); opt != nil {
		opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: code, ExtraText: why})
	}
}

func pack(m *dns.Msg, limit int) []byte {
	m.Truncate(limit)
	raw, err := m.Pack()
	if err != nil { // an asker's own name that cannot be said again
		m = &dns.Msg{MsgHdr: dns.MsgHdr{Id: m.Id, Response: true, Rcode: dns.RcodeFormatError}}
		if raw, err = m.Pack(); err != nil {
			return nil
		}
	}
	return raw
}

// lookup answers from the cache, or joins whoever asks upstream already.
func (r *Resolver) lookup(ctx context.Context, name string) (answer, error) {
	if got, ok := r.cache.get(name, time.Now()); ok {
		return got, nil
	}
	r.mu.Lock()
	f := r.flights[name]
	if f == nil {
		f = &flight{done: make(chan struct{})}
		r.flights[name] = f
		go func() {
			// Not the first asker's context: the others wait as well.
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			f.got, f.err = r.upstream.resolve(ctx, name)
			if f.err == nil {
				r.cache.put(name, f.got)
			}
			r.mu.Lock()
			delete(r.flights, name)
			r.mu.Unlock()
			close(f.done)
		}()
	}
	r.mu.Unlock()
	select {
	case <-f.done:
		return f.got, f.err
	case <-ctx.Done():
		return answer{}, errors.New("the asker has left")
	}
}
