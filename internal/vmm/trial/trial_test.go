package trial

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestPlace leaves a trial behind, finds it again, and keeps a second one out meanwhile.
func TestPlace(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	left := filepath.Join(state, "qemu-trial", "left")
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	cleaned := ""
	clean := func(_ context.Context, dir string) error {
		cleaned = dir
		_, err := os.Stat(left) // not removed before what lives there has ended
		return err
	}
	dir, leave, err := Place(t.Context(), state, "qemu-trial", clean)
	if err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 || cleaned != dir || dir != filepath.Dir(left) {
		t.Errorf("%s was cleaned, and %s has %v (%v)", cleaned, dir, entries, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := Place(ctx, state, "qemu-trial", clean); !errors.Is(err, context.Canceled) {
		t.Errorf("two at once: %v", err)
	}
	second := make(chan error, 1)
	go func() {
		_, leave, err := Place(t.Context(), state, "qemu-trial", func(context.Context, string) error { return nil })
		if err == nil {
			err = leave()
		}
		second <- err
	}()
	if err := errors.Join(leave(), <-second); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
}

// TestPlaceWithoutState has nowhere to come back to.
func TestPlaceWithoutState(t *testing.T) {
	dir, leave, err := Place(t.Context(), "", "qemu-trial", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
	if err := leave(); err != nil {
		t.Error(err)
	}
}
