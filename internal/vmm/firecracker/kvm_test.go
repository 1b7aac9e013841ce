package firecracker

import (
	"os"
	"testing"

	"github.com/sporevm/spore/internal/testbed"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/vmmtest"
)

// TestConformanceUnderKVM runs the whole suite on the binary that SPORE_FIRECRACKER names, with a stock kernel. It wants a host whose KVM
// can run one, which SPORE_TEST_ACCEL=kvm says; make lab has such a host.
func TestConformanceUnderKVM(t *testing.T) {
	if os.Getenv("SPORE_TEST_ACCEL") != "kvm" {
		t.Skip("not said to be a host whose KVM runs stock kernels: see make lab")
	}
	kernel, modules := testbed.KernelFiles(t)
	initrd := vmmtest.Initrd(t, t.TempDir(), modules)
	for name, noJailer := range map[string]bool{"jailed": false, "unjailed": true} {
		t.Run(name, func(t *testing.T) {
			vmmtest.Run(t, vmmtest.Harness{
				New:    func(t testing.TB) vmm.Engine { return realEngine(t, func(o *Options) { o.NoJailer = noJailer }) },
				Kernel: kernel, Initrd: initrd, MemoryMiB: 128, Processes: true, Cables: map[string]bool{vmmtest.CableTap: true},
			})
		})
	}
}
