package image

import (
	"sync"
	"time"
)

// Phase is a part of a build, named as jobs name it.
type Phase string

const (
	PhasePulling   Phase = "PULLING"       // bytes are those of the compressed layers
	PhaseUnpacking Phase = "UNPACKING"     // bytes are those of the compressed layers that have been flattened
	PhaseBuilding  Phase = "BUILDING_EXT4" // bytes are those of the filesystem image
)

// Progress is how far a build has come in its current phase.
type Progress struct {
	Phase       Phase
	LayersTotal int
	LayersDone  int
	BytesTotal  int64
	BytesDone   int64
}

// progressInterval is the shortest time between two reports that differ in bytes only.
const progressInterval = 50 * time.Millisecond

// tracker gathers the progress of parallel work and reports it, one report at a time. A nil tracker does nothing.
type tracker struct {
	mu     sync.Mutex
	report func(Progress)
	now    Progress
	last   time.Time
}

func newTracker(report func(Progress)) *tracker {
	if report == nil {
		return nil
	}
	return &tracker{report: report}
}

// begin starts a phase.
func (t *tracker) begin(phase Phase, layers int, bytes int64) {
	t.change(func(p *Progress) bool {
		*p = Progress{Phase: phase, LayersTotal: layers, BytesTotal: bytes}
		return true
	})
}

// add counts bytes. A negative number takes back those of a failed attempt.
func (t *tracker) add(bytes int64) {
	t.change(func(p *Progress) bool {
		p.BytesDone += bytes
		return false
	})
}

// layer counts a layer that is done.
func (t *tracker) layer() {
	t.change(func(p *Progress) bool {
		p.LayersDone++
		return true
	})
}

func (t *tracker) change(f func(*Progress) (urgent bool)) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	urgent := f(&t.now)
	if urgent || t.now.BytesDone == t.now.BytesTotal || time.Since(t.last) >= progressInterval {
		t.last = time.Now()
		t.report(t.now)
	}
}
