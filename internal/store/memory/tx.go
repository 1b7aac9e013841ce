package memory

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// state is the whole database at one instant.
type state struct {
	seed                         uint64 // of the trees' shapes
	lastRef, lastAlias, lastLine int64  // numbers given out

	templates   table[spore.Template]
	aliases     table[spore.Alias]
	history     table[spore.AliasChange]
	replicas    table[spore.Replica]
	artifacts   table[spore.Artifact]
	placements  table[spore.Placement]
	sandboxes   table[spore.Sandbox]
	refs        table[spore.RuntimeRef]
	jobs        table[spore.Job]
	logs        tree[spore.LogLine]
	places      table[place]
	replays     table[store.Replay]
	nodes       table[spore.Node]
	controllers table[store.Controller]
	leases      table[store.Lease]
}

// tx is a store.Tx. It serves one goroutine, until end.
type tx struct {
	ctx      context.Context
	store    *Store
	state    *state
	edit     *edit // nil: a View
	finished bool
	woken    bool // something was put into the queue
}

var _ store.Tx = (*tx)(nil)

// end makes every later use of tx fail.
func (tx *tx) end() { tx.finished = true }

func (tx *tx) readable() error {
	if tx.finished {
		return errors.New("store: a transaction was used after its function returned")
	}
	return tx.store.usable(tx.ctx)
}

func (tx *tx) writable() error {
	if tx.edit == nil {
		return errors.New("store: a write inside View")
	}
	return tx.readable()
}

func unknown(noun string, id any) error {
	e := spore.Errorf(spore.CodeNotFound, "there is no %s %v", noun, id)
	switch noun {
	case "job":
		e = e.Because(spore.ReasonOperationNotFound)
	case "template":
		e = e.Because(notFoundReason(fmt.Sprint(id)))
	}
	return e
}

func notFoundReason(template string) spore.Reason {
	if strings.HasPrefix(template, spore.SnapshotPrefix) {
		return spore.ReasonSnapshotNotFound
	}
	return spore.ReasonTemplateNotFound
}

// broken is the error for a row that no table would hold.
func broken(noun string, id any, rule string) error {
	return spore.Errorf(spore.CodeInternal, "the row of %s %v breaks a rule: %s", noun, id, rule)
}

// transition says whether a row may go to a state. from is nil when there is no row.
func transition[S ~string](machine spore.Transitions[S], noun string, id any, from *S, to S) error {
	if err := exists(machine, noun, id, to); err != nil {
		return err
	}
	switch {
	case from == nil:
		return unknown(noun, id)
	case machine.Allows(*from, to):
		return nil
	}
	return machine.Check(noun+" "+fmt.Sprint(id), *from, to)
}

// exists is an error when there is no such state.
func exists[S ~string](machine spore.Transitions[S], noun string, id any, to S) error {
	if _, known := machine[to]; !known {
		return spore.Errorf(spore.CodeConflict, "%s %v cannot become %q: there is no such state", noun, id, to)
	}
	return nil
}

// birth says whether a row may be in a state when it is inserted.
func birth[S ~string](machine spore.Transitions[S], noun string, id any, state S) error {
	if _, known := machine[state]; !known {
		return broken(noun, id, "there is no state "+string(state))
	}
	return nil
}

// nanos is what times are ordered by.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
