package firecracker

import (
	"bufio"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/sporevm/spore/internal/testbed"
	"github.com/sporevm/spore/internal/vmm"
)

// TestReclaim has a guest's pages go to swap, out of a mapped file and out of memory that a page server brings, and compares what it
// has then with what it had.
func TestReclaim(t *testing.T) {
	engines(t, func(t *testing.T, open func(func(*Options)) *Engine) {
		testbed.Swap(t, 256)
		vm, cfg := bootTiny(t, open(nil))
		must(t, vm.Pause(t.Context()))
		state := save(t, vm)
		must(t, vm.Kill(t.Context()))
		for name, edit := range map[string]func(*Options){"file": nil, "pager": func(o *Options) { o.Pager = &testPager{} }} {
			t.Run(name, func(t *testing.T) {
				if edit != nil {
					needPager(t)
				}
				child := cfg
				child.Dir = filepath.Join(t.TempDir(), "vm")
				must(t, os.Mkdir(child.Dir, 0o700))
				e := open(edit)
				vm := thaw(t, e, child, state, nil).(*machine)
				must(t, vm.Resume(t.Context()))
				if e.opts.Binaries[0] == os.Getenv("SPORE_FIRECRACKER") {
					counts(t, vm)
				} else {
					fills(t, vm)
				}
				must(t, vm.Pause(t.Context()))
				before := layer(t, vm, cfg.Memory)
				n, err := vm.Reclaim(t.Context())
				must(t, err)
				if after := layer(t, vm, cfg.Memory); !reflect.DeepEqual(before, after) {
					t.Error("it lost or gained something by it")
				}
				if len(before) == 0 || n == 0 {
					t.Errorf("of %d pages that it wrote, %d bytes went", len(before), n)
				}
				must(t, vm.Resume(t.Context()))
			})
		}
	})
}

// fills has the stand-in's guest write to its memory.
func fills(t *testing.T, vm vmm.VM) {
	t.Helper()
	conn, err := vm.DialPort(t.Context(), vmm.PortControl)
	must(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "fill 64 3\n")
	must(t, err)
	_, err = bufio.NewReader(conn).ReadString('\n')
	must(t, err)
}
