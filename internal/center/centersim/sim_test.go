package centersim

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"testing/cryptotest"
)

var (
	seeds = flag.Uint64("seeds", 200, "how many seeds to play; make test plays 10,000")
	first = flag.Uint64("first", 0, "the first seed")
	only  = flag.Int64("seed", -1, "play this seed alone, and tell all of it")
)

// one plays a seed with all chance under its control.
func one(t *testing.T, seed uint64, verbose bool) (failures []string, trace uint64) {
	t.Helper()
	t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
		cryptotest.SetGlobalRandom(t, seed)
		runtime.GC() // and not again before the seed is over: it changes the order in which goroutines run
		defer debug.SetGCPercent(debug.SetGCPercent(-1))
		failures, trace = play(t, seed, verbose)
		for _, f := range failures {
			t.Error(f)
		}
		if len(failures) > 0 {
			t.Logf("again, with all of it told: go test ./internal/center/centersim -run TestSeeds -seed %d -v", seed)
		}
	})
	return failures, trace
}

// TestSeeds plays many runs. They share the processors by being played in processes of their own, each on one: with one
// processor nothing is left to chance but what the seed decides.
func TestSeeds(t *testing.T) {
	runtime.GOMAXPROCS(1)
	if *only >= 0 {
		one(t, uint64(*only), true)
		return
	}
	if os.Getenv("SPORE_SIM_SHARD") != "" {
		bad := 0
		for s := *first; s < *first+*seeds && bad < 5; s++ {
			if failures, _ := one(t, s, false); len(failures) > 0 {
				bad++
			}
		}
		return
	}
	shards := uint64(runtime.GOMAXPROCS(0))
	var all sync.WaitGroup
	for i := range shards {
		all.Go(func() {
			from, to := *first+*seeds*i/shards, *first+*seeds*(i+1)/shards
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSeeds$", fmt.Sprint("-first=", from), fmt.Sprint("-seeds=", to-from))
			cmd.Env = append(os.Environ(), "SPORE_SIM_SHARD=1", "GODEBUG=asyncpreemptoff=1")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("seeds %d to %d: %v\n%s", from, to-1, err, strings.TrimSpace(string(out)))
			}
		})
	}
	all.Wait()
}

// TestReplay plays some seeds twice: a seed must give the same run again, or a failure could not be looked at.
func TestReplay(t *testing.T) {
	if shuffled {
		t.Skip("the race detector shuffles goroutines; make simulate runs this without it")
	}
	if os.Getenv("SPORE_SIM_SHARD") == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestReplay$")
		cmd.Env = append(os.Environ(), "SPORE_SIM_SHARD=1", "GODEBUG=asyncpreemptoff=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	runtime.GOMAXPROCS(1)
	// A processor that another process takes away for long changes the order in which goroutines run, and nothing here can
	// keep a busy machine from that. So a run that differs is played again, a few times.
	const tries = 6
	for seed := range uint64(20) {
		_, last := one(t, seed, false)
		same := false
		for try := 0; try < tries && !same; try++ {
			_, trace := one(t, seed, false)
			same, last = trace == last, trace
		}
		if !same {
			t.Errorf("seed %d gave another run each time", seed)
		}
	}
}
