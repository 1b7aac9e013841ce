package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	patience    = 10 * time.Second // for one name, all servers and aliases together
	tryFor      = 2 * time.Second  // for one server
	rounds      = 2
	maxServers  = 4
	maxAliases  = 10
	negativeTTL = 30 * time.Second
)

// upstream asks the name servers of the host.
type upstream struct {
	path  string
	fixed []netip.AddrPort

	mu      sync.Mutex
	servers []netip.AddrPort
	checked time.Time
	seen    os.FileInfo
}

func sameName(a, b string) bool { return strings.EqualFold(dns.Fqdn(a), dns.Fqdn(b)) }

// resolve finds the addresses of a name, and follows its aliases to wherever they lead.
func (u *upstream) resolve(ctx context.Context, name string) (answer, error) {
	ttl := MaxTTL
	at := name
	for range maxAliases {
		m, err := u.ask(ctx, at)
		if err != nil {
			return answer{}, err
		}
		addrs, held, next := chain(at, m.Answer)
		ttl = max(min(ttl, held), MinTTL)
		switch {
		case len(addrs) > 0:
			return answer{addrs: addrs, until: time.Now().Add(ttl)}, nil
		case next == "" || m.Rcode == dns.RcodeNameError:
			return answer{rcode: m.Rcode, until: time.Now().Add(min(ttl, negative(m)))}, nil
		}
		at = dns.Fqdn(next)
	}
	return answer{}, fmt.Errorf("%s is an alias of an alias, and so on without an end", name)
}

// negative is how long it holds that there is nothing.
func negative(m *dns.Msg) time.Duration {
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			ttl := time.Duration(min(soa.Hdr.Ttl, soa.Minttl)) * time.Second
			return min(max(ttl, MinTTL), negativeTTL)
		}
	}
	return MinTTL
}

// ask asks one server after the other for the addresses of a name.
func (u *upstream) ask(ctx context.Context, name string) (*dns.Msg, error) {
	servers, err := u.list()
	if err != nil {
		return nil, err
	}
	var errs []error
	for range rounds {
		for _, s := range servers {
			m, err := askServer(ctx, s, name)
			if err == nil {
				return m, nil
			}
			errs = append(errs, fmt.Errorf("server %s: %w", s, err))
			if ctx.Err() != nil {
				return nil, errors.Join(errs...)
			}
		}
	}
	return nil, errors.Join(errs...)
}

func askServer(ctx context.Context, server netip.AddrPort, name string) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, tryFor)
	defer cancel()
	q := new(dns.Msg).SetQuestion(name, dns.TypeA) // with a number by chance, from a port by chance
	q.SetEdns0(maxReply, false)
	for _, network := range []string{"udp", "tcp"} {
		m, err := exchange(ctx, network, server, q)
		switch {
		case err != nil:
			return nil, err
		case !answers(m, q):
			return nil, errors.New("it answers another question")
		case m.Truncated && network == "udp":
			continue
		case m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError:
			return nil, fmt.Errorf("it says %s", dns.RcodeToString[m.Rcode])
		}
		return m, nil
	}
	return nil, errors.New("its answer does not fit")
}

func exchange(ctx context.Context, network string, server netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	conn := &dns.Conn{Conn: c, UDPSize: dns.DefaultMsgSize}
	if err := conn.WriteMsg(q); err != nil {
		return nil, err
	}
	for {
		m, err := conn.ReadMsg()
		if err == nil && m.Id == q.Id {
			return m, nil
		}
		// A datagram that is not the answer, whoever sent it, is no reason to stop waiting for the one that is.
		var netErr net.Error
		if network == "tcp" || errors.As(err, &netErr) {
			return nil, errors.Join(err, errors.New("no answer"))
		}
	}
}

func answers(m, q *dns.Msg) bool {
	return m.Response && len(m.Question) == 1 && m.Question[0].Qtype == q.Question[0].Qtype &&
		m.Question[0].Qclass == q.Question[0].Qclass && sameName(m.Question[0].Name, q.Question[0].Name)
}

// list is whom to ask. The file is looked at once a second, and read when it is another.
func (u *upstream) list() ([]netip.AddrPort, error) {
	if len(u.fixed) > 0 {
		return u.fixed, nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if time.Since(u.checked) < time.Second && len(u.servers) > 0 {
		return u.servers, nil
	}
	info, err := os.Stat(u.path)
	if err == nil && u.seen != nil && os.SameFile(info, u.seen) && info.ModTime().Equal(u.seen.ModTime()) && info.Size() == u.seen.Size() && len(u.servers) > 0 {
		u.checked = time.Now()
		return u.servers, nil
	}
	var text []byte
	if err == nil {
		text, err = os.ReadFile(u.path)
	}
	if err != nil {
		return nil, fmt.Errorf("the name servers of the host are not known: %w", err)
	}
	servers := parseResolvConf(string(text))
	if len(servers) == 0 {
		return nil, fmt.Errorf("%s names no server", u.path)
	}
	u.servers, u.seen, u.checked = servers, info, time.Now()
	return servers, nil
}

// parseResolvConf reads the servers that a resolv.conf names. What it does not understand it passes over, as every resolver does.
func parseResolvConf(text string) []netip.AddrPort {
	var servers []netip.AddrPort
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "nameserver" || len(servers) == maxServers {
			continue
		}
		if a, err := netip.ParseAddr(words[1]); err == nil {
			servers = append(servers, netip.AddrPortFrom(a, 53))
		}
	}
	return servers
}
