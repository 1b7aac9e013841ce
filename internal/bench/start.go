package bench

import (
	"context"
	"fmt"
	"time"
)

// measureMiss measures how long it takes from asking for a sandbox to the answer of its first command, when no VM is kept
// ready.
func measureMiss(ctx context.Context, l *lab) ([]*Row, error) {
	t, floor, err := l.prepare(ctx, smallGuest)
	if err != nil {
		return nil, err
	}
	row := &Row{
		Name: "miss", What: "create to first command, nothing kept ready", Goal: "at most 1.15 x the bare thaw",
		Limit: 1.15, Unit: "x", Note: floorNote,
	}
	ours, bare := row.series("spore", milliseconds), row.series("bare thaw", milliseconds)
	for range l.repeat(30, 5) {
		if s := l.createTimed(ctx, ours, t.ID); s != nil {
			if err := l.end(ctx, s); err != nil {
				return nil, err
			}
		}
		if err := floor.thawTimed(ctx, bare); err != nil {
			return nil, err
		}
	}
	row.judge(false, func() float64 { return ours.P50 / bare.P50 })
	return []*Row{row}, nil
}

// measureHit is measureMiss when a VM is kept ready.
func measureHit(ctx context.Context, l *lab) ([]*Row, error) {
	t, floor, err := l.prepare(ctx, smallGuest)
	if err != nil {
		return nil, err
	}
	row := &Row{
		Name: "hit", What: "create to first command, a VM kept ready", Goal: "at most 0.10 x the bare thaw",
		Limit: 0.10, Unit: "x", Note: floorNote + ". The command again, in a VM that is up and warm, is what no pool can save",
	}
	ours, bare := row.series("spore", milliseconds), row.series("bare thaw", milliseconds)
	again := row.series("bare VM, the command again", milliseconds)
	// What was not used for a while has no VMs ready: this use makes it worth it.
	s, err := l.surely(ctx, t.ID)
	if err != nil {
		return nil, err
	}
	if err := l.end(ctx, s); err != nil {
		return nil, err
	}
	for range l.repeat(30, 5) {
		if err := l.poolFull(ctx); err != nil {
			return nil, err
		}
		if s := l.createTimed(ctx, ours, t.ID); s != nil {
			if err := l.end(ctx, s); err != nil {
				return nil, err
			}
		}
		// The floor is not measured beside the pool's filling up.
		if err := l.poolFull(ctx); err != nil {
			return nil, err
		}
		if err := floor.thawTwice(ctx, bare, again); err != nil {
			return nil, err
		}
	}
	row.judge(false, func() float64 { return ours.P50 / bare.P50 })
	return []*Row{row}, nil
}

// poolFull waits until the server keeps as many VMs ready as it wants to.
func (l *lab) poolFull(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		info, err := l.client.Info(ctx)
		if err != nil {
			return fmt.Errorf("waiting for the pool to fill up: %w", err)
		}
		if info.PoolReady >= poolSize {
			return nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the pool has %d VMs ready, not %d: %w", info.PoolReady, poolSize, ctx.Err())
		}
	}
}

// measureCold compares booting a guest with creating it.
func measureCold(ctx context.Context, l *lab) ([]*Row, error) {
	t, floor, err := l.prepare(ctx, smallGuest)
	if err != nil {
		return nil, err
	}
	row := &Row{
		Name: "cold", What: "bare cold boot to first command, over create", Goal: "at least 20 x",
		Limit: 20, AtLeast: true, Unit: "x",
		Note: "the boot is the bare hypervisor's, with the template's own kernel, initramfs and root filesystem",
	}
	boot, ours := row.series("bare cold boot", milliseconds), row.series("spore create", milliseconds)
	for range l.repeat(7, 2) {
		if err := floor.bootTimed(ctx, boot); err != nil {
			return nil, err
		}
		for range 3 {
			if s := l.createTimed(ctx, ours, t.ID); s != nil {
				if err := l.end(ctx, s); err != nil {
					return nil, err
				}
			}
		}
	}
	row.judge(false, func() float64 { return boot.P50 / ours.P50 })
	return []*Row{row}, nil
}
