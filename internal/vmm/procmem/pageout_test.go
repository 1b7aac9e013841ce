package procmem

import (
	"context"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/testbed"
	"github.com/sporevm/spore/internal/vmm"
)

func TestPageOut(t *testing.T) {
	path := ramFile(t, 64)
	c := startChild(t, path)
	m := open(t, c.pid, path, 64*page)
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		t.Fatal(err)
	}
	if _, err := m.PageOut(t.Context()); info.Totalswap == 0 && spore.CodeOf(err) != spore.CodeUnsupported {
		t.Errorf("without swap: %v", err)
	}
	testbed.Swap(t, 8)
	if n, err := m.PageOut(t.Context()); n != 0 || err != nil {
		t.Errorf("of a process without pages of its own: %d, %v", n, err)
	}
	c.do("fill %d %d 9", 10*page, 20*page)
	c.do("fill %d %d 5", 40*page, 3*page)
	n, err := m.PageOut(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n == 0 {
		t.Skip("the kernel swapped nothing out, although swap is on")
	}
	t.Logf("%d of 23 pages went", n/page)
	if n > 23*page {
		t.Errorf("%d bytes went of %d", n, 23*page)
	}
	if got, want := c.do("read %d %d 0", 10*page, 20*page), fmt.Sprint(20*page*9); got != want {
		t.Errorf("the process reads %s, wrote %s", got, want)
	}
	if held, err := m.Private(t.Context()); err != nil || len(held) != 2 {
		t.Errorf("%v, %v", held, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.PageOut(ctx); spore.CodeOf(err) != spore.CodeCanceled {
		t.Error(err)
	}
	c.end()
	if _, err := m.PageOut(t.Context()); spore.CodeOf(err) != spore.CodeConflict {
		t.Errorf("of a process that has ended: %v", err)
	}
}

func TestBatches(t *testing.T) {
	var ranges []vmm.Range
	for i := int64(0); i < 3*rangesPerCall; i++ {
		ranges = append(ranges, vmm.Range{Offset: i * 2 * page, Length: page})
	}
	ranges = append(ranges, vmm.Range{Offset: 1 << 40, Length: 3*callBytes + page})
	var joined runList
	for _, batch := range batches(ranges) {
		size := int64(0)
		for _, r := range batch {
			joined.add(r.Offset, r.Length)
			size += r.Length
		}
		if len(batch) == 0 || len(batch) > rangesPerCall || size > callBytes {
			t.Errorf("a batch of %d ranges and %d bytes", len(batch), size)
		}
	}
	if len(joined.runs) != len(ranges) || joined.runs[len(ranges)-1] != ranges[len(ranges)-1] {
		t.Errorf("%d ranges became %d", len(ranges), len(joined.runs))
	}
}
