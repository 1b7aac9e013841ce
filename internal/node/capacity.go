package node

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
)

const (
	mib = 1 << 20
	// thawEstimate is how much memory a thawed VM is taken to need at once: the hypervisor's own and the pages that
	// the guest writes first. The rest it shares with its template.
	thawEstimateMiB = 96
)

// capacity is what the machine has and what of it is promised. It refuses by name what does not fit, and lets no more
// VMs start at a time than the processors can carry.
type capacity struct {
	dir       string
	totalMiB  int
	limitMiB  int
	cpus      int
	startings chan struct{}
	available func() (int, error) // MiB that the machine has left

	mu       sync.Mutex
	promised map[string]promise // by vmid
	sum      int                // MiB promised
	unborn   int                // MiB that VMs which are only starting will take of the memory that now looks free
}

// promise is the memory of one VM, in MiB.
type promise struct {
	all  int
	need int // what it takes as it starts, until it has
}

func newCapacity(dir string, overcommit float64) (*capacity, error) {
	total, err := memInfo("MemTotal")
	if err != nil {
		return nil, err
	}
	cpus := runtime.NumCPU()
	return &capacity{
		dir: dir, totalMiB: total, limitMiB: int(float64(total) * overcommit), cpus: cpus,
		startings: make(chan struct{}, 2*cpus), available: func() (int, error) { return memInfo("MemAvailable") }, promised: map[string]promise{},
	}, nil
}

// memInfo reads one line of /proc/meminfo, in MiB.
func memInfo(name string) (int, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), name+":"); ok {
			var kib int
			_, err := fmt.Sscan(rest, &kib)
			return kib >> 10, err
		}
	}
	return 0, fmt.Errorf("/proc/meminfo has no %s", name)
}

// Admit says whether a VM of this size could run on this machine at all.
func (n *Node) Admit(r spore.Resources) error {
	c := n.cap
	switch {
	case r.VCPUs > c.cpus:
		return spore.Invalidf("vcpus", "%d is more than this machine has", r.VCPUs).WithHint("it has %d", c.cpus)
	case r.MemoryMiB > c.totalMiB:
		return spore.Invalidf("memoryMiB", "%d MiB is more than this machine has", r.MemoryMiB).WithHint("it has %d MiB", c.totalMiB)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(c.dir, &fs); err != nil {
		return err
	}
	if size := int64(fs.Blocks) * fs.Bsize / mib; int64(r.DiskMiB) > size {
		return spore.Invalidf("diskMiB", "%d MiB is more than the data directory's filesystem holds", r.DiskMiB).WithHint("it holds %d MiB", size)
	}
	return nil
}

// take promises memory to a VM, or refuses by name.
func (c *capacity) take(ctx context.Context, id string, memoryMiB int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	available, err := c.available()
	if err != nil {
		return err
	}
	available -= c.unborn // of many that start at once, each would see the same memory free
	if c.sum+memoryMiB > c.limitMiB {
		return spore.Errorf(spore.CodeBusy, "%d MiB of memory are promised to sandboxes already; %d MiB more would exceed the limit of %d MiB", c.sum, memoryMiB, c.limitMiB).
			WithHint("end or pause some sandboxes")
	}
	need := min(memoryMiB, thawEstimateMiB)
	if available-need < c.totalMiB/20 {
		return spore.Errorf(spore.CodeBusy, "the machine has %d MiB of memory left; another sandbox could exhaust it", available).
			WithHint("end or pause some sandboxes")
	}
	c.promised[id] = promise{all: memoryMiB, need: need}
	c.sum += memoryMiB
	c.unborn += need
	return nil
}

// landed notes that a VM has started: what it took shows in what the machine has left.
func (c *capacity) landed(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p, ok := c.promised[id]; ok {
		c.unborn -= p.need
		c.promised[id] = promise{all: p.all}
	}
}

// give takes a promise back. It is idempotent.
func (c *capacity) give(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sum -= c.promised[id].all
	c.unborn -= c.promised[id].need
	delete(c.promised, id)
}

// hold records the promise of an adopted VM, which exists whatever the limits say.
func (c *capacity) hold(id string, memoryMiB int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.promised[id] = promise{all: memoryMiB}
	c.sum += memoryMiB
}

// has says whether a VM has a promise: it does from before it has a directory until that is gone.
func (c *capacity) has(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.promised[id]
	return ok
}

// ids lists the VMs that have a promise.
func (c *capacity) ids() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.promised))
}

// inUse is how much memory is promised, in MiB.
func (c *capacity) inUse() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sum
}

// starting waits for a turn to start a VM; nil when ctx ended first.
func (c *capacity) starting(ctx context.Context) (done func()) {
	select {
	case c.startings <- struct{}{}:
		return func() { <-c.startings }
	case <-ctx.Done():
		return nil
	}
}

// idle says whether no VM is being started right now.
func (c *capacity) idle() bool { return len(c.startings) == 0 }

func freeBytes(dir string) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, err
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}
