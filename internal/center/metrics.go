package center

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// resolveBounds are the upper bounds, in seconds, of what is counted together of the time that resolving takes.
var resolveBounds = [...]float64{
	0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5,
}

// meters is what the center measures as it goes. The zero value is ready; nothing in it takes a lock.
type meters struct {
	request, locality, kind, bind, total histogram

	kept     atomic.Int64 // bytes that templates and snapshots keep, as last added up
	weighed  atomic.Int64 // when that was, in Unix nanoseconds
	weighing atomic.Bool
}

// histogram counts durations. A reader that meets a writer may see a sample in the sum that is not in the counts yet.
type histogram struct {
	counts [len(resolveBounds) + 1]atomic.Uint64
	nanos  atomic.Int64
}

func (h *histogram) observe(d time.Duration) {
	at, _ := slices.BinarySearch(resolveBounds[:], d.Seconds())
	h.counts[at].Add(1)
	h.nanos.Add(int64(d))
}

func (h *histogram) read(name string) Histogram {
	out := Histogram{Name: name, Bounds: slices.Clone(resolveBounds[:]), Counts: make([]uint64, len(h.counts))}
	for i := range h.counts {
		out.Counts[i] = h.counts[i].Load()
		out.Samples += out.Counts[i]
	}
	out.Sum = time.Duration(h.nanos.Load()).Seconds()
	return out
}

func (m *meters) stage(name string) *histogram {
	switch name {
	case stageRequest:
		return &m.request
	case stageLocality:
		return &m.locality
	case stageKind:
		return &m.kind
	case stageBind:
		return &m.bind
	}
	return nil
}

// resolved counts how long the stages of resolving one create took, and all of them together.
func (m *meters) resolved(stages []StageTime) {
	var all time.Duration
	for _, s := range stages {
		all += s.Took
		if h := m.stage(s.Stage); h != nil {
			h.observe(s.Took)
		}
	}
	m.total.observe(all)
}

func (m *meters) read() []Histogram {
	var all []Histogram
	for _, name := range ResolveStages {
		all = append(all, m.stage(name).read(name))
	}
	return append(all, m.total.read(ResolveTotal))
}

// countAtMost bounds how many rows of one state are counted one by one, so that asking for metrics stays cheap.
const countAtMost = 10_000

// Metrics answers the counters of the center. Resolve is what this controller has measured since it began; everything else
// is read from the rows. Only jobs that are PENDING or RUNNING are counted, and only sandboxes that are not KILLED: of the others
// there is no end. No count goes beyond ten thousand, but for RUNNING sandboxes, which are then those that the nodes last reported.
func (c *Center) Metrics(ctx context.Context) (*Metrics, error) {
	m := &Metrics{Resolve: c.meters.read(), Jobs: map[spore.JobStatus]int{}, Sandboxes: map[spore.SandboxState]int{}, Nodes: map[spore.NodeState]int{}}
	err := c.store.View(ctx, func(tx store.Tx) (err error) {
		for _, status := range []spore.JobStatus{spore.JobPending, spore.JobRunning} {
			if m.Jobs[status], err = countJobs(tx, status); err != nil {
				return err
			}
		}
		for _, state := range []spore.SandboxState{spore.SandboxCreating, spore.SandboxRunning, spore.SandboxPaused, spore.SandboxFailed} {
			if m.Sandboxes[state], err = countSandboxes(tx, state); err != nil {
				return err
			}
		}
		nodes, err := tx.Nodes(true)
		if err != nil {
			return err
		}
		m.Draining, m.Nodes = 0, map[spore.NodeState]int{spore.NodeReady: 0, spore.NodeUnreachable: 0, spore.NodeForgotten: 0}
		reported := 0
		m.Storage = m.Storage[:0]
		for _, n := range nodes {
			m.Nodes[n.State]++
			if n.State == spore.NodeForgotten {
				continue
			}
			if n.Draining {
				m.Draining++
			}
			reported += n.Sandboxes
			m.Storage = append(m.Storage, storageOf(n))
		}
		if m.Sandboxes[spore.SandboxRunning] >= countAtMost {
			m.Sandboxes[spore.SandboxRunning] = max(countAtMost, reported)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

func countJobs(tx store.Tx, status spore.JobStatus) (int, error) {
	f := store.JobFilter{Statuses: []spore.JobStatus{status}}
	return countPages(func(p store.Paging) (int, store.Page, error) {
		f.Paging = p
		list, page, err := tx.Jobs(f)
		return len(list), page, err
	})
}

func countSandboxes(tx store.Tx, state spore.SandboxState) (int, error) {
	f := store.SandboxFilter{States: []spore.SandboxState{state}}
	return countPages(func(p store.Paging) (int, store.Page, error) {
		f.Paging = p
		list, page, err := tx.Sandboxes(f)
		return len(list), page, err
	})
}

// countPages counts what a list has, up to countAtMost.
func countPages(read func(store.Paging) (int, store.Page, error)) (n int, err error) {
	p := store.Paging{Limit: 1000}
	for {
		count, page, err := read(p)
		if err != nil {
			return 0, err
		}
		if n += count; page.Next == "" || n >= countAtMost {
			return min(n, countAtMost), nil
		}
		p.After = page.Next
	}
}
