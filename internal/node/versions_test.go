package node

import (
	"context"
	"slices"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/testbed"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/sim"
	"github.com/sporevm/spore/internal/vmm/sim/simguest"
)

// manyVersions is an engine of which several versions are installed.
type manyVersions struct {
	vmm.Engine
	current *string
	all     *[]string
}

func (e manyVersions) Probe(ctx context.Context) (vmm.Info, error) {
	info, err := e.Engine.Probe(ctx)
	info.StateFormat = *e.current
	return info, err
}

func (e manyVersions) StateFormats(context.Context) ([]string, error) { return *e.all, nil }

// TestVersionsSideBySide upgrades the engine of a machine: what the old version froze is thawed as long as that is there beside the
// new one, and the machine says so.
func TestVersionsSideBySide(t *testing.T) {
	ref := testbed.Ref(testbed.Image(t, testbed.Static))
	current, all := "format-1", []string{"format-1"}
	r := newRig(t, manyVersions{sim.New(sim.Options{Guest: simguest.New().Serve}), &current, &all}, 0)
	tpl := r.baked(t, ref, small)
	f, err := r.Frozen(t.Context(), tpl.ID)
	must(t, err)

	serves := func(want spore.CompatStatus) {
		t.Helper()
		report, err := r.Report(t.Context())
		must(t, err)
		if got := spore.PolicyStrict.Serves(f.Components(), report.Node.Components, report.Node.Installed); got != want {
			t.Errorf("by the machine's report it is %s, not %s: %+v", got, want, report.Node)
		}
		if slices.ContainsFunc(report.Node.Installed, func(c spore.Components) bool { return c.StateFormat == current }) {
			t.Errorf("its own format is named twice: %+v", report.Node.Installed)
		}
	}
	current, all = "format-2", []string{"format-2", "format-1"}
	must(t, r.Probe(t.Context(), tpl, tpl.ID))
	serves(spore.CompatOK)
	all = []string{"format-2"}
	wantCode(t, r.Probe(t.Context(), tpl, tpl.ID), spore.CodeStale)
	serves(spore.CompatStale)
}
