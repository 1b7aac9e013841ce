package network

import (
	"context"
	"slices"
	"time"
)

// takeReady answers a namespace out of the pool, nil when there is none.
func (m *Manager) takeReady() *space {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pooling = true
	m.wake()
	if len(m.ready) == 0 {
		return nil
	}
	s := m.ready[0]
	m.ready = m.ready[1:]
	return s
}

// wake makes the pool look whether there is something to do.
func (m *Manager) wake() {
	select {
	case m.fill <- struct{}{}:
	default:
	}
}

// abandon removes a namespace that is nobody's. When that fails it is tried again later.
func (m *Manager) abandon(s *space) error {
	err := m.remove(s)
	if err != nil {
		m.mu.Lock()
		m.abandoned = append(m.abandoned, s)
		m.mu.Unlock()
		m.wake()
	}
	return err
}

// keepFull keeps namespaces ready, and removes those that did not go when they should have.
func (m *Manager) keepFull(ctx context.Context) {
	const least, most = time.Second, time.Minute
	wait := least
	look := time.NewTicker(m.lookAgain)
	defer look.Stop()
	for {
		err := m.sweep()
		for err == nil && ctx.Err() == nil && m.wanting() {
			var s *space
			if s, err = m.create(ctx); err == nil {
				m.mu.Lock()
				m.ready = append(m.ready, s)
				m.mu.Unlock()
			}
		}
		if ctx.Err() != nil {
			return
		}
		var again <-chan time.Time
		if err != nil {
			m.log.Error("keeping networks ready; trying again", "err", err)
			again = time.After(wait)
			wait = min(2*wait, most)
		} else {
			wait = least
		}
		select {
		case <-ctx.Done():
			return
		case <-again:
		case <-m.fill:
		case <-look.C:
			// The host may have become a router, or have got another way out.
			if err := m.lookAtWays(); err != nil {
				m.log.Error("looking at how the host forwards", "err", err)
			}
		}
	}
}

func (m *Manager) lookAtWays() error {
	m.mu.Lock()
	idle := len(m.spaces) == 0
	m.mu.Unlock()
	if idle {
		return nil
	}
	return m.openWays()
}

func (m *Manager) wanting() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pooling && len(m.ready) < m.opt.PoolSize
}

// Ready is how many namespaces wait to be used.
func (m *Manager) Ready() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.ready)
}

// sweep tries again to remove what could not be removed.
func (m *Manager) sweep() error {
	m.mu.Lock()
	all := slices.Clone(m.abandoned)
	m.mu.Unlock()
	var first error
	for _, s := range all {
		if err := m.remove(s); err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		m.mu.Lock()
		m.abandoned = slices.DeleteFunc(m.abandoned, func(a *space) bool { return a == s })
		m.mu.Unlock()
	}
	return first
}
