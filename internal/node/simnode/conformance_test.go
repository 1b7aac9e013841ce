package simnode

import (
	"sync"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
	"github.com/sporevm/spore/internal/center/nodetest"
)

func TestConformance(t *testing.T) {
	var mu sync.Mutex
	steps := map[string]bool{} // that were come by
	nodetest.Run(t, func(t *testing.T) nodetest.Machine {
		var at string
		var do func()
		cluster := NewCluster(ClusterOptions{Fault: func(_, step string) error {
			mu.Lock()
			steps[step] = true
			now := step == at
			if now {
				at = ""
			}
			mu.Unlock()
			if now {
				do()
			}
			return nil
		}})
		m := cluster.New(Options{ID: "here", DiskBytes: 8 << 30, Networks: []spore.NetworkMode{spore.NetworkUser}})
		peer := cluster.New(Options{ID: "there"})
		handle := m.Connect()
		t.Cleanup(func() {
			for _, a := range cluster.Audit() {
				for _, v := range a.Violations {
					t.Errorf("on %s: %s", a.Node, v)
				}
			}
		})
		must := func(t *testing.T, ok bool) {
			t.Helper()
			if !ok {
				t.Fatal("the lever found nothing to act on")
			}
		}
		return nodetest.Machine{
			Node: handle, Peer: peer.Connect(),
			Image: spore.ArtifactSpec{Reference: "example.test/app:1"},
			Size:  spore.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64},
			Restart: func(*testing.T) center.Node {
				m.Crash()
				handle.Close()
				handle = m.Connect()
				return handle
			},
			EndVM: func(t *testing.T, id string, generation int) {
				must(t, m.EndVM(id, generation, "the guest powered off"))
			},
			Write: func(t *testing.T, id string, generation int) {
				must(t, m.Write(id, generation, "/a", "content") == nil)
			},
			Fill: func(_ *testing.T, full bool) {
				if m.Fill(0); full {
					m.FillTo(96)
				}
			},
			DamageFrozen:   func(t *testing.T, id string) { must(t, m.HarmFrozen(id, Damage)) },
			DamageArtifact: func(t *testing.T, id string) { must(t, m.HarmArtifact(id, Rot)) },
			Midway: func(call string, then func()) {
				at, do = map[string]string{"start": "start:thawed", "probe": "probe:thawed", "freeze": "freeze:paused"}[call], then
			},
		}
	})
	for call, list := range Steps {
		if call != "exit" {
			list = append([]string{"arrive", "answer"}, list...)
		}
		for _, step := range list {
			if name := call + ":" + step; !steps[name] {
				t.Errorf("no call came by %s", name)
			} else {
				delete(steps, name)
			}
		}
	}
	for name := range steps {
		t.Errorf("Steps does not list %s", name)
	}
}
