package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm/sim"
)

// TestRecoverGoesOn restarts a server to which some VMs do not come back.
func TestRecoverGoesOn(t *testing.T) {
	dir := t.TempDir()
	h := newHouse(t, dir)
	h.build(t, "base")
	well, garbled, lost, hung := h.create(t, "base", 0, ""), h.create(t, "base", 0, ""), h.create(t, "base", 0, ""), h.create(t, "base", 0, "")
	vmOf := func(s *spore.Sandbox) string {
		dirs := h.vms(t, s.ID)
		if len(dirs) != 1 {
			t.Fatalf("sandbox %s has VMs %v", s.ID, dirs)
		}
		return dirs[0]
	}
	lostVM := filepath.Base(vmOf(lost))
	if err := os.WriteFile(filepath.Join(vmOf(garbled), "owner.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.stop()

	f := sim.Fault(func(_ context.Context, id string, step sim.Step) error {
		if id == lostVM && step == sim.StepAdopt {
			return errors.New("its monitor is not to be understood")
		}
		return nil
	})
	first := h
	h = newHouse(t, dir, func(h *house) { h.fault.Store(&f) })
	eventually(t, "the sandbox to which nothing happened answers", func() bool { return h.answers(t, well.ID) })
	for id, why := range map[string]string{garbled.ID: "is gone", lost.ID: "its monitor is not to be understood"} {
		s, err := h.Sandbox(t.Context(), id)
		if err != nil || s.State != spore.SandboxFailed || !strings.Contains(s.StateReason, why) {
			t.Errorf("a sandbox that %s: %+v, %v", why, s, err)
		}
	}

	// A guest that does not answer the new server keeps nobody from ending its sandbox.
	dialled := make(chan struct{})
	block := sim.Fault(func(ctx context.Context, _ string, step sim.Step) error {
		if step == sim.StepDial {
			close(dialled)
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	})
	first.fault.Store(&block) // a VM keeps to the engine that started it
	asked := make(chan error, 1)
	go func() { _, err := h.Agent(context.WithoutCancel(t.Context()), hung.ID); asked <- err }()
	<-dialled
	for _, s := range []*spore.Sandbox{well, garbled, lost, hung} {
		if err := h.KillSandbox(t.Context(), s.ID); err != nil {
			t.Error(err)
		}
	}
	if err := <-asked; spore.CodeOf(err) != spore.CodeConflict && spore.CodeOf(err) != spore.CodeUnreachable {
		t.Errorf("whoever waited for the guest is told %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "vms", "*")); err != nil || len(left) > 0 {
		t.Errorf("%v were left (%v)", left, err)
	}
}
