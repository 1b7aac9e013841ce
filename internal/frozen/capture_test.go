package frozen

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// TestFailureInTheWindow makes each part of a capture fail: the VM is as it was before, and nothing is left.
func TestFailureInTheWindow(t *testing.T) {
	broken := errors.New("broken")
	fail := func() error { return broken }
	ways := map[string]func(vm *fakeVM, cancel func()){
		"pause":  func(vm *fakeVM, _ func()) { vm.onPause = fail },
		"state":  func(vm *fakeVM, _ func()) { vm.onSave = fail },
		"memory": func(vm *fakeVM, _ func()) { vm.onRead = fail },
		"cancel": func(vm *fakeVM, cancel func()) { vm.onSave = func() error { cancel(); return nil } },
	}
	for name, breakIt := range ways {
		for _, state := range []vmm.State{vmm.StateRunning, vmm.StatePaused} {
			t.Run(name+" "+string(state), func(t *testing.T) {
				s := openStore(t, Options{})
				template(t, s, "tpl-1", 64)
				r := thaw(t, s, "tpl-1")
				r.vm.page(3, 3)
				r.vm.state, r.vm.tracks = state, false
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				breakIt(r.vm, cancel)
				d := must[*Draft](t)(s.Begin(ctx, Spec{ID: "snap-1", Kind: KindSnapshot, Shape: shape, Parent: r.parent}))
				_, err := d.CaptureLive(ctx, r.vm, r.disk, Resume)
				if !errors.Is(err, broken) && !errors.Is(err, context.Canceled) {
					t.Errorf("got %v", err)
				}
				if r.vm.State() != state {
					t.Errorf("the VM is %s, was %s", r.vm.State(), state)
				}
				if _, err := d.Commit(ctx); err == nil {
					t.Error("a failed capture can be committed")
				}
				for _, sub := range []string{dirStaging, dirLeases} {
					if left := must[[]os.DirEntry](t)(os.ReadDir(s.path(sub))); len(left) > 0 {
						t.Errorf("left in %s: %v", sub, left)
					}
				}
				r.vm.onPause, r.vm.onSave, r.vm.onRead = nil, nil, nil
				r.snapshot(t, s, "snap-1")
				r.expect(t, s, "snap-1")
			})
		}
	}
}

func TestStayPaused(t *testing.T) {
	s := openStore(t, Options{})
	template(t, s, "tpl-1", 64)
	r := thaw(t, s, "tpl-1")
	r.vm.page(3, 3)
	capture := func(id string, after After) {
		d := must[*Draft](t)(s.Begin(t.Context(), Spec{ID: id, Kind: KindPause, Shape: shape, Parent: r.parent}))
		defer d.Discard()
		timings := must[Timings](t)(d.CaptureLive(t.Context(), r.vm, r.disk, after))
		if timings.DirtyBytes != pageSize || timings.Paused == 0 {
			t.Errorf("timings %+v", timings)
		}
		must[*Manifest](t)(d.Commit(t.Context()))
		if d.Timings().StoredBytes == 0 || d.Timings().Settle == 0 {
			t.Errorf("timings %+v", d.Timings())
		}
		if r.vm.State() != vmm.StatePaused {
			t.Errorf("the VM is %s after %s", r.vm.State(), id)
		}
		r.expect(t, s, id)
	}
	capture("s1", StayPaused)
	capture("snap-1", Resume) // it was paused before, so it stays so
}

// TestEngineWithoutScan has an engine that cannot tell which pages are private: all are compared with the parent's.
func TestEngineWithoutScan(t *testing.T) {
	s := openStore(t, Options{BufferLimit: 1}) // and everything goes through the spill file
	template(t, s, "tpl-1", 512)
	r := thaw(t, s, "tpl-1")
	r.vm.noScan, r.vm.tracks = true, false
	r.vm.page(300, 7)
	m := r.snapshot(t, s, "snap-1")
	r.expect(t, s, "snap-1")
	if l := openLayerOf(t, s, m, m.Memory.Top()); len(l.runs) != 1 {
		t.Errorf("runs %+v", l.runs)
	}
}

func TestBeginRefusals(t *testing.T) {
	s := openStore(t, Options{})
	m := template(t, s, "tpl-1", 64)
	for _, c := range []struct {
		spec Spec
		code spore.Code
	}{
		{Spec{ID: "tpl-1", Kind: KindTemplate}, spore.CodeConflict},
		{Spec{ID: "../tpl", Kind: KindTemplate}, spore.CodeInvalid},
		{Spec{ID: "tpl-2", Kind: "thing"}, spore.CodeInvalid},
		{Spec{ID: "tpl-2", Kind: KindTemplate, Shape: Shape{Extra: []byte("{")}}, spore.CodeInvalid},
	} {
		_, err := s.Begin(t.Context(), c.spec)
		wantCode(t, err, c.code)
	}
	// A rival takes the id between Begin and Commit.
	r := thaw(t, s, "tpl-1")
	d := must[*Draft](t)(s.Begin(t.Context(), Spec{ID: "snap-1", Kind: KindSnapshot, Shape: shape, Parent: m}))
	must[Timings](t)(d.CaptureLive(t.Context(), r.vm, r.disk, Resume))
	r.snapshot(t, s, "snap-1")
	_, err := d.Commit(t.Context())
	wantCode(t, err, spore.CodeConflict)
	if plan := must[*SweepPlan](t)(s.PlanSweep(t.Context(), nil)); len(plan.Remove) > 0 {
		t.Errorf("the loser left %v", plan.Remove)
	}
	// The parent is gone.
	if err := s.Remove("tpl-1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove("snap-1"); err != nil {
		t.Fatal(err)
	}
	must[int64](t)(must[*SweepPlan](t)(s.PlanSweep(t.Context(), nil)).Execute(t.Context()))
	_, err = s.Begin(t.Context(), Spec{ID: "snap-2", Kind: KindSnapshot, Shape: shape, Parent: m})
	wantCode(t, err, spore.CodeConflict)
	if staged := must[[]os.DirEntry](t)(os.ReadDir(s.path(dirStaging))); len(staged) > 0 {
		t.Errorf("left in staging: %v", staged)
	}
}

// TestManyAtOnce snapshots, thaws, flattens, removes and sweeps from many goroutines over two Stores of one directory.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	a := openStore(t, Options{})
	b := openStoreIn(t, a.dir, Options{})
	template(t, a, "tpl-1", 64)
	var wg sync.WaitGroup
	for n := range 6 {
		s := a
		if n%2 == 1 {
			s = b
		}
		wg.Go(func() {
			r := thaw(t, s, "tpl-1")
			pin := fmt.Sprintf("s%d", n)
			for i := range 5 {
				r.vm.page(int64(n*5+i), byte(n+1))
				id := fmt.Sprintf("snap-%d-%d", n, i)
				r.parent = r.snapshot(t, s, id)
				if err := s.Pin(pin, r.parent); err != nil {
					t.Error(err)
				}
				if i == 3 {
					must[*Manifest](t)(s.Flatten(t.Context(), id, FlattenOptions{}))
				}
				r.expect(t, s, id)
				if err := s.Remove(id); err != nil {
					t.Error(err)
				}
			}
		})
	}
	stop := make(chan struct{})
	var sweeper sync.WaitGroup
	sweeper.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			plan, err := a.PlanSweep(t.Context(), nil)
			if err == nil {
				_, err = plan.Execute(t.Context())
			}
			if err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	close(stop)
	sweeper.Wait()
	for _, p := range must[*Report](t)(b.Check(t.Context(), true)).Problems {
		if p.Kind != ProblemUnreferenced {
			t.Errorf("problem: %+v", p)
		}
	}
}

// TestFlattenMeetsRemove takes the manifest away while it is being flattened.
func TestFlattenMeetsRemove(t *testing.T) {
	var s *Store
	act := func() error { return nil }
	s = openStore(t, Options{Hook: func(step string) {
		if step == "manifest.write" {
			if err := act(); err != nil {
				t.Error(err)
			}
		}
	}})
	template(t, s, "tpl-1", 64)
	r := thaw(t, s, "tpl-1")
	r.vm.page(1, 9)
	r.parent = r.snapshot(t, s, "snap-1")
	r.vm.page(2, 9)
	r.snapshot(t, s, "snap-2")
	act = func() error { return s.Remove("snap-2") }
	_, err := s.Flatten(t.Context(), "snap-2", FlattenOptions{})
	wantCode(t, err, spore.CodeNotFound)
	act = func() error { return nil }
	entries := must[[]Entry](t)(s.List(t.Context()))
	if len(entries) != 2 {
		t.Errorf("list %+v", entries)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Flatten(ctx, "snap-1", FlattenOptions{ToBase: true}); err == nil {
		t.Error("a canceled flatten went on")
	}
	if staged := must[[]os.DirEntry](t)(os.ReadDir(s.path(dirStaging))); len(staged) > 0 {
		t.Errorf("left in staging: %v", staged)
	}
}

// TestDiskChangesWhileCopied has a guest that writes to its disk, and discards, between the early copy and the pause.
func TestDiskChangesWhileCopied(t *testing.T) {
	s := openStore(t, Options{})
	template(t, s, "tpl-1", 64)
	r := thaw(t, s, "tpl-1")
	writeDisk(t, r.disk, 256, map[int64]byte{7: 8, 20: 3, 50: 5, 255: 9})
	r.vm.onPause = func() error {
		writeDisk(t, r.disk, 256, map[int64]byte{0: 0, 7: 7, 30: 4, 51: 6, 255: 1})
		f, err := os.OpenFile(r.disk, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		return errors.Join(punch(f, rangeOf(16, 16)), punch(f, rangeOf(96, 32)))
	}
	m := r.snapshot(t, s, "snap-1")
	r.expect(t, s, "snap-1")
	if len(m.Disk.Layers) == 1 {
		l := openLayerOf(t, s, m, m.Disk.Top())
		want := map[int64]bool{0: true, 50: true, 51: true, 100: true, 255: true}
		for _, x := range l.runs {
			for p := x.offset / pageSize; p < x.end()/pageSize; p++ {
				if !want[p] {
					t.Errorf("block %d is kept although it is as it was", p)
				}
				delete(want, p)
			}
		}
		if len(want) > 0 {
			t.Errorf("blocks %v are not kept", want)
		}
	}

	// A disk of which nothing is as it was is kept whole.
	r.vm.onPause = nil
	for b := range int64(256) {
		f := must[*os.File](t)(os.OpenFile(r.disk, os.O_RDWR, 0))
		if _, err := f.WriteAt([]byte(randomHex(pageSize/2)), b*pageSize); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if m := r.snapshot(t, s, "snap-2"); len(m.Disk.Layers) > 0 {
		t.Errorf("%d layers are kept", len(m.Disk.Layers))
	}
	r.expect(t, s, "snap-2")
}

func TestCommitBeforeKill(t *testing.T) {
	s := openStore(t, Options{})
	d := must[*Draft](t)(s.Begin(t.Context(), Spec{ID: "tpl-1", Kind: KindTemplate, Shape: shape}))
	vm := bootFake(t, d.BaseMemoryPath(), 64)
	vm.alive = true
	must[Timings](t)(d.CaptureBoot(t.Context(), vm, ""))
	_, err := d.Commit(t.Context())
	wantCode(t, err, spore.CodeInternal)
	if entries := must[[]Entry](t)(s.List(t.Context())); len(entries) > 0 {
		t.Errorf("list %+v", entries)
	}
}

func TestNoDisk(t *testing.T) {
	s := openStore(t, Options{})
	d := must[*Draft](t)(s.Begin(t.Context(), Spec{ID: "tpl-1", Kind: KindTemplate, Shape: shape}))
	vm := bootFake(t, d.BaseMemoryPath(), 64)
	must[Timings](t)(d.CaptureBoot(t.Context(), vm, ""))
	must[*Manifest](t)(d.Commit(t.Context()))
	img := must[*Image](t)(s.OpenImage(t.Context(), "tpl-1"))
	defer img.Close()
	wantCode(t, img.CloneDisk(t.Context(), t.TempDir()+"/disk"), spore.CodeConflict)
	if img.Disk() != nil || img.VM.Patches != nil {
		t.Error("there is a disk, or there are patches")
	}
}

// TestBusyGuest has a guest that writes to RAM and disk without rest until it is paused: what is frozen is what there
// was at that moment, of both.
func TestBusyGuest(t *testing.T) {
	s := openStore(t, Options{})
	template(t, s, "tpl-1", 256)
	r := thaw(t, s, "tpl-1")
	for round := range 5 {
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for n := int64(0); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				r.vm.page(n*7%256, byte(n))
				writeDisk(t, r.disk, 256, map[int64]byte{n * 11 % 256: byte(n)})
			}
		}()
		r.vm.onPause = func() error {
			close(stop)
			<-stopped
			return nil
		}
		id := fmt.Sprintf("snap-%d", round)
		r.vm.tracks = round%2 == 0
		r.snapshot(t, s, id)
		r.expect(t, s, id)
	}
}
