package postgres

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"

	"github.com/sporevm/spore"
)

// sharedDriver is River's driver for PostgreSQL where it matters that several controllers share the queue and that databases go
// away: in the taking of places and in what becomes of them.
type sharedDriver struct {
	*riverpgxv5.Driver
	shift *shift
}

func (d sharedDriver) GetExecutor() riverdriver.Executor {
	return executor{d.Driver.GetExecutor(), d.shift}
}

type executor struct {
	riverdriver.Executor
	shift *shift
}

func (e executor) JobGetAvailable(ctx context.Context, params *riverdriver.JobGetAvailableParams) ([]*rivertype.JobRow, error) {
	return e.shift.fetch(ctx, e.Executor, params)
}

func (e executor) JobSetStateIfRunningMany(_ context.Context, params *riverdriver.JobSetStateIfRunningManyParams) ([]*rivertype.JobRow, error) {
	return e.shift.settle(params)
}

// LeaderResign lets a leader go that cannot say so: its term ends by itself.
func (e executor) LeaderResign(ctx context.Context, params *riverdriver.LeaderResignParams) (bool, error) {
	resigned, err := e.Executor.LeaderResign(ctx, params)
	if err != nil && isUnavailable(failure(ctx, err)) {
		return false, nil
	}
	return resigned, err
}

// fetch takes places whose turn has come. While the database does not answer there are none.
func (s *shift) fetch(ctx context.Context, river riverdriver.Executor, params *riverdriver.JobGetAvailableParams) ([]*rivertype.JobRow, error) {
	const patience = 10 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	s.held.Lock()
	defer s.held.Unlock()
	// A fenced controller would only take what it cannot do any more.
	var there bool
	var fenced int
	err := river.QueryRow(ctx, `SELECT COUNT(*) > 0, COALESCE(MAX(fenced), $2) FROM controllers WHERE id = $1`,
		s.controller, unseen(s.known)).Scan(&there, &fenced)
	s.known = s.known || there
	if err == nil && fenced != 0 {
		return nil, nil
	}
	var taken []*rivertype.JobRow
	if err == nil {
		taken, err = river.JobGetAvailable(ctx, params)
	}
	if err != nil {
		if err = failure(ctx, err); isUnavailable(err) {
			return nil, nil // which is logged where it is noticed first
		}
		return nil, err
	}
	for _, place := range taken {
		s.places[place.ID] = place.Attempt
	}
	return taken, nil
}

// unseen is whether a controller without a row is fenced: when it had one before, since rows of fenced ones are purged some day.
func unseen(known bool) int16 {
	if known {
		return 1
	}
	return 0
}

// settle writes down what has become of runs, however long the database is away. A run that was lost on the way would
// otherwise seem to go on for ever.
func (s *shift) settle(params *riverdriver.JobSetStateIfRunningManyParams) ([]*rivertype.JobRow, error) {
	attempts := make([]int, len(params.ID))
	s.held.Lock()
	telling, known := s.telling, s.known
	for i, id := range params.ID {
		attempts[i] = s.places[id]
	}
	s.held.Unlock()
	for {
		settled, err := s.settleOnce(telling, params, attempts, known)
		if err == nil {
			s.forget(params.ID, attempts)
			return settled, nil
		}
		if !isUnavailable(err) && spore.CodeOf(err) != spore.CodeNoSpace {
			return nil, err
		}
		const pause = 250 * time.Millisecond
		select {
		case <-time.After(pause):
		case <-telling.Done():
			return nil, fmt.Errorf("the outcome of %d runs could not be stored: %w", len(params.ID), telling.Err())
		}
	}
}

func (s *shift) forget(places []int64, attempts []int) {
	s.held.Lock()
	defer s.held.Unlock()
	for i, id := range places {
		if s.places[id] == attempts[i] {
			delete(s.places, id)
		}
	}
}

func (s *shift) settleOnce(ctx context.Context, params *riverdriver.JobSetStateIfRunningManyParams, attempts []int, known bool) (settled []*rivertype.JobRow, err error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	err = s.writer.doSilently(ctx, func(c *conn) error {
		found, err := c.tx.Query(ctx, `SELECT place.n FROM unnest($2::bigint[], $3::int[]) WITH ORDINALITY AS place (id, attempt, n)
			JOIN river_job ON river_job.id = place.id AND river_job.attempt = place.attempt
			WHERE state = 'running' AND `+runner+` = $1
			AND COALESCE((SELECT fenced FROM controllers WHERE id = $1), $4) = 0`,
			s.controller, params.ID, attempts, unseen(known))
		if err != nil {
			return c.failed(err)
		}
		own, err := pgx.CollectRows(found, pgx.RowTo[int])
		if err != nil {
			return c.failed(err)
		}
		settled, err = s.river.UnwrapExecutor(c.tx).JobSetStateIfRunningMany(ctx, selected(params, own))
		return c.failed(err)
	})
	return settled, err
}

// selected are those of params that own names, counted from 1, with texts that PostgreSQL can keep.
func selected(params *riverdriver.JobSetStateIfRunningManyParams, own []int) *riverdriver.JobSetStateIfRunningManyParams {
	out := &riverdriver.JobSetStateIfRunningManyParams{Now: params.Now, Schema: params.Schema}
	for _, n := range own {
		i := n - 1
		out.ID = append(out.ID, params.ID[i])
		out.Attempt = append(out.Attempt, params.Attempt[i])
		// JSON has zero bytes, jsonb has not. An escaped backslash before "u0000" is changed too, which does no harm to a message.
		out.ErrData = append(out.ErrData, bytes.ReplaceAll(params.ErrData[i], []byte(`\u0000`), []byte(`\ufffd`)))
		out.FinalizedAt = append(out.FinalizedAt, params.FinalizedAt[i])
		out.MetadataDoMerge = append(out.MetadataDoMerge, params.MetadataDoMerge[i])
		out.MetadataUpdates = append(out.MetadataUpdates, params.MetadataUpdates[i])
		out.ScheduledAt = append(out.ScheduledAt, params.ScheduledAt[i])
		out.State = append(out.State, params.State[i])
	}
	return out
}
