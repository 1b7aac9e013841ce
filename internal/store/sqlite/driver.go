package sqlite

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riversqlite"
	"github.com/riverqueue/river/rivertype"
)

// ownDriver is River's driver for SQLite where it matters here: it tells at once of what was enqueued, and writes down what has
// become of runs however long the disk is full.
type ownDriver struct {
	*riversqlite.Driver
	bell    bell
	telling *telling
}

func (d ownDriver) SupportsListener() bool { return true }

func (d ownDriver) GetListener(*riverdriver.GetListenenerParams) riverdriver.Listener {
	return listener{d.bell}
}

func (d ownDriver) GetExecutor() riverdriver.Executor {
	return executor{d.Driver.GetExecutor(), d.telling}
}

type executor struct {
	riverdriver.Executor
	telling *telling
}

// JobSetStateIfRunningMany goes on trying where River would give up after a few seconds: a run whose outcome is lost would seem to
// go on until the next start.
func (e executor) JobSetStateIfRunningMany(ctx context.Context, params *riverdriver.JobSetStateIfRunningManyParams) ([]*rivertype.JobRow, error) {
	over := e.telling.over()
	for {
		settled, err := e.Executor.JobSetStateIfRunningMany(context.WithoutCancel(ctx), params)
		if err == nil || !endsTransaction(err) {
			return settled, err
		}
		const pause = 250 * time.Millisecond
		select {
		case <-time.After(pause):
		case <-over.Done():
			return nil, fmt.Errorf("the outcome of %d runs could not be stored: %w", len(params.ID), err)
		}
	}
}

// telling is for how long what has become of runs is told to the database.
type telling struct {
	mu     sync.Mutex
	ctx    context.Context
	giveUp context.CancelFunc
}

func newTelling() *telling {
	t := &telling{}
	t.ctx, t.giveUp = context.WithCancel(context.Background())
	return t
}

// over is done when what cannot be told is to be given up.
func (t *telling) over() context.Context {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ctx
}

func (t *telling) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.giveUp()
	t.ctx, t.giveUp = context.WithCancel(context.Background())
}

func (t *telling) cease() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.giveUp()
}
