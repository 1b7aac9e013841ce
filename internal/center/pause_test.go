package center_test

import (
	"errors"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
	"github.com/sporevm/spore/internal/store"
)

// A pause of which nobody can say whether it was stored is neither undone when it was nor left half done when it was not.
func TestUndecidedPause(t *testing.T) {
	for kept, want := range map[bool]spore.SandboxState{true: spore.SandboxPaused, false: spore.SandboxRunning} {
		var w *world
		doubt := false
		opt := center.Options{Hook: func(step string) {
			if doubt && step == "pause:frozen" {
				doubt = false
				w.journal.doubt.Store(&kept)
			}
		}}
		inWorld(t, 1, opt, func(t *testing.T, in *world) {
			w = in
			s := w.sandbox(w.template("t", spore.ReplicaPolicy{}).ID)
			doubt = true
			if _, err := w.PauseSandbox(t.Context(), s.ID); !errors.Is(err, store.ErrUndecided) {
				t.Fatalf("kept %v: %v", kept, err)
			}
			w.pass(2 * time.Minute)
			now, err := w.Sandbox(t.Context(), s.ID)
			w.ok(err)
			if now.State != want {
				t.Fatalf("kept %v: it is %s", kept, now.State)
			}
			running := 0
			for _, v := range w.machines[0].Audit().VMs {
				if v.SandboxID == s.ID && v.Running && !v.Paused {
					running++
				}
			}
			if kept != (running == 0) || running > 1 {
				t.Errorf("kept %v: %d VMs run", kept, running)
			}
			if kept {
				_, err = w.ResumeSandbox(t.Context(), s.ID, nil)
			} else {
				_, err = w.PauseSandbox(t.Context(), s.ID)
			}
			w.ok(err)
			w.pass(2 * time.Minute)
		})
	}
}
