package pager_test

import (
	"os"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/vmm/firecracker/pager"
)

// TestMeasure measures this host, and leaves nothing behind.
func TestMeasure(t *testing.T) {
	dir := t.TempDir()
	start := time.Now()
	v, err := pager.Measure(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%v: %+v", time.Since(start), v)
	if !v.Supported || v.FileFault <= 0 || v.UffdFault <= 0 || v.CopyRate <= 0 || v.Reason == "" {
		t.Errorf("verdict %+v", v)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestChoose(t *testing.T) {
	host := pager.Verdict{Supported: true, FileFault: time.Microsecond, UffdFault: 11 * time.Microsecond, CopyRate: 1 << 30}
	shares := host
	shares.Shares = true
	cheap := host
	cheap.UffdFault = 500 * time.Nanosecond
	for _, c := range []struct {
		name         string
		host         pager.Verdict
		layers, base int64
		want         pager.Backend
	}{
		{"no layers", host, 0, 1 << 30, pager.BackendFile},
		{"no layers, cheap server", cheap, 0, 1 << 30, pager.BackendUffd},
		{"a big base to copy", host, 1 << 20, 1 << 30, pager.BackendUffd},
		{"a big base to share", shares, 1 << 20, 1 << 30, pager.BackendFile},
		{"big layers", shares, 1 << 30, 1 << 30, pager.BackendUffd},
		{"unsupported", pager.Verdict{Unsupported: "no"}, 1 << 30, 1 << 30, pager.BackendFile},
	} {
		if got, why := c.host.Choose(c.layers, c.base); got != c.want || why == "" {
			t.Errorf("%s: %s because %s", c.name, got, why)
		}
	}
}
