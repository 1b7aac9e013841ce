package firecracker

import (
	"context"
	"math"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

var _ vmm.Throttler = (*machine)(nil)

func checkLimits(l vmm.DriveLimits) error {
	if l.BytesPerSecond < 0 || l.OpsPerSecond < 0 || l.BytesPerSecond > math.MaxInt64/2 || l.OpsPerSecond > math.MaxInt64/2 {
		return spore.Invalidf("drives", "a drive cannot be limited to %d bytes and %d operations a second", l.BytesPerSecond, l.OpsPerSecond)
	}
	return nil
}

// limiter is what bounds a drive. Zeros in it take a bound away that was there before.
func limiter(l vmm.DriveLimits) *rateLimiter {
	return &rateLimiter{Bandwidth: bucket(l.BytesPerSecond), Ops: bucket(l.OpsPerSecond)}
}

// bucket holds what may come in one go, about a fifth of a second's worth. Firecracker looks at its buckets ten times a
// second, when they are used up: one that held less would run over in between, and what runs over is lost to the guest.
func bucket(perSecond int64) *tokenBucket {
	if perSecond == 0 {
		return &tokenBucket{}
	}
	size := max(perSecond/5, 1)
	if perSecond >= 1000 {
		return &tokenBucket{Size: size, RefillTime: 200}
	}
	return &tokenBucket{Size: size, RefillTime: (size*1000 + perSecond/2) / perSecond}
}

// LimitDrive changes the limits of a drive of a running or paused VM; see vmm.Throttler.
func (m *machine) LimitDrive(ctx context.Context, id string, l vmm.DriveLimits) error {
	if err := checkLimits(l); err != nil {
		return err
	}
	end, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	for i, d := range m.shape.Drives {
		if d.ID != id {
			continue
		}
		if err := m.jail.api.patchDrive(ctx, partialDrive{DriveID: id, RateLimiter: limiter(l)}); err != nil {
			return m.settle(err)
		}
		m.limits[i] = l
		return m.writeRecord()
	}
	return spore.Errorf(spore.CodeNotFound, "the VM %s has no drive %q", m.cfg.ID, id)
}
