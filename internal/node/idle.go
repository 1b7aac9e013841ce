package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

const (
	// idleShare is how much of one processor a VM may use and still count as idle. A guest at rest has timers to serve, which
	// under software emulation takes some percent.
	idleShare = 0.05
	// longestLook is the longest time from one look at the VMs to the next.
	longestLook = time.Minute
	// clockTick is the unit of times in /proc/PID/stat: proc(5) has them in ticks of USER_HZ, which Linux has fixed at 100.
	clockTick = 10 * time.Millisecond
)

// idleness is what is known of how long a VM has had nothing to do.
type idleness struct {
	at    time.Time     // of the last look
	used  time.Duration // of processor time, by then
	since time.Time     // when it began to be idle
	taken bool          // its memory was taken back since then
}

// look notes how much processor time the VM has used by now, and says whether it has been idle for long enough to take its memory
// back, and that was not done since: what it has fetched again by then it needs even to be idle.
func (i *idleness) look(now time.Time, used, long time.Duration) bool {
	if i.at.IsZero() || float64(used-i.used) > idleShare*float64(now.Sub(i.at)) {
		i.since, i.taken = now, false
	}
	i.at, i.used = now, used
	return !i.taken && now.Sub(i.since) >= long
}

// reclaimIdle takes memory back from sandboxes that are idle, until the node is closed.
func (n *Node) reclaimIdle() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // also in the middle of a VM
		<-n.closing
		cancel()
	}()
	tick := time.NewTicker(min(n.opt.ReclaimAfter/4+1, longestLook))
	defer tick.Stop()
	seen := map[string]*idleness{}
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			n.lookForIdle(ctx, seen, now)
		}
	}
}

// lookForIdle looks once at each VM of a sandbox that runs.
func (n *Node) lookForIdle(ctx context.Context, seen map[string]*idleness, now time.Time) {
	n.mu.Lock()
	machines := maps.Clone(n.machines)
	maps.DeleteFunc(machines, func(_ string, m *machine) bool { return m.owner.Sandbox == "" })
	n.mu.Unlock()
	maps.DeleteFunc(seen, func(id string, _ *idleness) bool { return machines[id] == nil })
	for id, m := range machines {
		r, can := m.vm.(vmm.Reclaimer)
		if !can || m.ending.Load() || m.vm.State() != vmm.StateRunning {
			delete(seen, id)
			continue
		}
		used, err := processorTime(m.vm.PID())
		if err != nil { // it has ended: whoever watches it sees to that
			delete(seen, id)
			continue
		}
		if seen[id] == nil {
			seen[id] = &idleness{}
		}
		if seen[id].look(now, used, n.opt.ReclaimAfter) {
			seen[id].taken = n.reclaim(ctx, m, r)
		}
	}
}

// reclaim takes back the memory of one VM, and says whether it was its turn: in the middle of a capture, which reads the same pages,
// it is not. A capture that begins meanwhile does not wait.
func (n *Node) reclaim(ctx context.Context, m *machine, r vmm.Reclaimer) bool {
	if !m.freeze.TryLock() {
		return false
	}
	m.freeze.Unlock()
	size, err := r.Reclaim(ctx)
	switch {
	case spore.CodeOf(err) == spore.CodeUnsupported:
		n.log.Debug("memory of an idle sandbox stays where it is", "vm", m.id, "err", err)
	case err != nil && m.vm.State() == vmm.StateRunning:
		n.log.Warn("taking memory back from an idle sandbox", "vm", m.id, "err", err)
	case err == nil && size > 0:
		n.log.Info("memory of an idle sandbox went to swap", "vm", m.id, "bytes", size)
	}
	return true
}

// processorTime is how much processor time a process has used, all of its threads together.
func processorTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseProcessorTime(string(text))
}

// parseProcessorTime reads utime and stime, fields 14 and 15 of /proc/PID/stat. The name, field 2, may hold anything.
func parseProcessorTime(stat string) (time.Duration, error) {
	i := strings.LastIndexByte(stat, ')')
	fields := strings.Fields(stat[i+1:])
	if i < 0 || len(fields) < 13 {
		return 0, fmt.Errorf("%.80q is not a process status", stat)
	}
	user, err := strconv.ParseUint(fields[11], 10, 48)
	system, err2 := strconv.ParseUint(fields[12], 10, 48)
	if err := errors.Join(err, err2); err != nil {
		return 0, fmt.Errorf("process status: %w", err)
	}
	return time.Duration(user+system) * clockTick, nil
}
