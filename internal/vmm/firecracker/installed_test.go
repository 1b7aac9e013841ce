package firecracker

import (
	"os"
	"path/filepath"
	"testing"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/firecracker/fcdouble"
)

// TestUnreadableFormat thaws with an older version what a newer one has frozen: the refusal names both, with their formats, and what to install.
func TestUnreadableFormat(t *testing.T) {
	needRoot(t)
	writer := doubleEngine(t, "", nil)
	vm, cfg := bootTiny(t, writer)
	must(t, vm.Pause(t.Context()))
	state := save(t, vm)
	must(t, vm.Kill(t.Context()))

	older := fcdouble.Versions[0]
	reader := doubleEngine(t, older, nil)
	cfg.Dir = filepath.Join(t.TempDir(), "vm")
	must(t, os.Mkdir(cfg.Dir, 0o700))
	f, err := os.Open(state)
	must(t, err)
	defer f.Close()
	_, err = reader.Thaw(t.Context(), cfg, vmm.Image{State: f})
	e := spore.AsError(err)
	if e == nil || e.Code != spore.CodeStale ||
		e.Message != "the device state cannot be loaded: it was frozen by Firecracker "+fcdouble.DefaultVersion+", format 12.0.0; installed: "+older+" (format 4.0.0)" ||
		e.Hint != "install Firecracker 1.17 beside what is there, or make the template anew" {
		t.Errorf("%#v", e)
	}

	versions, err := reader.Versions(t.Context())
	if err != nil || len(versions) != 1 || versions[0].Version != older {
		t.Errorf("%+v, %v", versions, err)
	}
	info, err := reader.Probe(t.Context())
	if err != nil || versions[0] != info {
		t.Errorf("a new VM would be of %+v, %v; installed is %+v", info, err, versions)
	}
}
