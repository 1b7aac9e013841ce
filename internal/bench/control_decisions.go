package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sporevm/spore/internal/center"
)

// replicasOld is longer than a center goes on with the replicas that it has read.
const replicasOld = 2100 * time.Millisecond

// measureDecisions times how long it takes to decide where a sandbox starts.
func (w *controlWorld) measureDecisions(ctx context.Context) (_ *Row, err error) {
	w.say("measuring decisions")
	row := &Row{
		Name: "decisions", What: fmt.Sprintf("which of %d machines, p99", w.cfg.Machines), Goal: "below 2 ms", Limit: 2, Unit: milliseconds,
	}
	decided := row.series("decision", milliseconds)
	whole := row.series("preview, decision and all candidates told", milliseconds)
	anew := row.series(fmt.Sprintf("decision, after %.1f s of rest", replicasOld.Seconds()), milliseconds)
	bare := row.series("two rows read by key", milliseconds)
	f, err := w.db.bare(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.close()) }()

	preview := func(into, all *Series) error {
		began := time.Now()
		p, err := w.center.PreviewSandbox(ctx, center.CreateRequest{Template: w.everyone.ID})
		took := time.Since(began)
		if err == nil && p.Err != nil {
			err = p.Err
		}
		if err == nil && len(p.Candidates) != w.cfg.Machines {
			err = fmt.Errorf("%d candidates were considered, not %d", len(p.Candidates), w.cfg.Machines)
		}
		if err != nil {
			into.failed(err)
			return ctx.Err()
		}
		var sum time.Duration
		for _, s := range p.Stages {
			sum += s.Took
		}
		into.took(sum)
		if all != nil {
			all.took(took)
		}
		return nil
	}
	rounds, rests := 2000, 8
	if w.cfg.Quick {
		rounds, rests = 100, 1
	}
	for range rests {
		if err := rest(ctx, replicasOld); err != nil {
			return nil, err
		}
		if err := preview(anew, nil); err != nil {
			return nil, err
		}
		for range rounds / rests {
			if err := preview(decided, whole); err != nil {
				return nil, err
			}
			began := time.Now()
			if err := f.lookUp(ctx, w.everyone.ID, "n00001"); err != nil {
				return nil, err
			}
			bare.took(time.Since(began))
		}
	}
	row.judge(true, func() float64 { return decided.P99 })
	for _, s := range []*Series{decided, whole, anew} {
		s.against(bare)
	}
	if row.Note, err = w.decisionsOfCreates(ctx); err != nil {
		return nil, err
	}
	return row, nil
}

// decisionsOfCreates tells what the center itself has counted while it created.
func (w *controlWorld) decisionsOfCreates(ctx context.Context) (string, error) {
	m, err := w.center.Metrics(ctx)
	if err != nil {
		return "", err
	}
	for _, h := range m.Resolve {
		if h.Name != center.ResolveTotal || h.Samples == 0 {
			continue
		}
		var below uint64
		for i, bound := range h.Bounds {
			below += h.Counts[i]
			if float64(below) >= 0.99*float64(h.Samples) {
				return fmt.Sprintf("of the %d creates above, %.2f %% were decided within %g ms, in the midst of all the others; on average it took %.3f ms",
					h.Samples, 100*float64(below)/float64(h.Samples), 1000*bound, 1000*h.Sum/float64(h.Samples)), nil
			}
		}
	}
	return "the center counted no decisions", nil
}
