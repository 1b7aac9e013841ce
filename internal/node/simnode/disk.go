package simnode

import (
	"fmt"
	"time"

	"github.com/sporevm/spore"
)

// purpose is what bytes are needed for; it decides how full the disk may be.
type purpose int

const (
	forKeeping purpose = iota // a template, a snapshot, a replica, an artifact
	forRunning                // a sandbox that starts, or is paused
)

func (p purpose) String() string {
	if p == forRunning {
		return "sandboxes"
	}
	return "snapshots, templates and replicas"
}

func (m *Machine) storage(now time.Time) spore.NodeStorage {
	used := m.used + m.filler
	return spore.NodeStorage{
		TotalBytes: m.total, UsedBytes: used, ReservedBytes: m.reserved, Mode: m.limits.Mode(used+m.reserved, m.total),
		Limits: m.limits, MeasuredAt: now,
	}
}

// reserve promises bytes of the disk to a call until it ends, or refuses by name.
func (c *call) reserve(p purpose, bytes int64) error {
	m := c.m
	limit := m.limits.Reject
	if p == forRunning {
		limit = m.limits.DeleteOnly
	}
	taken := m.used + m.filler + m.reserved
	most := m.total/100*int64(limit) - 1 // just short of where the mode begins that refuses
	if missing := taken + bytes - most; missing > 0 {
		return spore.Errorf(spore.CodeNoSpace, "%s of %s are used or promised on node %s (mode %s) and no more than %s may be for %s, so %s are missing",
			inMiB(taken), inMiB(m.total), m.id, m.limits.Mode(taken, m.total), inMiB(most), p, inMiB(missing)).
			WithHint("free some: spore gc, or remove templates and snapshots; spore node storage shows the limits")
	}
	m.reserved += bytes
	c.reserved += bytes
	return nil
}

// inMiB prints bytes, rounded up: what is missing must suffice.
func inMiB(bytes int64) string { return fmt.Sprintf("%d MiB", (bytes+mib-1)/mib) }

// grow takes bytes that were reserved: they are on the disk now.
func (c *call) grow(bytes int64) {
	c.m.used += bytes
	back := min(bytes, c.reserved)
	c.reserved -= back
	c.m.reserved -= back
}
