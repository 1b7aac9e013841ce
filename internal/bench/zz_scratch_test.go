package bench_test

import (
	"os"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/bench"
)

func TestScratch(t *testing.T) {
	_, err := bench.RunControl(t.Context(), bench.ControlConfig{Machines: 100, Snapshots: 20000, Rounds: 4, Slice: 2 * time.Second, DataDir: "/tmp/bc", Out: os.Stderr, Postgres: os.Getenv("PG") != ""})
	if err != nil {
		t.Fatal(err)
	}
}
