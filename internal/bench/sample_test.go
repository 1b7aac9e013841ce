package bench

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestPercentile(t *testing.T) {
	ten := []float64{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}
	for _, c := range []struct {
		values []float64
		p      float64
		want   float64
	}{
		{nil, 50, 0},
		{[]float64{7}, 1, 7},
		{[]float64{7}, 99, 7},
		{ten, 50, 5},
		{ten, 90, 9},
		{ten, 91, 10},
		{ten, 100, 10},
		{ten, 0, 1},
	} {
		if got := percentile(c.values, c.p); got != c.want {
			t.Errorf("percentile(%v, %v) = %v, want %v", c.values, c.p, got, c.want)
		}
	}
	if ten[0] != 10 {
		t.Error("percentile sorted its argument")
	}
}

func TestJudge(t *testing.T) {
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		fill    func(r *Row)
		atLeast bool
		strict  bool
		want    string
	}{
		"nothing measured":     {func(*Row) {}, false, false, Failed},
		"an empty series":      {func(r *Row) { r.series("a", milliseconds).failed(boom) }, false, false, Failed},
		"within":               {func(r *Row) { r.series("a", milliseconds).add(2) }, false, false, Met},
		"at the limit":         {func(r *Row) { r.series("a", milliseconds).add(3) }, false, false, Met},
		"beyond":               {func(r *Row) { r.series("a", milliseconds).add(4) }, false, false, Missed},
		"enough":               {func(r *Row) { r.series("a", milliseconds).add(4) }, true, false, Met},
		"too little":           {func(r *Row) { r.series("a", milliseconds).add(2) }, true, false, Missed},
		"one failure":          {func(r *Row) { s := r.series("a", milliseconds); s.add(2); s.failed(boom) }, false, false, Met},
		"one failure, strict":  {func(r *Row) { s := r.series("a", milliseconds); s.add(2); s.failed(boom) }, false, true, Failed},
		"one of two is empty":  {func(r *Row) { r.series("a", milliseconds).add(2); r.series("b", milliseconds) }, false, false, Failed},
		"none failed, strict":  {func(r *Row) { r.series("a", milliseconds).add(2) }, false, true, Met},
		"beyond, with strict":  {func(r *Row) { r.series("a", milliseconds).add(4) }, false, true, Missed},
		"failures are counted": {func(r *Row) { s := r.series("a", milliseconds); s.add(2); s.failed(boom) }, true, false, Missed},
	} {
		row := &Row{Limit: 3, AtLeast: c.atLeast}
		c.fill(row)
		row.judge(c.strict, func() float64 { return row.Series[0].P50 })
		if row.Verdict != c.want {
			t.Errorf("%s: %s, want %s", name, row.Verdict, c.want)
		}
	}
}

func TestReport(t *testing.T) {
	row := &Row{Name: "miss", What: "create", Goal: "at most 1 x", Limit: 1, Unit: "x"}
	s := row.series("spore", milliseconds)
	s.took(150 * time.Millisecond)
	s.failed(errors.New("the guest was out to lunch"))
	row.judge(false, func() float64 { return 2 })
	r := &Report{Format: Format, Started: time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC), Scope: Scope{Arch: "amd64", Cores: 2, Accel: "tcg", Filesystem: "ext4"}, Rows: []*Row{row}}
	var text strings.Builder
	if err := r.Print(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"150.0 ms", "2.00 x", "missed", "the guest was out to lunch"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the table does not say %q:\n%s", want, text.String())
		}
	}
	dir := filepath.Join(t.TempDir(), "results")
	var paths []string
	for range 2 {
		path, err := r.Save(dir)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, filepath.Base(path))
	}
	if diff := cmp.Diff([]string{"2026-11-21-amd64-2c-tcg-ext4.json", "2026-11-21-amd64-2c-tcg-ext4-2.json"}, paths); diff != "" {
		t.Error(diff)
	}
	var back Report
	if err := readJSON(filepath.Join(dir, paths[0]), &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, &back); diff != "" {
		t.Errorf("the saved report reads back differently:\n%s", diff)
	}
}

func TestChoose(t *testing.T) {
	if _, err := choose([]string{"miss", "nonsense"}); err == nil {
		t.Error("a row that there is not was accepted")
	}
	got, err := choose([]string{"hit", "cold"})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].name != "cold" || got[1].name != "hit" {
		t.Errorf("choose answered %v", got)
	}
}

const smaps = `55d0c0000000-55d0c0100000 r--p 00000000 fe:00 100 /usr/bin/qemu-system-x86_64
Size:               1024 kB
Anonymous:            12 kB
Swap:                  0 kB
VmFlags: rd mr mw me
7f0000000000-7f0010000000 rw-p 00000000 fe:00 200 /data/pieces/mem/data (deleted)
Size:             262144 kB
Rss:                9000 kB
Anonymous:          4096 kB
Swap:               1024 kB
7f0020000000-7f0040000000 rw-p 00000000 00:00 0
Size:             524288 kB
Anonymous:        500000 kB
Swap:                  0 kB
`

func TestDirty(t *testing.T) {
	got, err := dirtyIn(bufio.NewScanner(strings.NewReader(smaps)))
	if err != nil || got != 5120<<10 {
		t.Errorf("dirty = %d, %v; want %d", got, err, 5120<<10)
	}
	if _, err := dirtyIn(bufio.NewScanner(strings.NewReader(""))); err == nil {
		t.Error("a process that maps nothing has no RAM, but no error came")
	}
}

func FuzzDirty(f *testing.F) {
	f.Add(smaps)
	f.Add("a-b c d e f\nSize: x kB\n")
	f.Fuzz(func(t *testing.T, text string) {
		dirtyIn(bufio.NewScanner(strings.NewReader(text)))
	})
}

func TestMakeImage(t *testing.T) {
	if _, err := exec.LookPath("busybox"); err != nil {
		t.Fatal("busybox is missing: run `make deps`")
	}
	dir := filepath.Join(t.TempDir(), "image")
	ref, err := makeImage(dir)
	if err != nil {
		t.Fatal(err)
	}
	if ref != "oci:"+dir+":latest" {
		t.Errorf("the reference is %q", ref)
	}
	if _, err := os.Stat(filepath.Join(dir, "index.json")); err != nil {
		t.Error(err)
	}
}
