package firecracker

import (
	"context"

	"github.com/sporevm/spore/internal/vmm"
)

// Pager serves the memory of thawed VMs page by page, from processes of its own that live on when the server ends.
type Pager interface {
	// Wants says whether a thaw of patches, which may be nil, over the base memory file is better served than mapped.
	Wants(base string, patches vmm.Patches) bool
	// Start starts a process that waits for a Firecracker on the socket and then serves it. On error nothing is left.
	Start(ctx context.Context, spec PagerSpec) (PagerProcess, error)
	// Adopt takes over the process that an earlier server started for dir. It fails with spore.CodeNotFound when there is
	// none.
	Adopt(ctx context.Context, dir string) (PagerProcess, error)
	// Clean ends the process of dir, if there is one.
	Clean(ctx context.Context, dir string) error
}

// PagerSpec is what one VM's pager serves.
type PagerSpec struct {
	ID      string // the VM's
	Dir     string // for the pager's own files; the VM's Firecracker does not see it
	Socket  string // to listen on; in the root of the VM's Firecracker
	UID     int    // of the Firecracker that may connect; -1: the server's own
	Memory  string // the base memory file
	Size    int64  // of the memory
	Patches vmm.Patches
}

// PagerProcess is a running pager.
type PagerProcess interface {
	// Attached waits until the pager serves the VM's memory, and fails when it does not come to that.
	Attached(ctx context.Context) error
	Done() <-chan struct{} // closed when it has ended
	Err() error            // after Done: why, nil when it was ended
	Release() error        // lets go of it without ending it
	Kill(ctx context.Context) error
}
