package daemon

import (
	"os"

	"github.com/sporevm/spore/internal/frozen"
	"github.com/sporevm/spore/internal/vmm/firecracker/pager"
)

// Pager is the page server of one VM, in the process that an engine made for it. It answers the exit code.
func Pager(args []string) int {
	return pager.Main(args, func(base pager.Source, names []string, files []*os.File) (pager.Source, error) {
		return frozen.OpenPages(base, names, files)
	})
}
