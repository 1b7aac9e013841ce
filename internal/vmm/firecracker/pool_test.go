package firecracker

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A pool keeps processes ahead, gives them away, and leaves none.
func TestPool(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	e := doubleEngine(t, "", func(o *Options) { o.Pool, o.StateDir = 2, state })
	boot := func(e *Engine) *machine {
		cfg := tinyConfig(t)
		cfg.Dir = filepath.Join(t.TempDir(), "vm")
		must(t, os.Mkdir(cfg.Dir, 0o700))
		vm, err := e.Boot(t.Context(), cfg)
		must(t, err)
		killAtEnd(t, vm)
		return vm.(*machine)
	}
	waiting := func(e *Engine) []*jail {
		e.pool.mu.Lock()
		defer e.pool.mu.Unlock()
		return append([]*jail(nil), e.pool.ready...)
	}
	boot(e) // sets the pool going
	eventually(t, "the pool is full", func() bool { return len(waiting(e)) == 2 })
	ahead := map[int]bool{}
	for _, j := range waiting(e) {
		ahead[j.proc.pid] = true
	}
	vm := boot(e)
	if !ahead[vm.PID()] {
		t.Error("the pool was not used")
	}
	if text, err := vm.Console(1000); err != nil {
		t.Errorf("%q, %v", text, err)
	}
	must(t, vm.Release())
	adopted, err := e.Adopt(t.Context(), vm.cfg)
	must(t, err)
	killAtEnd(t, adopted)
	must(t, adopted.Kill(t.Context()))
	nothingLeft(t, vm.cfg, vm.PID(), vm.jail.cgroup)
	eventually(t, "the pool is full again", func() bool { return len(waiting(e)) == 2 })

	// Another server on the same directory ends what the first, which it takes for dead, had waiting.
	first := waiting(e)
	second := doubleEngine(t, "", func(o *Options) { o.Pool, o.StateDir = 1, state })
	boot(second)
	eventually(t, "the second pool is full", func() bool { return len(waiting(second)) == 1 })
	for _, j := range first {
		<-j.proc.done
	}
	must(t, second.Close())
	must(t, e.Close())
	if entries, err := os.ReadDir(filepath.Join(state, "firecracker-pool")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pool has left %v (%v)", entries, err)
	}
	boot(e) // a pool that was closed stays so, and VMs start all the same
	if len(waiting(e)) != 0 {
		t.Error("a pool that was closed goes on")
	}
}
