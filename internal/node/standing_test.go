package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/testbed"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/qemu"
)

func TestStandingMachines(t *testing.T) {
	r, tpl := portRig(t)
	s := r.start(t, tpl.ID)
	m, err := r.machine(s.ID, 1)
	must(t, err)
	state := func(when string, want vmm.State) {
		t.Helper()
		if got := m.vm.State(); got != want {
			t.Errorf("%s it is %s", when, got)
		}
	}
	m.freeze.Lock() // so that nobody else looks
	must(t, m.vm.Pause(t.Context()))
	r.lookForStanding(map[string]bool{})
	state("during a capture", vmm.StatePaused)
	if !m.goOn(false) {
		t.Error("a VM that has stopped by itself is not found")
	}
	state("set going", vmm.StateRunning)
	if m.goOn(true) {
		t.Error("a VM that runs is said to have stopped")
	}
	m.freeze.Unlock()
	_, err = r.Suspend(t.Context(), s, s.ID+"-p1", tpl.ID)
	must(t, err)
	r.lookForStanding(map[string]bool{})
	state("suspended", vmm.StatePaused)
	must(t, r.Wake(t.Context(), s.ID, 1))
}

// TestStandingForWantOfRoom fills the disk under a real VM.
func TestStandingForWantOfRoom(t *testing.T) {
	dir := testbed.MountFS(t, "ext4", 1024)
	engine, err := qemu.New(qemu.Options{Accel: qemu.AccelTCG, StateDir: dir})
	must(t, err)
	r := newRigIn(t, dir, engine, 0)
	tpl := r.baked(t, testbed.Ref(testbed.Image(t, testbed.Busybox)), small)
	s := r.start(t, tpl.ID)
	m, err := r.machine(s.ID, 1)
	must(t, err)
	a, err := m.connect(t.Context())
	must(t, err)

	filler, err := os.Create(filepath.Join(dir, "filler"))
	must(t, err)
	for off, piece := int64(0), int64(1024*mib); piece >= mib; { // less is too little for the guest
		if unix.Fallocate(int(filler.Fd()), 0, off, piece) == nil {
			off += piece
		} else {
			piece /= 2
		}
	}
	must(t, filler.Close())
	written := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		out, err := a.Run(ctx, guest.Command{Path: "/bin/sh", Args: []string{"-c", "head -c 4000000 /dev/urandom > /noise && sync"}})
		if err == nil && out.ExitCode != 0 {
			err = fmt.Errorf("%+v", out)
		}
		written <- err
	}()
	eventually(t, "the VM stands still", func() bool { return m.vm.State() == vmm.StatePaused })
	select {
	case err := <-written:
		t.Errorf("the guest goes on without room: %v", err)
	default:
	}
	must(t, os.Remove(filler.Name()))
	must(t, <-written)
}
