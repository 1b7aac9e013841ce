package storetest

import (
	"errors"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

func testNodes(t *testing.T, open Open) {
	s := fresh(t, open)
	full, bare, gone := sampleNode(3), &spore.Node{ID: "a", State: spore.NodeUnreachable}, sampleNode(1)
	gone.State = spore.NodeForgotten
	update(t, s, func(tx store.Tx) error { return errors.Join(tx.PutNode(full), tx.PutNode(bare), tx.PutNode(gone)) })
	want := func(forgotten bool, want ...*spore.Node) {
		t.Helper()
		view(t, s, func(tx store.Tx) error {
			got, err := tx.Nodes(forgotten)
			wantEqual(t, got, want)
			return err
		})
	}
	want(false, full, bare) // capital letters come before small ones: the order is that of bytes
	want(true, gone, full, bare)

	next := &spore.Node{ID: full.ID, State: spore.NodeUnreachable, StateReason: "no answer", CreatedAt: at(5), SeenAt: at(6)}
	update(t, s, func(tx store.Tx) error { return tx.PutNode(next) })
	view(t, s, func(tx store.Tx) error {
		got, err := tx.Node(full.ID)
		wantEqual(t, got, next)
		_, missing := tx.Node("none")
		wantCode(t, missing, spore.CodeNotFound)
		return err
	})
	gone.State = spore.NodeReady
	update(t, s, func(tx store.Tx) error { return tx.PutNode(gone) })
	want(false, gone, next, bare)
}
