package network

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/sporevm/spore/internal/thread"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What comes back from the world arrives at interfaces that are not ours, and the host forwards it only when they may forward. Where
// the host is a router already, nothing is to be done. Else forwarding is switched on for the interfaces that have routes, and
// this table, which all servers on a machine share, sees to it that the host becomes a router for nobody else. The set
// says which interfaces were switched; it goes when the machine restarts, as does what was switched.
type guard struct {
	table *nftables.Table
	set   *nftables.Set
}

var theGuard = newGuard()

func newGuard() guard {
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "spore_guard"}
	return guard{t, &nftables.Set{Table: t, ID: 1, Name: "switched", KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}}
}

// lockMachine keeps other servers on this machine from changing what is shared.
func (m *Manager) lockMachine() (unlock func(), err error) {
	if err := os.MkdirAll(m.opt.NamespaceDir, 0o755); err != nil {
		return nil, err
	}
	dir, err := os.Open(m.opt.NamespaceDir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		dir.Close()
		return nil, err
	}
	return func() { dir.Close() }, nil
}

// openWays sees to it that the host forwards what belongs to links.
func (m *Manager) openWays() error {
	unlock, err := m.lockMachine()
	if err != nil {
		return err
	}
	defer unlock()
	return thread.InNetwork(m.hostNS, func() error {
		if on, err := isOn("/proc/sys/net/ipv4/ip_forward"); err != nil || on {
			return errors.Join(err, theGuard.stepDown())
		}
		names, err := m.uplinks()
		if err != nil || len(names) == 0 {
			return err
		}
		if err := theGuard.watch(names); err != nil {
			return err
		}
		for _, name := range names {
			if err := sysctl("ipv4/conf/"+name+"/forwarding", "1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return nil
	})
}

// closeWays undoes openWays when no server on the machine has links any more.
func (m *Manager) closeWays() error {
	unlock, err := m.lockMachine()
	if err != nil {
		return err
	}
	defer unlock()
	links, err := m.host.LinkList()
	if err != nil {
		return fmt.Errorf("list the host's links: %w", err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, nameStart) {
			return nil
		}
	}
	return thread.InNetwork(m.hostNS, func() error {
		names, err := theGuard.watched()
		if err != nil || names == nil {
			return err
		}
		if on, err := isOn("/proc/sys/net/ipv4/ip_forward"); err != nil {
			return err
		} else if !on {
			for _, name := range names {
				if err := sysctl("ipv4/conf/"+name+"/forwarding", "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
			}
		}
		return theGuard.stepDown()
	})
}

// uplinks are the interfaces that have routes and do not forward yet.
func (m *Manager) uplinks() ([]string, error) {
	routes, err := m.host.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list the host's routes: %w", err)
	}
	var indexes []int
	for _, r := range routes {
		indexes = append(indexes, r.LinkIndex)
		for _, hop := range r.MultiPath {
			indexes = append(indexes, hop.LinkIndex)
		}
	}
	seen := map[int]bool{}
	var names []string
	for _, i := range indexes {
		if seen[i] {
			continue
		}
		seen[i] = true
		link, err := m.host.LinkByIndex(i)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			continue
		}
		if err != nil {
			return nil, err
		}
		name := link.Attrs().Name
		if link.Attrs().Flags&unix.IFF_LOOPBACK != 0 || strings.HasPrefix(name, nameStart) {
			continue
		}
		on, err := isOn(filepath.Join("/proc/sys/net/ipv4/conf", name, "forwarding"))
		if errors.Is(err, fs.ErrNotExist) || on {
			continue
		}
		if err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, nil
}

func isOn(path string) (bool, error) {
	raw, err := os.ReadFile(path)
	return string(bytes.TrimSpace(raw)) == "1", err
}

// watch adds interfaces to those that forward for links only. The calling thread is in the host's namespace.
func (g guard) watch(names []string) error {
	before, err := g.watched()
	if err != nil {
		return err
	}
	return filterWithin(func(c *nftables.Conn) error {
		renew(c, g.table)
		if err := c.AddSet(g.set, nil); err != nil {
			return err
		}
		for _, name := range append(before, names...) {
			if err := c.SetAddElements(g.set, []nftables.SetElement{{Key: ifname(name)}}); err != nil {
				return err
			}
		}
		passed := nftables.ChainPolicyAccept
		forward := c.AddChain(&nftables.Chain{
			Table: g.table, Name: "forward", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &passed,
		})
		c.AddRule(&nftables.Rule{Table: g.table, Chain: forward, Exprs: rule(arrivedIn(g.set), toNotStarting(nameStart), drop())})
		return nil
	})
}

// watched are the interfaces that were switched; nil when there is no guard.
func (g guard) watched() ([]string, error) {
	c, err := newConn()
	if err != nil {
		return nil, err
	}
	defer c.CloseLasting()
	tables, err := c.ListTablesOfFamily(g.table.Family)
	if err != nil {
		return nil, fmt.Errorf("list the host's rules: %w", err)
	}
	if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == g.table.Name }) {
		return nil, nil
	}
	elements, err := c.GetSetElements(g.set)
	if err != nil {
		return nil, fmt.Errorf("list the interfaces that were made to forward: %w", err)
	}
	names := []string{}
	for _, e := range elements {
		names = append(names, string(bytes.TrimRight(e.Key, "\x00")))
	}
	return names, nil
}

// stepDown removes the guard, if there is one.
func (g guard) stepDown() error {
	return filterWithin(func(c *nftables.Conn) error {
		forget(c, g.table)
		return nil
	})
}
