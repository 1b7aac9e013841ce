package qemu

import (
	"os"
	"sync"
	"testing"

	"github.com/sporevm/spore/internal/testbed"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/vmmtest"
)

var made struct {
	sync.Once
	dir, kernel, initrd string
}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "spore-qemu-test-")
	if err != nil {
		panic(err)
	}
	made.dir = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// harness uses the accelerator that SPORE_TEST_ACCEL names and fails where it does not work; by default emulation.
func harness(t testing.TB) vmmtest.Harness {
	t.Helper()
	made.Do(func() {
		var modules string
		made.kernel, modules = testbed.KernelFiles(t)
		made.initrd = vmmtest.Initrd(t, made.dir, modules)
	})
	accel := os.Getenv("SPORE_TEST_ACCEL")
	if accel == "" {
		accel = AccelTCG
	}
	return vmmtest.Harness{
		New: func(t testing.TB) vmm.Engine {
			e, err := New(Options{Accel: accel, StateDir: made.dir, Kernel: made.kernel, Initrd: made.initrd})
			if err != nil {
				t.Fatal(err)
			}
			return e
		},
		Kernel: made.kernel, Initrd: made.initrd, MemoryMiB: 128, Processes: true, Cables: map[string]bool{vmmtest.CableTap: true, vmmtest.CableSocket: true},
	}
}

func TestConformance(t *testing.T) { vmmtest.Run(t, harness(t)) }
