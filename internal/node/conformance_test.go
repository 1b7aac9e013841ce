package node

import (
	"context"
	"path/filepath"
	"sync"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
	"github.com/sporevm/spore/internal/center/nodetest"
	"github.com/sporevm/spore/internal/testbed"
	"github.com/sporevm/spore/internal/vmm/sim"
	"github.com/sporevm/spore/internal/vmm/sim/simguest"
)

var _ center.Node = (*Node)(nil)

// TestConformance holds a real node, on VMs that are simulated, to what the center relies on.
func TestConformance(t *testing.T) {
	image := testbed.Ref(testbed.Image(t, testbed.Static))
	nodetest.Run(t, func(t *testing.T) nodetest.Machine {
		midway := &fault{}
		r := newRig(t, sim.New(sim.Options{Guest: simguest.New().Serve, Fault: midway.strike}), 0)
		vm := func(t *testing.T, id string, generation int) *machine {
			t.Helper()
			m, err := r.machine(id, generation)
			must(t, err)
			return m
		}
		return nodetest.Machine{
			Node: r.Node, Image: spore.ArtifactSpec{Reference: image}, Size: spore.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64},
			Restart: func(t *testing.T) center.Node {
				must(t, r.Close(t.Context())) // lets go of the VMs
				r.open(t)
				return r.Node
			},
			EndVM: func(t *testing.T, id string, generation int) {
				m := vm(t, id, generation)
				a, err := m.connect(t.Context())
				must(t, err)
				if err := a.Poweroff(t.Context(), 0); err != nil {
					t.Logf("the answer was lost with the guest: %v", err)
				}
				<-m.vm.Done()
			},
			Write: func(t *testing.T, id string, generation int) {
				a, err := vm(t, id, generation).connect(t.Context())
				must(t, err)
				must(t, a.Warm(t.Context()))
			},
			Fill: func(_ *testing.T, full bool) {
				r.disk = nil
				if full {
					r.disk = &space{total: 1 << 40, used: 1 << 40 / 100 * 97}
				}
			},
			DamageFrozen: func(t *testing.T, id string) {
				m, err := r.opt.Frozen.Manifest(id)
				must(t, err)
				flip(t, filepath.Join(r.dir, "frozen", "pieces", m.Memory.Base.ID, "data"))
			},
			DamageArtifact: func(t *testing.T, id string) {
				a, err := r.opt.Images.Get(id)
				must(t, err)
				flip(t, a.Path)
			},
			Midway: func(call string, do func()) {
				midway.set(map[string]sim.Step{"start": sim.StepThaw, "probe": sim.StepLoad, "freeze": sim.StepSave}[call], do)
			},
		}
	})
}

// fault does something at the next step of a kind, once.
type fault struct {
	mu   sync.Mutex
	step sim.Step
	do   func()
}

func (f *fault) set(step sim.Step, do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.step, f.do = step, do
}

func (f *fault) strike(_ context.Context, _ string, step sim.Step) error {
	f.mu.Lock()
	do := f.do
	if step != f.step {
		do = nil
	}
	if do != nil {
		f.do = nil
	}
	f.mu.Unlock()
	if do != nil {
		do()
	}
	return nil
}
