package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/network/policy"
)

// Attach makes the network of the sandbox id and answers where its cable is. One that is attached already keeps its cable and gets what
// is asked for. On error the sandbox has no network, or the one that it had.
func (m *Manager) Attach(ctx context.Context, id string, n spore.Network, l spore.Limits) (Link, error) {
	over, err := m.turn(ctx, id)
	if err != nil {
		return Link{}, err
	}
	defer over()
	p, err := m.judge(id, n, l)
	if err != nil {
		return Link{}, err
	}
	if s := m.find(id); s != nil {
		if err := m.change(s, n, l, p); err != nil {
			return Link{}, err
		}
		return m.link(s), nil
	}
	if s := m.takeReady(); s != nil {
		if err := m.give(s, id, n, l, p); err == nil {
			return m.link(s), nil
		} else if abandoned := m.abandon(s); abandoned != nil || ctx.Err() != nil {
			return Link{}, errors.Join(err, abandoned)
		} else {
			m.log.Warn("a network that was kept ready was not fit for use", "network", s.name, "err", err)
		}
	}
	s, err := m.create(ctx)
	if err != nil {
		return Link{}, err
	}
	if err := m.give(s, id, n, l, p); err != nil {
		return Link{}, errors.Join(err, m.abandon(s))
	}
	return m.link(s), nil
}

// judge compiles a policy and refuses what cannot be.
func (m *Manager) judge(id string, n spore.Network, l spore.Limits) (*policy.Policy, error) {
	if id == "" {
		return nil, spore.Invalidf("id", "a network is somebody's")
	}
	if n.Mode != spore.NetworkIsolated {
		return nil, spore.Invalidf("network.mode", "%q is not made here", n.Mode).WithHint("%q is", spore.NetworkIsolated)
	}
	if err := n.Validate(); err != nil {
		return nil, err
	}
	if err := l.Validate(); err != nil {
		return nil, err
	}
	host, err := m.hostAddresses()
	if err != nil {
		return nil, err
	}
	return policy.Compile(n.Egress, host)
}

func (m *Manager) find(id string) *space {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.attached[id]
}

// Link answers where the cable of an attached sandbox is, and fails with spore.CodeNotFound for any other.
func (m *Manager) Link(id string) (Link, error) {
	s := m.find(id)
	if s == nil {
		return Link{}, notAttached(id)
	}
	return m.link(s), nil
}

func notAttached(id string) error {
	return spore.Errorf(spore.CodeNotFound, "%s has no network", id)
}

// give makes a space that lets nothing through the network of id.
func (m *Manager) give(s *space, id string, n spore.Network, l spore.Limits, p *policy.Policy) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rec.ID, s.rec.Network, s.rec.Limits = id, n, l
	host, err := m.hostAddresses()
	if err != nil {
		return err
	}
	err = m.perform(s, []task{
		{"claim the record", func() error { return m.writeRecord(s.name, s.rec) }},
		{"load the policy", func() error {
			return m.inside(s, func() error {
				if err := theInner.load(p, nil); err != nil {
					return err
				}
				if l.NetworkInMbps == 0 && l.NetworkOutMbps == 0 {
					return nil
				}
				return limit(l)
			})
		}},
		{"open the host", func() error { return m.setDoors(s, doors(p, host)) }},
		{"label the link", func() error { return m.label(s, id) }},
		{"answer names", func() error {
			s.policy.Store(p)
			return m.openNames(s)
		}},
	})
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.attached[id] = s
	return nil
}

// label says on the host whose a link is, for people who look there.
func (m *Manager) label(s *space, id string) error {
	link, err := m.host.LinkByName(s.name)
	if err != nil {
		return err
	}
	return m.host.LinkSetAlias(link, id)
}

// Update gives an attached sandbox another policy and other limits, which hold from when it returns: flows that the policy
// does not allow are cut. On error what was before goes on to hold.
func (m *Manager) Update(ctx context.Context, id string, n spore.Network, l spore.Limits) error {
	over, err := m.turn(ctx, id)
	if err != nil {
		return err
	}
	defer over()
	p, err := m.judge(id, n, l)
	if err != nil {
		return err
	}
	s := m.find(id)
	if s == nil {
		return notAttached(id)
	}
	return m.change(s, n, l, p)
}

func (m *Manager) change(s *space, n spore.Network, l spore.Limits, p *policy.Policy) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	before, beforePolicy := s.rec, s.policy.Load()
	after := before
	after.Network, after.Limits = n, l
	err := m.apply(s, after, p)
	if err == nil {
		return nil
	}
	if beforePolicy == nil {
		return err
	}
	if back := m.apply(s, before, beforePolicy); back != nil {
		return errors.Join(err, fmt.Errorf("put the former policy back: %w", back))
	}
	return err
}

// apply puts a policy in force for a guest that may be running. The caller holds s.mu. The record says that a change is under way
// until it is over, so that a server which starts anew in between finishes it.
func (m *Manager) apply(s *space, rec record, p *policy.Policy) error {
	host, err := m.hostAddresses()
	if err != nil {
		return err
	}
	// Flows to addresses that some name had, when no answer says so any more, are only told apart by what the names were.
	strict := s.rec.Changing || !subset(s.rec.Network.Egress.AllowDomains, rec.Network.Egress.AllowDomains)
	rec.Changing = true
	s.rec.Changing = true
	kept := map[netip.Addr]pin{}
	if err := m.perform(s, []task{
		{"note the change", func() error { return m.writeRecord(s.name, rec) }},
		{"change the policy", func() error {
			return m.inside(s, func() error {
				pins, err := theInner.pins()
				if err != nil {
					return err
				}
				for addr, pin := range pins {
					if pin.domain != "" && p.Name(pin.domain) && p.Pinnable(addr) {
						kept[addr] = pin
					}
				}
				if err := theInner.load(p, kept); err != nil {
					return err
				}
				s.pins = kept
				s.policy.Store(p)
				return nil
			})
		}},
		{"change the host", func() error { return m.setDoors(s, doors(p, host)) }},
		{"change the limits", func() error { return m.inside(s, func() error { return limit(rec.Limits) }) }},
		{"cut flows", func() error {
			return m.inside(s, func() error {
				n, err := flows(func(to netip.AddrPort, protocol uint8, mark uint32) bool {
					if to.Addr() == Gateway || p.Allows(to.Addr()) || protocol == unix.IPPROTO_TCP && p.AllowsTCP(to) {
						return true
					}
					_, pinned := kept[to.Addr()]
					return mark == pinnedMark && p.Pinnable(to.Addr()) && (pinned || !strict)
				}).cut()
				if n > 0 {
					m.log.Info("cut flows that a policy no longer allows", "network", s.name, "flows", n)
				}
				return err
			})
		}},
		{"note that the change is over", func() error {
			rec.Changing = false
			return m.writeRecord(s.name, rec)
		}},
	}); err != nil {
		return err
	}
	s.rec = rec
	return nil
}

// subset says whether all of some are among others.
func subset(some, others []string) bool {
	return !slices.ContainsFunc(some, func(d string) bool { return !slices.Contains(others, d) })
}

// Detach removes the network of a sandbox whose VM has ended. It is idempotent, and may be called again when it has failed.
func (m *Manager) Detach(ctx context.Context, id string) error {
	over, err := m.turn(ctx, id)
	if err != nil {
		return err
	}
	defer over()
	s := m.find(id)
	if s == nil {
		return nil
	}
	if err := m.remove(s); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.attached, id)
	return nil
}
