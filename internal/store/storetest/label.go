package storetest

import (
	"errors"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// Labels are found as they are now, whatever they were and whatever else changes.
func testLabels(t *testing.T, open Open) {
	s := fresh(t, open)
	template := sampleTemplate(1)
	template.Labels = map[string]string{"a": "1", "b": "2", "": "empty key", "e": ""}
	sandbox := sampleSandbox(1, template.ID)
	sandbox.Labels = template.Labels
	update(t, s, func(tx store.Tx) error { return errors.Join(tx.InsertTemplate(template), tx.InsertSandbox(sandbox)) })
	found := func(labels map[string]string) (n int) {
		t.Helper()
		view(t, s, func(tx store.Tx) error {
			templates, _, err := tx.Templates(store.TemplateFilter{Labels: labels})
			sandboxes, _, sandboxErr := tx.Sandboxes(store.SandboxFilter{Labels: labels})
			wantEqual(t, len(sandboxes), len(templates))
			n = len(templates)
			return errors.Join(err, sandboxErr)
		})
		return n
	}
	relabel := func(labels map[string]string) {
		t.Helper()
		template.Labels, sandbox.Labels = labels, labels
		update(t, s, func(tx store.Tx) error { return errors.Join(tx.UpdateTemplate(template), tx.UpdateSandbox(sandbox)) })
		wantTemplate(t, s, template)
		wantSandbox(t, s, sandbox)
	}
	check := func(want int, labels map[string]string) {
		t.Helper()
		if got := found(labels); got != want {
			t.Fatalf("%v: found %d, want %d", labels, got, want)
		}
	}
	check(1, map[string]string{"a": "1"})
	check(1, map[string]string{"a": "1", "b": "2", "": "empty key", "e": ""})
	check(0, map[string]string{"a": ""})
	check(0, map[string]string{"a": "1", "b": "1"})
	check(0, map[string]string{"x\x00y\xff": "1"})

	template.LastError, sandbox.State = "something else changes", spore.SandboxRunning
	relabel(template.Labels)
	check(1, map[string]string{"a": "1", "e": ""})
	relabel(map[string]string{"a": "2", "c": "3"})
	check(0, map[string]string{"a": "1"})
	check(0, map[string]string{"b": "2"})
	check(1, map[string]string{"a": "2", "c": "3"})
	relabel(nil)
	check(0, map[string]string{"a": "2"})
	relabel(map[string]string{"a": "2"})
	check(1, map[string]string{"a": "2"})

	err := s.Update(t.Context(), func(tx store.Tx) error {
		changed := *template
		changed.Labels = map[string]string{"rolled": "back"}
		return errors.Join(tx.UpdateTemplate(&changed), errOnPurpose)
	})
	if !errors.Is(err, errOnPurpose) {
		t.Fatal(err)
	}
	check(1, map[string]string{"a": "2"})
	check(0, map[string]string{"rolled": "back"})

	// A purged sandbox takes its labels along.
	sandbox.State = spore.SandboxKilled
	update(t, s, func(tx store.Tx) error {
		if err := tx.UpdateSandbox(sandbox); err != nil {
			return err
		}
		purged, err := tx.PurgeSandboxes(at(1000))
		wantEqual(t, purged, 1)
		return err
	})
	again := sampleSandbox(1, template.ID)
	again.Labels = nil
	update(t, s, func(tx store.Tx) error { return tx.InsertSandbox(again) })
	view(t, s, func(tx store.Tx) error {
		list, _, err := tx.Sandboxes(store.SandboxFilter{Labels: map[string]string{"a": "2"}, Killed: true})
		wantEqual(t, len(list), 0)
		return err
	})
}
