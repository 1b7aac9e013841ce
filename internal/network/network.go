// Package network connects sandboxes to the world in mode isolated: each gets a network namespace of its own, with the TAP device
// that its VM opens, a private link to the host, NAT, and packet filter rules that hold it to its policy.
//
// Inside every namespace things look the same, so that clones of one frozen VM run side by side: the guest is 10.254.254.2 on
// tap0, its gateway and nameserver is 10.254.254.1. The namespace and its link to the host have one name, "spore-" with five letters
// for the server's data directory and four hexadecimal digits for the link; the link's addresses come out of a private range that
// no guest ever sees.
package network

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/thread"
)

// What every guest finds on its side of the cable.
const (
	GuestMAC   = "02:53:50:00:00:01"
	GatewayMAC = "02:53:50:00:00:02" // a thawed guest remembers it, so it is the same everywhere
	TapName    = "tap0"              // in each namespace
)

// The addresses on the guest's cable, the same for every guest.
var (
	GuestAddress = netip.MustParsePrefix("10.254.254.2/30")
	Gateway      = netip.MustParseAddr("10.254.254.1") // also the nameserver
)

// Subnets are where the addresses of links between namespaces and host come from, in the order in which they are tried: ranges that
// are set aside for measurements, then ones that few networks use. No guest ever sees them.
var Subnets = []netip.Prefix{
	netip.MustParsePrefix("198.19.0.0/16"), netip.MustParsePrefix("198.18.0.0/16"),
	netip.MustParsePrefix("100.126.0.0/16"), netip.MustParsePrefix("10.213.0.0/16"),
}

// Options of a Manager.
type Options struct {
	// Dir is the directory that the manager keeps its records in; it is made when missing. It also tells the things of one
	// server on a machine from those of another.
	Dir string
	Log *slog.Logger
	// ResolvConf names the file that says which servers the names that guests ask for are looked up at; "" is /etc/resolv.conf.
	ResolvConf string
	// Nameservers are asked instead of those that ResolvConf names.
	Nameservers []netip.AddrPort
	// PoolSize is how many namespaces are kept ready; with PoolLater only once something has been attached: a server whose
	// sandboxes use no such network then leaves the host as it was.
	PoolSize  int
	PoolLater bool
	// Subnet is where the addresses of links come from. When it is not set, it is the first of Subnets that the host does not use.
	Subnet netip.Prefix
	// Owner is the user id that alone may open TAP devices, besides root. 0: whoever was put into the namespace.
	Owner int
	// Host is the path of the network namespace that links lead to. "" is that of the process.
	Host string
	// RunDir is where servers say for which directory their names stand, until the machine restarts; "" is /run/spore/networks.
	RunDir string
	// NamespaceDir is where namespaces are mounted; "" is /run/netns, where ip-netns(8) looks.
	NamespaceDir string
}

// Link is the cable of one sandbox.
type Link struct {
	Name       string // of the namespace, and of the host's end of the link to it
	NetNS      string // path of the namespace
	Tap        string // name of the TAP device in it, without vnet headers
	MAC        string // that the guest is to have
	Address    netip.Prefix
	Gateway    netip.Addr
	Nameserver netip.Addr
}

// Manager makes, changes and removes the networks of sandboxes. Its methods may be called from many goroutines at once. Recover must be
// called before anything is attached.
type Manager struct {
	opt    Options
	log    *slog.Logger
	prefix string // of the names of all that is ours

	hostNS *os.File
	host   *netlink.Handle // in the host's namespace
	outer  *outer

	recovering sync.Mutex

	rules     sync.Mutex // held while the host's tables come or go
	installed bool       // they are up

	mu        sync.Mutex
	recovered bool
	prepared  bool  // the subnet is chosen
	serving   bool  // the pool is kept full
	unfit     error // why nothing can be attached on this host
	closed    bool
	spaces    map[string]*space // by name: all that exist or are being made
	attached  map[string]*space // by the caller's id
	ready     []*space
	pooling   bool                     // namespaces are kept ready
	abandoned []*space                 // to be removed, which has failed
	turns     map[string]chan struct{} // ids that somebody works on
	slots     slots

	filling   sync.WaitGroup
	fill      chan struct{}
	lookAgain time.Duration // how often the host's own forwarding is looked at
	stopping  context.Context
	stop      context.CancelFunc

	// step is called before each step of making or removing a namespace, with its name. Tests make it fail.
	step func(name string) error
}

// New makes a manager. It changes nothing yet outside of its directory. It fails with spore.CodeUnsupported when the process has not
// the right to make networks, or the kernel not the parts.
func New(opt Options) (_ *Manager, err error) {
	if os.Geteuid() != 0 {
		return nil, spore.Errorf(spore.CodeUnsupported, "isolated networks need root").WithHint("run the server as root; with the QEMU engine, the network mode user does without")
	}
	if opt.Subnet.IsValid() {
		if !opt.Subnet.Addr().Is4() || opt.Subnet != opt.Subnet.Masked() || opt.Subnet.Bits() < 15 || opt.Subnet.Bits() > 30 {
			return nil, spore.Invalidf("subnet", "%s cannot be cut into links", opt.Subnet).WithHint("an IPv4 range of 15 to 30 bits, such as %s", Subnets[0])
		}
		if opt.Subnet.Overlaps(GuestAddress) {
			return nil, spore.Invalidf("subnet", "%s holds the guests' own addresses, %s", opt.Subnet, GuestAddress.Masked()).WithHint("such as %s", Subnets[0])
		}
	}
	if opt.RunDir == "" {
		opt.RunDir = "/run/spore/networks"
	}
	if opt.NamespaceDir == "" {
		opt.NamespaceDir = "/run/netns"
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(opt.Dir, 0o700); err != nil {
		return nil, err
	}
	prefix, err := namePrefix(opt.Dir)
	if err != nil {
		return nil, err
	}
	path := opt.Host
	if path == "" {
		path = "/proc/thread-self/ns/net"
	}
	hostNS, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	m := newManager(opt, prefix, hostNS, nil)
	if err := m.open(); err != nil {
		return nil, errors.Join(explain(err), m.hostNS.Close())
	}
	return m, nil
}

func newManager(opt Options, prefix string, hostNS *os.File, host *netlink.Handle) *Manager {
	m := &Manager{
		opt: opt, log: opt.Log, pooling: !opt.PoolLater, prefix: prefix, outer: newOuter(prefix), hostNS: hostNS, host: host,
		spaces: map[string]*space{}, attached: map[string]*space{}, turns: map[string]chan struct{}{},
		slots: newSlots(Subnets[0], map[int]bool{}),
		fill:  make(chan struct{}, 1), lookAgain: time.Minute, step: func(string) error { return nil },
	}
	m.stopping, m.stop = context.WithCancel(context.Background())
	return m
}

// open talks to the kernel for the first time, and so finds out whether it has the parts and the process the right.
func (m *Manager) open() error {
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return spore.Errorf(spore.CodeUnsupported, "this host has no TAP devices: %w", err).WithHint("load the module tun")
	}
	return thread.InNetwork(m.hostNS, func() error {
		c, err := newConn()
		if err != nil {
			return err
		}
		defer c.CloseLasting()
		if _, err := c.ListTables(); err != nil {
			return fmt.Errorf("read the rules of the host: %w", err)
		}
		m.host, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
}

// explain says what a host lacks when it refuses what is asked of it.
func explain(err error) error {
	for _, errno := range []unix.Errno{unix.EPERM, unix.EPROTONOSUPPORT, unix.EOPNOTSUPP, unix.EAFNOSUPPORT} {
		if errors.Is(err, errno) {
			return unfit(err)
		}
	}
	return err
}

func unfit(err error) error {
	return spore.Errorf(spore.CodeUnsupported, "this host cannot make isolated networks: %w", err).
		WithHint("it takes root with all capabilities, and a kernel with network namespaces, tun, veth, nf_tables and sch_tbf; with the QEMU engine, the network mode user needs none of them")
}

// nameStart is how the name of everything that any server makes begins.
const nameStart = "spore-"

// namePrefix is what the names of all that a server makes begin with. It is made from the place of its directory, so that a server
// whose directory was removed and made again still knows its own.
func namePrefix(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if abs, err = filepath.EvalSymlinks(abs); err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(abs))
	return nameStart + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:5], nil
}

func (m *Manager) link(s *space) Link {
	return Link{
		Name: s.name, NetNS: m.netnsPath(s.name), Tap: TapName, MAC: GuestMAC,
		Address: GuestAddress, Gateway: Gateway, Nameserver: Gateway,
	}
}

func (m *Manager) netnsPath(name string) string { return filepath.Join(m.opt.NamespaceDir, name) }

// hostAddresses are the host's own IPv4 addresses.
func (m *Manager) hostAddresses() ([]netip.Addr, error) {
	list, err := m.host.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	var all []netip.Addr
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP.To4()); ok {
			all = append(all, addr)
		}
	}
	return all, nil
}

// Close lets go of what is attached, which goes on working but for its names, and removes the namespaces that are ready for nobody.
func (m *Manager) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	busy := slices.Collect(maps.Values(m.turns))
	m.mu.Unlock()
	m.stop()
	m.filling.Wait()
	for _, over := range busy {
		<-over
	}

	m.mu.Lock()
	ready := append(m.ready, m.abandoned...)
	m.ready, m.abandoned = nil, nil
	attached := slices.Collect(maps.Values(m.attached))
	m.mu.Unlock()
	var first error
	keep := func(err error) {
		if err != nil && first == nil {
			first = err
		}
	}
	for _, s := range attached {
		keep(s.closeNames())
	}
	for _, s := range ready {
		keep(m.remove(s))
	}
	keep(m.settle())
	m.host.Close()
	keep(m.hostNS.Close())
	return first
}

// turn waits until nobody else works on the network of id.
func (m *Manager) turn(ctx context.Context, id string) (over func(), err error) {
	for {
		m.mu.Lock()
		if m.closed {
			m.mu.Unlock()
			return nil, spore.Errorf(spore.CodeConflict, "the server is stopping")
		}
		if !m.recovered {
			m.mu.Unlock()
			return nil, fmt.Errorf("network: Recover comes first")
		}
		if m.unfit != nil {
			m.mu.Unlock()
			return nil, m.unfit
		}
		other, busy := m.turns[id]
		if !busy {
			mine := make(chan struct{})
			m.turns[id] = mine
			m.mu.Unlock()
			return func() {
				m.mu.Lock()
				delete(m.turns, id)
				m.mu.Unlock()
				close(mine)
			}, nil
		}
		m.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
