package frozen

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"github.com/sporevm/spore/internal/vmm"
)

// Difference is in what two frozen VMs differ.
type Difference struct {
	MemoryBytes int64 // in pages that differ
	MemorySize  int64 // of the larger memory
	DiskBytes   int64 // in blocks of 4 KiB that differ
	// Disk is where the disks may differ, in ascending order: outside of it they are equal.
	Disk []vmm.Range
}

// nearby: changes of a disk that are no further apart count as one in Difference.Disk, so that a disk that is written
// all over does not fill the memory with ranges.
const nearby = 64 << 10

// Compare finds the pages and blocks in which two open images differ. Layers that both stand on are not read.
func Compare(ctx context.Context, from, to *Image) (*Difference, error) {
	d := &Difference{MemorySize: max(from.Manifest.Memory.Size, to.Manifest.Memory.Size)}
	err := compareChains(ctx, side{&from.Manifest.Memory, from.memory}, side{&to.Manifest.Memory, to.memory}, func(int64) {
		d.MemoryBytes += pageSize
	})
	if err != nil {
		return nil, fmt.Errorf("compare memory: %w", err)
	}
	if from.disk == nil || to.disk == nil {
		return d, nil
	}
	err = compareChains(ctx, side{from.Manifest.Disk, from.disk}, side{to.Manifest.Disk, to.disk}, func(at int64) {
		d.DiskBytes += pageSize
		if n := len(d.Disk); n > 0 && at-d.Disk[n-1].End() < nearby {
			d.Disk[n-1].Length = at + pageSize - d.Disk[n-1].Offset
			return
		}
		d.Disk = append(d.Disk, vmm.Range{Offset: at, Length: pageSize})
	})
	if err != nil {
		return nil, fmt.Errorf("compare disks: %w", err)
	}
	return d, nil
}

// side is one of two chains that are compared.
type side struct {
	*Chain
	*view
}

// compareChains reports each page that differs, in ascending order. The shorter chain reads as zeros beyond its end.
func compareChains(ctx context.Context, a, b side, differs func(offset int64)) error {
	candidates, err := mayDiffer(a, b)
	if err != nil {
		return err
	}
	x, y := make([]byte, frameSize), make([]byte, frameSize)
	for _, r := range split(candidates, frameSize) {
		if err := ctx.Err(); err != nil {
			return err
		}
		mine, theirs := x[:r.Length], y[:r.Length]
		if err := readFull(a.view, mine, r.Offset); err != nil {
			return err
		}
		if err := readFull(b.view, theirs, r.Offset); err != nil {
			return err
		}
		if bytes.Equal(mine, theirs) {
			continue
		}
		for i := 0; i < len(mine); i += pageSize {
			if !bytes.Equal(mine[i:i+pageSize], theirs[i:i+pageSize]) {
				differs(r.Offset + int64(i))
			}
		}
	}
	return nil
}

// mayDiffer lists where two chains need to be read: where the layers lie that only one of them has and, if their bases
// differ, wherever either base holds data that is not the very same on the disk.
func mayDiffer(a, b side) ([]vmm.Range, error) {
	shared := 0
	var out []vmm.Range
	if a.Base.Digest == b.Base.Digest {
		for shared < min(len(a.Layers), len(b.Layers)) && a.Layers[shared].ID == b.Layers[shared].ID {
			shared++
		}
	} else {
		var err error
		if out, err = basesDiffer(a.base.(*os.File), b.base.(*os.File)); err != nil {
			return nil, err
		}
	}
	for _, s := range []side{a, b} {
		for _, l := range s.view.layers[shared:] {
			out = union(out, l.covers())
		}
	}
	return out, nil
}

func basesDiffer(a, b *os.File) ([]vmm.Range, error) {
	mine, err := dataExtents(a)
	if err != nil {
		return nil, err
	}
	theirs, err := dataExtents(b)
	if err != nil {
		return nil, err
	}
	same, err := sameBlocks(a, b)
	if err != nil {
		return nil, fmt.Errorf("find where %s and %s lie: %w", a.Name(), b.Name(), err)
	}
	return subtract(union(mine, theirs), same), nil
}

// covers lists where a layer lies.
func (l *layer) covers() []vmm.Range {
	var out []vmm.Range
	for _, r := range l.runs {
		out = appendRange(out, vmm.Range{Offset: r.offset, Length: r.length})
	}
	return out
}
