package node

import (
	"context"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
	"github.com/sporevm/spore/internal/center/nodetest"
	"github.com/sporevm/spore/internal/testbed"
	"github.com/sporevm/spore/internal/vmm/sim"
	"github.com/sporevm/spore/internal/vmm/sim/simguest"
)

// TestConformance runs what the center relies on against a node whose files are real and whose guests are not.
func TestConformance(t *testing.T) {
	spec := spore.ArtifactSpec{Reference: testbed.Ref(testbed.Image(t, testbed.Static))}
	nodetest.Run(t, func(t *testing.T) nodetest.Machine {
		var fault atomic.Pointer[func(sim.Step)]
		guests := &inside{by: map[string]*sim.Guest{}}
		engine := sim.New(sim.Options{Guest: guests.serving(simguest.New().Serve), Fault: func(_ context.Context, _ string, step sim.Step) error {
			if f := fault.Load(); f != nil {
				(*f)(step)
			}
			return nil
		}})
		r := newRig(t, engine, 0)
		empty := space{total: 1 << 40, used: 1 << 30} // whatever the disk is like of the machine that the test runs on
		r.disk = &empty
		written := int64(0)
		return nodetest.Machine{
			Node: r.Node, Image: spec, Size: small,
			Restart: func(t *testing.T) center.Node {
				// As much of the end of a process as can be had within one: it lets go of its VMs.
				must(t, r.Close(context.WithoutCancel(t.Context())))
				must(t, r.opt.Frozen.Close())
				r.open(t)
				return r.Node
			},
			EndVM: func(t *testing.T, id string, generation int) { guests.of(t, r, id, generation).PowerOff() },
			Write: func(t *testing.T, id string, generation int) {
				written++
				_, err := guests.of(t, r, id, generation).WriteAt([]byte("content"), 32<<20+written<<16)
				must(t, err)
			},
			Fill: func(_ *testing.T, full bool) {
				s := empty
				if full {
					s.used = s.total / 100 * 99
				}
				r.disk = &s
			},
			DamageFrozen: func(t *testing.T, id string) {
				m, err := r.opt.Frozen.Manifest(id)
				must(t, err)
				flip(t, filepath.Join(r.dir, "frozen", "pieces", m.Memory.Top().ID, "data"))
			},
			DamageArtifact: func(t *testing.T, id string) {
				a, err := r.opt.Images.Get(id)
				must(t, err)
				flip(t, a.Path)
			},
			Midway: func(call string, do func()) {
				at := map[string]sim.Step{"start": sim.StepLoad, "probe": sim.StepLoad, "freeze": sim.StepSave}[call]
				var once sync.Once
				f := func(step sim.Step) {
					if step == at {
						once.Do(do)
					}
				}
				fault.Store(&f)
			},
		}
	})
}

// inside knows the guests of simulated VMs.
type inside struct {
	mu sync.Mutex
	by map[string]*sim.Guest // by VM
}

// serving is serve for guests that are known from then on, and that have written to their memory.
func (i *inside) serving(serve func(*sim.Guest, string, sim.Conn)) func(*sim.Guest, string, sim.Conn) {
	return func(g *sim.Guest, port string, conn sim.Conn) {
		i.mu.Lock()
		if id := g.Config().ID; i.by[id] == nil {
			g.WriteAt([]byte("booted"), 1<<20) // of a VM that has just ended it does not matter
			i.by[id] = g
		}
		i.mu.Unlock()
		serve(g, port, conn)
	}
}

func (i *inside) of(t *testing.T, r *rig, sandbox string, generation int) *sim.Guest {
	t.Helper()
	m, err := r.machine(sandbox, generation)
	must(t, err)
	i.mu.Lock()
	defer i.mu.Unlock()
	g := i.by[m.id]
	if g == nil {
		t.Fatalf("nobody has been inside VM %s", m.id)
	}
	return g
}
