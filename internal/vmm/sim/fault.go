package sim

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	spore "github.com/sporevm/spore"
)

// Step is a moment of an operation at which a fault may strike.
type Step string

// The steps, in the order in which a VM goes through them.
const (
	StepBoot   Step = "boot"
	StepThaw   Step = "thaw"
	StepPatch  Step = "patch"
	StepLoad   Step = "load"
	StepAdopt  Step = "adopt"
	StepPause  Step = "pause"
	StepResume Step = "resume"
	StepSave   Step = "save"
	StepDial   Step = "dial"
)

// Fault decides what happens to VM id at a step: nil lets it go on, an error fails the operation. ErrDie, or an error
// that wraps it, ends the VM too.
type Fault func(ctx context.Context, id string, step Step) error

// ErrDie is the fault of a hypervisor that ends in the middle of an operation.
var ErrDie = spore.Errorf(spore.CodeConflict, "the simulated hypervisor ended")

// Seeded returns a Fault that fails a share of all steps, ends the VM at a share, and delays each by up to delay. The
// same seed makes the same choices in the same order of steps.
func Seeded(seed uint64, fail, die float64, delay time.Duration) Fault {
	var mu sync.Mutex
	rnd := rand.New(rand.NewPCG(seed, seed))
	return func(ctx context.Context, id string, step Step) error {
		mu.Lock()
		chance, wait := rnd.Float64(), time.Duration(0)
		if delay > 0 {
			wait = time.Duration(rnd.Int64N(int64(delay)))
		}
		mu.Unlock()
		if wait > 0 {
			timer := time.NewTimer(wait)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		switch {
		case chance < die:
			return ErrDie
		case chance < die+fail:
			return spore.Errorf(spore.CodeUnreachable, "simulated fault at %s of %s", step, id)
		}
		return ctx.Err()
	}
}
