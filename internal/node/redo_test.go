package node

import (
	"context"
	"io"
	"strings"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/testbed"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/sim"
	"github.com/sporevm/spore/internal/vmm/sim/simguest"
)

var small = spore.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64}

func ignore(string) {}

// TestPromoteEndsWhatIsReady replaces a template that VMs are kept ready for: nobody gets one of the old.
func TestPromoteEndsWhatIsReady(t *testing.T) {
	ref := testbed.Ref(testbed.Image(t, testbed.Static))
	r := newRig(t, sim.New(sim.Options{Guest: simguest.New().Serve}), 2)
	tpl := r.baked(t, ref, small)
	r.start(t, tpl.ID)
	eventually(t, "two VMs are ready", func() bool { return r.Node.pool.count() == 2 })
	old := map[string]bool{}
	for _, m := range r.list() {
		old[m.id] = true
	}
	as := tpl.ID + "+redo"
	_, err := r.Rebake(t.Context(), tpl, as, ignore)
	must(t, err)
	must(t, r.Probe(t.Context(), tpl, as))
	if n := r.Node.pool.count(); n != 2 {
		t.Errorf("before the new one counts %d VMs of the old are ready", n)
	}
	_, err = r.Promote(t.Context(), as, tpl.ID)
	must(t, err)
	if n := r.Node.pool.count(); n != 0 {
		t.Errorf("%d VMs of the old are ready", n)
	}
	is, err := r.opt.Frozen.Manifest(tpl.ID)
	must(t, err)
	r.start(t, tpl.ID)
	eventually(t, "two VMs of the new are ready", func() bool { return r.Node.pool.count() == 2 })
	for _, m := range r.list() {
		pinned, err := r.opt.Frozen.Pinned(m.id)
		must(t, err)
		if !old[m.id] && pinned.Capture != is.Capture {
			t.Errorf("VM %s was made of the old", m.id)
		}
	}
	r.Node.pool.empty(t.Context())
}

// TestRebakeOfDamaged makes a state anew whose memory is damaged: its disk is all that is needed.
func TestRebakeOfDamaged(t *testing.T) {
	ref := testbed.Ref(testbed.Image(t, testbed.Static))
	r := newRig(t, sim.New(sim.Options{Guest: simguest.New().Serve}), 0)
	tpl := r.baked(t, ref, small)
	s := r.start(t, tpl.ID)
	snap := *tpl
	snap.ID, snap.Kind = spore.NewSnapshotID(), spore.KindSnapshot
	_, err := r.Freeze(t.Context(), s, snap.ID, tpl.ID)
	must(t, err)
	m, err := r.opt.Frozen.Manifest(snap.ID)
	must(t, err)
	must(t, r.Settle(t.Context(), s.ID, 0))
	flip(t, r.path("frozen", "pieces", m.Memory.Base.ID, "data"))
	wantCode(t, r.Probe(t.Context(), &snap, snap.ID), spore.CodeDamaged)

	wrong := snap
	wrong.ArtifactID = spore.ArtifactPrefix + "000000000000000000000000"
	_, err = r.Rebake(t.Context(), &wrong, snap.ID+"+redo", ignore)
	wantCode(t, err, spore.CodeConflict)
	f, err := r.Rebake(t.Context(), &snap, snap.ID+"+redo", ignore)
	must(t, err)
	must(t, r.Probe(t.Context(), &snap, f.ID))
	_, err = r.Promote(t.Context(), f.ID, snap.ID)
	must(t, err)
	must(t, r.VerifyFrozen(t.Context(), snap.ID, true))
	r.start(t, snap.ID)

	flip(t, r.path("frozen", "pieces", m.Disk.Base.ID, "data")) // of the template too, where there are no layers
	if err := r.VerifyFrozen(t.Context(), tpl.ID, true); spore.CodeOf(err) != spore.CodeDamaged {
		t.Errorf("the template is %v", err)
	}
}

// oddEngine says that it is on another processor.
type oddEngine struct {
	vmm.Engine
	info func(*vmm.Info)
}

func (e oddEngine) Probe(ctx context.Context) (vmm.Info, error) {
	info, err := e.Engine.Probe(ctx)
	e.info(&info)
	return info, err
}

// TestStaleByName moves frozen states to machines that cannot thaw them.
func TestStaleByName(t *testing.T) {
	ref := testbed.Ref(testbed.Image(t, testbed.Static))
	cpu, format, name := "one", "", ""
	r := newRig(t, oddEngine{sim.New(sim.Options{Guest: simguest.New().Serve}), func(i *vmm.Info) {
		i.CPUFeatures, i.StateFormat = cpu, i.StateFormat+format
		if name != "" {
			i.Engine = name
		}
	}}, 0)
	tpl := r.baked(t, ref, small)
	f, err := r.Frozen(t.Context(), tpl.ID)
	must(t, err)
	if f.CPU != "one" {
		t.Errorf("it is said to use the processor %q", f.CPU)
	}
	refused := func(words ...string) {
		t.Helper()
		err := r.Probe(t.Context(), tpl, tpl.ID)
		wantCode(t, err, spore.CodeStale)
		for _, w := range append(words, tpl.ID) {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%v does not name %q", err, w)
			}
		}
	}
	cpu = "two"
	refused("one", "two")
	cpu = ""
	refused("one", "emulated")
	cpu, format = "one", "+"
	refused("sim 1", "format 1;", "format 1+")
	format, name = "", "other"
	refused("sim", "other")
	name = ""
	must(t, r.Probe(t.Context(), tpl, tpl.ID))
	report, err := r.Report(t.Context())
	must(t, err)
	if c := report.Node.Components; c != f.Components() || len(report.Node.Installed) != 1 {
		t.Errorf("the node has %+v, the template %+v", c, f.Components())
	}
}

// TestArtifactInUse drops an artifact that something stands on, or may soon.
func TestArtifactInUse(t *testing.T) {
	ref := testbed.Ref(testbed.Image(t, testbed.Static))
	r := newRig(t, sim.New(sim.Options{Guest: simguest.New().Serve}), 0)
	tpl := r.template(t, ref, small)
	id := tpl.ArtifactID
	_, err := r.Collect(t.Context(), false)
	must(t, err)
	must(t, r.VerifyArtifact(t.Context(), id, true)) // it was built for somebody
	r.holds.hold(id)
	err = r.DropArtifact(t.Context(), id)
	wantCode(t, err, spore.CodeInUse)
	r.holds.drop(id)
	_, err = r.Bake(t.Context(), tpl, tpl.ID, ignore)
	must(t, err)
	s := r.start(t, tpl.ID)
	for _, who := range []string{tpl.ID, s.ID} {
		err = r.DropArtifact(t.Context(), id)
		wantCode(t, err, spore.CodeInUse)
		if !strings.Contains(err.Error(), who) {
			t.Errorf("%v does not name %s", err, who)
		}
	}
	must(t, r.Settle(t.Context(), s.ID, 0))
	must(t, r.Forget(t.Context(), tpl.ID))

	f, err := r.OpenArtifact(t.Context(), id)
	must(t, err)
	defer f.Close()
	must(t, r.DropArtifact(t.Context(), id))
	if n, err := io.Copy(io.Discard, f); err != nil || n != f.Size() || f.Digest() == "" {
		t.Errorf("after it was dropped %d of %d bytes can be read: %v", n, f.Size(), err)
	}
	if got := r.name([]string{"a", "b", "c", "d", "e"}); got != "a, b, c and 2 more" {
		t.Errorf("of five: %q", got)
	}
}
