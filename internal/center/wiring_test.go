package center_test

import (
	"slices"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
)

// connected builds a template with a network device, whose sandboxes inherit ports and limits.
func (w *world) connected() *spore.Template {
	w.t.Helper()
	t, j, err := w.BuildTemplate(w.t.Context(), center.Idempotency{}, center.BuildRequest{
		Name: "net", Image: "registry.example/app:1", Resources: spore.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64},
		Network:  &spore.Network{Mode: spore.NetworkUser, Egress: spore.Egress{DenyCIDRs: []string{"203.0.113.7"}}},
		Defaults: spore.CreateDefaults{Ports: []spore.PortForward{{GuestPort: 80}}, Limits: &spore.Limits{CPUs: 0.5, DiskIOPS: 100}},
	})
	w.ok(err)
	w.ok(w.WatchJob(w.t.Context(), j.ID, 0, func(*spore.Job, []spore.LogLine) error { return nil }))
	w.pass(time.Minute)
	return t
}

// truth wants the VM of a sandbox to have what its row says.
func (w *world) truth(id string) *spore.Sandbox {
	w.t.Helper()
	s, err := w.Sandbox(w.t.Context(), id)
	w.ok(err)
	for _, m := range w.machines {
		for _, v := range m.Audit().VMs {
			if v.SandboxID == id && v.Wiring != s.Wiring() {
				w.t.Errorf("the VM of %s has not what its row says: %+v, %+v, %+v", id, s.Network, s.Ports, s.Limits)
			}
		}
	}
	return s
}

func TestWiring(t *testing.T) {
	inWorld(t, 1, center.Options{}, func(t *testing.T, w *world) {
		w.connected()
		ctx := t.Context()
		off := false
		s, err := w.CreateSandbox(ctx, center.Idempotency{}, center.CreateRequest{Template: "net", Wiring: center.Wiring{
			Ports: []spore.PortForward{{HostPort: 8080, GuestPort: 8000}}, Limits: spore.Limits{CPUs: 2},
		}})
		w.ok(err)
		s = w.truth(s.ID)
		if s.Network.Mode != spore.NetworkUser || len(s.Network.Egress.DenyCIDRs) != 1 || len(s.Ports) != 2 || s.Limits != (spore.Limits{CPUs: 2, DiskIOPS: 100}) {
			t.Errorf("with what the template keeps it is %+v, %+v, %+v", s.Network, s.Ports, s.Limits)
		}

		iops := 0
		_, err = w.UpdateSandbox(ctx, s.ID, center.SandboxUpdate{Egress: center.EgressUpdate{Internet: &off, DenyCIDRs: []string{}}, Limits: center.LimitsUpdate{DiskIOPS: &iops}})
		w.ok(err)
		if s = w.truth(s.ID); s.Network.Egress.Open() || len(s.Network.Egress.DenyCIDRs) > 0 || s.Limits != (spore.Limits{CPUs: 2}) {
			t.Errorf("changed it is %+v, %+v", s.Network, s.Limits)
		}

		// What a snapshot keeps; a port that was picked is picked anew.
		snap, err := w.CreateSnapshot(ctx, center.Idempotency{}, s.ID, center.SnapshotRequest{})
		w.ok(err)
		_, err = w.CreateSandbox(ctx, center.Idempotency{}, center.CreateRequest{Template: snap.ID})
		w.wants(err, spore.CodeConflict) // 8080 is the original's
		copied, err := w.CreateSandbox(ctx, center.Idempotency{}, center.CreateRequest{Template: snap.ID, Wiring: center.Wiring{Ports: []spore.PortForward{{GuestPort: 8000}}}})
		w.ok(err)
		if copied = w.truth(copied.ID); len(copied.Ports) != 2 || copied.Network.Egress.Open() || copied.Limits != s.Limits {
			t.Errorf("from the snapshot it is %+v, %+v, %+v", copied.Network, copied.Ports, copied.Limits)
		}
		forks, err := w.Fork(ctx, center.Idempotency{}, s.ID, center.ForkRequest{Count: 3})
		w.ok(err)
		for _, f := range forks {
			if f.Err != nil || len(f.Sandbox.Ports) != 2 || f.Sandbox.Ports[0].HostPort == 8080 || f.Sandbox.Ports[1].HostPort == 8080 {
				t.Errorf("a fork: %+v, %v", f.Sandbox, f.Err)
			}
		}

		// A pause gives the ports back; those that anybody may have are there when it is resumed.
		_, err = w.PauseSandbox(ctx, s.ID)
		w.ok(err)
		rival, err := w.CreateSandbox(ctx, center.Idempotency{}, center.CreateRequest{Template: "net", Wiring: center.Wiring{Ports: []spore.PortForward{{HostPort: 8080, GuestPort: 1}}}})
		w.ok(err)
		_, err = w.ResumeSandbox(ctx, s.ID, nil)
		w.wants(err, spore.CodeConflict)
		_, err = w.UnpublishPorts(ctx, s.ID, []center.PortPlace{{Port: 8080}})
		w.ok(err)
		_, err = w.ResumeSandbox(ctx, s.ID, nil)
		w.ok(err)
		w.truth(s.ID)
		_, err = w.PublishPorts(ctx, s.ID, []spore.PortForward{{GuestPort: 1}, {HostPort: 8080, GuestPort: 8000}})
		w.wants(err, spore.CodeConflict)
		if s = w.truth(s.ID); len(s.Ports) != 1 {
			t.Errorf("all or none; it has %+v", s.Ports)
		}
		w.ok(w.KillSandbox(ctx, rival.ID))
		_, err = w.PublishPorts(ctx, s.ID, []spore.PortForward{{HostPort: 8080, GuestPort: 8000}})
		w.ok(err)
		w.truth(s.ID)

		// A node that crashes publishes again what the rows say.
		w.machines[0].Crash()
		w.pass(time.Minute)
		before := w.truth(s.ID).Ports

		// What somebody else has taken by then is given up, and nothing else.
		w.machines[0].Occupy(8080, true)
		w.machines[0].Crash()
		w.pass(time.Minute)
		want := slices.DeleteFunc(before, func(p spore.PortForward) bool { return p.HostPort == 8080 })
		if got := w.truth(s.ID).Ports; len(want) == 0 || !slices.Equal(got, want) {
			t.Errorf("it has %+v, not %+v", got, want)
		}
	})
}

// TestWiringSettles has the server die, or the node be silent, in the middle of a change.
func TestWiringSettles(t *testing.T) {
	for _, step := range []string{"publish:arrive", "publish:answer", "adjust:arrive", "adjust:answer"} {
		t.Run(step, func(t *testing.T) {
			inWorld(t, 1, center.Options{}, func(t *testing.T, w *world) {
				w.connected()
				s, err := w.CreateSandbox(t.Context(), center.Idempotency{}, center.CreateRequest{Template: "net"})
				w.ok(err)
				lost := spore.Errorf(spore.CodeUnreachable, "lost").WithHint("again")
				once := true
				w.faulty(func(_, at string) error {
					if at == step && once {
						once = false
						return lost
					}
					return nil
				})
				if step[0] == 'p' {
					_, err = w.PublishPorts(t.Context(), s.ID, []spore.PortForward{{HostPort: 99, GuestPort: 9}})
				} else {
					cpus := 3.0
					_, err = w.UpdateSandbox(t.Context(), s.ID, center.SandboxUpdate{Limits: center.LimitsUpdate{CPUs: &cpus}})
				}
				w.wants(err, spore.CodeUnreachable)
				w.faulty(nil)
				w.pass(time.Minute)
				if now := w.truth(s.ID); now.Limits != s.Limits || len(now.Ports) != len(s.Ports) {
					t.Errorf("a change that failed came to pass: %+v, %+v", now.Limits, now.Ports)
				}
			})
		})
	}
}

func TestRedoAddsNetwork(t *testing.T) {
	inWorld(t, 1, center.Options{}, func(t *testing.T, w *world) {
		tpl := w.template("plain", spore.ReplicaPolicy{})
		req := center.CreateRequest{Template: "plain", Wiring: center.Wiring{Mode: spore.NetworkUser}}
		_, err := w.CreateSandbox(t.Context(), center.Idempotency{}, req)
		w.wants(err, spore.CodeConflict)
		j, err := w.RedoTemplate(t.Context(), center.Idempotency{}, tpl.ID, center.RedoRequest{AddNetwork: true})
		w.ok(err)
		w.ok(w.WatchJob(t.Context(), j.ID, 0, func(*spore.Job, []spore.LogLine) error { return nil }))
		s, err := w.CreateSandbox(t.Context(), center.Idempotency{}, req)
		w.ok(err)
		w.truth(s.ID)
	})
}

func TestHeldSnapshot(t *testing.T) {
	inWorld(t, 1, center.Options{}, func(t *testing.T, w *world) {
		w.template("base", spore.ReplicaPolicy{})
		s, err := w.CreateSandbox(t.Context(), center.Idempotency{}, center.CreateRequest{Template: "base"})
		w.ok(err)
		still := func() bool { return w.machines[0].Audit().VMs[0].Paused }
		hold := func() *spore.Template {
			snap, err := w.HoldSnapshot(t.Context(), center.Idempotency{}, s.ID, center.SnapshotRequest{}, 30*time.Second)
			w.ok(err)
			if snap.Status != spore.TemplateCreating || !still() {
				t.Fatalf("it is %s, and the sandbox stands still: %t", snap.Status, still())
			}
			return snap
		}
		gone := func(id string) {
			t.Helper()
			if got, err := w.Template(t.Context(), id); err == nil && got.Startable() == nil || still() {
				t.Errorf("a snapshot that was not to be is %+v, %v; the sandbox stands still: %t", got, err, still())
			}
		}
		snap := hold()
		snap, err = w.ReleaseSnapshot(t.Context(), snap.ID, true)
		w.ok(err)
		if snap.Status != spore.TemplateReady || still() {
			t.Errorf("released it is %s, and the sandbox stands still: %t", snap.Status, still())
		}
		_, err = w.ReleaseSnapshot(t.Context(), snap.ID, true)
		w.wants(err, spore.CodeConflict)

		snap = hold()
		_, err = w.ReleaseSnapshot(t.Context(), snap.ID, false)
		if spore.CodeOf(err) != spore.CodeCanceled {
			t.Errorf("discarded: %v", err)
		}
		gone(snap.ID)

		snap = hold()
		w.pass(time.Minute) // nobody comes
		gone(snap.ID)
		_, err = w.HoldSnapshot(t.Context(), center.Idempotency{}, s.ID, center.SnapshotRequest{}, time.Hour)
		w.wants(err, spore.CodeInvalid)

		snap = hold()
		w.kill()
		w.start()
		w.pass(time.Minute)
		gone(snap.ID)
	})
}
