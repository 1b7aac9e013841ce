package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/sporevm/spore/internal/thread"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Leftover is something of a network that no sandbox uses.
type Leftover struct {
	Kind string `json:"kind"` // namespace, link, record or table
	Name string `json:"name"`
	Dir  string `json:"dir,omitempty"` // of the server that has left it, when that directory is gone
}

// Leftovers lists what servers on this directory have left of networks that are neither those of keep nor in use by this manager, and
// all that servers have left whose directory is gone, but for what a VM still uses. It changes nothing and needs no Recover.
func (m *Manager) Leftovers(keep []string) ([]Leftover, error) {
	mine, err := m.wanted(keep)
	if err != nil {
		return nil, err
	}
	all, err := m.leftovers(mine)
	if err != nil {
		return nil, err
	}
	orphans, err := m.orphans()
	if err != nil {
		return nil, err
	}
	for _, o := range orphans {
		more, err := o.leftovers(o.plugged())
		if err != nil {
			return nil, err
		}
		for _, l := range more {
			l.Dir = o.opt.Dir
			all = append(all, l)
		}
	}
	return all, nil
}

// leftovers is what there is under this manager's names, but for what is used by it or has one of the names in mine.
func (m *Manager) leftovers(mine map[string]bool) ([]Leftover, error) {
	found, err := m.found()
	if err != nil {
		return nil, err
	}
	tables := len(mine) == 0 && !m.up()
	return slices.DeleteFunc(found, func(l Leftover) bool {
		return l.Kind == kindTable && !tables || l.Kind != kindTable && (mine[l.Name] || m.has(l.Name))
	}), nil
}

// Clean removes what Leftovers lists, and answers it. It goes on where something cannot be removed, and fails in the end.
func (m *Manager) Clean(ctx context.Context, keep []string) ([]Leftover, error) {
	m.recovering.Lock()
	defer m.recovering.Unlock()
	all, err := m.Leftovers(keep)
	if err != nil {
		return nil, err
	}
	mine, err := m.wanted(keep)
	if err != nil {
		return nil, err
	}
	errs := []error{m.clean(ctx, mine)}
	orphans, err := m.orphans()
	errs = append(errs, err)
	for _, o := range orphans {
		errs = append(errs, o.clean(ctx, o.plugged()))
	}
	return all, errors.Join(errs...)
}

// orphans are managers for what servers have left whose directories are gone.
func (m *Manager) orphans() ([]*Manager, error) {
	entries, err := os.ReadDir(m.opt.RunDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []*Manager
	for _, e := range entries {
		prefix := e.Name()
		if prefix == m.prefix || !prefixForm.MatchString(prefix) {
			continue
		}
		dir, err := os.ReadFile(filepath.Join(m.opt.RunDir, prefix))
		if errors.Is(err, fs.ErrNotExist) {
			continue // its server has just ended
		}
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(string(dir)); len(dir) == 0 || !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		opt := m.opt
		opt.Dir = string(dir)
		all = append(all, newManager(opt, prefix, m.hostNS, m.host))
	}
	return all, nil
}

var prefixForm = regexp.MustCompile(`^spore-[a-z2-7]{5}$`)

// plugged are the names of the networks whose cable somebody holds.
func (m *Manager) plugged() map[string]bool {
	held := map[string]bool{}
	entries, err := os.ReadDir(m.opt.NamespaceDir)
	if err != nil {
		return held // there are none
	}
	for _, e := range entries {
		slot, ok := m.slotOf(e.Name())
		if !ok {
			continue
		}
		err := m.inside(newSpace(m.prefix, slot, m.slots.outer(slot)), func() error {
			h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return err
			}
			defer h.Close()
			tap, err := h.LinkByName(TapName)
			if err == nil && tap.Attrs().RawFlags&unix.IFF_LOWER_UP != 0 {
				held[e.Name()] = true
			}
			return err
		})
		if err != nil {
			m.log.Debug("look whether a network is in use", "network", e.Name(), "err", err)
		}
	}
	return held
}

func (m *Manager) clean(ctx context.Context, mine map[string]bool) error {
	all, err := m.leftovers(mine)
	if err != nil {
		return err
	}
	known, _, err := m.records()
	if err != nil {
		return err
	}
	errs := []error{m.sweep()}
	tables := false
	for name := range names(all) {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		slot, ok := m.slotOf(name)
		if !ok {
			tables = true
			continue
		}
		s := newSpace(m.prefix, slot, m.slots.outer(slot))
		if r, ok := known[name]; ok {
			s = newSpace(m.prefix, r.Slot, r.Outer)
		}
		if !m.reserve(s) {
			continue
		}
		if err := m.abandon(s); err != nil {
			errs = append(errs, err)
			continue
		}
		m.log.Info("removed a network that is nobody's", "network", name)
	}
	if tables && errors.Join(errs...) == nil {
		errs = append(errs, m.leaveHostAlone())
	}
	return errors.Join(errs...)
}

// reserve keeps a name from being used anew while what is left of it is removed; false when it is in use already.
func (m *Manager) reserve(s *space) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.spaces[s.name] != nil {
		return false
	}
	m.spaces[s.name], m.slots.taken[s.slot] = s, true
	return true
}

func names(all []Leftover) map[string]bool {
	set := map[string]bool{}
	for _, l := range all {
		set[l.Name] = true
	}
	return set
}

// wanted are the names of the networks of keep.
func (m *Manager) wanted(keep []string) (map[string]bool, error) {
	known, _, err := m.records()
	if err != nil {
		return nil, err
	}
	mine := map[string]bool{}
	for name, r := range known {
		if r.ID != "" && slices.Contains(keep, r.ID) {
			mine[name] = true
		}
	}
	return mine, nil
}

// The kinds of things that are left.
const (
	kindNamespace = "namespace"
	kindLink      = "link"
	kindRecord    = "record"
	kindTable     = "table"
)

// found is all that there is of networks of this directory.
func (m *Manager) found() ([]Leftover, error) {
	var all []Leftover
	entries, err := os.ReadDir(m.opt.NamespaceDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if _, ok := m.slotOf(e.Name()); ok {
			all = append(all, Leftover{Kind: kindNamespace, Name: e.Name()})
		}
	}
	links, err := m.host.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the host's links: %w", err)
	}
	for _, l := range links {
		if _, ok := m.slotOf(l.Attrs().Name); ok {
			all = append(all, Leftover{Kind: kindLink, Name: l.Attrs().Name})
		}
	}
	known, damaged, err := m.records()
	if err != nil {
		return nil, err
	}
	for name := range known {
		all = append(all, Leftover{Kind: kindRecord, Name: name})
	}
	for name := range damaged {
		all = append(all, Leftover{Kind: kindRecord, Name: name})
	}
	var tables []*nftables.Table
	if err := thread.InNetwork(m.hostNS, func() error {
		c, err := newConn()
		if err != nil {
			return err
		}
		defer c.CloseLasting()
		tables, err = c.ListTables()
		return err
	}); err != nil {
		return nil, fmt.Errorf("list the host's rules: %w", err)
	}
	for _, t := range tables {
		if t.Name == m.prefix {
			all = append(all, Leftover{Kind: kindTable, Name: t.Name})
		}
	}
	slices.SortFunc(all, func(a, b Leftover) int { return strings.Compare(a.Kind+a.Name, b.Kind+b.Name) })
	return all, nil
}

// slotOf is the slot that a name stands for, if it is one of ours.
func (m *Manager) slotOf(name string) (int, bool) {
	digits, ok := strings.CutPrefix(name, m.prefix)
	if !ok || len(digits) != 4 {
		return 0, false
	}
	slot, err := strconv.ParseUint(digits, 16, 16)
	return int(slot), err == nil
}
