package pager_test

import (
	"os"
	"testing"

	"github.com/sporevm/spore/internal/frozen"
	"github.com/sporevm/spore/internal/vmm/firecracker/pager"
)

// TestMain makes this program the pager and the VMM too, in processes of their own.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "pager":
			os.Exit(pager.Main(os.Args[2:], openLayers))
		case "vmm":
			os.Exit(vmmMain(os.Args[2]))
		}
	}
	os.Exit(m.Run())
}

func openLayers(base pager.Source, names []string, files []*os.File) (pager.Source, error) {
	return frozen.OpenPages(base, names, files)
}
