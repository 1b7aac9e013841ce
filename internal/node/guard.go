package node

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
)

// minFreeDisk is kept free on the data directory's filesystem whatever the limits say, so that rows and logs can always
// be written.
const minFreeDisk = 256 * mib

// purpose is what bytes are made for. It decides up to where the disk may be filled.
type purpose int

const (
	toKeep  purpose = iota // a template, snapshot, replica or artifact: up to the reject limit
	toStart                // a sandbox that starts or is paused: up to the limit beyond which there is only removing
)

// space is how large a filesystem is and how much of it is taken, in bytes. What only root may write counts for neither.
type space struct{ total, used int64 }

// guard lets operations that make bytes reserve room for the most that they may write, before they begin. What is
// granted is counted as if it were written already until the operation ends, so that of two that want the last bytes
// one is refused. Removing asks for nothing.
type guard struct {
	limits  spore.StorageLimits
	measure func() (space, error)

	mu       sync.Mutex // held while measuring too: what is granted must be seen by who asks next
	reserved int64
}

func newGuard(dir string, limits spore.StorageLimits) (*guard, error) {
	if limits == (spore.StorageLimits{}) {
		limits = spore.DefaultStorageLimits
	}
	if err := limits.Validate(); err != nil {
		return nil, err
	}
	return &guard{limits: limits, measure: func() (space, error) { return spaceOf(dir) }}, nil
}

func spaceOf(dir string) (space, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return space{}, fmt.Errorf("statfs %s: %w", dir, err)
	}
	used := int64(fs.Blocks-fs.Bfree) * fs.Bsize
	return space{total: used + int64(fs.Bavail)*fs.Bsize, used: used}, nil
}

// reserve promises need bytes to an operation until release, which may be called more than once. It refuses with
// spore.CodeNoSpace, saying how much is missing; what names the operation for people.
func (g *guard) reserve(what string, need int64, why purpose) (release func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	is, err := g.measure()
	if err == nil && is.total <= 0 {
		err = fmt.Errorf("it says that it has %d bytes", is.total)
	}
	if err != nil {
		return nil, spore.Errorf(spore.CodeNoSpace, "%s needs %s, and how full the data directory's filesystem is cannot be measured (mode %s)", what, inMiB(need), spore.StorageUnknown).
			WithCause(err).WithHint("look at that filesystem; spore node storage says what was wrong")
	}
	taken, limit := is.used+g.reserved, g.limit(is.total, why)
	if missing := taken + need - limit; missing > 0 {
		return nil, spore.Errorf(spore.CodeNoSpace, "%s needs %s; %s of %s are used or promised (mode %s) and no more than %s may be for this, so %s are missing",
			what, inMiB(need), inMiB(taken), inMiB(is.total), g.limits.Mode(taken, is.total), inMiB(limit), inMiB(missing)).
			WithHint("free some: spore gc, or remove templates and snapshots; spore node storage shows the limits")
	}
	g.reserved += need
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.reserved -= need
	}), nil
}

// limit is up to how many bytes a disk may be filled: just short of where the mode begins that refuses.
func (g *guard) limit(total int64, why purpose) int64 {
	percent := g.limits.Reject
	if why == toStart {
		percent = g.limits.DeleteOnly
	}
	return min(total/100*int64(percent)-1, total-minFreeDisk)
}

// status is how full the disk is.
func (g *guard) status() spore.NodeStorage {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := spore.NodeStorage{ReservedBytes: g.reserved, Limits: g.limits, MeasuredAt: time.Now()}
	is, err := g.measure()
	if err != nil {
		s.LastError = err.Error()
	}
	s.TotalBytes, s.UsedBytes = is.total, is.used
	s.Mode = g.limits.Mode(is.used+g.reserved, is.total)
	return s
}

// inMiB prints bytes, rounded up: what is missing must suffice.
func inMiB(bytes int64) string { return fmt.Sprintf("%d MiB", (bytes+mib-1)/mib) }
