package firecracker

import (
	"fmt"
	"os"
	"testing"

	"github.com/sporevm/spore/internal/testbed"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/firecracker/fcdouble"
	"github.com/sporevm/spore/internal/vmm/firecracker/pager"
	"github.com/sporevm/spore/internal/vmm/vmmtest"
)

// TestMain makes this program the pager too, in processes of its own.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "pager" {
		os.Exit(pager.Main(os.Args[2:], nil))
	}
	code := m.Run()
	if err := fcdouble.Clean(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// doubleEngine is an engine on the stand-in for a version of Firecracker.
func doubleEngine(t testing.TB, version string, edit func(*Options)) *Engine {
	t.Helper()
	b := fcdouble.Build(t, fcdouble.Options{Version: version})
	opts := Options{Binaries: []string{b.Firecracker}, Jailer: b.Jailer, NoJailer: os.Geteuid() != 0}
	if edit != nil {
		edit(&opts)
	}
	e, err := New(opts)
	must(t, err)
	t.Cleanup(func() { must(t, e.Close()) })
	return e
}

// TestConformance runs the whole suite on the stand-in, jailed and not, for the oldest and the newest version.
func TestConformance(t *testing.T) {
	if err := checkKVM(); err != nil {
		t.Skipf("Firecracker and its stand-in both want KVM: %v", err)
	}
	kernel, modules := testbed.KernelFiles(t)
	initrd := vmmtest.Initrd(t, t.TempDir(), modules)
	for name, tc := range map[string]struct {
		version  string
		noJailer bool
	}{
		"newest":   {fcdouble.DefaultVersion, false},
		"oldest":   {fcdouble.Versions[0], false},
		"unjailed": {fcdouble.DefaultVersion, true},
	} {
		t.Run(name, func(t *testing.T) {
			if !tc.noJailer && os.Geteuid() != 0 {
				t.Skip("the jailer needs root")
			}
			vmmtest.Run(t, vmmtest.Harness{
				New: func(t testing.TB) vmm.Engine {
					return doubleEngine(t, tc.version, func(o *Options) { o.NoJailer = tc.noJailer })
				},
				Kernel: kernel, Initrd: initrd, MemoryMiB: 128, Processes: true,
				Cables: map[string]bool{vmmtest.CableTap: false},
			})
		})
	}
}
