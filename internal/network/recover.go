package network

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
)

// Recover takes over the networks that an earlier server on the same directory left for the sandboxes in keep, removes every
// other one of that directory, and starts to keep some ready. The answer says, for each of keep whose network is not as
// it should be, why; such a one can still be detached. Sandboxes that this server attached itself are left as they are.
func (m *Manager) Recover(ctx context.Context, keep []string) (map[string]error, error) {
	m.recovering.Lock()
	defer m.recovering.Unlock()
	missing, err := m.recover(ctx, keep)
	code := spore.CodeOf(err)
	none := (code == spore.CodeUnsupported || code == spore.CodeConflict) && len(keep) == 0
	if err != nil && !none {
		return nil, err
	}
	if none {
		// There is nothing to lose. The server can do without; whoever asks for such a network is told why there is none.
		m.log.Warn("isolated networks cannot be made", "err", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.recovered, m.unfit = true, err
	if err == nil && !m.serving && !m.closed {
		m.serving = true
		m.filling.Go(func() { m.keepFull(m.stopping) })
	}
	return missing, nil
}

func (m *Manager) recover(ctx context.Context, keep []string) (map[string]error, error) {
	if err := m.prepare(); err != nil {
		return nil, err
	}
	known, damaged, err := m.records()
	if err != nil {
		return nil, err
	}
	missing := map[string]error{}
	for _, id := range keep {
		if m.find(id) == nil {
			missing[id] = spore.Errorf(spore.CodeNotFound, "the network of %s is gone", id)
		}
	}
	var kept []*space
	for _, name := range slices.Sorted(maps.Keys(known)) {
		r := known[name]
		if r.ID == "" || missing[r.ID] == nil || m.has(name) {
			continue
		}
		s := newSpace(m.prefix, r.Slot, r.Outer)
		s.rec = r
		if err := m.whole(s); err != nil {
			missing[r.ID] = fmt.Errorf("the network of %s is not whole: %w", r.ID, err)
			continue
		}
		kept = append(kept, s)
		delete(missing, r.ID)
	}
	for name, err := range damaged {
		m.log.Error("the record of a network cannot be read; the network is taken for nobody's", "network", name, "err", err)
	}
	if err := m.takeOver(kept, missing); err != nil {
		return nil, err
	}
	if err := m.clean(ctx, nil); err != nil {
		return nil, err
	}
	return missing, nil
}

// prepare chooses addresses and sees whether the host takes the rules. It does both only once, and before there are any links.
func (m *Manager) prepare() error {
	m.mu.Lock()
	done := m.prepared
	m.mu.Unlock()
	if done {
		return nil
	}
	subnet, err := m.chooseSubnet()
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.slots, m.prepared = newSlots(subnet, m.slots.taken), true
	m.mu.Unlock()
	obstacles, err := m.Obstacles()
	if err != nil {
		return explain(err)
	}
	for _, o := range obstacles {
		m.log.Warn("the host's own packet filter drops what it forwards, unless told otherwise: let packets from and to spore-* through", "where", o)
	}
	return nil
}

// takeOver makes spaces that were found attached ones.
func (m *Manager) takeOver(kept []*space, failed map[string]error) error {
	host, err := m.hostAddresses()
	if err != nil {
		return err
	}
	m.mu.Lock()
	for _, s := range kept {
		m.spaces[s.name], m.attached[s.rec.ID], m.slots.taken[s.slot] = s, s, true
	}
	attached := slices.Collect(maps.Values(m.attached))
	m.mu.Unlock()
	for _, s := range kept {
		p, err := m.judge(s.rec.ID, s.rec.Network, s.rec.Limits)
		if err != nil {
			failed[s.rec.ID] = err
			continue
		}
		s.doors = doors(p, host)
	}
	if m.up() {
		for _, s := range kept {
			s.doors = nil
			if err := m.admit(s); err != nil {
				return err
			}
		}
	} else if len(kept) > 0 {
		if err := m.putUp(attached); err != nil {
			return err
		}
	}
	for _, s := range kept {
		if failed[s.rec.ID] != nil {
			continue
		}
		if err := m.resume(s); err != nil {
			failed[s.rec.ID] = err
		}
	}
	if len(kept) > 0 {
		return m.openWays()
	}
	return nil
}

// resume puts the policy of a space that was found in force anew, for the host may have other addresses now, and answers its names.
func (m *Manager) resume(s *space) error {
	p, err := m.judge(s.rec.ID, s.rec.Network, s.rec.Limits)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := m.apply(s, s.rec, p); err != nil {
		return err
	}
	return m.openNames(s)
}

// whole says whether all of a network is there.
func (m *Manager) whole(s *space) error {
	if _, err := m.host.LinkByName(s.name); err != nil {
		return fmt.Errorf("its link: %w", err)
	}
	return m.inside(s, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		for _, name := range []string{TapName, upName} {
			if _, err := h.LinkByName(name); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return nil
	})
}

func (m *Manager) has(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.spaces[name] != nil
}
