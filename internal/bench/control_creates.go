package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/center"
)

const createsNote = "a create is the whole call: two commits, with the sandbox's row and its runtime ref written in the first and again in the " +
	"second. A bare commit writes the same two rows, once, into tables without any index but their keys, on a connection of its own: " +
	"alone, and with as many callers sharing each commit as do with Spore. Rates are of slices of time, taken in turns. Processor time is " +
	"all that the process has had, the center's own loops and SQLite included, a PostgreSQL server not: on a host that others use it says " +
	"more than the rate"

// measureCreates counts durable creates.
func (w *controlWorld) measureCreates(ctx context.Context) (_ *Row, err error) {
	w.say("measuring creates")
	row := &Row{
		Name: "creates", What: "durable creates", Goal: "at least 5,000/s", Limit: 5000, AtLeast: true, Unit: perSecond, Note: createsNote,
	}
	n := w.cfg.Callers
	rates := row.series(fmt.Sprintf("creates, %d callers", n), perSecond)
	latency := row.series("  each", milliseconds)
	work := row.series("  processor time for each", milliseconds)
	wide := row.series(fmt.Sprintf("creates, %d callers, template on %d machines", n, w.cfg.Machines), perSecond)
	wideLatency := row.series("  each", milliseconds)
	single := row.series("creates, 1 caller", perSecond)
	singleLatency := row.series("  each", milliseconds)
	bareShared := row.series(fmt.Sprintf("bare rows, %d callers sharing commits", n), perSecond)
	bareSingle := row.series("bare rows, 1 caller", perSecond)
	flush := row.series("flush of 4 KiB", milliseconds)

	f, err := w.db.bare(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	shared := newSharing(f)
	defer shared.stop()

	create := func(template string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := w.center.CreateSandbox(ctx, center.Idempotency{}, center.CreateRequest{Template: template, TTL: time.Hour})
			return err
		}
	}
	bare := func(ctx context.Context) error { return f.commit(ctx, 1) }
	for _, id := range []string{w.few.ID, w.everyone.ID} { // to warm up
		together(ctx, n, w.cfg.Slice/4, create(id))
	}
	for range w.cfg.Rounds {
		ordinary := together(ctx, n, w.cfg.Slice, create(w.few.ID))
		ordinary.keep(rates, latency)
		if done := len(ordinary.took); done > 0 {
			work.took(ordinary.spent / time.Duration(done))
		}
		together(ctx, n, w.cfg.Slice/4, shared.commit).keep(bareShared, nil)
		together(ctx, n, w.cfg.Slice, create(w.everyone.ID)).keep(wide, wideLatency)
		together(ctx, 1, w.cfg.Slice/4, bare).keep(bareSingle, nil)
		together(ctx, 1, w.cfg.Slice/2, create(w.few.ID)).keep(single, singleLatency)
		if err := w.flushes(flush); err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	row.judge(true, func() float64 { return rates.P50 })
	rates.against(bareShared)
	wide.against(bareShared)
	single.against(bareSingle)
	return row, nil
}

// flushes times how long the disk takes to keep a few bytes.
func (w *controlWorld) flushes(s *Series) (err error) {
	f, err := os.OpenFile(w.path("flush"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	block := make([]byte, 4096)
	for range 20 {
		start := time.Now()
		if _, err := f.WriteAt(block, 0); err != nil {
			return err
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return err
		}
		s.took(time.Since(start))
	}
	return nil
}
