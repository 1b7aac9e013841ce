package qemu

import (
	"context"

	"github.com/sporevm/spore/internal/vmm"
)

var _ vmm.Reclaimer = (*machine)(nil)

// Reclaim pages out what the VM holds for itself; see vmm.Reclaimer. Of the ways there are it is the one that fits guests whose
// RAM is a private mapping of a file that many share.
//
// A balloon, or free page reporting, does not: QEMU gives back such RAM by punching holes into the file, which is the base of all
// VMs thawed from it; from 8.2 on, where the file is opened for reading only, it refuses. Merging equal pages (KSM) finds what
// forks have written alike, but tells each guest, by the time a write takes, what others have in memory. Whether the host's
// administrator turns that on is not Spore's to say.
func (m *machine) Reclaim(ctx context.Context) (int64, error) {
	if err := m.usable(); err != nil {
		return 0, err
	}
	mem, err := m.openMemory()
	if err != nil {
		return 0, err
	}
	return mem.PageOut(ctx)
}
