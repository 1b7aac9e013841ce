package firecracker

import (
	"context"

	"github.com/sporevm/spore/internal/vmm"
)

var _ vmm.Reclaimer = (*machine)(nil)

// Reclaim pages out what the VM holds for itself; see vmm.Reclaimer. Of a VM that was booted, or whose memory a page server
// brings, that is all of its RAM that was ever used.
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
