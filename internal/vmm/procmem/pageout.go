package procmem

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// rangesPerCall is how many ranges one call hands to the kernel, its own limit.
const rangesPerCall = 1024

// callBytes bounds one call, so that ctx is looked at now and then: the kernel writes as it goes.
const callBytes = 16 << 20

// PageOut moves the process's own pages of RAM to the host's swap, from where they come back one by one as they are used, and
// tells how many bytes went. File pages are left alone: they are shared, and the host drops them by itself. It fails with
// spore.CodeUnsupported when the host has no swap, is older than Linux 5.10, or the RAM file is mapped shared.
func (m *Memory) PageOut(ctx context.Context) (int64, error) {
	release, err := m.hold()
	if err != nil {
		return 0, err
	}
	defer release()
	if err := swapIsOn(); err != nil {
		return 0, err
	}
	held, err := m.scan(ctx, false)
	if err != nil {
		return 0, err
	}
	before, err := m.swapped(ctx, held)
	if err != nil {
		return 0, err
	}
	for _, batch := range batches(held) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if err := m.adviseOut(batch); err != nil {
			return 0, err
		}
	}
	after, err := m.swapped(ctx, held)
	if err != nil {
		return 0, err
	}
	if !m.alive() {
		return 0, gone(m.pid, nil)
	}
	return max(0, after-before), nil
}

func swapIsOn() error {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("procmem: %w", err)
	}
	if info.Totalswap == 0 {
		return spore.Errorf(spore.CodeUnsupported, "this host has no swap that idle memory could go to").
			WithHint("give it some; zram keeps it in memory, compressed")
	}
	return nil
}

// batches cuts ranges into what one call takes.
func batches(ranges []vmm.Range) (all [][]vmm.Range) {
	var batch []vmm.Range
	room := int64(callBytes)
	for _, r := range ranges {
		for r.Length > 0 {
			if room == 0 || len(batch) == rangesPerCall {
				all, batch, room = append(all, batch), nil, callBytes
			}
			part := vmm.Range{Offset: r.Offset, Length: min(r.Length, room)}
			batch = append(batch, part)
			room -= part.Length
			r.Offset += part.Length
			r.Length -= part.Length
		}
	}
	if len(batch) > 0 {
		all = append(all, batch)
	}
	return all
}

// adviseOut asks the kernel to page out a batch. What it does not get to, since a page is in use or swap is full, stays.
func (m *Memory) adviseOut(batch []vmm.Range) error {
	var iov []unix.RemoteIovec
	left := 0
	for _, r := range batch {
		for _, seg := range m.runs {
			from, to := max(r.Offset, seg.off), min(r.End(), seg.off+seg.len)
			if from < to {
				iov = append(iov, unix.RemoteIovec{Base: uintptr(seg.addr + uint64(from-seg.off)), Len: int(to - from)})
				left += int(to - from)
			}
		}
	}
	for len(iov) > 0 {
		part := iov[:min(len(iov), rangesPerCall)]
		n, _, errno := unix.Syscall6(unix.SYS_PROCESS_MADVISE, uintptr(m.pidfd), uintptr(unsafe.Pointer(&part[0])), uintptr(len(part)), unix.MADV_PAGEOUT, 0, 0)
		runtime.KeepAlive(part)
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.ENOSYS:
			return spore.Errorf(spore.CodeUnsupported, "this kernel cannot page out the memory of another process").WithHint("Linux 5.10 can").WithCause(errno)
		case errno != 0:
			return m.explain("page out the memory", errno)
		case n == 0:
			return fmt.Errorf("procmem: the kernel pages out nothing of %d bytes of process %d", left, m.pid)
		}
		left -= int(n)
		// It may have stopped on the way; the next call goes on from there.
		for done := int(n); done > 0 && len(iov) > 0; {
			if done < iov[0].Len {
				iov[0].Base += uintptr(done)
				iov[0].Len -= done
				break
			}
			done -= iov[0].Len
			iov = iov[1:]
		}
	}
	return nil
}

// swapped is how many bytes of the ranges are in swap.
func (m *Memory) swapped(ctx context.Context, ranges []vmm.Range) (total int64, err error) {
	buf := make([]byte, 64<<10)
	for _, r := range ranges {
		for _, seg := range m.runs {
			from, to := max(r.Offset, seg.off), min(r.End(), seg.off+seg.len)
			for from < to {
				if err := ctx.Err(); err != nil {
					return 0, err
				}
				want := min(int64(len(buf)), (to-from)/vmm.PageSize*8)
				n, err := m.pagemap.ReadAt(buf[:want], int64((seg.addr+uint64(from-seg.off))/vmm.PageSize*8))
				if int64(n) < want {
					if err == nil || errors.Is(err, io.EOF) {
						err = io.ErrUnexpectedEOF
					}
					return 0, m.explain("read the page map", err)
				}
				for i := 0; i+8 <= n; i += 8 {
					entry := binary.NativeEndian.Uint64(buf[i:])
					if entry&(entrySwapped|entryPresent|entryFile) == entrySwapped {
						total += vmm.PageSize
					}
				}
				from += int64(n) / 8 * vmm.PageSize
			}
		}
	}
	return total, nil
}
