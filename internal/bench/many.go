package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

const (
	forks  = 20
	bursts = 50
)

// measureFork measures forks of one running sandbox, up to the answer of the first command of the last fork.
func measureFork(ctx context.Context, l *lab) ([]*Row, error) {
	t, floor, err := l.prepare(ctx, smallGuest)
	if err != nil {
		return nil, err
	}
	row := &Row{
		Name: "fork", What: fmt.Sprintf("fork of %d, over %d bare thaws spread over the cores", forks, forks),
		Goal: "at most 1 x, no failures", Limit: 1, Unit: "x",
		Note: "from the request to the answer of the last fork's first command; the snapshot of the running parent is part of it",
	}
	ours, bare := row.series(fmt.Sprintf("spore fork of %d", forks), milliseconds), row.series("bare thaw", milliseconds)
	parent, err := l.surely(ctx, t.ID)
	if err != nil {
		return nil, err
	}
	defer func() {
		if end := l.end(ctx, parent); end != nil {
			ours.failed(end)
		}
	}()
	for range l.repeat(7, 1) {
		for range 3 {
			if err := floor.thawTimed(ctx, bare); err != nil {
				return nil, err
			}
		}
		start := time.Now()
		made, err := l.client.Fork(ctx, api.ForkRequest{Source: parent.ID, Count: forks})
		if err == nil {
			err = l.answerAll(ctx, made)
		}
		if err != nil {
			ours.failed(err)
		} else {
			ours.took(time.Since(start))
		}
		for _, f := range made {
			if f.Sandbox != nil {
				if err := l.end(ctx, f.Sandbox); err != nil {
					return nil, err
				}
			}
		}
	}
	row.judge(true, func() float64 { return ours.P50 / (forks * bare.P50 / float64(runtime.NumCPU())) })
	return []*Row{row}, nil
}

// answerAll runs the first command of every fork.
func (l *lab) answerAll(ctx context.Context, made []api.ForkResult) error {
	if len(made) != forks {
		return fmt.Errorf("%d forks came back, not %d", len(made), forks)
	}
	errs := make([]error, len(made))
	var all sync.WaitGroup
	for i, f := range made {
		if errs[i] = client.ForkError(f); errs[i] != nil {
			continue
		}
		all.Go(func() { errs[i] = l.firstCommand(ctx, f.Sandbox.ID) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// measureBurst asks for many sandboxes at the same time. Each must be made, or be refused by name; nothing may be left
// half made.
func measureBurst(ctx context.Context, l *lab) ([]*Row, error) {
	t, err := l.template(ctx, smallGuest)
	if err != nil {
		return nil, err
	}
	row := &Row{
		Name: "burst", What: fmt.Sprintf("%d creates at once", bursts), Goal: "no failures; refused by name is none",
		Limit: 0, Unit: "failures",
	}
	each, whole := row.series("spore create to first command", milliseconds), row.series("all of them", milliseconds)
	refused := 0
	for range l.repeat(3, 1) {
		n, err := l.burstOnce(ctx, t, each, whole)
		if err != nil {
			return nil, err
		}
		refused += n
	}
	row.Note = fmt.Sprintf("%d were refused by name (busy or no space)", refused)
	row.judge(true, func() float64 { return float64(row.failures()) })
	return []*Row{row}, nil
}

func (l *lab) burstOnce(ctx context.Context, t *api.Template, each, whole *Series) (refused int, err error) {
	var mu sync.Mutex
	var made []*api.Sandbox
	var all sync.WaitGroup
	start := time.Now()
	for range bursts {
		all.Go(func() {
			began := time.Now()
			s, err := l.create(ctx, t.ID)
			took := time.Since(began)
			mu.Lock()
			defer mu.Unlock()
			switch code := spore.CodeOf(err); {
			case err == nil:
				each.took(took)
				made = append(made, s)
			case code == spore.CodeBusy || code == spore.CodeNoSpace:
				refused++
			default:
				each.failed(err)
			}
		})
	}
	all.Wait()
	whole.took(time.Since(start))
	ids, err := l.sandboxes(ctx)
	if err != nil {
		return 0, err
	}
	if len(ids) != len(made) {
		whole.failed(fmt.Errorf("%d sandboxes were made, %d are listed", len(made), len(ids)))
	}
	machines, err := l.machines()
	if err != nil {
		return 0, err
	}
	if len(machines) != len(made) {
		whole.failed(fmt.Errorf("%d sandboxes were made, %d have a VM", len(made), len(machines)))
	}
	for _, s := range made {
		if err := l.end(ctx, s); err != nil {
			return 0, err
		}
	}
	return refused, nil
}
