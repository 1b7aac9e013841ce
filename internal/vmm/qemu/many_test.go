package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/sporevm/spore/internal/vmm"
)

// Fifty thaws at once on a small machine take their time, but all of them come up.
func TestFiftyThawsAtOnce(t *testing.T) {
	e := harness(t).New(t)
	vm, cfg := bootOne(t, e)
	must(t, vm.Pause(t.Context()))
	state := filepath.Join(t.TempDir(), "state")
	out, err := os.Create(state)
	must(t, err)
	must(t, vm.SaveState(t.Context(), out))
	must(t, out.Close())
	must(t, vm.Kill(t.Context()))
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 50 {
		cfg := cfg
		cfg.ID = fmt.Sprintf("many%d", i)
		cfg.Dir = filepath.Join(dir, cfg.ID)
		must(t, os.Mkdir(cfg.Dir, 0o700))
		wg.Go(func() {
			in, err := os.Open(state)
			if err != nil {
				t.Error(err)
				return
			}
			defer in.Close()
			vm, err := e.Thaw(t.Context(), cfg, vmm.Image{State: in})
			if err != nil {
				t.Error(err)
				return
			}
			if err := vm.Resume(t.Context()); err != nil {
				t.Error(err)
			}
			if err := vm.Kill(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}
