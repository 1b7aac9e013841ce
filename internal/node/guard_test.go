package node

import (
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/sporevm/spore"
)

// fakeDisk is a disk that operations write to.
type fakeDisk struct {
	mu    sync.Mutex
	space space
	err   error
}

func (d *fakeDisk) measure() (space, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.space, d.err
}

func (d *fakeDisk) write(bytes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.space.used += bytes
}

func newFakeGuard(t *testing.T, d *fakeDisk) *guard {
	t.Helper()
	g, err := newGuard(t.TempDir(), spore.StorageLimits{})
	must(t, err)
	g.measure = d.measure
	return g
}

const gib = 1 << 30

// TestGuardOfManyAtOnce lets many operations of either purpose want more than there is, each of which writes what it was
// granted: what is used never exceeds what may be.
func TestGuardOfManyAtOnce(t *testing.T) {
	d := &fakeDisk{space: space{total: 100 * gib, used: 60 * gib}}
	g := newFakeGuard(t, d)
	keep, start := g.limit(d.space.total, toKeep), g.limit(d.space.total, toStart)
	var all sync.WaitGroup
	var mu sync.Mutex
	granted, refused := 0, 0
	for i := range 64 {
		all.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(i)))
			for range 50 {
				why, limit := toKeep, keep
				if rnd.IntN(2) == 0 {
					why, limit = toStart, start
				}
				need := rnd.Int64N(gib)
				release, err := g.reserve("an operation", need, why)
				mu.Lock()
				if err != nil {
					refused++
					if spore.CodeOf(err) != spore.CodeNoSpace {
						t.Errorf("a refusal is %v", err)
					}
				} else {
					granted++
				}
				mu.Unlock()
				if err != nil {
					continue
				}
				written := rnd.Int64N(need + 1)
				d.write(written)
				if is, _ := d.measure(); is.used > start || why == toKeep && written > limit {
					t.Errorf("%d bytes are used of the %d that may be", is.used, start)
				}
				release()
				release()
			}
		})
	}
	all.Wait()
	if is, _ := d.measure(); is.used > start || granted == 0 || refused == 0 {
		t.Errorf("%d granted, %d refused, %d bytes used of %d", granted, refused, is.used, start)
	}
	if s := g.status(); s.ReservedBytes != 0 {
		t.Errorf("with everything released %d bytes are reserved", s.ReservedBytes)
	}
}

// TestGuardSum holds all grants while more are asked for: their sum is what there is room for, and no more.
func TestGuardSum(t *testing.T) {
	d := &fakeDisk{space: space{total: 100 * gib, used: 84 * gib}}
	g := newFakeGuard(t, d)
	room := g.limit(d.space.total, toKeep) - d.space.used
	var all sync.WaitGroup
	var mu sync.Mutex
	var sum int64
	var releases []func()
	for range 200 {
		all.Go(func() {
			release, err := g.reserve("an operation", 10*mib, toKeep)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			sum += 10 * mib
			releases = append(releases, release)
		})
	}
	all.Wait()
	if sum > room || sum+10*mib <= room {
		t.Errorf("%d bytes are granted of %d", sum, room)
	}
	if s := g.status(); s.ReservedBytes != sum || s.Mode != spore.StorageWarn {
		t.Errorf("status %+v with %d granted", s, sum)
	}
	for _, release := range releases {
		release()
	}
}

func TestGuardModes(t *testing.T) {
	for _, c := range []struct {
		used        int64
		mode        spore.StorageMode
		keep, start bool
	}{
		{0, spore.StorageHealthy, true, true},
		{69 * gib, spore.StorageHealthy, true, true},
		{70 * gib, spore.StorageWarn, true, true},
		{85 * gib, spore.StorageReject, false, true},
		{94 * gib, spore.StorageReject, false, true},
		{95 * gib, spore.StorageDeleteOnly, false, false},
		{100 * gib, spore.StorageDeleteOnly, false, false},
	} {
		d := &fakeDisk{space: space{total: 100 * gib, used: c.used}}
		g := newFakeGuard(t, d)
		if s := g.status(); s.Mode != c.mode || s.UsedBytes != c.used || s.TotalBytes != 100*gib || s.LastError != "" {
			t.Errorf("at %d: %+v, want %s", c.used, s, c.mode)
		}
		for why, want := range map[purpose]bool{toKeep: c.keep, toStart: c.start} {
			release, err := g.reserve("it", 0, why)
			if want != (err == nil) {
				t.Errorf("at %d, for %d: %v", c.used, why, err)
			}
			if err == nil {
				release()
				continue
			}
			if e := spore.AsError(err); e.Code != spore.CodeNoSpace || e.Hint == "" || !strings.Contains(e.Message, "MiB are missing") || !strings.Contains(e.Message, string(c.mode)) {
				t.Errorf("at %d, for %d: %+v", c.used, why, e)
			}
		}
	}
}

func TestGuardSaysHowMuchIsMissing(t *testing.T) {
	g := newFakeGuard(t, &fakeDisk{space: space{total: 100 * gib, used: 80 * gib}})
	_, err := g.reserve("freezing it", 7*gib, toKeep)
	if e := spore.AsError(err); e == nil || !strings.Contains(e.Message, "freezing it needs 7168 MiB") || !strings.Contains(e.Message, "2049 MiB are missing") {
		t.Errorf("%v", err)
	}
}

func TestGuardOfSmallDisk(t *testing.T) {
	g := newFakeGuard(t, &fakeDisk{space: space{total: gib, used: gib - minFreeDisk}})
	for _, why := range []purpose{toKeep, toStart} {
		if _, err := g.reserve("it", 1, why); spore.CodeOf(err) != spore.CodeNoSpace {
			t.Errorf("of what must stay free: %v", err)
		}
	}
}

func TestGuardThatCannotMeasure(t *testing.T) {
	d := &fakeDisk{err: errors.New("broken")}
	g := newFakeGuard(t, d)
	if s := g.status(); s.Mode != spore.StorageUnknown || s.LastError != "broken" {
		t.Errorf("%+v", s)
	}
	for _, why := range []purpose{toKeep, toStart} {
		if _, err := g.reserve("it", 1, why); spore.CodeOf(err) != spore.CodeNoSpace || !errors.Is(err, d.err) {
			t.Errorf("%v", err)
		}
	}
	d.err = nil // and a size that cannot be
	if _, err := g.reserve("it", 0, toStart); spore.CodeOf(err) != spore.CodeNoSpace {
		t.Errorf("%v", err)
	}
	if _, err := newGuard(t.TempDir(), spore.StorageLimits{Warn: 90, Reject: 80, DeleteOnly: 95}); spore.CodeOf(err) != spore.CodeInvalid {
		t.Errorf("limits out of order: %v", err)
	}
	if is, err := spaceOf(t.TempDir()); err != nil || is.total <= 0 || is.used < 0 || is.used > is.total {
		t.Errorf("a real disk: %+v, %v", is, err)
	}
}
