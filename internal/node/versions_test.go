package node

import (
	"context"
	"slices"
	"strings"
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

func (e manyVersions) Versions(context.Context) (all []vmm.Info, err error) {
	for _, format := range *e.all {
		all = append(all, vmm.Info{Engine: e.Name(), Version: "of-" + format, StateFormat: format})
	}
	return all, nil
}

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
	err = r.Probe(t.Context(), tpl, tpl.ID)
	wantCode(t, err, spore.CodeStale)
	if why := "it was frozen by sim 1, format format-1; installed: 1 (format format-2)"; !strings.HasSuffix(err.Error(), why) || spore.AsError(err).Hint == "" {
		t.Errorf("it is refused with %v", err)
	}
	serves(spore.CompatStale)
}
