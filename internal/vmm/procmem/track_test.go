package procmem

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/sporevm/spore/internal/vmm"
)

func TestRangeArithmetic(t *testing.T) {
	set := rapid.SliceOfN(rapid.Bool(), 40, 40)
	runs := func(bits []bool) []vmm.Range {
		var l runList
		for i, b := range bits {
			if b {
				l.add(int64(i)*page, page)
			}
		}
		return l.runs
	}
	bitsOf := func(rs []vmm.Range) []bool {
		out := make([]bool, 40)
		for _, r := range rs {
			for o := r.Offset; o < r.End(); o += page {
				out[o/page] = true
			}
		}
		return out
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := set.Draw(t, "a"), set.Draw(t, "b")
		u, s := bitsOf(union(runs(a), runs(b))), bitsOf(subtract(runs(a), runs(b)))
		for i := range a {
			if u[i] != (a[i] || b[i]) || s[i] != (a[i] && !b[i]) {
				t.Fatalf("page %d: union %v, subtract %v", i, u[i], s[i])
			}
		}
	})
}
