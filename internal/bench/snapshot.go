package bench

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

// What a guest may stand still for a snapshot: a constant and a part for each MiB that it has written since its thaw.
const (
	pauseConstant = 15 * time.Millisecond
	pausePerMiB   = 100 * time.Microsecond
)

// measurePause measures how long a guest stands still while it is snapshotted: for guests of two sizes that have written
// much or little, and against the peers' method, a dump of all memory.
func measurePause(ctx context.Context, l *lab) ([]*Row, error) {
	var made []*Row
	for _, size := range []int{smallGuest, largeGuest} {
		dirty := []int{0, 16, 64}
		if size == largeGuest {
			dirty = append(dirty, 256)
		}
		row, err := measurePauseOf(ctx, l, size, dirty)
		if err != nil {
			return nil, err
		}
		made = append(made, row)
	}
	row, err := measureDump(ctx, l)
	if err != nil {
		return nil, err
	}
	return append(made, row), nil
}

// measurePauseOf measures guests of one size. Each sample is a sandbox of its own, in which that many MiB were written.
func measurePauseOf(ctx context.Context, l *lab, memoryMiB int, written []int) (*Row, error) {
	t, err := l.template(ctx, memoryMiB)
	if err != nil {
		return nil, err
	}
	row := &Row{
		Name: "pause", What: fmt.Sprintf("snapshot: %d MiB guest stands still", memoryMiB), Goal: "at most 15 ms + 0.1 ms per dirty MiB",
		Limit: 1, Unit: times,
		Note: "judged by the worst of the medians; a dirty MiB is one that the guest's RAM holds apart from its template, the guest's own writes since the thaw included",
	}
	var shares []*Series
	type pair struct{ pause, share, dirty *Series }
	pairs := map[int]pair{}
	for _, mib := range written {
		name := fmt.Sprintf("%d MiB written", mib)
		p := pair{row.series(name, milliseconds), row.series(name+", of the allowed", times), row.series(name+", dirty in all", bytesUnit)}
		pairs[mib] = p
		shares = append(shares, p.share)
	}
	for range l.repeat(10, 2) {
		for _, mib := range written {
			p := pairs[mib]
			took, dirty, err := l.pauseOnce(ctx, t, mib)
			if err != nil {
				p.pause.failed(err)
				continue
			}
			p.pause.took(took)
			p.dirty.add(float64(dirty))
			allowed := pauseConstant + time.Duration(float64(dirty)/(1<<20)*float64(pausePerMiB))
			p.share.add(float64(took) / float64(allowed))
		}
	}
	row.judge(false, func() (worst float64) {
		for _, s := range shares {
			worst = max(worst, s.P50)
		}
		return worst
	})
	return row, nil
}

// pauseOnce snapshots one new sandbox after it has written so much, and removes both.
func (l *lab) pauseOnce(ctx context.Context, t *api.Template, mib int) (took time.Duration, dirty int64, err error) {
	s, err := l.create(ctx, t.ID)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, l.end(ctx, s)) }()
	if err := l.write(ctx, s.ID, mib); err != nil {
		return 0, 0, err
	}
	pid, err := l.process(s.ID)
	if err != nil {
		return 0, 0, err
	}
	if dirty, err = dirtyBytes(pid); err != nil {
		return 0, 0, err
	}
	snap, took, err := l.snapshot(ctx, s.ID)
	if err != nil {
		return 0, 0, err
	}
	_, err = l.client.DeleteSnapshot(ctx, snap.ID, client.DeleteOptions{})
	return took, dirty, err
}

// write lets a guest write that many MiB of random bytes into its memory.
func (l *lab) write(ctx context.Context, sandbox string, mib int) error {
	if mib == 0 {
		return nil
	}
	out, err := l.client.Sandbox(sandbox).
		Command(ctx, "/bin/dd", "if=/dev/urandom", "of=/dev/shm/dirty", "bs=1048576", "count="+strconv.Itoa(mib)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("dirtying memory: %w: %s", err, out)
	}
	return nil
}

// measureDump compares the pause of a snapshot with that of a full dump.
func measureDump(ctx context.Context, l *lab) (*Row, error) {
	t, floor, err := l.prepare(ctx, largeGuest)
	if err != nil {
		return nil, err
	}
	row := &Row{
		Name: "pause", What: "full dump of a 2 GiB guest, over snapshot", Goal: "at least 20 x shorter",
		Limit: 20, AtLeast: true, Unit: "x",
		Note: "the full dump writes device state and all of RAM, read straight out of the process, into files in the page cache, unsynced; " +
			"the hypervisor's own migration into a file, which leaves zero pages out, is shown beside it and not judged by",
	}
	ours := row.series("spore snapshot", milliseconds)
	dump := row.series("full dump", milliseconds)
	sparse := row.series("migration to file", milliseconds)
	for range l.repeat(7, 2) {
		if took, _, err := l.pauseOnce(ctx, t, 0); err != nil {
			ours.failed(err)
		} else {
			ours.took(took)
		}
		if err := floor.dumpTimed(ctx, dump, sparse); err != nil {
			return nil, err
		}
	}
	row.judge(false, func() float64 { return dump.P50 / ours.P50 })
	return row, nil
}

// measureKept measures what a snapshot of a guest that does nothing keeps on disk.
func measureKept(ctx context.Context, l *lab) ([]*Row, error) {
	t, err := l.template(ctx, largeGuest)
	if err != nil {
		return nil, err
	}
	row := &Row{
		Name: "kept", What: "snapshot of an idle 2 GiB guest, bytes kept", Goal: "at most 3 MiB", Limit: 3, Unit: "MiB",
		Note: "bytes allocated on disk that no other state shares: memory, disk, device state and records",
	}
	kept := row.series("spore", bytesUnit)
	for range l.repeat(5, 2) {
		n, err := l.keptOnce(ctx, t)
		if err != nil {
			kept.failed(err)
			continue
		}
		kept.add(float64(n))
	}
	row.judge(false, func() float64 { return kept.P50 / (1 << 20) })
	return []*Row{row}, nil
}

func (l *lab) keptOnce(ctx context.Context, t *api.Template) (n int64, err error) {
	s, err := l.create(ctx, t.ID)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, l.end(ctx, s)) }()
	if err := rest(ctx, idleFor); err != nil {
		return 0, err
	}
	snap, _, err := l.snapshot(ctx, s.ID)
	if err != nil {
		return 0, err
	}
	told, err := l.client.Explain(ctx, snap.ID)
	if err != nil {
		return 0, err
	}
	_, err = l.client.DeleteSnapshot(ctx, snap.ID, client.DeleteOptions{})
	return told.ExclusiveBytes, err
}

// rest lets a guest be idle.
func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// measureRollback compares a rollback with a create, both up to the answer of the next command.
func measureRollback(ctx context.Context, l *lab) ([]*Row, error) {
	t, err := l.template(ctx, smallGuest)
	if err != nil {
		return nil, err
	}
	row := &Row{
		Name: "rollback", What: "rollback to next command, over create", Goal: "at most 1.2 x create", Limit: 1.2, Unit: "x",
		Note: "nothing is kept ready; the snapshot is a diff over the template, of a guest that has written 16 MiB",
	}
	back, create := row.series("spore rollback", milliseconds), row.series("spore create", milliseconds)
	s, err := l.surely(ctx, t.ID)
	if err != nil {
		return nil, err
	}
	defer func() {
		if end := l.end(ctx, s); end != nil {
			back.failed(end)
		}
	}()
	if err := l.write(ctx, s.ID, 16); err != nil {
		return nil, err
	}
	snap, _, err := l.snapshot(ctx, s.ID)
	if err != nil {
		return nil, err
	}
	for range l.repeat(20, 4) {
		timed(back, func() error {
			if _, err := l.client.Rollback(ctx, s.ID, snap.ID); err != nil {
				return err
			}
			return l.firstCommand(ctx, s.ID)
		})
		if other := l.createTimed(ctx, create, t.ID); other != nil {
			if err := l.end(ctx, other); err != nil {
				return nil, err
			}
		}
	}
	row.judge(false, func() float64 { return back.P50 / create.P50 })
	return []*Row{row}, nil
}
