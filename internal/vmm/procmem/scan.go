package procmem

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// Private lists the runs of pages that the process holds for itself: its copies of file pages, in memory or swapped
// out. It fails with spore.CodeUnsupported when the RAM file is mapped shared.
func (m *Memory) Private(ctx context.Context) ([]vmm.Range, error) {
	release, err := m.hold()
	if err != nil {
		return nil, err
	}
	defer release()
	return m.scan(ctx, false)
}

func (m *Memory) scan(ctx context.Context, dirty bool) ([]vmm.Range, error) {
	if !m.private {
		return nil, spore.Errorf(spore.CodeUnsupported, "this VM shares its RAM with its memory file: the file is the memory")
	}
	var out runList
	for _, seg := range m.runs {
		err := errNoScan
		if !noPagemapScan.Load() {
			err = m.scanIoctl(ctx, seg, dirty, &out)
		}
		if errors.Is(err, errNoScan) {
			noPagemapScan.Store(true)
			err = m.scanPagemap(ctx, seg, dirty, &out)
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, m.explain("scan the page map", err)
		}
	}
	// The page map of an ended process reads as empty, which would look like "nothing written".
	if !m.alive() {
		return nil, gone(m.pid, nil)
	}
	return out.runs, nil
}

// runList gathers runs in ascending order and joins the ones that touch.
type runList struct{ runs []vmm.Range }

func (l *runList) add(off, length int64) {
	if n := len(l.runs); n > 0 && l.runs[n-1].End() == off {
		l.runs[n-1].Length += length
		return
	}
	l.runs = append(l.runs, vmm.Range{Offset: off, Length: length})
}

// noPagemapScan remembers that the kernel is older than the ioctl (Linux 6.7).
var noPagemapScan atomic.Bool

var errNoScan = errors.New("the kernel has no PAGEMAP_SCAN")

// The ioctl's interface, from <linux/fs.h>.
const (
	ioctlPagemapScan = 0xc0606610 // _IOWR('f', 16, struct pm_scan_arg)

	pageIsFile      = 1 << 2
	pageIsPresent   = 1 << 3
	pageIsSwapped   = 1 << 4
	pageIsSoftDirty = 1 << 7
)

type pmScanArg struct {
	Size, Flags, Start, End, WalkEnd, Vec, VecLen, MaxPages       uint64
	CategoryInverted, CategoryMask, CategoryAnyofMask, ReturnMask uint64
}

type pageRegion struct{ Start, End, Categories uint64 }

// regionsPerCall is how many runs one ioctl brings back: 96 KiB of them.
const regionsPerCall = 4096

// scanIoctl lets the kernel walk the page tables and bring back only what matters; absent parts cost nothing.
func (m *Memory) scanIoctl(ctx context.Context, seg segment, dirty bool, out *runList) error {
	vec := make([]pageRegion, regionsPerCall)
	arg := pmScanArg{
		Start: seg.addr, End: seg.addr + uint64(seg.len),
		Vec: uint64(uintptr(unsafe.Pointer(&vec[0]))), VecLen: regionsPerCall,
		CategoryInverted: pageIsFile, CategoryMask: pageIsFile, CategoryAnyofMask: pageIsPresent | pageIsSwapped,
		// As little as possible: neighbours that differ in a returned category come as two regions.
		ReturnMask: pageIsFile,
	}
	arg.Size = uint64(unsafe.Sizeof(arg))
	if dirty {
		arg.CategoryMask |= pageIsSoftDirty
	}
	defer runtime.KeepAlive(vec) // the kernel knows it by address alone
	for arg.Start < arg.End {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, m.pagemap.Fd(), ioctlPagemapScan, uintptr(unsafe.Pointer(&arg)))
		switch errno {
		case 0:
		case unix.EINTR:
			continue
		case unix.ENOTTY, unix.EINVAL:
			return errNoScan
		default:
			return errno
		}
		if arg.WalkEnd <= arg.Start || arg.WalkEnd > arg.End {
			return fmt.Errorf("the kernel ended its walk at %x", arg.WalkEnd)
		}
		for _, r := range vec[:n] {
			// When the kernel's own buffer filled on the way, the regions can go on past the end it reports; the
			// next round brings those again.
			if r.End = min(r.End, arg.WalkEnd); r.Start >= r.End {
				break
			}
			if r.Start < arg.Start {
				return fmt.Errorf("the kernel reported page %x in a walk from %x", r.Start, arg.Start)
			}
			out.add(seg.off+int64(r.Start-seg.addr), int64(r.End-r.Start))
		}
		arg.Start = arg.WalkEnd
	}
	return nil
}

// Bits of an entry of /proc/PID/pagemap.
const (
	entrySoftDirty = 1 << 55
	entryFile      = 1 << 61
	entrySwapped   = 1 << 62
	entryPresent   = 1 << 63
)

// holds says whether a page map entry stands for a page of the process's own. A page under migration by the kernel
// reads as swapped; if it belongs to a file it is still the file's.
func holds(entry uint64, dirty bool) bool {
	if entry&entryFile != 0 || entry&(entryPresent|entrySwapped) == 0 {
		return false
	}
	return !dirty || entry&entrySoftDirty != 0
}

// scanPagemap reads an entry of eight bytes for every page: 4 MiB of them for 2 GiB.
func (m *Memory) scanPagemap(ctx context.Context, seg segment, dirty bool, out *runList) error {
	buf := make([]byte, 256<<10)
	for off := int64(0); off < seg.len; {
		if err := ctx.Err(); err != nil {
			return err
		}
		want := min(int64(len(buf)), (seg.len-off)/vmm.PageSize*8)
		pos := int64((seg.addr + uint64(off)) / vmm.PageSize * 8)
		n, err := m.pagemap.ReadAt(buf[:want], pos)
		if int64(n) < want {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		parseEntries(buf[:n], seg.off+off, dirty, out)
		off += int64(n) / 8 * vmm.PageSize
	}
	return nil
}

// parseEntries adds the pages that buf, a part of a page map, shows as held; the first entry is RAM offset off.
func parseEntries(buf []byte, off int64, dirty bool, out *runList) {
	for i := 0; i+8 <= len(buf); i += 8 {
		if holds(binary.NativeEndian.Uint64(buf[i:]), dirty) {
			out.add(off+int64(i/8)*vmm.PageSize, vmm.PageSize)
		}
	}
}
