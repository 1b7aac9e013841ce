package sim

import (
	"context"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

var _ vmm.Throttler = (*machine)(nil)

// LimitDrive changes the limits of what guests do with Guest.Drive; see vmm.Throttler.
func (m *machine) LimitDrive(ctx context.Context, id string, l vmm.DriveLimits) error {
	if err := checkLimits(l); err != nil {
		return err
	}
	if err := m.usable(); err != nil {
		return err
	}
	t := m.in.throttles[id]
	if t == nil {
		return spore.Errorf(spore.CodeNotFound, "the VM %s has no drive %q", m.in.cfg.ID, id)
	}
	t.set(l)
	return ctx.Err()
}

func checkLimits(l vmm.DriveLimits) error {
	if l.BytesPerSecond < 0 || l.OpsPerSecond < 0 {
		return spore.Invalidf("limits", "a limit is negative")
	}
	return nil
}

// throttle makes I/O take as long as its limits demand.
type throttle struct {
	mu      sync.Mutex
	limits  vmm.DriveLimits
	changed chan struct{} // closed as the limits change
	free    time.Time     // when what was let through so far is paid for
}

func newThrottles(drives []vmm.Drive) map[string]*throttle {
	all := map[string]*throttle{}
	for _, d := range drives {
		all[d.ID] = &throttle{limits: d.Limits, changed: make(chan struct{})}
	}
	return all
}

func (t *throttle) set(l vmm.DriveLimits) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.limits, t.free = l, time.Time{}
	close(t.changed)
	t.changed = make(chan struct{})
}

// burst is how much of idle time may be used up later.
const burst = 100 * time.Millisecond

// take books one operation of n bytes and says how long it must wait. When changed is closed before, it is to be booked anew.
func (t *throttle) take(n int, now time.Time) (wait time.Duration, changed <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var cost time.Duration
	if rate := t.limits.BytesPerSecond; rate > 0 {
		cost = time.Duration(float64(n) / float64(rate) * float64(time.Second))
	}
	if rate := t.limits.OpsPerSecond; rate > 0 {
		cost = max(cost, time.Second/time.Duration(rate))
	}
	if cost == 0 {
		return 0, t.changed
	}
	if earliest := now.Add(-burst); t.free.Before(earliest) {
		t.free = earliest
	}
	t.free = t.free.Add(cost)
	return t.free.Sub(now), t.changed
}

// Drive is a drive as the guest sees it. Its I/O keeps to the limits of the drive; nothing is done while the VM is paused.
type Drive struct {
	in *instance
	d  vmm.Drive
	t  *throttle
}

// Drive finds a drive by its id; it fails with spore.CodeNotFound when there is none.
func (g *Guest) Drive(id string) (*Drive, error) {
	i := slices.IndexFunc(g.in.cfg.Drives, func(d vmm.Drive) bool { return d.ID == id })
	if i < 0 {
		return nil, spore.Errorf(spore.CodeNotFound, "the VM %s has no drive %q", g.in.cfg.ID, id)
	}
	return &Drive{in: g.in, d: g.in.cfg.Drives[i], t: g.in.throttles[id]}, nil
}

// wait lets the time pass that the limits demand, and returns when the VM runs.
func (d *Drive) wait(n int) error {
	for {
		pause, changed := d.t.take(n, time.Now())
		if pause <= 0 {
			break
		}
		select {
		case <-changed:
			continue
		case <-time.After(pause):
		case <-d.in.gone:
			return errExited()
		}
		break
	}
	d.in.waitRunning()
	return nil
}

// ReadAt reads the drive as one operation.
func (d *Drive) ReadAt(p []byte, off int64) (int, error) {
	if err := d.wait(len(p)); err != nil {
		return 0, err
	}
	f, err := os.Open(d.d.Path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.ReadAt(p, off)
}

// WriteAt writes the drive as one operation. Nothing is written behind its end.
func (d *Drive) WriteAt(p []byte, off int64) (int, error) {
	if d.d.ReadOnly {
		return 0, os.ErrPermission
	}
	if err := d.wait(len(p)); err != nil {
		return 0, err
	}
	f, err := os.OpenFile(d.d.Path, os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || off < 0 || off+int64(len(p)) > fi.Size() {
		return 0, io.ErrShortWrite
	}
	return f.WriteAt(p, off)
}
