package resolver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/network/policy"
)

// zone is an upstream server with some records.
type zone struct {
	addr  netip.AddrPort
	asked atomic.Int64
	block chan struct{} // when set, answers wait for it
}

func rrs(t testing.TB, lines ...string) (out []dns.RR) {
	t.Helper()
	for _, line := range lines {
		rr, err := dns.NewRR(line)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, rr)
	}
	return out
}

// listen finds a port that is free for both: of what is given out for one, somebody else may have the other.
func listen(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	for {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		must(t, err)
		l, err := net.Listen("tcp", pc.LocalAddr().String())
		if err == nil {
			return pc, l
		}
		pc.Close()
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
	}
}

func newZone(t testing.TB, block chan struct{}, lines ...string) *zone {
	t.Helper()
	z := &zone{block: block}
	records := map[string][]dns.RR{}
	for _, rr := range rrs(t, lines...) {
		name := strings.ToLower(rr.Header().Name)
		records[name] = append(records[name], rr)
	}
	pc, l := listen(t)
	z.addr = netip.MustParseAddrPort(pc.LocalAddr().String())
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		z.asked.Add(1)
		if z.block != nil {
			<-z.block
		}
		m := new(dns.Msg).SetReply(q)
		name := strings.ToLower(q.Question[0].Name)
		switch {
		case strings.HasPrefix(name, "broken."):
			m.Rcode = dns.RcodeServerFailure
		case strings.HasPrefix(name, "other."):
			m.Question[0].Name = "evil.example."
		case strings.HasPrefix(name, "big.") && w.LocalAddr().Network() == "udp":
			m.Truncated = true
		case records[name] == nil:
			m.Rcode = dns.RcodeNameError
			m.Ns = rrs(t, "example. 600 IN SOA ns.example. root.example. 1 2 3 4 7")
		default:
			m.Answer = records[name]
			for _, rr := range records[name] { // the rest of the chain, as a resolver that follows it gives it
				if c, ok := rr.(*dns.CNAME); ok && !strings.HasPrefix(name, "far.") {
					m.Answer = append(m.Answer, records[strings.ToLower(c.Target)]...)
				}
			}
		}
		w.WriteMsg(m)
	})
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: handler}, {Listener: l, Handler: handler}} {
		done := make(chan struct{})
		go func() { s.ActivateAndServe(); close(done) }()
		t.Cleanup(func() { s.Shutdown(); <-done })
	}
	return z
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type pinned struct {
	name  string
	addrs []netip.Addr
	hold  time.Duration
}

// world is a resolver that serves on loopback.
type world struct {
	*Resolver
	addr   string
	policy atomic.Pointer[policy.Policy]
	mu     sync.Mutex
	pins   []pinned
	refuse error // what Pin answers
}

func newWorld(t testing.TB, e spore.Egress, opts Options) *world {
	t.Helper()
	w := &world{}
	w.set(t, e)
	opts.Policy = w.policy.Load
	opts.Pin = func(_ context.Context, name string, addrs []netip.Addr, hold time.Duration) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.pins = append(w.pins, pinned{name, slices.Clone(addrs), hold})
		return w.refuse
	}
	w.Resolver = New(opts)
	pc, l := listen(t)
	w.addr = pc.LocalAddr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Serve(ctx, pc, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return w
}

func (w *world) set(t testing.TB, e spore.Egress) {
	t.Helper()
	p, err := policy.Compile(e, nil)
	must(t, err)
	w.policy.Store(p)
}

func (w *world) pinned() []pinned {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.pins)
}

func (w *world) ask(t testing.TB, network, name string, qtype uint16) *dns.Msg {
	t.Helper()
	q := new(dns.Msg).SetQuestion(name, qtype)
	q.SetEdns0(1232, false)
	m, _, err := (&dns.Client{Net: network, Timeout: 20 * time.Second}).Exchange(q, w.addr)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return m
}

func addresses(m *dns.Msg) string {
	var out []string
	for _, rr := range m.Answer {
		out = append(out, rr.(*dns.A).A.String())
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

var internetOff = new(bool)

func TestAnswers(t *testing.T) {
	z := newZone(t, nil,
		"plain.example. 60 IN A 203.0.114.1", "plain.example. 30 IN A 203.0.114.2",
		"alias.example. 20 IN CNAME plain.example.", "far.example. 20 IN CNAME alias.example.",
		"round.example. 20 IN CNAME round.example.", "dangling.example. 20 IN CNAME missing.example.",
		"private.example. 60 IN A 10.1.2.3", "mixed.example. 60 IN A 10.1.2.3", "mixed.example. 60 IN A 203.0.114.9",
		"local.example. 60 IN A 127.0.0.1", "short.example. 0 IN A 203.0.114.3", "long.example. 999999 IN A 203.0.114.4",
		"big.example. 60 IN A 203.0.114.5", "other.example. 60 IN A 203.0.114.6", "lab.example. 60 IN A 10.9.9.9",
	)
	open := spore.Egress{AllowCIDRs: []string{"10.9.0.0/16"}}
	closed := spore.Egress{AllowDomains: []string{"plain.example", "*.allowed.example", "private.example", "short.example"}}
	for _, tc := range []struct {
		name   string
		egress spore.Egress
		qtype  uint16
		rcode  int
		want   string
		pin    string
	}{
		{"plain.example.", open, dns.TypeA, 0, "203.0.114.1 203.0.114.2", ""},
		{"PLAIN.example.", open, dns.TypeA, 0, "203.0.114.1 203.0.114.2", ""},
		{"alias.example.", open, dns.TypeA, 0, "203.0.114.1 203.0.114.2", ""},
		{"far.example.", open, dns.TypeA, 0, "203.0.114.1 203.0.114.2", ""},
		{"round.example.", open, dns.TypeA, dns.RcodeServerFailure, "", ""},
		{"dangling.example.", open, dns.TypeA, dns.RcodeNameError, "", ""},
		{"missing.example.", open, dns.TypeA, dns.RcodeNameError, "", ""},
		{"plain.example.", open, dns.TypeAAAA, 0, "", ""},
		{"plain.example.", open, dns.TypeTXT, 0, "", ""},
		{"private.example.", open, dns.TypeA, dns.RcodeNameError, "", ""},
		{"local.example.", open, dns.TypeA, dns.RcodeNameError, "", ""},
		{"mixed.example.", open, dns.TypeA, 0, "203.0.114.9", ""},
		{"lab.example.", open, dns.TypeA, 0, "10.9.9.9", ""},
		{"big.example.", open, dns.TypeA, 0, "203.0.114.5", ""},
		{"broken.example.", open, dns.TypeA, dns.RcodeServerFailure, "", ""},
		{"other.example.", open, dns.TypeA, dns.RcodeServerFailure, "", ""},
		{"plain.example.", closed, dns.TypeA, 0, "203.0.114.1 203.0.114.2", "203.0.114.1 203.0.114.2"},
		{"Plain.Example.", closed, dns.TypeA, 0, "203.0.114.1 203.0.114.2", "203.0.114.1 203.0.114.2"},
		{"alias.example.", closed, dns.TypeA, dns.RcodeNameError, "", ""},
		{"alias.example.", closed, dns.TypeAAAA, dns.RcodeNameError, "", ""},
		{"private.example.", closed, dns.TypeA, dns.RcodeNameError, "", ""},
		{"plain.example.", spore.Egress{Internet: internetOff}, dns.TypeA, dns.RcodeNameError, "", ""},
	} {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(fmt.Sprintf("%s %s %s %d", tc.name, dns.TypeToString[tc.qtype], network, len(tc.egress.AllowDomains)), func(t *testing.T) {
				w := newWorld(t, tc.egress, Options{Servers: []netip.AddrPort{z.addr}})
				began := time.Now()
				m := w.ask(t, network, tc.name, tc.qtype)
				took := time.Since(began) // while the answer was there and grew old
				if m.Rcode != tc.rcode || addresses(m) != tc.want {
					t.Errorf("%s: %q, want %s: %q", dns.RcodeToString[m.Rcode], addresses(m), dns.RcodeToString[tc.rcode], tc.want)
				}
				var pins []string
				for _, p := range w.pinned() {
					for _, a := range p.addrs {
						pins = append(pins, a.String())
					}
					if ttl := time.Duration(m.Answer[0].Header().Ttl) * time.Second; p.hold < ttl+Grace || p.name != strings.ToLower(strings.TrimSuffix(tc.name, ".")) {
						t.Errorf("pinned as %+v, answered for %s", p, ttl)
					}
				}
				if got := strings.Join(pins, " "); got != tc.pin {
					t.Errorf("pinned %q, want %q", got, tc.pin)
				}
				for _, rr := range m.Answer {
					if ttl := time.Duration(rr.Header().Ttl) * time.Second; ttl > MaxTTL || ttl < MinTTL-time.Second-took || rr.Header().Name != tc.name {
						t.Errorf("%s", rr)
					}
				}
				if refused := w.Stats().Refused; (refused > 0) != (tc.rcode == dns.RcodeNameError && !slices.Contains([]string{"missing.example.", "dangling.example."}, tc.name)) {
					t.Errorf("refused %d", refused)
				}
			})
		}
	}
	for name, want := range map[string]time.Duration{"short.example.": MinTTL, "long.example.": MaxTTL, "alias.example.": 20 * time.Second} {
		w := newWorld(t, open, Options{Servers: []netip.AddrPort{z.addr}})
		began := time.Now()
		got := time.Duration(w.ask(t, "udp", name, dns.TypeA).Answer[0].Header().Ttl) * time.Second
		if got > want || got < want-2*time.Second-time.Since(began) {
			t.Errorf("%s holds for %s, want %s", name, got, want)
		}
	}
}

// A name is asked for once, however many want to know, and again when it is not allowed any more.
func TestCacheAndPolicyChange(t *testing.T) {
	z := newZone(t, make(chan struct{}), "plain.example. 60 IN A 203.0.114.1")
	w := newWorld(t, spore.Egress{AllowDomains: []string{"plain.example"}}, Options{Servers: []netip.AddrPort{z.addr}})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if got := addresses(w.ask(t, "udp", "plain.example.", dns.TypeA)); got != "203.0.114.1" {
				t.Errorf("%q", got)
			}
		})
	}
	close(z.block)
	wg.Wait()
	if n := z.asked.Load(); n != 1 {
		t.Errorf("the server was asked %d times", n)
	}
	if n := len(w.pinned()); n != 20 {
		t.Errorf("%d answers were pinned", n)
	}
	w.set(t, spore.Egress{Internet: internetOff})
	if m := w.ask(t, "udp", "plain.example.", dns.TypeA); m.Rcode != dns.RcodeNameError || len(m.Answer) > 0 {
		t.Errorf("after it was forbidden: %s", m)
	}
	w.set(t, spore.Egress{AllowDomains: []string{"plain.example", "other.example"}})
	w.mu.Lock()
	w.refuse = errors.New("no room")
	w.mu.Unlock()
	if m := w.ask(t, "udp", "plain.example.", dns.TypeA); m.Rcode != dns.RcodeServerFailure || len(m.Answer) > 0 {
		t.Errorf("an address that could not be opened was answered: %s", m)
	}
}

func TestDeadServers(t *testing.T) {
	z := newZone(t, nil, "plain.example. 60 IN A 203.0.114.1")
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	defer silent.Close()
	gone, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	must(t, gone.Close())
	w := newWorld(t, spore.Egress{}, Options{Servers: []netip.AddrPort{
		netip.MustParseAddrPort(gone.LocalAddr().String()), netip.MustParseAddrPort(silent.LocalAddr().String()), z.addr,
	}})
	if got := addresses(w.ask(t, "udp", "plain.example.", dns.TypeA)); got != "203.0.114.1" {
		t.Errorf("%q", got)
	}
	w = newWorld(t, spore.Egress{}, Options{ResolvConf: filepath.Join(t.TempDir(), "missing")})
	if m := w.ask(t, "udp", "plain.example.", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("without servers: %s", m)
	}
}

func TestServersOfFileThatChanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	u := &upstream{path: path}
	for _, s := range []string{"127.0.0.53", "192.0.2.1"} {
		must(t, os.WriteFile(path+".new", []byte("nameserver "+s+"\n"), 0o600))
		must(t, os.Rename(path+".new", path))
		u.checked = time.Time{}
		got, err := u.list()
		if err != nil || len(got) != 1 || got[0].String() != s+":53" {
			t.Errorf("%v, %v", got, err)
		}
	}
}

// What a hostile guest sends is bounded and harmless.
func TestHostileQueries(t *testing.T) {
	block := make(chan struct{})
	z := newZone(t, block, "plain.example. 60 IN A 203.0.114.1")
	w := newWorld(t, spore.Egress{}, Options{Servers: []netip.AddrPort{z.addr}})
	conn, err := net.Dial("udp", w.addr)
	must(t, err)
	defer conn.Close()
	response, err := new(dns.Msg).SetReply(new(dns.Msg).SetQuestion("plain.example.", dns.TypeA)).Pack()
	must(t, err)
	for _, junk := range [][]byte{{}, {1}, response, make([]byte, 1400)} {
		_, err := conn.Write(junk)
		must(t, err)
	}
	for i := range 5000 {
		q, err := new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.example.", i), dns.TypeA).Pack()
		must(t, err)
		conn.Write(q)
	}
	for deadline := time.Now().Add(time.Minute); w.Stats().Dropped == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%+v", w.Stats())
		}
	}
	// Over TCP askers wait their turn, and none is dropped.
	tcp, err := net.Dial("tcp", w.addr)
	must(t, err)
	defer tcp.Close()
	q, err := new(dns.Msg).SetQuestion("plain.example.", dns.TypeAAAA).Pack()
	must(t, err)
	close(block)
	_, err = tcp.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...))
	must(t, err)
	_, err = io.ReadFull(tcp, make([]byte, 14))
	must(t, err)
	if n := z.asked.Load(); n > 2*queriesPerSecond*5 {
		t.Errorf("the server was asked %d times", n)
	}
	for range connections + 5 {
		c, err := net.Dial("tcp", w.addr)
		must(t, err)
		defer c.Close()
	}
	c, err := net.Dial("tcp", w.addr)
	must(t, err)
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(idleTime*3)))
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("one connection too many was answered")
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := newCache(10)
	for i := range 1000 {
		c.put(fmt.Sprint(i), answer{until: time.Now().Add(time.Minute)})
		if len(c.names) > 10 {
			t.Fatalf("%d names", len(c.names))
		}
	}
	c.put("old", answer{until: time.Now().Add(-time.Second)})
	if _, ok := c.get("old", time.Now()); ok {
		t.Error("an answer outlives itself")
	}
}

// FuzzReply asks whatever it likes of a resolver whose server knows one name.
func FuzzReply(f *testing.F) {
	for _, name := range []string{"plain.example.", "x.example.", "."} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeANY} {
			q := new(dns.Msg).SetQuestion(name, qtype)
			raw, err := q.Pack()
			must(f, err)
			f.Add(raw)
			q.SetEdns0(4096, true)
			q.Question = append(q.Question, q.Question[0])
			raw, err = q.Pack()
			must(f, err)
			f.Add(raw)
		}
	}
	f.Add([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 0x0c, 0, 1, 0, 1})
	z := newZone(f, nil, "plain.example. 60 IN A 203.0.114.1")
	w := newWorld(f, spore.Egress{AllowDomains: []string{"plain.example"}}, Options{Servers: []netip.AddrPort{z.addr}})
	f.Fuzz(func(t *testing.T, raw []byte) {
		out := w.reply(t.Context(), raw, maxReply)
		if len(raw) < 12 || raw[2]&0x80 != 0 {
			if out != nil {
				t.Fatal("it answers what is no query")
			}
			return
		}
		var m dns.Msg
		if err := m.Unpack(out); err != nil || !m.Response || len(out) > maxReply || m.Id != binary.BigEndian.Uint16(raw) {
			t.Fatalf("%d bytes, %v: %s", len(out), err, &m)
		}
		for _, rr := range m.Answer {
			if !sameName(rr.Header().Name, "plain.example.") {
				t.Fatalf("it answers %s", rr)
			}
		}
	})
}

// FuzzUpstream reads what a hostile or broken server, or file, says.
func FuzzUpstream(f *testing.F) {
	m := new(dns.Msg).SetReply(new(dns.Msg).SetQuestion("a.example.", dns.TypeA))
	m.Answer = rrs(f, "a.example. 5 IN CNAME b.example.", "b.example. 5 IN CNAME a.example.", "b.example. 1 IN A 1.2.3.4", "a.example. 5 IN HINFO x y")
	raw, err := m.Pack()
	must(f, err)
	f.Add(raw)
	f.Add([]byte("nameserver 1.2.3.4\nnameserver ::1\noptions x\nnameserver"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if n := len(parseResolvConf(string(raw))); n > maxServers {
			t.Fatalf("%d servers", n)
		}
		var m dns.Msg
		if m.Unpack(raw) != nil {
			return
		}
		addrs, ttl, next := chain("a.example.", m.Answer)
		if len(addrs) > answerAddresses || ttl > MaxTTL || len(addrs) > 0 && next != "" {
			t.Fatal(addrs, ttl, next)
		}
		if d := negative(&m); d < MinTTL || d > negativeTTL {
			t.Fatal(d)
		}
	})
}
