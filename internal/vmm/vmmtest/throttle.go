package vmmtest

import (
	"fmt"
	"testing"
	"time"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// rate has the guest use its disk for a while, in operations of so many KiB, and tells bytes and operations a second.
func rate(t *testing.T, g *talk, span time.Duration, kib int) (bytes, ops float64) {
	t.Helper()
	answer := g.ask("disk-rate %d %d", span.Milliseconds(), kib)
	var b, o, micros float64
	if _, err := fmt.Sscan(answer, &b, &o, &micros); err != nil {
		t.Fatalf("%q: %v", answer, err)
	}
	return b / micros * 1e6, o / micros * 1e6
}

// holds looks whether a measured rate is what was set, within 15 %. More it never may be; less, since the machine may have other
// things to do, is measured again.
func holds(t *testing.T, what string, want float64, measure func() float64) {
	t.Helper()
	for try := range 4 {
		got := measure()
		t.Logf("%s: %.0f a second of %.0f, ratio %.3f", what, got, want, got/want)
		switch ratio := got / want; {
		case ratio > 1.15:
			t.Errorf("%s: %.0f a second, bounded to %.0f", what, got, want)
			return
		case ratio >= 0.85:
			return
		case try == 3:
			t.Errorf("%s: %.0f a second, bounded to %.0f", what, got, want)
		}
	}
}

// exceeds looks whether a measured rate is above what it was bounded to before. A machine that has other things to do may take long
// to get there; a limit that was not lifted never does.
func exceeds(t *testing.T, what string, want float64, measure func() float64) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		got := measure()
		t.Logf("%s: %.0f a second", what, got)
		if got > want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %.0f a second, still bounded", what, got)
		}
	}
}

// testThrottle thaws a VM with limits, which the frozen one did not have, and changes them while it runs.
func (s *frozenSuite) testThrottle(t *testing.T) {
	p := s.base.fork(t)
	const bytesLimit, opsLimit = 2_000_000, 50
	p.cfg.Drives[1].Limits = vmm.DriveLimits{BytesPerSecond: bytesLimit}
	vm := p.thaw(s.template)
	throttler, ok := vm.(vmm.Throttler)
	if !ok {
		t.Skip("this engine cannot change the limits of a VM that lives")
	}
	limit := func(l vmm.DriveLimits) {
		t.Helper()
		must(t, throttler.LimitDrive(p.ctx(), "disk", l))
	}
	must(t, vm.Resume(p.ctx()))
	g := greet(t, vm)
	inBytes := func() float64 { b, _ := rate(t, g, 2*time.Second, 64); return b }
	inOps := func() float64 { _, o := rate(t, g, 2*time.Second, 4); return o }
	holds(t, "bytes, from the start", bytesLimit, inBytes)
	limit(vmm.DriveLimits{})
	exceeds(t, "bytes, without limits", 1.5*bytesLimit, inBytes)
	exceeds(t, "operations, without limits", 1.5*opsLimit, inOps)
	limit(vmm.DriveLimits{OpsPerSecond: opsLimit})
	holds(t, "operations", opsLimit, inOps)
	limit(vmm.DriveLimits{OpsPerSecond: 1_000_000, BytesPerSecond: bytesLimit / 2})
	holds(t, "bytes, with a lesser limit", bytesLimit/2, inBytes)
	must(t, throttler.LimitDrive(p.ctx(), "rootfs", vmm.DriveLimits{BytesPerSecond: bytesLimit}))

	wantCode(t, "LimitDrive of another drive", throttler.LimitDrive(p.ctx(), "other", vmm.DriveLimits{}), spore.CodeNotFound)
	wantCode(t, "LimitDrive below zero", throttler.LimitDrive(p.ctx(), "disk", vmm.DriveLimits{BytesPerSecond: -1}), spore.CodeInvalid)
	wantCode(t, "LimitDrive below zero", throttler.LimitDrive(p.ctx(), "disk", vmm.DriveLimits{OpsPerSecond: -1}), spore.CodeInvalid)

	t.Run("Pause", func(t *testing.T) { testThrottledPause(t, p, vm, limit) })
	must(t, vm.Kill(p.ctx()))
	wantCode(t, "LimitDrive after the end", throttler.LimitDrive(p.ctx(), "disk", vmm.DriveLimits{}), spore.CodeConflict)
}

// testThrottledPause pauses a VM that has more I/O on its way than its limits let through in a long time. The pause does not wait
// for the limits, what was on its way is done, and the VM can be frozen.
func testThrottledPause(t *testing.T, p *place, vm vmm.VM, limit func(vmm.DriveLimits)) {
	const kib, count, seconds = 128, 16, 32
	limit(vmm.DriveLimits{BytesPerSecond: kib << 10 * count / seconds})
	g := greet(t, vm)
	g.ask("disk-flood %d %d", kib, count)
	began := time.Now()
	must(t, vm.Pause(p.ctx()))
	took := time.Since(began)
	t.Logf("a pause with %d KiB on their way, which is %d s of the limit: %s", kib*count, seconds, took)
	if took > seconds*time.Second/4 {
		t.Errorf("the pause waited for the limits: %s", took)
	}
	state := p.freeze(vm, true)
	q := p.fork(t)
	fork := q.thaw(state)
	must(t, fork.Resume(q.ctx()))
	if p.h.Processes { // a simulated guest's goroutines are in no memory
		greet(t, fork).ask("disk-flooded 0 0")
	}
	limit(vmm.DriveLimits{})
	must(t, vm.Resume(p.ctx()))
	greet(t, vm).ask("disk-flooded 0 0")
}
